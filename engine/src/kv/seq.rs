//! What one sequence holds: its block table, the nodes that its first blocks are, and how both follow its log.

use std::sync::Arc;

use super::preempt::Host;
use super::tree::{Found, NodeId, Tenant, Tree, common};
use super::{BlockPool, Parts};
use crate::request::SeqId;
use crate::step::{Opening, SeqPlan, StepPlan, Tokens};

/// A sequence in the cache.
#[derive(Debug)]
pub(super) struct Held {
    pub tenant: Tenant,
    /// Physical blocks in order of position.
    pub table: Vec<u32>,
    /// Nodes of the first of them, which others may hold too; the rest is its own.
    pub path: Vec<NodeId>,
    /// Tokens that are cached, or will be after the step.
    pub log: Vec<u32>,
    /// The log that it started with, cached or not.
    opened: Vec<u32>,
    parts: Parts,
}

impl Held {
    /// Tokens in blocks that others may read.
    pub fn committed(&self, block_size: usize) -> usize {
        self.path.len() * block_size
    }
    /// Its share of the step is part of its log.
    pub fn follow(&mut self, seq: &SeqPlan) {
        self.log.truncate(seq.start);
        self.log.extend_from_slice(&seq.tokens);
        self.parts = seq.parts.clone();
    }

    /// Whether table, path and log agree.
    pub fn check(&self, tree: &Tree, block_size: usize) -> Result<(), String> {
        let mut parent = None;
        for (i, id) in self.path.iter().enumerate() {
            let node = tree.get(*id).ok_or_else(|| format!("block {i} is of a node that is gone"))?;
            let tokens = self.log.get(i * block_size..(i + 1) * block_size);
            if node.block != self.table.get(i).copied() || Some(&*node.tokens) != tokens {
                return Err(format!("block {i} is not its node's: {node:?}"));
            }
            if i > 0 && node.parent != parent {
                return Err(format!("block {i} is not behind the one before it"));
            }
            parent = Some(*id);
        }
        match self.table.len() * block_size < self.log.len() {
            true => Err(format!("{} tokens in {} blocks", self.log.len(), self.table.len())),
            false => Ok(()),
        }
    }
}

impl BlockPool {
    fn tenant_of(&self, seq: SeqId, salt: &Arc<str>) -> Tenant {
        match self.options.prefix_caching {
            true => Tenant::Salted(salt.clone()),
            false => Tenant::Alone(seq),
        }
    }

    /// Whether one that starts had better wait: somebody before it is still computing what both begin with.
    pub(super) fn waits(&self, plan: &StepPlan, at: usize) -> bool {
        let Some(opening) = plan.opening(plan.seqs[at].seq).filter(|_| self.options.prefix_caching) else {
            return false;
        };
        let tenant = self.tenant_of(opening.seq, &opening.tenant);
        plan.seqs[..at].iter().any(|seq| {
            let end = seq.start + seq.tokens.len();
            let held = self.seqs.get(&seq.seq).filter(|h| h.tenant == tenant && h.opened.len() > end);
            held.is_some_and(|h| common(&h.opened, &opening.log) >= end + self.block_size)
        })
    }

    /// Starts a sequence of the plan: finds what of its log is there, shares it, and aims its share of the step
    /// at what is not. False, and nothing changed, if the pool has no room for that.
    pub(super) fn open(&mut self, plan: &mut StepPlan, at: usize) -> bool {
        let seq = plan.seqs[at].seq;
        if let Some(held) = self.seqs.get(&seq) {
            // Its log was cut back into a block that others may read by now: it starts over up to there.
            let share = &plan.seqs[at];
            let log = [&held.log[..share.start], &share.tokens].concat();
            let tenant = match &held.tenant {
                Tenant::Salted(salt) => salt.clone(),
                Tenant::Alone(_) => Arc::from(""),
            };
            let (prompt_len, sample) = (share.parts.prompt, share.sample.clone());
            plan.openings.push(Opening { seq, log, prompt_len, tenant, sample });
            self.leave(seq);
        }
        let Some(opening) = plan.opening(seq) else { panic!("{seq:?} starts without an opening") };
        let (tenant, log) = (self.tenant_of(seq, &opening.tenant), opening.log.clone());
        // The last token is always computed: what follows it is chosen from its row.
        let limit = log.len() - 1;
        let mut found = self.tree.find(&tenant, &log, limit, self.block_size);
        if self.begin(plan, at, tenant.clone(), &log, &found) {
            return true;
        }
        // The copy of a block that is not full takes one block more than computing it again does, and in a pool
        // that holds just this sequence there is none.
        found.partial.take().is_some() && self.begin(plan, at, tenant, &log, &found)
    }

