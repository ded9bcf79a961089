//! What goes over the wire: one file per format, requests and responses as types, so that the code, the
//! OpenAPI document and the errors say the same.

pub mod chat;
pub mod completion;
pub mod live;
pub mod messages;
pub mod models;
pub mod responses;
pub mod sampling;
pub mod tokens;
pub mod usage;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

/// Random bits, for ids and seeds; nothing secret hangs on them.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// An id such as `chatcmpl-0123456789abcdef`.
pub fn fresh_id(prefix: &str) -> String {
    format!("{prefix}-{:016x}{:016x}", random(), random())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// What OpenAI calls a system fingerprint: which program answered.
pub const FINGERPRINT: &str = concat!("ponder-", env!("CARGO_PKG_VERSION"));
