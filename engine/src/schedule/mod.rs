//! Who runs in a step: continuous batching with chunked prefill, as a plain state machine.
//!
//! A request has no prefill and decode phases here, only a count of cached tokens; every step gives
//! each running sequence some of what it lacks until the step's token budget ends: who decodes first, then prompts,
//! in the order that the [`policy`] prefers.
//! Time comes in as `now`; nothing here sleeps, locks or draws random numbers.

mod account;
mod drafting;
pub mod policy;
pub mod route;
mod seats;
mod sequence;
mod squeeze;
mod supervision;
mod view;
mod warm;

use std::collections::VecDeque;
use std::time::Duration;

pub use account::Cost;
use drafting::Drafting;
pub use policy::{ReasoningOptions, SchedulingPolicy};
pub use sequence::{Sequence, StopText};
pub use supervision::{Supervision, Verdict};
pub use view::{Lane, SchedulerView, SeqView};

use crate::error::{Error, Result};
use crate::reason::{CloseReason, Decision, Lengths, Spans, ThinkingReport};
use crate::request::{Finish, Request, RequestId, SeqId, SeqMap};
use crate::spec::{LengthOptions, Source, SpecReport};
use crate::step::{Settled, SettledSeq, StepId, StepPlan, Tokens};

/// Limits of a step and of a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SchedulerOptions {
    /// Most tokens of one step, all sequences together.
    pub max_step_tokens: usize,
    /// Most tokens of one prompt in one step.
    pub prefill_chunk: usize,
    /// Most sequences in one step.
    pub max_seqs: usize,
    /// Most answers that wait; more are refused. One request's answers are taken together or not at all.
    pub max_waiting: usize,
    /// An answer starts when the pool will hold it and all in flight, as far as this quantile of their expected
    /// lengths tells; 0 looks at what is there only.
    pub growth_quantile: f64,
    /// Who goes first.
    pub policy: SchedulingPolicy,
    /// Longest prompt and answer together, in tokens.
    pub max_model_len: usize,
    /// Blocks of the pool, and their size: what can never fit is refused.
    pub blocks: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Bytes per block, for accounting.
    pub block_bytes: u64,
    /// Guesses per sequence and step.
    pub drafts: DraftPolicy,
    /// Who guesses as a rule, until a sequence has shown who does.
    pub drafter: Source,
    /// Most rows of one step whose logits are wanted: one per sequence that chooses, one per guess.
    pub max_logit_rows: usize,
    /// Whether thinking is cut short where somebody would be preempted otherwise.
    pub squeeze_thinking: bool,
    /// Longest wait before the first step; `None` is no bound. Then a request fails with [`QUEUE_TIMEOUT`].
    pub max_wait: Option<Duration>,
}

/// Why a request fails that waited too long.
pub const QUEUE_TIMEOUT: &str = "it waited longer than it may";

/// How many tokens are guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum DraftPolicy {
    /// None.
    #[default]
    Off,
    /// Always as many.
    Fixed(usize),
    /// As many as pay, measured.
    Auto(LengthOptions),
}

/// Something that a client is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose answer.
    pub seq: SeqId,
    /// New tokens, thinking and markers too; an end token is not among them. A token that may be the beginning
    /// of a marker comes once that is decided.
    pub tokens: Tokens,
    /// Whose they are, in order: the lengths are those of `tokens` together.
    pub spans: Spans,
    /// The end, once. Most events are none.
    pub finish: Option<Box<Finished>>,
}

/// How an answer ended, and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why.
    pub why: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the cache already, and not computed.
    pub cached_tokens: usize,
    /// Tokens generated, an end token included.
    pub completion_tokens: usize,
    /// Tokens computed more than once.
    pub recomputed_tokens: usize,
    /// Tokens that were guessed for it, and those of them that were right.
    pub drafted_tokens: usize,
    /// See `drafted_tokens`.
    pub accepted_tokens: usize,
    /// Tokens of thinking among those generated.
    pub reasoning_tokens: usize,
    /// What became of the thinking; `None` if the model does not think.
    pub thinking: Option<ThinkingReport>,
    /// How deep it was to think, and why.
    pub decision: Option<Decision>,
    /// What guessing did for it.
    pub speculation: Box<SpecReport>,
    /// What it took.
    pub cost: Cost,
}

