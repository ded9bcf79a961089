//! Who starts, and who gets how much of a step: the [`policy`](super::policy) applied to what is there.

use std::time::Duration;

use super::policy::{Forecast, Growth};
use super::{Scheduler, SchedulingPolicy, Sequence};
use crate::request::SeqId;

/// Most waiting answers that are passed in one step because they are too large for now.
const MAX_SKIPPED: usize = 64;

impl Scheduler {
    /// Takes a place in the queue by rank.
    pub(super) fn wait(&mut self, id: SeqId) {
        let rank = self.seqs[&id].rank;
        let at = self.waiting.partition_point(|w| self.seqs[w].rank < rank);
        self.waiting.insert(at, id);
    }

    /// Ranks an answer by what is expected of it now.
    pub(super) fn rank(&mut self, id: SeqId) {
        let seq = &self.seqs[&id];
        let expected = self.lengths.mean_remaining(&seq.progress());
        let left = match self.options.policy {
            SchedulingPolicy::Reasoning(_) => self.step_time.mul_f64(expected),
            SchedulingPolicy::Fcfs | SchedulingPolicy::Priority => Duration::ZERO,
        };
        let rank = self.options.policy.rank(id, seq.arrived, seq.priority(), left);
        let seq = self.seqs.get_mut(&id).expect("it was just found");
        (seq.rank, seq.expected) = (rank, expected);
    }

    /// Tokens for each running sequence: as many as a step has seats, by rank. Who decodes is served first, for that
    /// is one row each; prompts share what is left. (Every seat is sure of a token: there are no more than tokens.)
    pub(super) fn shares(&self, only: Option<SeqId>) -> Vec<usize> {
        let mut seats = self.options.max_seqs;
        let pending = |id: &SeqId| {
            let seated = seats > 0 && only.is_none_or(|only| only == *id);
            seats -= usize::from(seated);
            if seated { self.seqs[id].pending() } else { 0 }
        };
        let mut shares: Vec<usize> = self.running.iter().map(pending).collect();
        let mut left = self.options.max_step_tokens;
        for decodes in [true, false] {
            for share in shares.iter_mut().filter(|share| **share > 0 && (**share == 1) == decodes) {
                *share = (*share).min(self.options.prefill_chunk).min(left);
                left -= *share;
            }
        }
        shares
    }

    /// Lets waiting sequences start, by rank, while there is a place, their known part fits in free blocks, and the
    /// pool will hold all that are in flight then, as far as can be foretold. Nobody is admitted right after a
    /// preemption: the pool is short already. With nobody in flight the first may always start.
    ///
    /// Where the policy bounds overtaking, who is too large for now is passed by smaller ones within that bound.
    pub(super) fn admit(&mut self) {
        let blocks_of = |seq: &Sequence| (seq.tokens.len() + 1).div_ceil(self.options.block_size);
        // What running prompts still lack is spoken for; blocks that several share count once.
        let has = |seq: &Sequence| seq.cached.div_ceil(self.options.block_size);
        let lacks = |seq: &Sequence| blocks_of(seq).saturating_sub(has(seq));
        let lacking: usize = self.running.iter().map(|id| lacks(&self.seqs[id])).sum();
        let mut free = match self.running.is_empty() {
            true => self.options.blocks,
            false => self.free_blocks.saturating_sub(lacking),
        };
        if self.preempted_last && !self.running.is_empty() {
            return;
        }
        let mut forecast: Option<Forecast> = None;
        let (mut at, mut skipped, mut latest) = (0, 0, Duration::MAX);
        while let Some(id) = self.waiting.get(at).copied().filter(|id| skipped < MAX_SKIPPED && self.has_place(*id)) {
            let seq = &self.seqs[&id];
            let (wanted, growth, alone) = (blocks_of(seq), self.growth(id), self.running.is_empty());
            let forecast = forecast.get_or_insert_with(|| self.forecast());
            let fits = wanted <= free && forecast.fits(growth, self.options.blocks);
            if seq.arrived > latest || !(fits || alone) {
                let Some(bound) = self.options.policy.overtaking() else { return };
                latest = latest.min(seq.arrived.saturating_add(bound));
                (at, skipped) = (at + 1, skipped + 1);
                continue;
            }
            forecast.add(growth);
            free = free.saturating_sub(wanted);
            self.waiting.remove(at);
            self.running.push(id);
        }
    }

    /// Whether it would run at once: there is a seat, or one that it takes from somebody behind it.
    fn has_place(&self, id: SeqId) -> bool {
        let (seats, places) = (self.options.max_seqs, self.options.max_seqs * self.options.policy.in_flight());
        let ahead = || self.running.iter().filter(|r| self.seqs[r].rank < self.seqs[&id].rank).count();
        self.running.len() < seats || (self.running.len() < places && ahead() < seats)
    }

    fn forecast(&self) -> Forecast {
        let mut forecast = Forecast::default();
        self.running.iter().for_each(|id| forecast.add(self.growth(*id)));
        forecast
    }

    fn growth(&self, id: SeqId) -> Growth {
        let (seq, size) = (&self.seqs[&id], self.options.block_size);
        let most = self.lengths.most_remaining(&seq.progress(), self.options.growth_quantile);
        let holds = (seq.tokens.len() + 1).div_ceil(size);
        Growth { holds, wants: (seq.tokens.len() + 1 + most as usize).div_ceil(size) - holds }
    }
}
