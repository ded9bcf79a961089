//! What a request must say: its answer made alone, token by token, without scheduler, cache, guesses or chunks.

use std::time::Duration;

use super::witness::{advance, say};
use crate::model::batch::LogitRow;
use crate::reason::{Label, ThinkingReport};
use crate::request::{Finish, Request};
use crate::schedule::Sequence;

/// One answer as it must be.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// What clients are told, in order.
    pub told: Vec<(u32, Label)>,
    /// Why it ends.
    pub why: Finish,
    /// Tokens generated, an end token included.
    pub tokens: usize,
    /// What became of the thinking.
    pub thinking: Option<ThinkingReport>,
}

/// The answer `choice` of `request` under `salt`.
pub fn answer(request: &Request, choice: u8, max_model_len: usize, salt: u64) -> Expected {
    let mut seq = Sequence::new(request, choice, max_model_len, Duration::ZERO, None);
    let (mut read, mut told) = (0, Vec::new());
    loop {
        let plan = seq.plan(usize::MAX);
        for (i, token) in plan.tokens.iter().enumerate() {
            read = advance(read, salt, plan.start + i, *token);
        }
        let last = *plan.tokens.last().expect("something is always pending");
        let sample = plan.sample.expect("the whole log was planned");
        let row = LogitRow { row: 0, params: sample.params, adjust: sample.adjust };
        let end = seq.take(&[say(read, last, &row)], plan.start + plan.tokens.len());
        let end = end.map(|why| seq.close(why));
        let (tokens, spans) = seq.tell();
        let labels = spans.iter().flat_map(|s| std::iter::repeat_n(s.label, s.len));
        told.extend(tokens.into_iter().zip(labels));
        if let Some(why) = end {
            return Expected { told, why, tokens: seq.output_len(), thinking: seq.report() };
        }
    }
}