    /// Starts a sequence on what was found of its log; false, and nothing changed, if the pool has no room for it.
    fn begin(&mut self, plan: &mut StepPlan, at: usize, tenant: Tenant, log: &[u32], found: &Found) -> bool {
        let seq = plan.seqs[at].seq;
        let hit = found.path.len() * self.block_size + found.partial.map_or(0, |(_, tokens)| tokens);
        found.path.iter().for_each(|n| self.tree.hold(*n));
        let source = found.partial.map(|(id, _)| id);
        source.iter().for_each(|n| self.tree.hold(*n));
        let (aimed, spare) = aim(plan, at, hit);
        let wanted = (aimed.start + aimed.tokens.len() + aimed.max_drafts).div_ceil(self.block_size);
        let lost = found.path.iter().filter(|n| self.tree.node(**n).block.is_none()).count();
        let Some(blocks) = self.allocate(wanted - found.path.len() + lost) else {
            source.iter().chain(found.path.iter().rev()).for_each(|n| self.tree.let_go(*n));
            return false;
        };
        let mut blocks = blocks.into_iter();
        let mut table: Vec<u32> = found.path.iter().map(|n| self.bring_back(*n, &mut blocks)).collect();
        if let Some((node, _)) = found.partial {
            let to = blocks.next().expect("a block that is not full was wanted");
            table.push(to);
            match self.tree.node(node).block {
                Some(from) => self.copies.copy.push((from, to)),
                None => self.copies.load.push((self.tree.node(node).host.expect("a node has something"), to)),
            }
        }
        self.pinned.extend(source);
        table.extend(blocks);
        self.unpark(seq);
        let (path, opened, log, parts) = (found.path.clone(), log.to_vec(), log.to_vec(), Parts::default());
        let mut held = Held { tenant, table, path, opened, log, parts };
        held.follow(&aimed);
        (plan.seqs[at], plan.spare) = (aimed, spare);
        let (start, end) = (plan.seqs[at].start, plan.seqs[at].start + plan.seqs[at].tokens.len());
        self.seqs.insert(seq, held);
        self.commit(seq, end, start);
        true
    }

    /// A node's block; if it has a copy in host memory only, the next of `blocks`, which is filled from there.
    fn bring_back(&mut self, node: NodeId, blocks: &mut impl Iterator<Item = u32>) -> u32 {
        if let Some(block) = self.tree.node(node).block {
            return block;
        }
        let block = blocks.next().expect("counted before");
        // Filled before anything of this step is copied.
        self.tree.set_block(node, block, self.tree.clock - 1);
        let place = self.tree.set_host(node, None).expect("a node has something");
        self.copies.load.push((place, block));
        self.host.give_back(vec![place]);
        block
    }

    /// Makes full blocks known to others: those of the log's first `end` tokens. The first `computed` of them are
    /// computed; the rest are in this very step, which stores before it reads.
    pub(super) fn commit(&mut self, seq: SeqId, end: usize, computed: usize) {
        let held = self.seqs.get_mut(&seq).expect("it holds blocks");
        if (held.path.len() + 1) * self.block_size > end {
            return;
        }
        let mut above = held.path.last().copied().unwrap_or_else(|| self.tree.root(&held.tenant));
        while (held.path.len() + 1) * self.block_size <= end {
            let index = held.path.len();
            let begin = index * self.block_size;
            let tokens = &held.log[begin..begin + self.block_size];
            let own = held.table[index];
            let done = begin + self.block_size <= computed;
            above = match self.tree.child(above, tokens) {
                None => {
                    let filled = self.tree.clock - u64::from(done);
                    let superseded = self.tree.shorter(above, tokens);
                    let node = self.tree.insert(above, tokens, held.parts.at(begin), own, filled);
                    if let Some(shorter) = superseded {
                        drop_node(shorter, &mut self.tree, &mut self.free, &mut self.host);
                    }
                    node
                }
                // Somebody else computes the same: the next step sees.
                Some(_) if !done => break,
                Some(node) => {
                    match self.tree.node(node).block {
                        Some(theirs) => {
                            held.table[index] = theirs;
                            self.free.push(own);
                        }
                        None => self.tree.set_block(node, own, self.tree.clock - 1),
                    }
                    node
                }
            };
            self.tree.hold(above);
            held.path.push(above);
        }
    }

