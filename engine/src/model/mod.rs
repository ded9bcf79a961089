//! What a model is: its numbers, its family, its weights, and the program of a forward pass.

pub mod config;
pub mod family;

pub use config::{LocalAttention, ModelConfig, Pairing, Rope, RopeScaling};
pub use family::{Activation, Family};
