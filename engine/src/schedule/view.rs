//! A look at the requests in flight, for metrics and for people. Nothing here changes anything.

use std::time::Duration;

use serde::Serialize;

use super::{Scheduler, Sequence};
use crate::reason::{Counts, Phase};
use crate::request::SeqId;

/// What a sequence is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// It has not started.
    Queued,
    /// It had started, and gave its blocks up for others.
    Preempted,
    /// Its prompt, or its log after a preemption, is computed.
    Prefill,
    /// It thinks, or its thinking is being closed.
    Thinking,
    /// It answers.
    Answer,
    /// It writes a tool call.
    ToolCall,
}

impl Lane {
    /// All of them, in the order of a life.
    pub const ALL: [Lane; 6] =
        [Lane::Queued, Lane::Preempted, Lane::Prefill, Lane::Thinking, Lane::Answer, Lane::ToolCall];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Lane::Queued => "queued",
            Lane::Preempted => "preempted",
            Lane::Prefill => "prefill",
            Lane::Thinking => "thinking",
            Lane::Answer => "answer",
            Lane::ToolCall => "tool_call",
        }
    }
}

/// One sequence.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SeqView {
    /// Its request.
    pub request: u64,
    /// Which of the request's answers.
    pub choice: u8,
    /// What it is doing.
    pub lane: Lane,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub output_tokens: usize,
    /// Most tokens that it may generate.
    pub max_tokens: usize,
    /// Tokens whose keys and values are cached.
    pub cached_tokens: usize,
    /// Generated tokens by what they are; all content where the model does not think.
    pub counts: Counts,
    /// Cap on its thinking, if it has one.
    pub thinking_budget: Option<usize>,
    /// Tokens computed more than once.
    pub recomputed_tokens: usize,
    /// Tokens guessed for it, and those that were right.
    pub drafted_tokens: usize,
    /// See `drafted_tokens`.
    pub accepted_tokens: usize,
    /// Since it arrived, in milliseconds.
    pub age_ms: u64,
}

/// The requests in flight at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SchedulerView {
    /// Number of the last step that was planned; 0 before the first.
    pub step: u64,
    /// Most sequences that run at once.
    pub seats: usize,
    /// Those that run, the most important first.
    pub running: Vec<SeqView>,
    /// Those that wait, the next first.
    pub waiting: Vec<SeqView>,
}

impl Scheduler {
    /// Who is in flight.
    pub fn view(&self, now: Duration) -> SchedulerView {
        let look = |ids: &mut dyn Iterator<Item = &SeqId>, running: bool| {
            ids.map(|id| self.seqs[id].view(running, now)).collect()
        };
        SchedulerView {
            step: self.next_step - 1,
            seats: self.options.max_seqs,
            running: look(&mut self.running.iter(), true),
            waiting: look(&mut self.waiting.iter(), false),
        }
    }
    /// What a sequence of the last plan is doing; `None` if there is none of that id.
    pub fn doing(&self, id: SeqId) -> Option<Lane> {
        self.seqs.get(&id).map(|s| s.lane(true))
    }
    /// A look at one sequence.
    pub fn look(&self, id: SeqId, now: Duration) -> Option<SeqView> {
        self.seqs.get(&id).map(|s| s.view(self.running.contains(&id), now))
    }
}

impl Sequence {
    fn lane(&self, running: bool) -> Lane {
        match (running, self.report().map(|r| r.ended_in)) {
            (false, _) if self.hit.is_some() => Lane::Preempted,
            (false, _) => Lane::Queued,
            (true, _) if self.pending() > 1 && self.cached < self.prompt_len => Lane::Prefill,
            (true, Some(Phase::Thinking | Phase::Closing)) => Lane::Thinking,
            (true, Some(Phase::ToolCall)) => Lane::ToolCall,
            (true, _) => Lane::Answer,
        }
    }

    fn view(&self, running: bool, now: Duration) -> SeqView {
        let (report, lane) = (self.report(), self.lane(running));
        // A cap that was raised is the one that counts.
        let raised = self.decision().and_then(|d| d.extension).filter(|_| report.is_some_and(|r| r.extended));
        let plain = Counts { content: self.output_len(), ..Counts::default() };
        SeqView {
            request: self.id.request.0,
            choice: self.id.choice,
            lane,
            prompt_tokens: self.prompt_len,
            output_tokens: self.output_len(),
            max_tokens: self.max_tokens(),
            cached_tokens: self.cached,
            counts: report.map_or(plain, |r| r.counts),
            thinking_budget: raised.map_or_else(|| self.thinking_budget(), |e| e.to),
            recomputed_tokens: self.recomputed,
            drafted_tokens: self.drafted,
            accepted_tokens: self.accepted,
            age_ms: now.saturating_sub(self.arrived).as_millis() as u64,
        }
    }
}