    /// After a step: `accepted` guesses are part of the log, blocks behind it are free. What a broken sequence
    /// computed is known to nobody.
    pub(super) fn keep(&mut self, seq: &SeqPlan, accepted: &[u32], broken: bool) {
        let Some(held) = self.seqs.get_mut(&seq.seq) else { return };
        held.log.extend_from_slice(accepted);
        let keep = held.log.len().div_ceil(self.block_size).min(held.table.len());
        self.free.extend(held.table.drain(keep..).rev());
        if !broken {
            return;
        }
        while let Some(last) = held.path.last().copied()
            && self.tree.node(last).filled == self.tree.clock
            && self.tree.node(last).holders == 1
            && self.tree.node(last).children.is_empty()
        {
            held.path.pop();
            self.tree.let_go(last);
            self.host.give_back(self.tree.remove(last));
        }
        held.log.truncate(held.path.len() * self.block_size);
        let own = held.table.drain(held.path.len()..);
        self.free.extend(own);
    }

    /// Nobody holds what `seq` held; what it computed stays cached while there is room.
    pub fn release(&mut self, seq: SeqId) {
        self.unpark(seq);
        self.host.forget(seq);
        self.leave(seq);
        // Without prefix caching nobody else will come for it.
        let (blocks, places) = self.tree.drop_tenant(&Tenant::Alone(seq));
        self.free.extend(blocks);
        self.host.give_back(places);
    }

    /// Takes a sequence off its blocks. Returns whose it was, and the nodes of its log, that of a last block that
    /// is not full included.
    pub(super) fn leave(&mut self, seq: SeqId) -> Option<(Tenant, Vec<NodeId>)> {
        let end = self.seqs.get(&seq)?.log.len();
        self.commit(seq, end, end);
        let mut held = self.seqs.remove(&seq).expect("just found");
        let mut nodes = held.path.clone();
        let begin = held.path.len() * self.block_size;
        let rest = &held.log[begin..];
        if !rest.is_empty() {
            let above = held.path.last().copied().unwrap_or_else(|| self.tree.root(&held.tenant));
            match self.tree.longer(above, rest) {
                Some(known) => {
                    self.tree.touch(known);
                    nodes.push(known);
                }
                None => {
                    let own = held.table.remove(held.path.len());
                    let superseded = self.tree.shorter(above, rest);
                    nodes.push(self.tree.insert(above, rest, held.parts.at(begin), own, self.tree.clock - 1));
                    if let Some(shorter) = superseded {
                        drop_node(shorter, &mut self.tree, &mut self.free, &mut self.host);
                    }
                }
            }
        }
        self.free.extend(held.table.drain(held.path.len()..).rev());
        held.path.iter().rev().for_each(|n| self.tree.let_go(*n));
        Some((held.tenant, nodes))
    }

    /// It does not wait for its nodes any more.
    fn unpark(&mut self, seq: SeqId) {
        for node in self.parked.remove(&seq).unwrap_or_default() {
            self.tree.unawait(node);
        }
    }
}

/// Removes a node that nobody holds; what it had is free.
fn drop_node(node: NodeId, tree: &mut Tree, free: &mut Vec<u32>, host: &mut Host) {
    free.extend(tree.node(node).block);
    host.give_back(tree.remove(node));
}

/// The share of a sequence of which `hit` tokens are there, and what it leaves to others: as many tokens as
/// planned, and more where others left some, from the first that is not there.
fn aim(plan: &StepPlan, at: usize, hit: usize) -> (SeqPlan, usize) {
    let mut seq = plan.seqs[at].clone();
    let Some(opening) = plan.opening(seq.seq) else { return (seq, plan.spare) };
    let budget = seq.tokens.len() + plan.spare;
    let take = budget.min(plan.chunk.max(seq.tokens.len())).min(opening.log.len() - hit);
    seq.start = hit;
    seq.tokens = Tokens::from_slice(&opening.log[hit..hit + take]);
    seq.sample = opening.sample.clone().filter(|_| hit + take == opening.log.len());
    if seq.sample.is_none() {
        seq.max_drafts = 0;
    }
    (seq, budget - take)
}
