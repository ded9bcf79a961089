//! Speculative decoding: guesses that cost little, verified several at once, and never trusted.
//!
//! The target chooses every token itself, by `argmax(logits + noise(seed, choice, position, token))`;
//! a guess is accepted when it equals that choice. So the output is what the target alone would have
//! said, at any temperature and with every sampling parameter, and a bad drafter costs speed only.

mod acceptance;
mod compat;
mod cost;
pub mod coupling;
mod drafters;
mod follow;
mod length;
mod marks;
mod model;
mod ngram;
mod outcome;
mod recent;
mod rollout;
pub mod simulate;
mod suffix;
mod verify;

pub use acceptance::{Acceptance, Rates, SpecReport};
pub use compat::same_tokens;
pub use cost::{CostTable, CostTables};
pub use drafters::{DrafterOptions, Drafters, Lookup};
pub use length::{Candidate, DraftLength, LengthOptions};
pub use marks::{CacheMarks, Chain};
pub use model::{DraftJob, ModelLimits};
pub use ngram::Ngram;
pub use recent::Recent;
pub use rollout::{Ask, Rolled, RolloutLimits, rollout};
pub use suffix::{Suffix, SuffixAutomaton};
pub use verify::{batch_of, chosen_of};

/// Who guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Source {
    /// Nobody did.
    #[default]
    Nobody,
    /// What followed the same few tokens in the sequence itself.
    Ngram,
    /// What followed the longest repeated ending of the sequence itself.
    Suffix,
    /// What followed the same ending in another answer of the same tenant.
    Recent,
    /// The draft model.
    Model,
}

impl Source {
    /// All of them, by their number.
    pub const ALL: [Source; 5] = [Self::Nobody, Self::Ngram, Self::Suffix, Self::Recent, Self::Model];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Ngram => "ngram",
            Self::Suffix => "suffix",
            Self::Recent => "recent",
            Self::Model => "model",
        }
    }
}

/// Tokens that may follow, and how much speaks for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guess {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// Who guessed them.
    pub source: Source,
    /// How many of the log's last tokens stood before them where they were found.
    pub matched: usize,
}

/// Guesses the tokens that follow a sequence's log, from the log alone.
pub trait Drafter: Send {
    /// The log grew: `new` are its last tokens, `log` the whole.
    fn observe(&mut self, log: &[u32], new: usize);
    /// The log lost its last tokens and ends with `log` now.
    fn rewind(&mut self, log: &[u32]);
    /// At most `max` tokens that may follow `log`; none if it has no idea.
    fn propose(&mut self, log: &[u32], max: usize) -> Guess;
}
