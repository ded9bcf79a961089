//! One sequence's log as a drafter knows it, kept in step with the scheduler's through the plans alone.

use std::sync::Arc;

use super::marks::Chain;
use super::{Drafter, Guess, Source};
use crate::step::{Opening, SeqPlan};

/// A sequence that is followed.
pub(super) struct Followed {
    /// Its tokens, as far as they are known.
    pub log: Vec<u32>,
    /// Hashes of the log at block borders.
    pub chain: Chain,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// The last guess: the accepted part is cached without ever being an input again.
    pub last: Guess,
    /// What the draft model guessed beyond the last guess, should all of that be right.
    pub ahead: Vec<u32>,
    /// How much of the log other answers of the tenant may know of.
    pub published: usize,
    drafter: Option<Box<dyn Drafter>>,
}

impl Followed {
    pub fn new(opening: &Opening, drafter: Option<Box<dyn Drafter>>) -> Self {
        let mut new = Self {
            log: Vec::new(),
            chain: Chain::default(),
            tenant: opening.tenant.clone(),
            last: Guess::default(),
            ahead: Vec::new(),
            published: opening.prompt_len,
            drafter,
        };
        new.grow(&opening.log);
        new
    }

    fn grow(&mut self, tokens: &[u32]) {
        self.log.extend_from_slice(tokens);
        if let Some(drafter) = &mut self.drafter {
            drafter.observe(&self.log, tokens.len());
        }
    }

    fn cut(&mut self, len: usize, block_size: usize) {
        self.log.truncate(len);
        self.chain.cut(len, block_size);
        self.published = self.published.min(len);
        if let Some(drafter) = &mut self.drafter {
            drafter.rewind(&self.log);
        }
    }

    /// It starts over: the log is the same, and may be longer than what was known.
    pub fn reopen(&mut self, opening: &Opening, block_size: usize) {
        let common = self.log.iter().zip(&opening.log).take_while(|(a, b)| a == b).count();
        if common < self.log.len() {
            self.cut(common, block_size);
        }
        self.grow(&opening.log[common..]);
        self.last = Guess::default();
        self.ahead.clear();
    }

    /// Takes what a plan says of the log; returns how many of the last guesses were right, `None` if the
    /// plan cannot be followed.
    pub fn follow(&mut self, plan: &SeqPlan, block_size: usize) -> Option<usize> {
        let end = plan.start + plan.tokens.len();
        if end <= self.log.len() && self.log[plan.start..end] == *plan.tokens {
            // Inside a prompt, or inside a log that is computed again.
            return Some(0);
        }
        if plan.start < self.log.len() {
            self.cut(plan.start, block_size);
        }
        let accepted = plan.start - self.log.len();
        if accepted > self.last.tokens.len() {
            return None;
        }
        let guessed = self.last.tokens[..accepted].to_vec();
        // What was guessed ahead follows all of the last guess and then the token that came.
        let as_foreseen = accepted == self.last.tokens.len() && self.ahead.starts_with(&plan.tokens);
        self.ahead = if as_foreseen { self.ahead.split_off(plan.tokens.len()) } else { Vec::new() };
        self.grow(&guessed);
        self.grow(&plan.tokens);
        Some(accepted)
    }

    /// What the sequence's own log suggests.
    pub fn guess(&mut self, max: usize) -> Guess {
        let mut guess = self.drafter.as_mut().map(|d| d.propose(&self.log, max)).unwrap_or_default();
        guess.tokens.truncate(max);
        if guess.tokens.is_empty() {
            guess.source = Source::Nobody;
        }
        guess
    }
}
