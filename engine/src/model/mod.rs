//! What a model is: its numbers, its family, its weights, and the program of a forward pass.

pub mod batch;
pub mod config;
pub mod family;
pub mod mover;
pub mod record;
pub mod rope;
pub mod runner;
pub mod weights;

pub use config::{LocalAttention, ModelConfig, Pairing, Rope, RopeScaling};
pub use family::{Activation, Family};
pub use rope::RopeTable;
pub use weights::{LayerWeight, WeightId};
