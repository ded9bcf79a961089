//! Measures a model on problems with known answers: how often it is right, how long it thinks, how long one waits.
//!
//! [`problem`] reads a set, [`matcher`] compares an answer with the known one, [`run`] asks the engine many at
//! a time, [`report`] sums up by kind and depth.

pub mod matcher;
pub mod problem;
pub mod report;
pub mod run;

pub use matcher::Matcher;
pub use problem::{Problem, read_problems};
pub use report::{Report, Summary};
pub use run::{Outcome, run};
