//! Everything about the thinking of one answer: phase, budget and loop detector, moved by one token at a time.
//!
//! The scheduler pushes a token, then asks how to go on ([`Reasoning::steer`]): tokens to force come first, and
//! whatever the verifier had accepted beyond this place is cut.

use std::sync::Arc;

use serde::Serialize;

use super::Decision;
use super::budget::{Budget, CloseReason, Landing, Steer};
use super::loops::{Loop, LoopDetector, LoopOptions};
use super::markers::{Markers, Start};
use super::phase::{Counts, Phase, PhaseMachine, PhaseOptions, Step};
use crate::request::SamplingParams;

/// How a request's answers think: what is the same for all of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Thinking {
    /// The model's markers.
    pub markers: Arc<Markers>,
    /// How the prompt starts the answer.
    pub start: Start,
    /// What the phase machine allows.
    pub phase: PhaseOptions,
    /// The soft landing, if there is one.
    pub landing: Option<Landing>,
    /// When thinking is a loop; `None` never.
    pub loops: Option<LoopOptions>,
    /// What was decided for this request; `None`: the parameters' own budget counts.
    pub decision: Option<Decision>,
}

impl Thinking {
    /// The usual settings for a model's markers.
    pub fn new(markers: Arc<Markers>, start: Start) -> Self {
        let (phase, loops) = (PhaseOptions::default(), Some(LoopOptions::default()));
        Self { markers, start, phase, landing: None, loops, decision: None }
    }

    /// The budget of one answer of at most `max_tokens`.
    pub fn budget(&self, params: &SamplingParams, max_tokens: usize) -> Budget {
        let decision = self.decision.as_ref();
        // A budget that is none was refused with the request.
        let limit = decision.map_or_else(|| params.thinking_cap().unwrap_or(Some(0)), |d| d.budget);
        let budget = Budget::new(limit, max_tokens, params.answer_reserve, self.landing.clone());
        budget.with_extension(decision.and_then(|d| d.extension))
    }
}

/// What became of the thinking, for usage, metrics and the response's metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ThinkingReport {
    /// Tokens by stream.
    pub counts: Counts,
    /// Where the answer ended: `Thinking` means that no answer was reached.
    pub ended_in: Phase,
    /// Why thinking ended; `None` if there was none or it did not end.
    pub closed_by: Option<CloseReason>,
    /// The cap was raised once.
    pub extended: bool,
    /// The soft landing was written.
    pub landed: bool,
    /// The loop that was found.
    pub looped: Option<Loop>,
}

/// The thinking of one answer.
#[derive(Clone, Debug)]
pub struct Reasoning {
    phase: PhaseMachine,
    budget: Budget,
    loops: Option<LoopDetector>,
    ends: Arc<[u32]>,
    written: usize,
    close_now: Option<CloseReason>,
    closed_by: Option<CloseReason>,
    looped: Option<Loop>,
    ended_in: Phase,
}

impl Reasoning {
    /// Before the first token. `ends`: tokens that end the model's turn.
    pub fn new(thinking: &Thinking, budget: Budget, ends: Arc<[u32]>) -> Self {
        let options = PhaseOptions { think: thinking.phase.think && budget.any(), ..thinking.phase };
        let phase = PhaseMachine::new(thinking.markers.clone(), thinking.start, options);
        let ended_in = phase.phase();
        let loops = thinking.loops.map(LoopDetector::new);
        Self { phase, budget, loops, ends, written: 0, close_now: None, closed_by: None, looped: None, ended_in }
    }

    /// The phase machine, to look at.
    pub fn phase(&self) -> &PhaseMachine {
        &self.phase
    }

    /// Takes the next token, chosen or forced; returns which tokens are decided now. Follow it by [`Reasoning::steer`].
    pub fn push(&mut self, token: u32) -> Step {
        let before = self.phase.phase();
        let step = self.phase.push(token);
        self.written += 1;
        if before == Phase::Thinking {
            match self.phase.phase() {
                Phase::Answering => self.closed_by = Some(CloseReason::Model),
                Phase::ToolCall => self.closed_by = Some(CloseReason::ToolCall),
                _ => self.watch(token),
            }
        }
        step
    }

    fn watch(&mut self, token: u32) {
        if let Some(found) = self.loops.as_mut().and_then(|l| l.push(token)) {
            self.looped.get_or_insert(found);
            self.close_now.get_or_insert(CloseReason::Loop);
        }
    }

