//! Idle time: logs that are computed for nobody, so that a next turn finds them in the cache.
//!
//! A chat template that strips the thinking from earlier turns makes the next prompt differ from what was cached;
//! the answer is computed again behind the stripped beginning while nobody waits. It yields to any request at
//! once; what it computed stays cached as long as there is room.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Scheduler;
use crate::kv::Parts;
use crate::request::{RequestId, SeqId};
use crate::step::{Opening, SeqPlan, SettledSeq, StepPlan};

/// Most logs that wait; of more the oldest are forgotten.
const WAITING: usize = 64;

/// A log to be cached.
#[derive(Clone, Debug, PartialEq)]
struct Log {
    tokens: Vec<u32>,
    tenant: Arc<str>,
}

/// The logs that wait, and the one at work.
#[derive(Debug, Default)]
pub(super) struct WarmUps {
    waiting: VecDeque<Log>,
    running: Option<(SeqId, Log, usize)>,
    made: u64,
}

impl WarmUps {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_none()
    }
    /// Whether it is the one at work.
    pub fn runs(&self, id: SeqId) -> bool {
        self.running.as_ref().is_some_and(|(running, ..)| *running == id)
    }
    /// The one at work ends; returns whose blocks nobody holds any more.
    pub fn stop(&mut self) -> Option<SeqId> {
        self.running.take().map(|(id, ..)| id)
    }
    /// The one at work waits again.
    fn put_back(&mut self) -> Option<SeqId> {
        let (id, log, _) = self.running.take()?;
        self.waiting.push_front(log);
        Some(id)
    }
}

impl Scheduler {
    /// Caches a log when there is nothing else to do.
    pub fn warm_up(&mut self, tokens: Vec<u32>, tenant: Arc<str>) {
        let log = Log { tokens, tenant };
        let fits = log.tokens.len() <= self.options.max_model_len.min(self.options.blocks * self.options.block_size);
        if log.tokens.is_empty() || !fits || self.warm.waiting.contains(&log) {
            return;
        }
        self.warm.waiting.push_back(log);
        if self.warm.waiting.len() > WAITING {
            self.warm.waiting.pop_front();
        }
    }

    /// Idle work for an empty plan; where there are requests it gives way to them.
    pub(super) fn plan_warm_up(&mut self, plan: &mut StepPlan) {
        if !self.running.is_empty() || !self.waiting.is_empty() {
            self.released.extend(self.warm.put_back());
            return;
        }
        if self.warm.running.is_none() {
            let Some(log) = self.warm.waiting.pop_front() else { return };
            self.warm.made += 1;
            // Counted from above: requests are counted from below.
            let id = SeqId { request: RequestId(u64::MAX - self.warm.made), choice: 0 };
            self.warm.running = Some((id, log, 0));
        }
        let Some((seq, log, cached)) = &self.warm.running else { return };
        let (seq, start, prompt_len) = (*seq, *cached, log.tokens.len());
        let take = self.options.prefill_chunk.min(self.options.max_step_tokens).min(prompt_len - start);
        let tokens = log.tokens[start..start + take].into();
        let parts = Parts { prompt: prompt_len, thinking: 0..0 };
        if start == 0 {
            let (log, tenant) = (log.tokens.clone(), log.tenant.clone());
            plan.openings.push(Opening { seq, log, prompt_len, tenant, sample: None });
        }
        plan.seqs.push(SeqPlan { seq, start, tokens, max_drafts: 0, sample: None, parts });
    }

    /// Takes a step's result, if it is that of idle work.
    pub(super) fn apply_warm_up(&mut self, result: &SettledSeq) -> bool {
        let Some((id, log, cached)) = &mut self.warm.running else { return false };
        if *id != result.seq {
            return false;
        }
        *cached = result.cached;
        if result.chosen.is_err() || *cached >= log.tokens.len() {
            self.released.extend(self.warm.stop());
        }
        true
    }
}
