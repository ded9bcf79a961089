//! Before anybody is preempted: where the operator allows it, who would be preempted next is asked for its answer.
//!
//! A thinker that stops thinking ends soon, and its blocks are free for good; one that is preempted comes back and wants
//! them all again. The price is an answer that depends on what else runs, so it is off unless it is asked for.

use super::Scheduler;
use crate::reason::CloseReason;

impl Scheduler {
    /// The last by rank of those that still think is closed if, before its answer is out, the pool would be too small:
    /// all that run grow as much meanwhile. One at a time: the next one only when no such answer is left.
    pub(super) fn squeeze(&mut self) {
        if !self.options.squeeze_thinking || self.running.len() < 2 {
            return;
        }
        if self.running.iter().any(|id| self.seqs[id].closing() == Some(CloseReason::Memory)) {
            return;
        }
        let mut by_rank = self.running.clone();
        by_rank.sort_by_key(|id| self.seqs[id].rank);
        // Whoever goes first is never preempted.
        let last = by_rank.iter().skip(1).rev().find(|id| self.seqs[id].is_thinking());
        let Some(id) = last.copied() else { return };
        let answer = self.seqs[&id].answer_reserve().div_ceil(self.options.block_size) + 1;
        if self.free_blocks < self.running.len() * answer {
            self.seqs.get_mut(&id).expect("it runs").close_thinking(CloseReason::Memory);
        }
    }
}
