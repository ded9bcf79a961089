//! Thinking as engine state: where it is, how much of it there may be, how much there will be.
//!
//! [`markers`] finds a model's think and tool markers; [`phase`] labels every token by one state machine with
//! exact rollback; [`budget`] caps the thinking exactly; [`loops`] notices when it circles; [`Reasoning`] is the
//! three together for one answer. Plain values without clock or I/O; the scheduler moves them.

pub mod budget;
pub mod kmp;
pub mod loops;
pub mod markers;
pub mod phase;
mod track;

pub use budget::{Budget, CloseReason, Extension, Landing, Steer, budget_of};
pub use loops::{Loop, LoopOptions};
pub use markers::{MarkerTexts, Markers, Role, Start, Vocabulary};
pub use phase::{Counts, Label, Phase, PhaseMachine, PhaseOptions, Span};
pub use track::{Reasoning, Thinking, ThinkingReport};

#[cfg(test)]
mod tests;
