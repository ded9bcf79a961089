//! Speculative decoding: guesses that cost little, verified several at once, and never trusted.
//!
//! The target chooses every token itself, by `argmax(logits + noise(seed, choice, position, token))`;
//! a guess is accepted when it equals that choice. So the output is what the target alone would have
//! said, at any temperature and with every sampling parameter, and a bad drafter costs speed only.

mod drafters;
mod length;
mod ngram;
mod suffix;
mod verify;

pub use drafters::{DrafterKind, Drafters};
pub use length::{DraftLength, LengthOptions, Survival};
pub use ngram::Ngram;
pub use suffix::{Suffix, SuffixAutomaton};
pub use verify::{batch_of, chosen_of};

/// Guesses the tokens that follow a sequence's log.
pub trait Drafter: Send {
    /// Its name in reports.
    fn name(&self) -> &'static str;
    /// The log grew: `new` are its last tokens, `log` the whole.
    fn observe(&mut self, log: &[u32], new: usize);
    /// The log lost its last tokens and ends with `log` now.
    fn rewind(&mut self, log: &[u32]);
    /// At most `max` tokens that may follow `log`; none if it has no idea.
    fn propose(&mut self, log: &[u32], max: usize) -> Vec<u32>;
}
