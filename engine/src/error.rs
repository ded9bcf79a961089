//! The one error type of the engine: every variant names what a person has to mend.

use std::path::PathBuf;

/// What can go wrong outside our own code. Our own mistakes are asserts, not errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model file says something that cannot be true.
    #[error("{}: {field}: {message}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The field, tensor or offset inside it.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A request, flag or configuration value is out of its range.
    #[error("{field}: {message}")]
    Invalid {
        /// The field or flag.
        field: String,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// The queue is full: not a mistake of the request, and gone after a while.
    #[error("busy: {waiting} answers wait already; try again later")]
    Busy {
        /// Answers that wait.
        waiting: usize,
    },
    /// The chat template failed.
    #[error("chat template: {0}")]
    Template(String),
    /// The tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A device could not do what was asked (out of memory, lost, unsupported).
    #[error("{device}: {what}")]
    Device {
        /// The device, in words.
        device: String,
        /// What happened.
        what: DeviceFault,
    },
}

/// Faults of a device, apart, because each is mended differently.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// Ask for less, or free something.
    #[error("out of memory: {wanted} bytes for {what}")]
    OutOfMemory {
        /// Bytes asked for.
        wanted: u64,
        /// The slot or buffer.
        what: String,
    },
    /// The device is gone: make a new one and replay.
    #[error("device lost: {0}")]
    Lost(String),
    /// The work did not end in time.
    #[error("no answer within {0} ms")]
    Timeout(u64),
    /// The device or this build cannot do it.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The driver rejected our work: a bug of ours, reported without a panic.
    #[error("rejected by the driver: {0}")]
    Rejected(String),
}

/// `Result` with the engine's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }
    /// An [`Error::Checkpoint`].
    pub fn checkpoint(path: impl Into<PathBuf>, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.into(), field: field.into(), message: message.into() }
    }
    /// An [`Error::Io`].
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}
