//! One drafter per sequence, kept in step with the token logs through nothing but the plans.

use std::collections::HashMap;
use std::str::FromStr;

use super::{Drafter, Ngram, Suffix};
use crate::error::Error;
use crate::request::SeqId;
use crate::step::{Drafted, Opening, Reserved, SeqPlan};

/// Which drafter guesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrafterKind {
    /// Nobody guesses.
    #[default]
    None,
    /// [`Ngram`].
    Ngram,
    /// [`Suffix`].
    Suffix,
}

impl FromStr for DrafterKind {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "none" => Ok(Self::None),
            "ngram" => Ok(Self::Ngram),
            "suffix" => Ok(Self::Suffix),
            _ => Err(Error::invalid("draft-model", format!("{name:?} is none of none, ngram, suffix"))),
        }
    }
}

impl DrafterKind {
    fn make(self) -> Option<Box<dyn Drafter>> {
        match self {
            Self::None => None,
            Self::Ngram => Some(Box::<Ngram>::default()),
            Self::Suffix => Some(Box::<Suffix>::default()),
        }
    }
}

struct State {
    log: Vec<u32>,
    /// The last guesses: those that were accepted are cached without ever being an input again.
    guessed: Vec<u32>,
    drafter: Box<dyn Drafter>,
}

/// The drafters of all sequences in flight.
#[derive(Default)]
pub struct Drafters {
    kind: DrafterKind,
    states: HashMap<SeqId, State>,
}

impl Drafters {
    /// No sequences yet.
    pub fn new(kind: DrafterKind) -> Self {
        Self { kind, states: HashMap::new() }
    }

    /// Guesses for every sequence of the plan that may have some.
    pub fn propose(&mut self, reserved: Reserved) -> Drafted {
        reserved.plan.released.iter().for_each(|seq| drop(self.states.remove(seq)));
        let plan = &reserved.plan;
        let drafts = plan.seqs.iter().map(|seq| self.propose_one(seq, plan.opening(seq.seq))).collect();
        Drafted { reserved, drafts }
    }

    fn propose_one(&mut self, plan: &SeqPlan, opening: Option<&Opening>) -> Vec<u32> {
        let Some(fresh) = self.kind.make() else { return Vec::new() };
        let state = self.states.entry(plan.seq).or_insert_with(|| State {
            log: Vec::new(),
            guessed: Vec::new(),
            drafter: fresh,
        });
        if plan.start < state.log.len() {
            // Preempted or replayed: the same tokens come again.
            state.log.truncate(plan.start);
            state.drafter.rewind(&state.log);
        }
        let accepted = plan.start - state.log.len();
        let before = match opening {
            // Some of its log was in the cache and is no input ever.
            Some(opening) => &opening.log[state.log.len()..plan.start],
            None => &state.guessed[..accepted],
        };
        state.log.extend_from_slice(before);
        state.log.extend_from_slice(&plan.tokens);
        state.drafter.observe(&state.log, accepted + plan.tokens.len());
        let wanted = if plan.sample.is_some() { plan.max_drafts } else { 0 };
        state.guessed = state.drafter.propose(&state.log, wanted);
        state.guessed.truncate(wanted);
        state.guessed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{Copies, Parts};
    use crate::op::SampleRow;
    use crate::request::RequestId;
    use crate::step::{SamplePlan, StepPlan};

    fn propose(drafters: &mut Drafters, start: usize, tokens: &[u32], released: bool) -> Vec<u32> {
        let seq = SeqId { request: RequestId(1), choice: 0 };
        let sample = Some(SamplePlan { params: SampleRow::default(), adjust: Vec::new() });
        let plan = SeqPlan { seq, start, tokens: tokens.to_vec(), max_drafts: 2, sample, parts: Parts::default() };
        let released = if released { vec![seq] } else { Vec::new() };
        let plan = StepPlan { seqs: vec![plan], released, ..StepPlan::default() };
        drafters
            .propose(Reserved { plan, tables: vec![vec![0]], preempted: Vec::new(), copies: Copies::default() })
            .drafts
            .remove(0)
    }

    #[test]
    fn the_log_follows_accepted_guesses_and_restarts() {
        for kind in [DrafterKind::Ngram, DrafterKind::Suffix] {
            let mut drafters = Drafters::new(kind);
            let d = &mut drafters;
            assert_eq!(propose(d, 0, &[1, 2, 3, 4, 5, 6, 1, 2, 3], false), [4, 5], "{kind:?}");
            // Both guesses were right, and the target said 6 after them.
            assert_eq!(propose(d, 11, &[6], false), [1, 2]);
            // One of two was right.
            assert_eq!(propose(d, 13, &[9], false), [0u32; 0]);
            // Preempted: everything again.
            assert_eq!(propose(d, 0, &[1, 2, 3, 4, 5, 6, 1, 2, 3], false), [4, 5]);
            // Another request under the same id.
            assert_eq!(propose(d, 0, &[7, 8], true), [0u32; 0]);
        }
    }
}
