//! What answers cost, and how long they were: kept while they run, learnt from for those that follow.

use std::time::Duration;

use super::{Scheduler, Sequence};
use crate::reason::{CloseReason, Decision, Part, ThinkingReport};
use crate::request::Finish;
use crate::step::{Settled, SettledSeq};

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

impl Scheduler {
    /// All that run held their blocks for `time`.
    pub(super) fn hold(&mut self, time: Duration) {
        let (size, each) = (self.options.block_size, self.options.block_bytes as f64 * time.as_secs_f64());
        for id in &self.running {
            let seq = self.seqs.get_mut(id).expect("running sequences are known");
            seq.cost.kv_byte_seconds += seq.cached.div_ceil(size) as f64 * each;
        }
    }

    /// Parts the time of a step among those that took part, by rows.
    pub(super) fn charge(&mut self, settled: &Settled) {
        if !settled.seqs.is_empty() {
            self.step_time = self.step_time.mul_f64(0.95) + settled.device_time.mul_f64(0.05);
        }
        let accepted = |s: &SettledSeq| s.chosen.as_ref().map_or(0, |c| c.len().saturating_sub(1));
        let rows = |s: &SettledSeq| s.cached - s.start - accepted(s) + s.drafted;
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

    /// The lengths of what ended; what was cut is known to be at least so long.
    pub(super) fn learn(&mut self, seq: &Sequence, why: &Finish, thinking: Option<ThinkingReport>) {
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
}
