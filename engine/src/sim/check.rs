//! The laws of a world, checked while it runs.

use std::collections::HashSet;
use std::time::Duration;

use super::oracle::Expected;
use super::world::World;
use crate::reason::Label;
use crate::request::{Finish, Request, SeqId};
use crate::schedule::{Event, QUEUE_TIMEOUT};
use crate::step::{Drafted, Reserved, Settled, StepPlan};

/// What must hold; the numbers are those of the list in the map of the project.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Law {
    /// Every accepted answer is in flight or has ended.
    Counted,
    /// An answer ends once, and nothing is told after it.
    EndsOnce,
    /// Blocks are free or held, and held by one.
    Blocks,
    /// What is planned continues what is cached; what is told is counted.
    Contiguous,
    /// The answer is the one that the request gets alone.
    OneAnswer,
    /// Thinking keeps its budget and leaves an answer.
    Budget,
    /// When nothing comes any more, everything ends.
    Progress,
    /// Steps and queues keep their limits.
    Limits,
    /// Nothing panics.
    NoPanic,
}

/// A law that was broken.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Which.
    pub law: Law,
    /// In which step.
    pub step: usize,
    /// At which virtual time.
    pub at: Duration,
    /// How.
    pub detail: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} broken in step {} at {} ms: {}", self.law, self.step, self.at.as_millis(), self.detail)
    }
}

/// One answer in flight, or how it ended.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) id: SeqId,
    pub(super) salt: u64,
    pub(super) breaks_at: Option<usize>,
    pub(super) nan_at: Option<usize>,
    prompt: usize,
    budget: usize,
    /// The request leaves the answer (after the close) one token at most, which may be the newline after the close: it may be empty.
    no_reserve: bool,
    expected: Expected,
    told: Vec<(u32, Label)>,
    /// Tokens that the device has cached for it.
    pub(super) cached: usize,
    /// Its client went away.
    pub(super) cancelled: bool,
    /// Its client asked for the answer early: the rest is not the expected one.
    pub(super) asked: bool,
    /// Times that the device was lost while it ran.
    pub(super) faults: usize,
    ended: bool,
    /// A step computed something of it.
    ran: bool,
}

impl Answer {
    pub(super) fn new(
        id: SeqId,
        request: &Request,
        expected: Expected,
        salt: u64,
        breaks_at: Option<usize>,
        nan_at: Option<usize>,
        max_model_len: usize,
    ) -> Self {
        let room = max_model_len - request.prompt.len();
        let most = request.params.max_tokens.unwrap_or(room).min(room);
        Self {
            id,
            salt,
            breaks_at,
            nan_at,
            prompt: request.prompt.len(),
            budget: request.params.thinking_cap().unwrap_or(None).unwrap_or(usize::MAX),
            no_reserve: request.params.answer_reserve.unwrap_or(2).min(most / 2).min(most.saturating_sub(3)) <= 1,
            expected,
            told: Vec::new(),
            cached: 0,
            cancelled: false,
            asked: false,
            faults: 0,
            ended: false,
            ran: false,
        }
    }

    /// The tokens that will follow the first `len` of its log: the best of guesses.
    pub(super) fn after(&self, len: usize, most: usize) -> Vec<u32> {
        self.expected.told.iter().skip(len.saturating_sub(self.prompt)).take(most).map(|(t, _)| *t).collect()
    }

    /// Takes what its client is told.
    fn hear(&mut self, event: &Event) -> Result<(), (Law, String)> {
        let id = self.id;
        if self.ended {
            return Err((Law::EndsOnce, format!("{id:?} is told something after its end")));
        }
        let labels = event.spans.iter().flat_map(|s| std::iter::repeat_n(s.label, s.len));
        let new: Vec<(u32, Label)> = event.tokens.iter().copied().zip(labels).collect();
        if new.len() != event.tokens.len() {
            return Err((Law::Contiguous, format!("{id:?}: {} tokens with {} labels", event.tokens.len(), new.len())));
        }
        let from = self.told.len();
        self.told.extend(new);
        let (said, want) = (&self.told[from..], self.expected.told.get(from..self.told.len()));
        // A close that was asked for early makes another answer; what was held at an early end is decided early.
        let early = event.finish.as_ref().is_some_and(|f| matches!(f.why, Finish::Cancelled | Finish::Failed { .. }));
        if !self.asked && !early && want != Some(said) {
            return Err((Law::OneAnswer, format!("{id:?} says {said:?} after {from} tokens, alone it says {want:?}")));
        }
        let thinking = self.told.iter().filter(|(_, l)| *l == Label::Reasoning).count();
        if thinking > self.budget {
            return Err((Law::Budget, format!("{id:?}: {thinking} tokens of thinking, {} allowed", self.budget)));
        }
        Ok(())
    }

