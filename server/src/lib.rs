//! Ponder as a library: load a model, ask it, read the answer while it comes.
//!
//! ```no_run
//! use ponder::{Engine, EngineOptions, Prompt, Update};
//! use ponder_engine::request::SamplingParams;
//!
//! # fn main() -> ponder_engine::Result<()> {
//! let engine = Engine::load(EngineOptions::new("models/target"), |_| {})?;
//! for update in engine.generate(Prompt::user("What is 15% of 80?"), SamplingParams::default())? {
//!     if let Update::Answer(text) = update {
//!         print!("{text}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Opened`] is a model before it is loaded: its prompts can be tokenised and its memory plan read.
//! [`http`] serves models over HTTP. [`score`] runs a model over a given text without generating.

pub mod backends;
mod drafting;
mod engine;
pub mod eval;
mod generation;
pub mod http;
pub mod memory;
pub mod models;
mod opened;
mod options;
pub mod prompt;
mod reasoner;
pub mod score;
mod warm;

pub use backends::WithBackend;
pub use engine::Engine;
pub use generation::{Choices, Completion, Generation, Timings, Update};
pub use opened::{LoadProgress, Opened};
pub use options::{
    BackendChoice, DEFAULT_GROWTH_QUANTILE, DEFAULT_MODEL_LEN, DEFAULT_POOL_SEQS, DEFAULT_SWAP_SPACE, DraftOptions,
    EngineOptions,
};
pub use prompt::Prompt;