/// The requests in flight.
pub struct Scheduler {
    options: SchedulerOptions,
    seqs: SeqMap<Sequence>,
    waiting: VecDeque<SeqId>,
    running: Vec<SeqId>,
    released: Vec<SeqId>,
    /// Ends that no step will report: cancelled sequences.
    ended: Vec<Event>,
    next_step: u64,
    free_blocks: usize,
    preempted_last: bool,
    drafting: Drafting,
    /// What is computed while nobody waits.
    warm: warm::WarmUps,
    lengths: Lengths,
    /// Mean time of a step, decayed: what a token of a running answer takes.
    step_time: Duration,
    planned_at: Duration,
}

impl Scheduler {
    /// No requests yet.
    pub fn new(options: SchedulerOptions) -> Self {
        Self {
            options,
            seqs: SeqMap::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            released: Vec::new(),
            ended: Vec::new(),
            next_step: 1,
            free_blocks: options.blocks,
            preempted_last: false,
            drafting: Drafting::new(options.drafts, options.drafter),
            warm: Default::default(),
            lengths: Lengths::default(),
            step_time: Duration::from_millis(20),
            planned_at: Duration::ZERO,
        }
    }

    /// With what was learnt about lengths before.
    pub fn with_lengths(self, lengths: Lengths) -> Self {
        Self { lengths, ..self }
    }
    /// What is known about lengths: learnt from every answer that ends.
    pub fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// Takes a request, or says why it can never run. `stop_text` is asked once per answer.
    pub fn submit(
        &mut self,
        now: Duration,
        request: &Request,
        mut stop_text: impl FnMut() -> Option<Box<dyn StopText>>,
    ) -> Result<()> {
        let (len, max) = (request.prompt.len(), self.options.max_model_len);
        if len == 0 {
            return Err(Error::invalid("prompt", "is empty"));
        }
        if len >= max {
            return Err(Error::invalid("prompt", format!("{len} tokens leave no room for an answer in {max}")));
        }
        if request.params.priority != 0 && self.options.policy != SchedulingPolicy::Priority {
            return Err(Error::invalid("priority", "counts with the scheduling policy \"priority\" only"));
        }
        if self.waiting.len() + request.params.n as usize > self.options.max_waiting {
            return Err(Error::Busy { waiting: self.waiting.len() });
        }
        for choice in 0..request.params.n {
            let seq = Sequence::new(request, choice, max, now, stop_text());
            if !seq.has_room() {
                self.forget(request.id);
                let message = "leaves no token for the answer after the end of the thinking; raise it";
                return Err(Error::invalid("max_tokens", message));
            }
            let pool = self.options.blocks * self.options.block_size;
            if seq.longest() > pool {
                let wanted = seq.longest();
                let message =
                    format!("{wanted} tokens with the answer, but the KV cache holds {pool}; lower max_tokens");
                self.forget(request.id);
                return Err(Error::invalid("prompt", message));
            }
            let id = seq.id;
            self.seqs.insert(id, seq);
            self.rank(id);
            self.wait(id);
        }
        Ok(())
    }

    /// Drops every trace of a request that was refused half-way.
    fn forget(&mut self, request: RequestId) {
        self.seqs.retain(|id, _| id.request != request);
        self.waiting.retain(|id| id.request != request);
    }

    /// Ends all answers of a request; they are told so by the next [`Scheduler::apply`] or [`Scheduler::drain_ended`].
    pub fn cancel(&mut self, request: RequestId) {
        let mut ids: Vec<SeqId> = self.seqs.keys().copied().filter(|s| s.request == request).collect();
        ids.sort();
        for id in ids {
            let event = self.finish(id, Finish::Cancelled);
            self.ended.push(event);
        }
    }

