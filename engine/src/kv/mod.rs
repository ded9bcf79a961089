//! The paged KV cache on the host's side: which physical blocks belong to whom, and what they hold.
//!
//! Blocks are numbers here; their contents are the backend's. A block is free, held by sequences, or cached: kept
//! for whoever comes with the same tokens, until somebody needs the room. Invariants, checked by
//! [`BlockPool::check`]: free and held and cached blocks are all blocks; every block has one owner, a sequence or a
//! node of the prefix [`tree`]; and a block that others may read is written by nobody.

mod part;
mod preempt;
mod seq;
mod tree;

pub mod bytes;

use std::collections::HashMap;

pub use part::{Copies, Part, Parts};
pub use preempt::{Preemption, Rates};
pub use tree::Tenant;

use crate::request::{SeqId, SeqMap};
use crate::step::{Reserved, Settled, SettledSeq, StepPlan, Verified};
use preempt::Host;
use seq::Held;
use tree::{NodeId, Tree};

/// How a pool is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheOptions {
    /// Whether what one sequence computed serves others with the same beginning.
    pub prefix_caching: bool,
    /// Blocks of host memory that preempted sequences may be copied to.
    pub host_blocks: usize,
    /// How sequences are preempted.
    pub preemption: Preemption,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { prefix_caching: true, host_blocks: 0, preemption: Preemption::Auto }
    }
}

/// All blocks of one cache.
#[derive(Debug)]
pub struct BlockPool {
    options: CacheOptions,
    block_size: usize,
    total: usize,
    free: Vec<u32>,
    tree: Tree,
    seqs: SeqMap<Held>,
    /// Nodes that preempted sequences will come back for.
    parked: SeqMap<Vec<NodeId>>,
    host: Host,
    rates: Rates,
    /// Nodes that this reservation copies from: they stay until it is made.
    pinned: Vec<NodeId>,
    copies: Copies,
}

impl BlockPool {
    /// A pool of `blocks` free blocks of `block_size` tokens.
    pub fn new(blocks: usize, block_size: usize) -> Self {
        Self::with(blocks, block_size, CacheOptions::default())
    }
    /// The same, with options.
    pub fn with(blocks: usize, block_size: usize, options: CacheOptions) -> Self {
        Self {
            options,
            block_size,
            total: blocks,
            free: (0..blocks as u32).rev().collect(),
            tree: Tree::default(),
            seqs: SeqMap::default(),
            parked: SeqMap::default(),
            host: Host::new(options.host_blocks),
            rates: Rates::default(),
            pinned: Vec::new(),
            copies: Copies::default(),
        }
    }
    /// Blocks that nobody holds: free ones, and cached ones, which are given up when they are needed.
    pub fn free_blocks(&self) -> usize {
        self.free.len() + self.tree.cached()
    }
    /// Those of them that hold something that may be of use.
    pub fn cached_blocks(&self) -> usize {
        self.tree.cached()
    }
    /// Which they are, in no order.
    pub fn cached(&self) -> impl Iterator<Item = u32> {
        self.tree.iter().filter(|(_, node)| node.holders == 0).filter_map(|(_, node)| node.block)
    }
    /// All blocks.
    pub fn total_blocks(&self) -> usize {
        self.total
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }
    /// Who holds which blocks, in order of position; several may hold the same.
    pub fn tables(&self) -> impl Iterator<Item = (SeqId, &[u32])> {
        self.seqs.iter().map(|(seq, held)| (*seq, held.table.as_slice()))
    }

    /// Blocks for every sequence of the plan, drafts included; what is cached already is shared and not computed.
    /// Where blocks run out, cached ones go first, then guesses are given up, then a sequence behind the one that
    /// needs them is preempted.
    pub fn reserve(&mut self, mut plan: StepPlan) -> Reserved {
        self.tree.clock += 1;
        self.host.begin_step();
        for seq in std::mem::take(&mut plan.released) {
            self.release(seq);
            plan.released.push(seq);
        }
        let mut preempted = Vec::new();
        let mut at = 0;
        while at < plan.seqs.len() {
            if plan.seqs[at].tokens.is_empty() && plan.spare == 0 {
                // Nobody left it a token: it starts another time.
                plan.idle.insert(0, plan.seqs.remove(at).seq);
            } else if self.waits(&plan, at) {
                let seq = plan.seqs.remove(at);
                plan.spare += seq.tokens.len();
                plan.idle.insert(0, seq.seq);
            } else if self.grow(&mut plan, at) {
                at += 1;
            } else if self.take_guesses(&mut plan, at) {
                // Room enough, perhaps.
            } else if let Some(victim) = self.victim(&plan, at) {
                self.preempt(victim);
                plan.idle.retain(|s| *s != victim);
                plan.seqs.retain(|s| s.seq != victim);
                preempted.push(victim);
            } else {
                // Nobody behind it holds a block: it waits its turn and gives up what it has.
                let seq = plan.seqs.remove(at).seq;
                self.preempt(seq);
                preempted.push(seq);
            }
        }
        for node in std::mem::take(&mut self.pinned) {
            self.tree.let_go(node);
        }
        let tables = plan.seqs.iter().map(|s| self.seqs[&s.seq].table.clone()).collect();
        Reserved { plan, tables, preempted, copies: std::mem::take(&mut self.copies) }
    }