    /// Its end is the expected one.
    fn end(&mut self, finished: &crate::schedule::Finished) -> Result<(), (Law, String)> {
        let id = self.id;
        self.ended = true;
        let stop = usize::from(matches!(finished.why, Finish::Stop { .. }));
        if self.told.len() + stop != finished.completion_tokens {
            let detail = format!("{id:?}: {} tokens told, {} counted", self.told.len(), finished.completion_tokens);
            return Err((Law::Contiguous, detail));
        }
        let thinking = self.told.iter().filter(|(_, l)| *l == Label::Reasoning).count();
        if thinking != finished.reasoning_tokens {
            let detail = format!("{id:?}: {thinking} tokens of thinking told, {} counted", finished.reasoning_tokens);
            return Err((Law::Contiguous, detail));
        }
        if self.asked {
            return Ok(());
        }
        let e = &self.expected;
        let got = (&finished.why, finished.completion_tokens, &finished.thinking);
        if got != (&e.why, e.tokens, &e.thinking) {
            let detail = format!("{id:?} ends as {got:?}, alone as {:?}", (&e.why, e.tokens, &e.thinking));
            return Err((Law::OneAnswer, detail));
        }
        let answered = self.told.iter().any(|(_, l)| *l == Label::Content);
        if finished.thinking.is_some_and(|t| t.closed_by.is_some()) && !answered && !self.no_reserve {
            return Err((Law::Budget, format!("{id:?}: an empty answer after thinking")));
        }
        Ok(())
    }
}

type Checked = Result<(), Failure>;

impl World {
    fn must(&self, holds: bool, law: Law, detail: impl FnOnce() -> String) -> Checked {
        if holds { Ok(()) } else { Err(self.broken(law, detail())) }
    }

    pub(super) fn check_plan(&self, plan: &StepPlan) -> Checked {
        let o = &self.scenario.options;
        let rows: usize = plan.seqs.iter().map(|s| s.tokens.len() + s.max_drafts).sum();
        self.must(rows <= o.max_step_tokens, Law::Limits, || format!("{rows} rows of {}", o.max_step_tokens))?;
        let logits: usize = plan.seqs.iter().filter(|s| s.sample.is_some()).map(|s| 1 + s.max_drafts).sum();
        self.must(logits <= o.max_logit_rows, Law::Limits, || format!("{logits} logits of {}", o.max_logit_rows))?;
        let (n, most) = (plan.seqs.len(), o.max_seqs);
        self.must(n <= most, Law::Limits, || format!("{n} sequences of {most}"))?;
        let mut seen = HashSet::new();
        for id in plan.seqs.iter().map(|s| &s.seq).chain(&plan.idle) {
            self.must(seen.insert(*id), Law::Limits, || format!("{id:?} is planned twice"))?;
        }
        for seq in &plan.seqs {
            let (id, answer, chunk) = (seq.seq, &self.answers[&seq.seq], o.prefill_chunk);
            self.must(!answer.ended, Law::EndsOnce, || format!("{id:?} runs after its end"))?;
            let (start, cached) = (seq.start, answer.cached);
            self.must(start <= cached, Law::Contiguous, || format!("{id:?} goes on at {start}, cached {cached}"))?;
            let len = seq.tokens.len();
            self.must(len <= chunk, Law::Limits, || format!("{id:?}: {len} tokens in a chunk of {chunk}"))?;
        }
        Ok(())
    }

    /// No block is written by two, and every sequence has all that it needs.
    pub(super) fn check_reserved(&mut self, reserved: &Reserved) -> Checked {
        for seq in &reserved.preempted {
            self.report.preempted += 1;
            self.answers.get_mut(seq).expect("it ran").cached = 0;
        }
        for seq in &reserved.plan.seqs {
            self.answers.get_mut(&seq.seq).expect("it was accepted").ran = true;
        }
        let block_size = self.scenario.options.block_size;
        let mut writers = HashSet::new();
        for (seq, table) in reserved.plan.seqs.iter().zip(&reserved.tables) {
            let (id, end) = (seq.seq, seq.start + seq.tokens.len() + seq.max_drafts);
            let (has, needs) = (table.len(), end.div_ceil(block_size));
            self.must(has >= needs, Law::Blocks, || format!("{id:?} has {has} blocks of {needs}"))?;
            for block in &table[seq.start / block_size..needs] {
                self.must(writers.insert(*block), Law::Blocks, || format!("block {block} is written by two, {id:?}"))?;
            }
        }
        self.check_pool()
    }

