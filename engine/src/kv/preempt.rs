//! What happens when the pool is short and nothing cached is left to give up.
//!
//! Guesses go first. Then a sequence behind the one that needs room is preempted: the one that costs least, where
//! the cost is the smaller of computing its blocks again (at the measured rate of prefills) and of copying them to
//! host memory and back (at the measured rate of copies). The first of a step is never preempted, so that every
//! step gets somewhere; who was preempted before costs more, so that nobody is picked for ever.

use std::str::FromStr;
use std::time::Duration;

use super::tree::NodeId;
use super::{BlockPool, Copies};
use crate::error::Error;
use crate::request::{SeqId, SeqMap};
use crate::step::StepPlan;

/// How sequences are preempted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preemption {
    /// Whichever costs less, as measured.
    #[default]
    Auto,
    /// They are computed again.
    Recompute,
    /// They are copied to host memory, as long as there is room.
    Swap,
}

impl FromStr for Preemption {
    type Err = Error;
    fn from_str(word: &str) -> Result<Self, Error> {
        match word {
            "auto" => Ok(Self::Auto),
            "recompute" => Ok(Self::Recompute),
            "swap" => Ok(Self::Swap),
            _ => Err(Error::invalid("preemption_mode", format!("{word:?} is none of auto, recompute, swap"))),
        }
    }
}

/// Steps of fewer rows say little about the speed of prefills.
const PREFILL_ROWS: usize = 16;
/// Weight of a new observation.
const WEIGHT: f64 = 0.2;

/// What moving and computing cost, as measured so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Seconds to compute one token of a prompt; `None` before it was measured.
    pub token_s: Option<f64>,
    /// Seconds to copy one block to host memory or back; `None` before it was measured.
    pub block_s: Option<f64>,
}

impl Rates {
    /// A step of `rows` rows took `device`, and what moved before it `copying`.
    pub(super) fn observe(&mut self, rows: usize, device: Duration, copies: &Copies, copying: Duration) {
        let learn = |mean: &mut Option<f64>, seen: f64| {
            *mean = Some(mean.map_or(seen, |m| m + WEIGHT * (seen - m)));
        };
        if rows >= PREFILL_ROWS {
            learn(&mut self.token_s, device.as_secs_f64() / rows as f64);
        }
        if copies.swapped() > 0 {
            learn(&mut self.block_s, copying.as_secs_f64() / (copies.swapped() + copies.copy.len()) as f64);
        }
    }
    /// Seconds to compute `tokens` again. Before anything was measured: a thousand a second.
    fn recompute(&self, tokens: usize) -> f64 {
        self.token_s.unwrap_or(1e-3) * tokens as f64
    }
    /// Seconds to copy `blocks` out and in. Nothing, before it was measured: so it is tried.
    fn swap(&self, blocks: usize) -> f64 {
        self.block_s.unwrap_or(0.0) * 2.0 * blocks as f64
    }
}

/// Places in host memory, each of one block.
#[derive(Debug)]
pub(super) struct Host {
    total: usize,
    free: Vec<u32>,
    /// Given back in this step: its copies may still read them.
    cooling: Vec<u32>,
    /// How often each sequence in flight was preempted.
    preempted: SeqMap<u32>,
}

impl Host {
    pub fn new(total: usize) -> Self {
        Self { total, free: (0..total as u32).rev().collect(), cooling: Vec::new(), preempted: SeqMap::default() }
    }
    /// What the last step's copies read may be written now.
    pub fn begin_step(&mut self) {
        self.free.append(&mut self.cooling);
    }
    pub fn give_back(&mut self, places: Vec<u32>) {
        self.cooling.extend(places);
    }
    pub fn forget(&mut self, seq: SeqId) {
        self.preempted.remove(&seq);
    }
    /// Whether every place is free or a node's, one node's.
    pub fn check(&self, used: impl Iterator<Item = u32>) -> Result<(), String> {
        let mut owners = vec![0; self.total];
        self.free.iter().chain(&self.cooling).copied().chain(used).for_each(|p| owners[p as usize] += 1);
        match owners.iter().position(|n| *n != 1) {
            Some(place) => Err(format!("place {place} in host memory has {} owners", owners[place])),
            None => Ok(()),
        }
    }
}

