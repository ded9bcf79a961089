//! The lives of answers: what each was doing since when, and what its steps brought.
//!
//! An entry is written when an answer begins to do something else; a step adds to the counts of the entry that is
//! open. The last answers that ended are kept, so that a person who saw one end can still look at it.

use std::collections::VecDeque;
use std::time::Duration;

use ponder_engine::reason::{CloseReason, Decision, Label};
use ponder_engine::request::{Finish, SeqId, SeqMap};
use ponder_engine::schedule::{Event, Finished, Lane, SeqView};
use ponder_engine::step::SettledSeq;
use serde::Serialize;

/// Entries of a life; what comes later counts as part of the last.
const ENTRIES: usize = 64;
/// Ended answers that can still be looked at.
const PAST: usize = 64;

/// A part of an answer's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LifePhase {
    /// It does what its sequence does.
    In(Lane),
    /// It ended.
    Done,
}

impl LifePhase {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            LifePhase::In(lane) => lane.name(),
            LifePhase::Done => "done",
        }
    }
}

/// What an answer did for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// What: the name of a [`Lane`].
    pub phase: &'static str,
    /// Since when, in milliseconds after the start of the system.
    pub from_ms: u64,
    /// Until when; `None`: it still does.
    pub until_ms: Option<u64>,
    /// Steps that it took part in.
    pub steps: u64,
    /// Tokens that they chose for it.
    pub chosen: u64,
    /// Tokens that were guessed for it.
    pub drafted: u64,
    /// Guesses that were right.
    pub accepted: u64,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ended {
    /// `stop`, `length`, `cancelled` or `failed`.
    pub why: &'static str,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the cache already.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub output_tokens: usize,
    /// Tokens of thinking among them.
    pub reasoning_tokens: usize,
    /// Tokens computed more than once.
    pub recomputed_tokens: usize,
    /// Tokens guessed, and those that were right.
    pub drafted_tokens: usize,
    /// See `drafted_tokens`.
    pub accepted_tokens: usize,
    /// Why its thinking ended.
    pub closed_by: Option<CloseReason>,
    /// From its arrival until it ran first, in milliseconds.
    pub queue_ms: f64,
    /// Its share of the time of its steps, in milliseconds.
    pub device_ms: f64,
    /// Bytes of cache that it held, times seconds.
    pub kv_byte_seconds: f64,
}

impl Ended {
    fn of(finished: &Finished) -> Self {
        let why = match finished.why {
            Finish::Cancelled => "cancelled",
            Finish::Failed { .. } => "failed",
            Finish::Length => "length",
            Finish::Stop { .. } | Finish::StopString { .. } => "stop",
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Self {
            why,
            prompt_tokens: finished.prompt_tokens,
            cached_tokens: finished.cached_tokens,
            output_tokens: finished.completion_tokens,
            reasoning_tokens: finished.reasoning_tokens,
            recomputed_tokens: finished.recomputed_tokens,
            drafted_tokens: finished.drafted_tokens,
            accepted_tokens: finished.accepted_tokens,
            closed_by: finished.thinking.and_then(|t| t.closed_by),
            queue_ms: ms(finished.cost.queue_time),
            device_ms: ms(finished.cost.device_time),
            kv_byte_seconds: finished.cost.kv_byte_seconds,
        }
    }
}

/// The life of one answer so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LifeView {
    /// What it did, in order.
    pub stretches: Vec<Stretch>,
    /// How deep it was to think, and why; `None` where nothing was decided, or it just began.
    pub decision: Option<Decision>,
    /// Its end.
    pub ended: Option<Ended>,
    /// Its sequence, while it is in flight.
    pub now: Option<SeqView>,
}

/// Counts of all answers since the system started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Rows of prompts, and of logs after a preemption, that steps computed.
    pub prefill_tokens: u64,
    /// Tokens of thinking that clients were told.
    pub thinking_tokens: u64,
    /// Tokens of answers, tool calls included.
    pub answer_tokens: u64,
    /// Tokens that are nobody's: markers.
    pub marker_tokens: u64,
    /// Times that a sequence gave its blocks up.
    pub preemptions: u64,
    /// Answers that ended.
    pub ended: u64,
}

/// All lives.
#[derive(Debug, Default)]
pub struct Lives {
    /// Counts of all.
    pub totals: Totals,
    open: SeqMap<(LifePhase, LifeView)>,
    past: VecDeque<(SeqId, LifeView)>,
}

impl Lives {
    /// It does this from now on; false if it did already.
    pub fn enter(&mut self, seq: SeqId, lane: Lane, now: Duration) -> bool {
        let now_ms = now.as_millis() as u64;
        let (phase, life) = self.open.entry(seq).or_insert_with(|| (LifePhase::Done, LifeView::default()));
        if std::mem::replace(phase, LifePhase::In(lane)) == LifePhase::In(lane) {
            return false;
        }
        if life.stretches.len() < ENTRIES {
            close(life, now_ms);
            life.stretches.push(Stretch {
                phase: lane.name(),
                from_ms: now_ms,
                until_ms: None,
                steps: 0,
                chosen: 0,
                drafted: 0,
                accepted: 0,
            });
        }
        true
    }

