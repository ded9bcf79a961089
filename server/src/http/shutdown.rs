//! The end: the first signal drains, the second stops at once.
//!
//! While it drains the server still listens, so that a balancer sees 503 on `/ready` and looks elsewhere.

use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use tokio::time::Instant;

use super::state::State;

/// Waits for a signal, drains, and stops the server. Returns how many requests were cut off.
pub async fn on_signal(state: Arc<State>, server: ServerHandle) -> usize {
    let mut signals = Signals::new();
    signals.next().await;
    state.drain();
    let deadline = Instant::now() + state.options.limits.drain;
    tracing::info!(target: "ponder::http", in_flight = state.in_flight(), "draining; a second signal stops at once");
    let mut forced = false;
    while state.in_flight() > 0 && Instant::now() < deadline && !forced {
        tokio::select! {
            () = signals.next() => forced = true,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    let left = state.in_flight();
    if left > 0 {
        tracing::warn!(target: "ponder::http", left, forced, "stopping with requests in flight");
    }
    tokio::select! {
        () = server.stop(left == 0) => {}
        () = signals.next() => server.stop(false).await,
    }
    left
}

#[cfg(unix)]
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let watch = |kind| signal(kind).expect("signals can be watched");
        Self { term: watch(SignalKind::terminate()), int: watch(SignalKind::interrupt()) }
    }
    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> Self {
        Self
    }
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