impl BlockPool {
    /// Gives up guesses, those of the sequence `at` first, then those planned before it; false if there are none
    /// whose blocks would help.
    pub(super) fn take_guesses(&mut self, plan: &mut StepPlan, at: usize) -> bool {
        let seq = &mut plan.seqs[at];
        if std::mem::take(&mut seq.max_drafts) > 0 {
            return true;
        }
        for seq in plan.seqs[..at].iter_mut().rev().filter(|s| s.max_drafts > 0) {
            let end = seq.start + seq.tokens.len();
            let held = self.seqs.get_mut(&seq.seq).expect("it is reserved");
            let keep = end.div_ceil(self.block_size);
            if keep < held.table.len() {
                self.free.extend(held.table.drain(keep..));
                seq.max_drafts = keep * self.block_size - end;
                return true;
            }
        }
        false
    }

    /// Whom to preempt for the sequence `at`: of those behind it the one that costs least among those that free
    /// enough, or the one that frees most.
    pub(super) fn victim(&self, plan: &StepPlan, at: usize) -> Option<SeqId> {
        let behind = plan.seqs[at + 1..].iter().map(|s| s.seq).chain(plan.idle.iter().copied());
        let seq = &plan.seqs[at];
        let has = self.seqs.get(&seq.seq).map_or(0, |h| h.table.len());
        let needs = (seq.start + seq.tokens.len()).div_ceil(self.block_size).saturating_sub(has + self.free_blocks());
        let mut best: Option<(SeqId, usize, f64)> = None;
        // The least important first: of equals it is taken.
        for id in behind.collect::<Vec<_>>().into_iter().rev() {
            let blocks = self.own_blocks(id);
            let cost = self.cost(id, blocks);
            let better = |(_, most, least): (SeqId, usize, f64)| match (blocks >= needs, most >= needs) {
                (true, true) => cost < least,
                (false, false) => blocks > most,
                (enough, _) => enough,
            };
            if blocks > 0 && best.is_none_or(better) {
                best = Some((id, blocks, cost));
            }
        }
        best.map(|(id, ..)| id)
    }

    /// Blocks that are free or cached once `seq` is off them.
    fn own_blocks(&self, seq: SeqId) -> usize {
        let Some(held) = self.seqs.get(&seq) else { return 0 };
        let alone = held.path.iter().filter(|n| self.tree.node(**n).holders == 1).count();
        alone + held.table.len() - held.path.len()
    }

    fn cost(&self, seq: SeqId, blocks: usize) -> f64 {
        let seconds =
            if self.swaps(blocks) { self.rates.swap(blocks) } else { self.rates.recompute(blocks * self.block_size) };
        // Nothing measured costs nothing; blocks decide then.
        (seconds + 1e-6 * blocks as f64) * f64::from(1 + self.host.preempted.get(&seq).copied().unwrap_or(0))
    }

    /// Whether so many blocks are better copied than computed again.
    fn swaps(&self, blocks: usize) -> bool {
        let fits = blocks <= self.options.host_blocks;
        let cheaper = self.rates.swap(blocks) < self.rates.recompute(blocks * self.block_size);
        match self.options.preemption {
            Preemption::Recompute => false,
            Preemption::Swap => fits,
            Preemption::Auto => fits && cheaper,
        }
    }

    /// Takes a sequence off its blocks. They are cached as long as there is room, and copied to host memory where
    /// that pays: it finds them by its log when it starts over.
    pub(super) fn preempt(&mut self, seq: SeqId) {
        let blocks = self.own_blocks(seq);
        let Some((_, nodes)) = self.leave(seq) else { return };
        *self.host.preempted.entry(seq).or_default() += 1;
        nodes.iter().for_each(|n| self.tree.await_it(*n));
        if self.swaps(blocks) {
            self.save(&nodes);
        }
        self.parked.insert(seq, nodes);
    }

    /// Copies nodes that nobody holds to host memory, all or none of them.
    fn save(&mut self, nodes: &[NodeId]) {
        let lone = |n: &&NodeId| self.tree.node(**n).holders == 0 && self.tree.node(**n).host.is_none();
        let lone: Vec<NodeId> = nodes.iter().filter(lone).copied().collect();
        while self.host.free.len() < lone.len() {
            let places = self.tree.drop_host();
            if places.is_empty() {
                return;
            }
            // Nothing of this step reads them: what is brought back is no node's place any more.
            self.host.free.extend(places);
        }
        for node in lone {
            let (place, block) = (self.host.free.pop().expect("counted"), self.tree.node(node).block);
            self.copies.save.push((block.expect("it was held until now"), place));
            self.tree.set_host(node, Some(place));
        }
    }
}