    /// The client wants the answers of a request now: their thinking is closed after the next token.
    pub fn end_thinking(&mut self, request: RequestId) {
        self.seqs.values_mut().filter(|s| s.id.request == request).for_each(|s| s.close_thinking(CloseReason::Asked));
    }

    /// Fails one answer from outside (its step broke the device).
    pub fn fail(&mut self, seq: SeqId, reason: &str) {
        if self.seqs.contains_key(&seq) {
            let event = self.finish(seq, Finish::Failed { reason: reason.into() });
            self.ended.push(event);
        }
    }

    /// Ends everything in flight.
    pub fn fail_all(&mut self, reason: &str) -> Vec<Event> {
        let mut ids: Vec<SeqId> = self.seqs.keys().copied().collect();
        ids.sort();
        ids.into_iter().for_each(|id| self.fail(id, reason));
        self.drain_ended()
    }

    /// Ends that happened between steps.
    pub fn drain_ended(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.ended)
    }

    /// Nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.released.is_empty() && self.warm.is_empty()
    }
    /// Sequences that have started, and that have not.
    pub fn counts(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }
    /// A sequence in flight.
    pub fn sequence(&self, id: SeqId) -> Option<&Sequence> {
        self.seqs.get(&id)
    }

    /// The next step; `None` when there is nothing to do. With `only`, no other sequence runs, and there
    /// is nothing to do once it has ended.
    pub fn plan(&mut self, now: Duration, only: Option<SeqId>) -> Option<StepPlan> {
        self.expire(now);
        if self.is_idle() || only.is_some_and(|id| !self.seqs.contains_key(&id)) {
            return None;
        }
        self.hold(now.saturating_sub(self.planned_at));
        self.planned_at = now;
        for i in 0..self.running.len() {
            self.rank(self.running[i]);
        }
        match only {
            Some(id) if !self.running.contains(&id) => {
                self.waiting.retain(|s| *s != id);
                self.running.push(id);
            }
            Some(_) => {}
            None => self.admit(),
        }
        self.running.sort_by_cached_key(|id| self.seqs[id].rank);
        let shares = self.shares(only);
        let mut budget = self.options.max_step_tokens;
        let seqs = Vec::with_capacity(self.running.len());
        let mut plan = StepPlan { id: StepId(self.next_step), seqs, ..StepPlan::default() };
        self.next_step += 1;
        for (id, share) in self.running.iter().zip(shares) {
            let seq = self.seqs.get_mut(id).expect("running sequences are known");
            let starts = seq.cached == 0 && share > 0;
            let share = seq.plan(share);
            if share.tokens.is_empty() {
                plan.idle.push(*id);
                continue;
            }
            seq.starts(now);
            budget -= share.tokens.len();
            plan.openings.extend(starts.then(|| seq.opening()));
            plan.seqs.push(share);
        }
        if only.is_none() {
            self.plan_warm_up(&mut plan);
        }
        plan.released = std::mem::take(&mut self.released);
        let budget = self.drafting.plan(&mut plan, &self.seqs, budget, self.options.max_logit_rows);
        (plan.spare, plan.chunk) = (budget, self.options.prefill_chunk);
        Some(plan)
    }

    /// Ends what waited too long and was never computed.
    fn expire(&mut self, now: Duration) {
        let Some(max_wait) = self.options.max_wait else { return };
        let late = |s: &Sequence| !s.started && now.saturating_sub(s.arrived) > max_wait;
        let late: Vec<SeqId> = self.waiting.iter().filter(|id| late(&self.seqs[id])).copied().collect();
        late.into_iter().for_each(|id| self.fail(id, QUEUE_TIMEOUT));
    }

    /// How many tokens are guessed from now on.
    pub fn set_drafts(&mut self, policy: DraftPolicy) {
        self.drafting.set_policy(policy);
    }
    /// What guessing did since the start.
    pub fn speculation(&self) -> &SpecReport {
        self.drafting.total()
    }

    /// Takes a step's results; returns what clients are told.
    pub fn apply(&mut self, settled: &Settled) -> Vec<Event> {
        self.free_blocks = settled.free_blocks;
        self.preempted_last = !settled.preempted.is_empty();
        self.drafting.observe(settled);
        self.charge(settled);
        let mut events = self.drain_ended();
        events.reserve(settled.seqs.len());
        if settled.preempted.iter().any(|id| self.warm.runs(*id)) {
            self.released.extend(self.warm.stop());
        }
        for id in &settled.preempted {
            self.restart(*id);
        }
        for result in &settled.seqs {
            if !self.apply_warm_up(result) {
                events.extend(self.apply_one(result));
            }
        }
        self.squeeze();
        events
    }

    fn apply_one(&mut self, result: &SettledSeq) -> Option<Event> {
        // Cancelled while its step ran.
        let seq = self.seqs.get_mut(&result.seq)?;
        let chosen = match &result.chosen {
            Ok(chosen) => chosen,
            Err(reason) => return Some(self.finish(result.seq, Finish::Failed { reason: reason.clone() })),
        };
        seq.computed(result.start, result.cached - chosen.len().saturating_sub(1));
        seq.drafted += result.drafted;
        seq.accepted += chosen.len().saturating_sub(1);
        if let Some(why) = seq.take(chosen, result.cached) {
            return Some(self.finish(result.seq, why));
        }
        if chosen.is_empty() {
            return None; // inside the prompt
        }
        if !chosen.is_empty() {
            let progress = seq.progress();
            let (len, passed) = (progress.so_far, &mut seq.passed[progress.part as usize]);
            self.lengths.reach(progress.depth, progress.part, len, passed);
        }
        // An event without tokens says that one was chosen but is not decided yet.
        let (tokens, spans) = seq.tell();
        Some(Event { seq: result.seq, tokens, spans, finish: None })
    }

    fn finish(&mut self, id: SeqId, why: Finish) -> Event {
        let mut seq = self.seqs.remove(&id).expect("only sequences in flight end");
        self.running.retain(|s| *s != id);
        self.waiting.retain(|s| *s != id);
        self.released.push(id);
        let why = seq.close(why);
        let (tokens, spans) = seq.tell();
        let thinking = seq.report();
        self.learn(&seq, &why, thinking);
        let finished = Finished {
            why,
            prompt_tokens: seq.prompt_len,
            cached_tokens: seq.hit.unwrap_or(0),
            completion_tokens: seq.output_len(),
            recomputed_tokens: seq.recomputed,
            drafted_tokens: seq.drafted,
            accepted_tokens: seq.accepted,
            reasoning_tokens: thinking.map_or(0, |t| t.counts.reasoning),
            thinking,
            decision: seq.decision().cloned(),
            speculation: Box::new(self.drafting.report(id)),
            cost: seq.cost,
        };
        Event { seq: id, tokens, spans, finish: Some(Box::new(finished)) }
    }

    fn restart(&mut self, id: SeqId) {
        if let Some(seq) = self.seqs.get_mut(&id) {
            seq.restart();
            self.running.retain(|s| *s != id);
            self.wait(id);
        }
    }

    /// The device and its cache were lost: everything in flight starts over from the token logs, in order.
    pub fn replay(&mut self) {
        for id in std::mem::take(&mut self.running).into_iter().rev() {
            self.seqs.get_mut(&id).expect("running sequences are known").restart();
            self.wait(id);
        }
        self.warm.stop();
        self.free_blocks = self.options.blocks;
    }

    /// Sequences of the last plan, for the search of the one that breaks the device.
    pub fn running(&self) -> &[SeqId] {
        &self.running
    }
}

#[cfg(test)]
mod tests;
