//! Thinking as engine state: where it is, how much of it there may be, how much there will be.
//!
//! During an answer: [`markers`] finds a model's think and tool markers, [`phase`] labels every token by one
//! state machine with exact rollback, [`budget`] caps the thinking exactly, [`loops`] notices when it circles;
//! [`Reasoning`] is these together, and the scheduler moves it. Before an answer: [`decide`] turns an
//! [`effort`] into a [`Decision`] with the help of [`classify`], and [`survival`] says how long it will take.
//! Plain values without a clock; files are read only where the file's format is the point.

pub mod budget;
pub mod classify;
mod decide;
pub mod effort;
pub mod features;
pub mod fit;
pub mod kmp;
mod lengths;
pub mod loops;
pub mod markers;
pub mod phase;
pub mod survival;
mod track;

pub use budget::{Budget, CloseReason, Extension, Landing, Steer, budget_of};
pub use classify::{Classifier, Depth, Prediction, Quantiles};
pub use decide::{AutoOptions, Decision, Policy, decide};
pub use effort::{Effort, EffortTable};
pub use lengths::Lengths;
pub use loops::{Loop, LoopOptions};
pub use markers::{MarkerTexts, Markers, Role, Start, Vocabulary};
pub use phase::{Counts, Label, Phase, PhaseMachine, PhaseOptions, Span, Spans};
pub use survival::{Part, Progress, Remaining, Survival};
pub use track::{Reasoning, Thinking, ThinkingReport};

#[cfg(test)]
mod tests;
