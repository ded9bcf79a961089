//! `ponder serve`: the HTTP server over the facade, speaking OpenAI's protocol.
//!
//! A request passes [`guard`] (id, host, key), is read by [`body`] (bounds, strict fields), becomes tokens in
//! [`prompt`] and a [`job`] in the engine; [`sse`] carries its stream. What clients see is in [`wire`], what
//! they may take in [`admission`], and where several instances share a name, which of them answers in [`fleet`];
//! [`otlp`] tells a collector of each. No state outlives a request but counts in [`metrics`].

pub mod admission;
pub mod auth;
pub mod body;
pub mod error;
pub mod fleet;
pub mod guard;
pub mod guide;
pub mod job;
pub mod metrics;
pub mod openapi;
pub mod options;
#[cfg(feature = "otlp")]
pub mod otlp;
#[cfg(not(feature = "otlp"))]
#[path = "otlp_absent.rs"]
pub mod otlp;
pub mod prompt;
pub mod routes;
pub mod shutdown;
pub mod sse;
pub mod state;
pub mod tools;
pub mod wire;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_web::middleware::from_fn;
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use ponder_engine::{Error, Result};

pub use options::{Limits, ReasoningField, ServeOptions};
pub use state::{Instance, Offer};

use state::State;

/// Listens, and says where.
///
/// # Errors
/// If the address is taken, or the options are a mistake.
pub fn listen(options: &ServeOptions) -> Result<(TcpListener, SocketAddr)> {
    options.validate()?;
    let at = SocketAddr::new(options.host, options.port);
    let failed = |e: std::io::Error| Error::invalid("port", format!("cannot listen at {at}: {e}"));
    let listener = TcpListener::bind(at).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Serves until a signal ends it. Returns how many requests were cut off at the end.
///
/// # Errors
/// If the server cannot start, or if two models have the same name.
pub fn run(listener: TcpListener, options: ServeOptions, models: Vec<Offer>) -> Result<usize> {
    options.validate()?;
    let state = Arc::new(State::new(options, models)?);
    let shared = state.clone();
    actix_web::rt::System::new().block_on(async move {
        let server = server(listener, shared.clone()).map_err(|e| Error::invalid("server", e.to_string()))?;
        let stop = actix_rt::spawn(shutdown::on_signal(shared, server.handle()));
        server.await.map_err(|e| Error::invalid("server", e.to_string()))?;
        if let Some(spans) = &state.spans {
            spans.end();
        }
        state.models.iter().try_for_each(|m| m.engine.write_trace())?;
        Ok(stop.await.unwrap_or(0))
    })
}

/// actix-web by default does not notice clients that left: half-closed connections are not allowed.
fn server(listener: TcpListener, state: Arc<State>) -> std::io::Result<actix_web::dev::Server> {
    let (limits, workers) = (state.options.limits.clone(), state.options.workers());
    let server = HttpServer::new(move || {
        App::new().app_data(Data::from(state.clone())).wrap(from_fn(guard::guard)).configure(routes::configure)
    });
    Ok(server
        .workers(workers)
        .max_connections(limits.connections.div_ceil(workers))
        .client_request_timeout(limits.arrival)
        .client_disconnect_timeout(Duration::from_secs(5))
        .keep_alive(Duration::from_secs(75))
        .h1_allow_half_closed(false)
        .tcp_nodelay(true)
        .shutdown_timeout(5)
        .disable_signals()
        .listen(listener)?
        .run())
}