    /// The model ended its turn (its end token is not pushed). True: it did so inside the thinking, which will be
    /// closed instead, so that an answer follows.
    pub fn end_becomes_close(&mut self) -> bool {
        let thinking = self.phase.phase() == Phase::Thinking;
        if thinking {
            self.close_now = Some(CloseReason::EndToken);
        }
        thinking
    }

    /// The answer is wanted now: thinking is closed after the next token, if nothing else closes it before.
    pub fn close_thinking(&mut self, why: CloseReason) {
        if self.phase.phase() == Phase::Thinking {
            self.close_now.get_or_insert(why);
        }
    }

    /// Tokens that stay free for the answer.
    pub fn answer_reserve(&self) -> usize {
        self.budget.reserve()
    }

    /// Why the thinking was closed, or will be after the next token.
    pub fn closing(&self) -> Option<CloseReason> {
        self.close_now.or(self.report().closed_by)
    }

    fn room(&self) -> (usize, CloseReason) {
        let used = self.phase.counts().reasoning + self.phase.held();
        self.budget.room(used, self.written, self.phase.markers().close_len())
    }

    /// How to go on. Forced tokens must be pushed before anything else, and `steer` asked again after them.
    pub fn steer(&mut self) -> Steer {
        match self.phase.phase() {
            Phase::Thinking => {
                let forced = self.force();
                let forbid = if forced.is_empty() { self.forbid() } else { Vec::new() };
                Steer { forced, forbid }
            }
            Phase::Closing | Phase::Done => Steer::default(),
            Phase::Answering | Phase::ToolCall => Steer { forced: Vec::new(), forbid: self.forbid() },
        }
    }

    fn force(&mut self) -> Vec<u32> {
        let (mut room, mut reason) = self.room();
        let circling = self.loops.as_ref().is_some_and(|l| l.repeated() >= 32);
        if room == 0 && reason == CloseReason::Budget && self.close_now.is_none() && !circling && self.budget.extend() {
            (room, reason) = self.room();
        }
        if let Some(reason) = self.close_now.take().or((room == 0).then_some(reason)) {
            self.closed_by = Some(reason);
            return self.phase.begin_close();
        }
        if self.phase.held() > 0 {
            return Vec::new(); // a landing must not break a marker that has begun
        }
        self.budget.land(self.phase.counts().reasoning, room)
    }

    fn forbid(&self) -> Vec<u32> {
        let markers = self.phase.markers();
        let open = self.budget.can_open(self.written, markers.open_len(), markers.close_len());
        self.phase.forbidden(&self.ends, open)
    }

    /// What must not be chosen after each of `drafts` (the first entry: before them), if all are accepted.
    /// Nothing changes. At most [`super::phase::HISTORY`] drafts.
    pub fn forbid_along(&mut self, drafts: &[u32]) -> Vec<Vec<u32>> {
        let mut forbids = vec![self.forbid()];
        for draft in drafts {
            self.phase.push(*draft);
            self.written += 1;
            forbids.push(self.forbid());
        }
        self.phase.rollback(drafts.len());
        self.written -= drafts.len();
        forbids
    }

    /// Tokens that may come before anything is forced: drafting more than these is in vain.
    pub fn free_tokens(&self) -> usize {
        if self.phase.phase() == Phase::Thinking { self.room().0 } else { usize::MAX }
    }

    /// Tokens of thinking so far and at most, if it thinks or may be about to.
    pub fn thinking(&self) -> Option<(usize, usize)> {
        let counts = self.phase.counts();
        let thinks = match self.phase.phase() {
            Phase::Thinking => true,
            Phase::Answering => {
                let silent = counts.content + counts.tool_call == 0 && !self.phase.closed();
                silent && self.budget.any() && self.phase.markers().thinks()
            }
            _ => false,
        };
        thinks.then(|| (counts.reasoning, counts.reasoning.saturating_add(self.room().0)))
    }

    /// The answer is over: held tokens are decided.
    pub fn finish(&mut self) -> Step {
        self.ended_in = self.phase.phase();
        self.phase.finish()
    }

    /// What became of it so far.
    pub fn report(&self) -> ThinkingReport {
        let done = self.phase.phase() == Phase::Done;
        ThinkingReport {
            counts: self.phase.counts(),
            ended_in: if done { self.ended_in } else { self.phase.phase() },
            closed_by: self.closed_by,
            extended: self.budget.extended(),
            landed: self.budget.landed(),
            looped: self.looped,
        }
    }
}
