//! The paged KV cache on the host's side: which physical blocks belong to whom.
//!
//! Blocks are numbers here; their contents are the backend's. Invariant, checked by
//! [`BlockPool::check`]: every block is free or held by exactly one sequence.

pub mod bytes;

use std::collections::HashMap;

use crate::request::SeqId;
use crate::step::{Reserved, SeqPlan, Settled, SettledSeq, StepPlan, Verified};

/// All blocks of one cache.
#[derive(Debug)]
pub struct BlockPool {
    block_size: usize,
    total: usize,
    free: Vec<u32>,
    tables: HashMap<SeqId, Vec<u32>>,
}

impl BlockPool {
    /// A pool of `blocks` free blocks of `block_size` tokens.
    pub fn new(blocks: usize, block_size: usize) -> Self {
        Self { block_size, total: blocks, free: (0..blocks as u32).rev().collect(), tables: HashMap::new() }
    }
    /// Blocks that nobody holds.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }
    /// All blocks.
    pub fn total_blocks(&self) -> usize {
        self.total
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }
    /// Who holds which blocks, in order of position.
    pub fn tables(&self) -> impl Iterator<Item = (SeqId, &[u32])> {
        self.tables.iter().map(|(seq, table)| (*seq, table.as_slice()))
    }

    /// Blocks for every sequence of the plan, drafts included. Where they run out, the least important
    /// sequence that holds any gives its blocks up: idle ones first, then the plan's last.
    pub fn reserve(&mut self, mut plan: StepPlan) -> Reserved {
        for seq in &plan.released {
            self.release(*seq);
        }
        let mut preempted = Vec::new();
        let mut tables = Vec::new();
        let mut at = 0;
        while at < plan.seqs.len() {
            if self.grow(&plan.seqs[at]) {
                tables.push(self.tables[&plan.seqs[at].seq].clone());
                at += 1;
            } else if let Some(victim) = self.victim(&plan, at) {
                self.release(victim);
                plan.idle.retain(|s| *s != victim);
                plan.seqs.retain(|s| s.seq != victim);
                preempted.push(victim);
            } else {
                // Nobody behind it holds a block: it waits its turn and gives up what it has.
                let seq = plan.seqs.remove(at).seq;
                self.release(seq);
                preempted.push(seq);
            }
        }
        Reserved { plan, tables, preempted }
    }

    /// Takes what `seq` lacks; false, and nothing taken, if the pool cannot give it.
    fn grow(&mut self, seq: &SeqPlan) -> bool {
        let wanted = (seq.start + seq.tokens.len() + seq.max_drafts).div_ceil(self.block_size);
        let table = self.tables.entry(seq.seq).or_default();
        let lacking = wanted.saturating_sub(table.len());
        if lacking > self.free.len() {
            return false;
        }
        table.extend(self.free.drain(self.free.len() - lacking..).rev());
        true
    }

    /// The least important sequence behind `at` that holds blocks.
    fn victim(&self, plan: &StepPlan, at: usize) -> Option<SeqId> {
        let behind = plan.seqs[at + 1..].iter().map(|s| s.seq);
        let order: Vec<SeqId> = behind.chain(plan.idle.iter().copied()).collect();
        order.into_iter().rev().find(|s| self.tables.get(s).is_some_and(|t| !t.is_empty()))
    }

    /// Keeps the blocks of accepted tokens, frees those of rejected drafts.
    pub fn settle(&mut self, verified: Verified) -> Settled {
        let Verified { drafted, chosen, device_time } = verified;
        let plan = drafted.reserved.plan;
        let mut seqs = Vec::new();
        for ((seq, chosen), drafts) in plan.seqs.iter().zip(chosen).zip(&drafted.drafts) {
            // The last chosen token is not cached yet: it is the next step's input.
            let accepted = chosen.as_ref().map_or(0, |c| c.len().saturating_sub(1));
            let cached = seq.start + seq.tokens.len() + accepted;
            self.truncate(seq.seq, cached);
            seqs.push(SettledSeq { seq: seq.seq, cached, chosen, drafted: drafts.len() });
        }
        let (id, preempted) = (plan.id, drafted.reserved.preempted);
        Settled { id, seqs, preempted, free_blocks: self.free.len(), device_time }
    }

    fn truncate(&mut self, seq: SeqId, tokens: usize) {
        if let Some(table) = self.tables.get_mut(&seq) {
            let keep = tokens.div_ceil(self.block_size).min(table.len());
            self.free.extend(table.drain(keep..).rev());
        }
    }

    /// Frees everything that `seq` holds.
    pub fn release(&mut self, seq: SeqId) {
        if let Some(table) = self.tables.remove(&seq) {
            self.free.extend(table.into_iter().rev());
        }
    }

    /// Forgets every sequence: the device's memory is gone.
    pub fn clear(&mut self) {
        *self = Self::new(self.total, self.block_size);
    }

    /// Counts again; the error says which block is lost or held twice.
    pub fn check(&self) -> Result<(), String> {
        let mut owners = vec![0u32; self.total];
        let held = self.tables.values().flatten();
        for block in self.free.iter().chain(held) {
            owners[*block as usize] += 1;
        }
        match owners.iter().position(|n| *n != 1) {
            None => Ok(()),
            Some(block) => Err(format!("block {block} has {} owners", owners[block])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestId;
    use crate::step::{Drafted, StepId};

    fn seq(n: u64) -> SeqId {
        SeqId { request: RequestId(n), choice: 0 }
    }
    fn plan(seqs: &[(u64, usize, usize)]) -> StepPlan {
        let seqs = seqs.iter().map(|&(id, start, tokens)| SeqPlan {
            seq: seq(id),
            start,
            tokens: vec![0; tokens],
            max_drafts: 0,
            sample: None,
        });
        StepPlan { id: StepId(1), seqs: seqs.collect(), ..StepPlan::default() }
    }

    #[test]
    fn the_last_gives_way_to_the_first() {
        let mut pool = BlockPool::new(4, 16);
        let first = pool.reserve(plan(&[(1, 0, 20), (2, 0, 30)]));
        assert!(first.preempted.is_empty() && pool.free_blocks() == 0);
        let second = pool.reserve(plan(&[(1, 20, 30), (2, 30, 1)]));
        assert_eq!(second.preempted, [seq(2)]);
        assert_eq!(second.tables.len(), 1);
        assert_eq!(second.tables[0][..2], first.tables[0][..]);
        pool.check().unwrap();
    }

    #[test]
    fn rejected_drafts_return_their_blocks() {
        let mut pool = BlockPool::new(4, 4);
        let mut wanted = plan(&[(1, 0, 3)]);
        wanted.seqs[0].max_drafts = 8;
        let reserved = pool.reserve(wanted);
        assert_eq!(pool.free_blocks(), 1);
        let drafted = Drafted { reserved, drafts: vec![vec![7; 8]] };
        let settled =
            pool.settle(Verified { drafted, chosen: vec![Ok(vec![7, 7, 9])], device_time: Default::default() });
        assert_eq!((settled.seqs[0].cached, settled.free_blocks), (5, 2));
        pool.release(seq(1));
        assert_eq!(pool.free_blocks(), 4);
        pool.check().unwrap();
    }
}
