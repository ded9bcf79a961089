//! What a draft model is asked in a step, and what its cache holds after it.

use super::follow::Followed;
use super::marks::CacheMarks;
use super::rollout::{Ask, Rolled, RolloutLimits};
use super::verify::count;
use crate::request::SeqId;
use crate::step::SamplePlan;

/// Sizes of a draft model beside its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelLimits {
    /// Rows and vocabularies.
    pub rollout: RolloutLimits,
    /// Longest sequence that the draft can read.
    pub max_model_len: usize,
    /// Blocks of the pool, and their size: the target's.
    pub blocks: usize,
    /// Tokens per block.
    pub block_size: usize,
}

/// Work for a draft model's thread.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DraftJob {
    /// Its sequences.
    pub asks: Vec<Ask>,
    /// Index of each in the plan.
    pub places: Vec<usize>,
    /// The sequences themselves.
    pub seqs: Vec<SeqId>,
}

impl DraftJob {
    /// Rows that caches lack beyond the one that every guess needs.
    pub fn behind(&self) -> usize {
        self.asks.iter().map(|a| a.tokens.len().saturating_sub(2)).sum()
    }
}

/// The draft's cache, as the host knows it.
pub(super) struct Books {
    pub limits: ModelLimits,
    marks: CacheMarks,
}

impl Books {
    pub fn new(limits: ModelLimits) -> Self {
        Self { limits, marks: CacheMarks::new(limits.blocks, limits.block_size) }
    }

    /// The draft's cache is gone.
    pub fn clear(&mut self) {
        self.marks.clear();
    }

    /// A block's contents were copied, in the draft's cache too.
    pub fn copied(&mut self, from: u32, to: u32) {
        self.marks.copied(from, to);
    }

    /// What the draft has to do for at most `wanted` guesses after the log; `None` if it cannot read it. Until
    /// [`done`](Self::done) its cache holds nothing certain there.
    pub fn ask(&mut self, seq: &mut Followed, table: &[u32], sample: &SamplePlan, wanted: usize) -> Option<Ask> {
        let ModelLimits { rollout, max_model_len, block_size, .. } = self.limits;
        let table = &table[..table.len().min(max_model_len.div_ceil(block_size))];
        let room = max_model_len.min(table.len() * block_size);
        // The last token is always an input: the first guess is chosen from its row.
        let held = self.marks.held(&seq.log, &mut seq.chain, table).min(seq.log.len() - 1);
        let tokens = &seq.log[held..];
        let wanted = wanted.min((room + 1).checked_sub(seq.log.len())?);
        if wanted == 0 || tokens.iter().any(|t| *t as usize >= rollout.vocab) {
            return None;
        }
        self.marks.spoil(table, held);
        Some(Ask { table: table.to_vec(), from: held, tokens: tokens.to_vec(), sample: sample.clone(), wanted })
    }

    /// What the draft may do while the target verifies `guesses`: go on as if all of them were right. As many
    /// guesses as fit in the blocks that the sequence has, at most `wanted`.
    pub fn ask_ahead(
        &mut self,
        seq: &Followed,
        table: &[u32],
        sample: &SamplePlan,
        guesses: &[u32],
        wanted: usize,
    ) -> Option<Ask> {
        let ModelLimits { rollout, max_model_len, block_size, .. } = self.limits;
        let table = &table[..table.len().min(max_model_len.div_ceil(block_size))];
        let mut log = seq.log.clone();
        log.extend_from_slice(guesses);
        let room = max_model_len.min(table.len() * block_size);
        let wanted = wanted.min((room + 1).checked_sub(log.len())?);
        let mut chain = seq.chain.clone();
        let from = self.marks.held(&log, &mut chain, table).min(log.len() - 1);
        let tokens = log[from..].to_vec();
        if wanted == 0 || tokens.iter().any(|t| *t as usize >= rollout.vocab) {
            return None;
        }
        let mut sample = sample.clone();
        for guess in guesses {
            sample.params.position += 1;
            count(&mut sample.adjust, &sample.params, *guess);
        }
        self.marks.spoil(table, from);
        Some(Ask { table: table.to_vec(), from, tokens, sample, wanted })
    }

    /// The draft has gone ahead as [`ask_ahead`](Self::ask_ahead) said, after `guesses`.
    pub fn done_ahead(&mut self, seq: &Followed, ask: &Ask, guesses: &[u32], rolled: &Rolled, index: usize) {
        let inputs = &rolled.guesses[index][..rolled.cached[index]];
        let held = [&seq.log[..], guesses, inputs].concat();
        // The log's own chain may end before the guesses' first block.
        let mut chain = seq.chain.clone();
        chain.grow(&held, self.limits.block_size);
        self.marks.filled(&held, &chain, &ask.table, ask.from);
    }

    /// The draft has done what [`ask`](Self::ask) said: its cache holds the log and the guesses that were inputs.
    pub fn done(&mut self, seq: &Followed, ask: &Ask, rolled: &Rolled, index: usize) {
        let mut held = seq.log.clone();
        held.extend_from_slice(&rolled.guesses[index][..rolled.cached[index]]);
        self.marks.filled(&held, &seq.chain, &ask.table, ask.from);
    }
}
