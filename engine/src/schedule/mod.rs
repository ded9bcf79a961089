//! Who runs in a step: continuous batching with chunked prefill, as a plain state machine.
//!
//! A request has no prefill and decode phases here, only a count of cached tokens; every step gives
//! each running sequence some of what it lacks until the step's token budget ends: who decodes first, then prompts,
//! in the order that the [`policy`] prefers.
//! Time comes in as `now`; nothing here sleeps, locks or draws random numbers.

pub mod policy;
mod sequence;
mod supervision;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

pub use policy::{ReasoningOptions, SchedulingPolicy};
pub use sequence::{Sequence, StopText};
pub use supervision::{Supervision, Verdict};

use crate::error::{Error, Result};
use crate::reason::{CloseReason, Decision, Lengths, Part, Span, ThinkingReport};
use crate::request::{Finish, Request, RequestId, SeqId};
use crate::spec::{DraftLength, LengthOptions, Survival};
use policy::{Forecast, Growth};

use crate::step::{Settled, SettledSeq, StepId, StepPlan};

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
    /// Most rows of one step whose logits are wanted: one per sequence that chooses, one per guess.
    pub max_logit_rows: usize,
}

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
    pub tokens: Vec<u32>,
    /// Whose they are, in order: the lengths are those of `tokens` together.
    pub spans: Vec<Span>,
    /// The end, once.
    pub finish: Option<Finished>,
}

/// How an answer ended, and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why.
    pub why: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, an end token included.
    pub completion_tokens: usize,
    /// Tokens computed more than once.
    pub recomputed_tokens: usize,
    /// Tokens of thinking among those generated.
    pub reasoning_tokens: usize,
    /// What became of the thinking; `None` if the model does not think.
    pub thinking: Option<ThinkingReport>,
    /// How deep it was to think, and why.
    pub decision: Option<Decision>,
    /// What it took.
    pub cost: Cost,
}

/// What an answer took from the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// From its arrival until it ran first.
    pub queue_time: Duration,
    /// Its share of the time of its steps, by rows.
    pub device_time: Duration,
    /// Bytes of cache that it held, times the seconds for which it held them.
    pub kv_byte_seconds: f64,
}

/// The requests in flight.
pub struct Scheduler {
    options: SchedulerOptions,
    seqs: HashMap<SeqId, Sequence>,
    waiting: VecDeque<SeqId>,
    running: Vec<SeqId>,
    released: Vec<SeqId>,
    /// Ends that no step will report: cancelled sequences.
    ended: Vec<Event>,
    next_step: u64,
    free_blocks: usize,
    preempted_last: bool,
    draft_length: DraftLength,
    survivals: HashMap<SeqId, Survival>,
    /// Rows of the step in flight, guesses not counted.
    planned_rows: usize,
    lengths: Lengths,
    /// Mean time of a step, decayed: what a token of a running answer takes.
    step_time: Duration,
    planned_at: Duration,
    planned: HashMap<SeqId, usize>,
}

/// Most waiting answers that are passed in one step because they are too large for now.
const MAX_SKIPPED: usize = 64;