    /// Gives a sequence of the plan what it lacks; false, and nothing changed, if the pool cannot.
    fn grow(&mut self, plan: &mut StepPlan, at: usize) -> bool {
        let seq = &plan.seqs[at];
        match self.seqs.get(&seq.seq) {
            Some(held) if seq.start >= held.committed(self.block_size) => {}
            // It starts; or its log was cut back into a block that others may read by now.
            _ => return self.open(plan, at),
        }
        let held = self.seqs.get_mut(&seq.seq).expect("just found");
        let wanted = (seq.start + seq.tokens.len() + seq.max_drafts).div_ceil(self.block_size);
        let lacking = wanted.saturating_sub(held.table.len());
        let Some(blocks) = self.allocate(lacking) else { return false };
        let held = self.seqs.get_mut(&seq.seq).expect("just found");
        held.table.extend(blocks);
        held.follow(seq);
        self.commit(seq.seq, seq.start + seq.tokens.len(), seq.start);
        true
    }

    /// Free blocks, cached ones among them if need be; `None`, and nothing taken, if there are not so many.
    fn allocate(&mut self, count: usize) -> Option<Vec<u32>> {
        if count > self.free_blocks() {
            return None;
        }
        while self.free.len() < count {
            let (block, hosts) = self.tree.evict().expect("cached blocks can be emptied from the leaves up");
            self.free.push(block);
            self.host.give_back(hosts);
        }
        Some(self.free.drain(self.free.len() - count..).rev().collect())
    }

    /// Keeps the blocks of accepted tokens, frees those of rejected drafts.
    pub fn settle(&mut self, verified: Verified) -> Settled {
        let Verified { drafted, chosen, device_time, copy_time } = verified;
        let plan = drafted.reserved.plan;
        let rows = plan.seqs.iter().map(|s| s.tokens.len()).sum();
        self.rates.observe(rows, device_time, &drafted.reserved.copies, copy_time);
        let mut seqs = Vec::with_capacity(plan.seqs.len());
        let guesses = drafted.drafts.iter().zip(&drafted.sources);
        for ((seq, chosen), (drafts, source)) in plan.seqs.iter().zip(chosen).zip(guesses) {
            // The last chosen token is not cached yet: it is the next step's input.
            let accepted = chosen.as_ref().map_or(&[][..], |c| &c[..c.len().saturating_sub(1)]);
            let (start, cached) = (seq.start, seq.start + seq.tokens.len() + accepted.len());
            self.keep(seq, accepted, chosen.is_err());
            let (seq, drafted, source) = (seq.seq, drafts.len(), *source);
            seqs.push(SettledSeq { seq, start, cached, chosen, drafted, source });
        }
        let (id, preempted) = (plan.id, drafted.reserved.preempted);
        let (draft_time, passes, caught_up) = (drafted.draft_time, drafted.passes, drafted.caught_up);
        let took = Default::default();
        let free_blocks = self.free_blocks();
        Settled { id, seqs, preempted, free_blocks, rows, device_time, draft_time, passes, caught_up, took }
    }

    /// Forgets everything: the device's memory is gone, and the host copies with its thread.
    pub fn clear(&mut self) {
        let rates = std::mem::take(&mut self.rates);
        *self = Self { rates, ..Self::with(self.total, self.block_size, self.options) };
    }

    /// Counts again; the error says which block is lost or has two owners, and what else does not agree.
    pub fn check(&self) -> Result<(), String> {
        self.tree.check()?;
        let mut owners = vec![0u32; self.total];
        let own = self.seqs.values().flat_map(|h| &h.table[h.path.len()..]);
        let nodes = self.tree.iter().filter_map(|(_, n)| n.block.as_ref());
        self.free.iter().chain(own).chain(nodes).for_each(|b| owners[*b as usize] += 1);
        if let Some(block) = owners.iter().position(|n| *n != 1) {
            return Err(format!("block {block} has {} owners", owners[block]));
        }
        let mut holders: HashMap<NodeId, usize> = HashMap::new();
        for (seq, held) in &self.seqs {
            held.check(&self.tree, self.block_size).map_err(|e| format!("{seq:?}: {e}"))?;
            held.path.iter().for_each(|n| *holders.entry(*n).or_default() += 1);
        }
        let mut waiting: HashMap<NodeId, usize> = HashMap::new();
        self.parked.values().flatten().for_each(|n| *waiting.entry(*n).or_default() += 1);
        for (id, node) in self.tree.iter() {
            let count = |map: &HashMap<NodeId, usize>| map.get(&id).copied().unwrap_or(0);
            if (node.holders, node.waiting) != (count(&holders), count(&waiting)) {
                return Err(format!("{id:?} has other holders or waits for others: {node:?}"));
            }
        }
        let held = self.total - self.free_blocks();
        let distinct = self.seqs.values().flat_map(|h| &h.table).collect::<std::collections::HashSet<_>>().len();
        if held != distinct {
            return Err(format!("{distinct} blocks held, but {held} neither free nor cached"));
        }
        self.host.check(self.tree.iter().filter_map(|(_, n)| n.host))
    }

    /// Whether a reservation writes no block that anybody else reads; what is shared and filled by this very step
    /// is written by one and read by those behind it.
    pub fn check_writes(&self, reserved: &Reserved) -> Result<(), String> {
        let mut writers: HashMap<u32, SeqId> = HashMap::new();
        for (seq, table) in reserved.plan.seqs.iter().zip(&reserved.tables) {
            let last = seq.start + seq.tokens.len() + seq.max_drafts;
            for index in seq.start / self.block_size..last.div_ceil(self.block_size) {
                if let Some(other) = writers.insert(table[index], seq.seq) {
                    return Err(format!("block {} is written by {other:?} and {:?}", table[index], seq.seq));
                }
                let path = &self.seqs[&seq.seq].path;
                if path.get(index).is_some_and(|n| self.tree.node(*n).filled < self.tree.clock) {
                    return Err(format!("{:?} writes the shared block {}", seq.seq, table[index]));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
