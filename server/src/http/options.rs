//! How the server is run: where it listens, who may ask, and how much.

use std::net::IpAddr;
use std::time::Duration;

use ponder_engine::{Error, Result};

use super::otlp::Spans;

/// Under which names reasoning is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningField {
    /// `reasoning_content` and `reasoning`: every client finds its own.
    #[default]
    Both,
    /// `reasoning_content` alone (SGLang, llama.cpp, DeepSeek).
    ReasoningContent,
    /// `reasoning` alone (vLLM).
    Reasoning,
}

impl ReasoningField {
    /// Whether `reasoning_content` is sent.
    pub fn content(self) -> bool {
        self != Self::Reasoning
    }
    /// Whether `reasoning` is sent.
    pub fn plain(self) -> bool {
        self != Self::ReasoningContent
    }
}

impl std::str::FromStr for ReasoningField {
    type Err = Error;
    fn from_str(word: &str) -> Result<Self> {
        match word {
            "both" => Ok(Self::Both),
            "reasoning_content" => Ok(Self::ReasoningContent),
            "reasoning" => Ok(Self::Reasoning),
            _ => Err(Error::invalid(
                "reasoning-field",
                format!("{word:?} is none of both, reasoning_content, reasoning"),
            )),
        }
    }
}

/// Bounds on what clients may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes of a request's body.
    pub body_bytes: usize,
    /// Until a request's head and body are there.
    pub arrival: Duration,
    /// Most connections at once.
    pub connections: usize,
    /// Most answers that wait for a seat.
    pub queued: usize,
    /// Most tokens, prompts and answers at their longest, of all requests in flight.
    pub tokens: usize,
    /// Most answers in flight of one API key; 0 is no bound.
    pub per_key: usize,
    /// Longest wait for a seat; zero is no bound.
    pub queue_wait: Duration,
    /// Longest time of a whole request; zero is no bound.
    pub request: Duration,
    /// How long a client may read nothing while there is something to read.
    pub slow_client: Duration,
    /// After the first signal, how long running requests may still take.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 8 << 20,
            arrival: Duration::from_secs(30),
            connections: 1024,
            queued: 256,
            tokens: 16 << 20,
            per_key: 0,
            queue_wait: Duration::from_secs(300),
            request: Duration::from_secs(3600),
            slow_client: Duration::from_secs(30),
            drain: Duration::from_secs(30),
        }
    }
}

/// How the server is run.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Address to listen at.
    pub host: IpAddr,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Keys that may ask; none: everybody may.
    pub api_keys: Vec<String>,
    /// Serve others than this machine without keys.
    pub insecure_no_auth: bool,
    /// Host names under which the server may be asked, besides those of loopback.
    pub allowed_hosts: Vec<String>,
    /// See [`ReasoningField`].
    pub reasoning_field: ReasoningField,
    /// Bounds.
    pub limits: Limits,
    /// Threads for HTTP; 0 chooses.
    pub workers: usize,
    /// Write prompts to the log.
    pub log_prompts: bool,
    /// Where spans of requests go: a collector that takes OTLP over HTTP as JSON.
    pub otlp_traces_endpoint: Option<String>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 8000,
            api_keys: Vec::new(),
            insecure_no_auth: false,
            allowed_hosts: Vec::new(),
            reasoning_field: ReasoningField::default(),
            limits: Limits::default(),
            workers: 0,
            log_prompts: false,
            otlp_traces_endpoint: None,
        }
    }
}

impl ServeOptions {
    /// Refuses what would be a mistake.
    ///
    /// # Errors
    /// A key that cannot be sent, other machines served without keys, or a collector that cannot be reached from here.
    pub fn validate(&self) -> Result<()> {
        let good = |k: &String| !k.is_empty() && k.bytes().all(|b| b.is_ascii_graphic());
        if !self.api_keys.iter().all(good) {
            return Err(Error::invalid("api-key", "is empty, or has characters that no header can carry"));
        }
        if !self.host.is_loopback() && self.api_keys.is_empty() && !self.insecure_no_auth {
            let why = format!(
                "{} can be reached by others; set --api-key, or --insecure-no-auth if that is meant",
                self.host
            );
            return Err(Error::invalid("host", why));
        }
        self.otlp_traces_endpoint.as_deref().map_or(Ok(()), |url| Spans::url(url).map(drop))
    }

    /// Threads for HTTP: each streams some ten thousand tokens a second, so a few are plenty.
    pub fn workers(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(4),
            n => n,
        }
    }
}