impl Scheduler {
    /// No requests yet.
    pub fn new(options: SchedulerOptions) -> Self {
        Self {
            options,
            seqs: HashMap::new(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            released: Vec::new(),
            ended: Vec::new(),
            next_step: 1,
            free_blocks: options.blocks,
            preempted_last: false,
            draft_length: DraftLength::new(match options.drafts {
                DraftPolicy::Auto(length) => length,
                DraftPolicy::Off | DraftPolicy::Fixed(_) => LengthOptions::default(),
            }),
            survivals: HashMap::new(),
            planned_rows: 0,
            lengths: Lengths::default(),
            step_time: Duration::from_millis(20),
            planned_at: Duration::ZERO,
            planned: HashMap::new(),
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

    /// Takes a place in the queue by rank.
    fn wait(&mut self, id: SeqId) {
        let rank = self.seqs[&id].rank;
        let at = self.waiting.partition_point(|w| self.seqs[w].rank < rank);
        self.waiting.insert(at, id);
    }

    /// Ranks an answer by what is expected of it now.
    fn rank(&mut self, id: SeqId) {
        let seq = &self.seqs[&id];
        let left = match self.options.policy {
            SchedulingPolicy::Reasoning(_) => self.lengths.remaining(&seq.progress(), self.options.growth_quantile).0,
            SchedulingPolicy::Fcfs | SchedulingPolicy::Priority => 0.0,
        };
        let left = self.step_time.mul_f64(left);
        let rank = self.options.policy.rank(id, seq.arrived, seq.priority(), left);
        self.seqs.get_mut(&id).expect("it was just found").rank = rank;
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
        self.seqs.values_mut().filter(|s| s.id.request == request).for_each(Sequence::ask_for_answer);
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
        self.running.is_empty() && self.waiting.is_empty() && self.released.is_empty()
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
        if self.is_idle() || only.is_some_and(|id| !self.seqs.contains_key(&id)) {
            return None;
        }
        self.hold(now.saturating_sub(self.planned_at));
        self.planned_at = now;
        for id in self.running.clone() {
            self.rank(id);
        }
        match only {
            Some(id) if !self.running.contains(&id) => {
                self.waiting.retain(|s| *s != id);
                self.running.push(id);
            }
            Some(_) => {}
            None => self.admit(),
        }
        self.running.sort_by_key(|id| self.seqs[id].rank);
        let shares = self.shares(only);
        let mut budget = self.options.max_step_tokens;
        let mut plan = StepPlan { id: StepId(self.next_step), ..StepPlan::default() };
        self.next_step += 1;
        for (id, share) in self.running.iter().zip(shares) {
            let share = self.seqs[id].plan(share);
            if share.tokens.is_empty() {
                plan.idle.push(*id);
            } else {
                budget -= share.tokens.len();
                plan.seqs.push(share);
            }
        }
        self.planned = plan.seqs.iter().map(|s| (s.seq, s.tokens.len())).collect();
        for (seq, _) in &self.planned {
            self.seqs.get_mut(seq).expect("it runs").starts(now);
        }
        plan.released = std::mem::take(&mut self.released);
        plan.released.iter().for_each(|seq| drop(self.survivals.remove(seq)));
        self.planned_rows = self.options.max_step_tokens - budget;
        self.plan_drafts(&mut plan, budget);
        Some(plan)
    }

    /// Tokens for each running sequence: as many as a step has seats, by rank. Who decodes is served first, for that
    /// is one row each; prompts share what is left. (Every seat is sure of a token: there are no more than tokens.)
    fn shares(&self, only: Option<SeqId>) -> Vec<usize> {
        let mut shares = vec![0; self.running.len()];
        let may = |i: &usize| only.is_none_or(|only| only == self.running[*i]);
        let seated: Vec<usize> = (0..self.running.len()).filter(may).take(self.options.max_seqs).collect();
        let pending = |i: usize| self.seqs[&self.running[i]].pending();
        let (decodes, prompts): (Vec<usize>, Vec<usize>) = seated.into_iter().partition(|i| pending(*i) == 1);
        let mut left = self.options.max_step_tokens;
        for i in decodes.into_iter().chain(prompts) {
            shares[i] = pending(i).min(self.options.prefill_chunk).min(left);
            left -= shares[i];
        }
        shares
    }

    /// All that run held their blocks for `time`.
    fn hold(&mut self, time: Duration) {
        let (size, bytes) = (self.options.block_size, self.options.block_bytes as f64);
        for id in &self.running {
            let seq = self.seqs.get_mut(id).expect("running sequences are known");
            seq.cost.kv_byte_seconds += seq.cached.div_ceil(size) as f64 * bytes * time.as_secs_f64();
        }
    }

    /// Parts the time of a step among those that took part, by rows.
    fn charge(&mut self, settled: &Settled) {
        self.step_time = self.step_time.mul_f64(0.95) + settled.device_time.mul_f64(0.05);
        let rows = |s: &SettledSeq| self.planned.get(&s.seq).copied().unwrap_or(0) + s.drafted;
        let all: usize = settled.seqs.iter().map(rows).sum();
        for result in &settled.seqs {
            let share = rows(result) as f64 / all.max(1) as f64;
            if let Some(seq) = self.seqs.get_mut(&result.seq) {
                seq.cost.device_time += settled.device_time.mul_f64(share);
            }
        }
        // Those that end now are in no later plan; those that run on are held to account there.
        self.planned_at += settled.device_time;
        self.hold(settled.device_time);
    }

    /// Guesses for the sequences that choose a token, at most `budget` rows of them.
    fn plan_drafts(&mut self, plan: &mut StepPlan, budget: usize) {
        if self.options.drafts == DraftPolicy::Off {
            return;
        }
        let choosing: Vec<usize> = (0..plan.seqs.len()).filter(|i| plan.seqs[*i].sample.is_some()).collect();
        let lengths = match self.options.drafts {
            DraftPolicy::Fixed(k) => vec![k; choosing.len()],
            _ => {
                for i in &choosing {
                    self.survivals.entry(plan.seqs[*i].seq).or_insert_with(|| self.draft_length.survival());
                }
                let survivals: Vec<&Survival> = choosing.iter().map(|i| &self.survivals[&plan.seqs[*i].seq]).collect();
                self.draft_length.choose(&survivals, self.planned_rows - choosing.len())
            }
        };
        let mut left = budget.min(self.options.max_logit_rows.saturating_sub(choosing.len()));
        for (i, length) in choosing.into_iter().zip(lengths) {
            // The token after the guesses comes for free: a guess beyond what may be chosen is in vain.
            let useful = self.seqs[&plan.seqs[i].seq].free_tokens().saturating_sub(1);
            plan.seqs[i].max_drafts = length.min(useful).min(left);
            left -= plan.seqs[i].max_drafts;
        }
    }

    /// Learns from a step how long steps take and which guesses were right.
    fn observe(&mut self, settled: &Settled) {
        if !matches!(self.options.drafts, DraftPolicy::Auto(_)) {
            return;
        }
        let drafted: usize = settled.seqs.iter().map(|s| s.drafted).sum();
        self.draft_length.observe_step(self.planned_rows + drafted, settled.device_time.as_secs_f64() * 1e6);
        for result in settled.seqs.iter().filter(|s| s.drafted > 0) {
            let accepted = result.chosen.as_ref().map_or(0, |c| c.len().saturating_sub(1));
            if let Some(survival) = self.survivals.get_mut(&result.seq) {
                self.draft_length.observe_guesses(survival, result.drafted, accepted);
            }
        }
    }

    /// Lets waiting sequences start, by rank, while there is a place, their known part fits in free blocks, and the
    /// pool will hold all that are in flight then, as far as can be foretold. Nobody is admitted right after a
    /// preemption: the pool is short already. With nobody in flight the first may always start.
    ///
    /// Where the policy bounds overtaking, who is too large for now is passed by smaller ones within that bound.
    fn admit(&mut self) {
        let blocks_of = |seq: &Sequence| (seq.tokens.len() + 1).div_ceil(self.options.block_size);
        let growing: usize = self.running.iter().map(|id| blocks_of(&self.seqs[id])).sum();
        let mut free = if self.running.is_empty() {
            self.options.blocks
        } else {
            // What running prompts still lack is spoken for.
            self.options.blocks.saturating_sub(growing).min(self.free_blocks.max(1))
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
        let (_, most) = self.lengths.remaining(&seq.progress(), self.options.growth_quantile);
        let holds = (seq.tokens.len() + 1).div_ceil(size);
        Growth { holds, wants: (seq.tokens.len() + 1 + most as usize).div_ceil(size) - holds }
    }

    /// Takes a step's results; returns what clients are told.
    pub fn apply(&mut self, settled: &Settled) -> Vec<Event> {
        self.free_blocks = settled.free_blocks;
        self.preempted_last = !settled.preempted.is_empty();
        self.observe(settled);
        self.charge(settled);
        let mut events = self.drain_ended();
        for id in &settled.preempted {
            self.restart(*id);
        }
        for result in &settled.seqs {
            events.extend(self.apply_one(result));
        }
        events
    }

    fn apply_one(&mut self, result: &SettledSeq) -> Option<Event> {
        // Cancelled while its step ran.
        let seq = self.seqs.get_mut(&result.seq)?;
        let chosen = match &result.chosen {
            Ok(chosen) => chosen,
            Err(reason) => return Some(self.finish(result.seq, Finish::Failed { reason: reason.clone() })),
        };
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
            completion_tokens: seq.output_len(),
            recomputed_tokens: seq.recomputed,
            reasoning_tokens: thinking.map_or(0, |t| t.counts.reasoning),
            thinking,
            decision: seq.decision().cloned(),
            cost: seq.cost,
        };
        Event { seq: id, tokens, spans, finish: Some(finished) }
    }

    /// The lengths of what ended; what was cut is known to be at least so long.
    fn learn(&mut self, seq: &Sequence, why: &Finish, thinking: Option<ThinkingReport>) {
        let depth = seq.decision().and_then(Decision::depth);
        let counts = thinking.map(|t| t.counts);
        let thought = counts.map_or(0, |c| c.reasoning);
        if let Some(report) = thinking.filter(|_| thought > 0) {
            let own = [CloseReason::Model, CloseReason::ToolCall, CloseReason::EndToken];
            let ended = report.closed_by.is_some_and(|by| own.contains(&by));
            self.lengths.end(depth, Part::Thinking, thought, ended, seq.passed[0]);
        }
        let said = counts.map_or(seq.output_len(), |c| c.content + c.tool_call);
        if said > 0 {
            let ended = matches!(why, Finish::Stop { .. } | Finish::StopString { .. });
            self.lengths.end(depth, Part::Answer, said, ended, seq.passed[1]);
        }
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
        self.free_blocks = self.options.blocks;
    }

    /// Sequences of the last plan, for the search of the one that breaks the device.
    pub fn running(&self) -> &[SeqId] {
        &self.running
    }
}

#[cfg(test)]
mod tests;