    pub(super) fn check_drafted(&mut self, drafted: &Drafted) -> Checked {
        for (seq, drafts) in drafted.reserved.plan.seqs.iter().zip(&drafted.drafts) {
            let (id, n, most) = (seq.seq, drafts.len(), seq.max_drafts);
            self.must(n <= most, Law::Limits, || format!("{id:?}: {n} guesses of {most}"))?;
            self.report.drafted += n;
        }
        Ok(())
    }

    pub(super) fn check_settled(&mut self, settled: &Settled) -> Checked {
        for seq in &settled.seqs {
            self.answers.get_mut(&seq.seq).expect("it ran").cached = seq.cached;
            if seq.drafted > 0 {
                self.report.right += seq.chosen.as_ref().map_or(0, |c| c.len().saturating_sub(1));
            }
        }
        let (says, is) = (settled.free_blocks, self.pool.free_blocks());
        self.must(says == is, Law::Blocks, || format!("{says} blocks are said to be free, {is} are"))?;
        self.check_pool()
    }

    fn check_pool(&self) -> Checked {
        self.pool.check().map_err(|detail| self.broken(Law::Blocks, detail))
    }

    pub(super) fn check_event(&mut self, event: Event) -> Checked {
        let gave_up = self.gave_up;
        let Some(answer) = self.answers.get_mut(&event.seq) else {
            return Err(self.broken(Law::EndsOnce, format!("{:?} was never accepted", event.seq)));
        };
        let checked = answer.hear(&event);
        let ended = event.finish.as_ref().map(|finished| match &finished.why {
            Finish::Cancelled if answer.cancelled => {
                answer.ended = true;
                Ok(())
            }
            Finish::Failed { reason } => {
                answer.ended = true;
                // Its place in the queue was taken from it before it ran.
                let late = reason == QUEUE_TIMEOUT && !answer.ran;
                let explained = late || gave_up || answer.nan_at.is_some() || answer.faults >= 2;
                if explained { Ok(()) } else { Err((Law::OneAnswer, format!("{:?} fails: {reason}", answer.id))) }
            }
            _ => answer.end(finished),
        });
        match event.finish.map(|f| (f.why, f.reasoning_tokens, f.cached_tokens)) {
            Some((Finish::Cancelled, ..)) => self.report.cancelled += 1,
            Some((Finish::Failed { .. }, ..)) => self.report.failed += 1,
            Some((_, thinking, hits)) => {
                self.report.finished += 1;
                self.report.hits += hits;
                self.report.thinking += thinking;
            }
            None => {}
        }
        checked.and(ended.unwrap_or(Ok(()))).map_err(|(law, detail)| self.broken(law, detail))
    }

    /// After every step.
    pub(super) fn check(&self) -> Checked {
        let r = &self.report;
        let live = self.answers.values().filter(|a| !a.ended).count();
        let all = r.finished + r.cancelled + r.failed + live;
        self.must(r.accepted == all, Law::Counted, || format!("{} accepted, {all} known", r.accepted))?;
        let (running, waiting) = self.scheduler.counts();
        let most = self.scenario.options.max_waiting + self.scenario.options.max_seqs * 4;
        self.must(waiting <= most, Law::Limits, || format!("{waiting} wait, {most} may"))?;
        self.must(running + waiting <= live, Law::Counted, || format!("{running} run and {waiting} wait of {live}"))
    }

    /// When nothing happens any more.
    pub(super) fn check_end(&self) -> Checked {
        let live = self.answers.values().find(|a| !a.ended);
        self.must(live.is_none(), Law::Progress, || format!("{:?} never ended", live.map(|a| a.id)))?;
        let (free, all) = (self.pool.free_blocks(), self.pool.total_blocks());
        self.must(free == all, Law::Blocks, || format!("{free} of {all} blocks are free at the end"))
    }
}
