//! Server-sent events: a task writes, the connection reads, and either notices when the other is gone.
//!
//! actix-web polls a body only while its own write buffer has room, so the channel between them is the bound
//! on what a slow client can pile up; a client that takes nothing for too long is cut off.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Events between task and connection; each is a token or so.
const BUFFERED: usize = 64;
/// A sign of life until the first event, and after it.
const FIRST_PINGS: Duration = Duration::from_secs(5);
/// See [`FIRST_PINGS`].
const PINGS: Duration = Duration::from_secs(15);

/// Why nothing more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The client closed its connection.
    Left,
    /// It reads nothing.
    Slow,
}

/// Text of events that are sent together.
#[derive(Default)]
pub struct Frames {
    text: String,
}

impl Frames {
    /// Adds an unnamed event with a JSON object.
    pub fn data(&mut self, value: &impl Serialize) {
        let json = serde_json::to_string(value).expect("our own types are JSON");
        self.raw(&json);
    }
    /// Adds a named event with a JSON object.
    pub fn event(&mut self, name: &str, value: &impl Serialize) {
        self.text.push_str("event: ");
        self.text.push_str(name);
        self.text.push('\n');
        self.data(value);
    }
    /// Adds an unnamed event of one line.
    pub fn raw(&mut self, line: &str) {
        self.text.push_str("data: ");
        self.text.push_str(line);
        self.text.push_str("\n\n");
    }
    /// Takes what was added.
    pub fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.text))
    }
    /// Nothing to send.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

/// The sending end.
pub struct Sender {
    channel: mpsc::Sender<Bytes>,
    patience: Duration,
    any: bool,
    last: Instant,
}

impl Sender {
    /// Sends what was added to `frames`.
    pub async fn send(&mut self, frames: &mut Frames) -> Result<(), Gone> {
        if frames.is_empty() {
            return Ok(());
        }
        self.any = true;
        self.put(frames.take()).await
    }

    async fn put(&mut self, bytes: Bytes) -> Result<(), Gone> {
        self.last = Instant::now();
        match self.channel.send_timeout(bytes, self.patience).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(Gone::Left),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(Gone::Slow),
        }
    }

    /// Waits for `work`, with pings meanwhile, unless the client leaves. `work` must survive being dropped.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Gone> {
        let mut work = std::pin::pin!(work);
        loop {
            let pause = if self.any { PINGS } else { FIRST_PINGS };
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = self.channel.closed() => return Err(Gone::Left),
                () = tokio::time::sleep_until(self.last + pause) => {}
            }
            self.put(Bytes::from_static(b": ping\n\n")).await?;
        }
    }
}

/// A response whose events `write` sends, on a task of its own on this thread.
pub fn respond<F: Future<Output = ()> + 'static>(patience: Duration, write: impl FnOnce(Sender) -> F) -> HttpResponse {
    let (channel, body) = mpsc::channel(BUFFERED);
    actix_rt::spawn(write(Sender { channel, patience, any: false, last: Instant::now() }));
    let body = futures::stream::unfold(body, |mut body| async move {
        let bytes: Bytes = body.recv().await?;
        Some((Ok::<_, Infallible>(bytes), body))
    });
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("cache-control", "no-cache"))
        .insert_header(("x-accel-buffering", "no"))
        .streaming(body)
}