    /// What a step did for an answer.
    pub fn step(&mut self, result: &SettledSeq) {
        let Some((phase, life)) = self.open.get_mut(&result.seq) else { return };
        let Some(stretch) = life.stretches.last_mut() else { return };
        let chosen = result.chosen.as_ref().map_or(0, |c| c.len()) as u64;
        if *phase == LifePhase::In(Lane::Prefill) {
            let computed = result.cached.saturating_sub(result.start) as u64;
            self.totals.prefill_tokens += computed - chosen.saturating_sub(1).min(computed);
        }
        stretch.steps += 1;
        stretch.chosen += chosen;
        stretch.drafted += result.drafted as u64;
        stretch.accepted += chosen.saturating_sub(1).min(result.drafted as u64);
    }

    /// What clients are told; true if that is the end of an answer.
    pub fn told(&mut self, event: &Event, now: Duration) -> bool {
        for span in &event.spans {
            *match span.label {
                Label::Reasoning => &mut self.totals.thinking_tokens,
                Label::Content | Label::ToolCall => &mut self.totals.answer_tokens,
                Label::Marker => &mut self.totals.marker_tokens,
            } += span.len as u64;
        }
        let Some(finished) = &event.finish else { return false };
        self.totals.ended += 1;
        let Some((_, mut life)) = self.open.remove(&event.seq) else { return false };
        close(&mut life, now.as_millis() as u64);
        life.decision = finished.decision.clone();
        life.ended = Some(Ended::of(finished));
        if self.past.len() == PAST {
            self.past.pop_front();
        }
        self.past.push_back((event.seq, life));
        true
    }

    /// The life of an answer, if it is in flight or among the last that ended.
    pub fn look(&self, seq: SeqId) -> Option<LifeView> {
        let past = || self.past.iter().rev().find(|(id, _)| *id == seq).map(|(_, life)| life);
        self.open.get(&seq).map(|(_, life)| life).or_else(past).cloned()
    }
    /// The last one that ended, for the trace.
    pub fn last_ended(&self) -> Option<&LifeView> {
        self.past.back().map(|(_, life)| life)
    }
}

fn close(life: &mut LifeView, now_ms: u64) {
    if let Some(last) = life.stretches.last_mut() {
        last.until_ms.get_or_insert(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ponder_engine::request::RequestId;
    use ponder_engine::spec::Source;

    fn seq(n: u64) -> SeqId {
        SeqId { request: RequestId(n), choice: 0 }
    }
    fn end(n: u64) -> Event {
        let finish = Finished {
            why: Finish::Length,
            prompt_tokens: 1,
            cached_tokens: 0,
            completion_tokens: 2,
            recomputed_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            reasoning_tokens: 0,
            thinking: None,
            decision: None,
            speculation: Default::default(),
            cost: Default::default(),
        };
        Event { seq: seq(n), tokens: Default::default(), spans: Default::default(), finish: Some(Box::new(finish)) }
    }

    #[test]
    fn a_life_and_its_counts() {
        let (mut lives, at) = (Lives::default(), Duration::from_millis);
        assert!(lives.enter(seq(1), Lane::Queued, at(1)));
        assert!(lives.enter(seq(1), Lane::Thinking, at(5)));
        assert!(!lives.enter(seq(1), Lane::Thinking, at(6)));
        let chosen = Ok([7, 8, 9][..].into());
        lives.step(&SettledSeq { seq: seq(1), start: 0, cached: 3, chosen, drafted: 4, source: Source::Ngram });
        assert!(lives.told(&end(1), at(9)));
        let life = lives.look(seq(1)).unwrap();
        let times: Vec<_> = life.stretches.iter().map(|s| (s.phase, s.from_ms, s.until_ms)).collect();
        assert_eq!(times, [("queued", 1, Some(5)), ("thinking", 5, Some(9))]);
        let last = &life.stretches[1];
        assert_eq!((last.steps, last.chosen, last.drafted, last.accepted), (1, 3, 4, 2));
        assert_eq!((life.ended.unwrap().why, lives.totals.ended), ("length", 1));
    }

    #[test]
    fn memory_is_bounded() {
        let mut lives = Lives::default();
        for n in 0..2 * PAST as u64 {
            for i in 0..ENTRIES as u64 {
                let lanes = [Lane::Answer, Lane::Preempted, Lane::Prefill];
                lives.enter(seq(n), lanes[(i % 3) as usize], Duration::from_millis(i));
            }
            lives.enter(seq(n), Lane::Queued, Duration::from_secs(1));
            assert!(lives.look(seq(n)).unwrap().stretches.len() <= ENTRIES);
            lives.told(&end(n), Duration::from_secs(2));
        }
        assert_eq!((lives.past.len(), lives.open.len()), (PAST, 0));
        assert!(lives.look(seq(0)).is_none());
    }
}
