//! What happened, for people: message spans with queue and busy time, request phases, one line per step.
//!
//! Recording is off until somebody listens; then a record is one push into a vector. A file written by
//! [`Tracer::chrome_json`] opens in Perfetto and in chrome://tracing.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ponder_engine::request::SeqId;
use serde_json::json;

/// A message, from sending to the end of its handling.
#[derive(Clone, Debug)]
pub struct Span {
    /// Who handled it.
    pub actor: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The step that it belongs to, 0 if none.
    pub step: u64,
    /// Put into the mailbox.
    pub sent: Instant,
    /// Taken out of it.
    pub taken: Instant,
    /// Answered.
    pub done: Instant,
}

/// A part of a request's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LifePhase {
    /// Submitted, not started.
    Queued,
    /// Its prompt (or, after a preemption, its log) is computed.
    Prefill,
    /// It generates.
    Decode,
    /// It ended.
    Done,
}

impl LifePhase {
    fn name(self) -> &'static str {
        match self {
            LifePhase::Queued => "queued",
            LifePhase::Prefill => "prefill",
            LifePhase::Decode => "decode",
            LifePhase::Done => "done",
        }
    }
}

#[derive(Clone, Debug)]
enum Record {
    Message(Span),
    Phase { seq: SeqId, phase: LifePhase, at: Instant },
    Step { step: u64, seqs: Vec<SeqId> },
}

/// The recorder. Shared by all actors; cheap when nobody listens.
#[derive(Debug)]
pub struct Tracer {
    start: Instant,
    listening: AtomicBool,
    records: Mutex<Vec<Record>>,
    steps: AtomicU64,
    device_ns: AtomicU64,
    actors: [ActorTotals; ACTORS.len()],
}

/// The actors by their names in spans.
pub const ACTORS: [&str; 6] = ["scheduler", "kv", "draft", "target", "streamer", "supervisor"];

/// Upper bounds of the queue time histogram, in microseconds.
pub const QUEUE_US: [u64; 8] = [10, 30, 100, 300, 1_000, 3_000, 10_000, 100_000];

/// Counts of one actor's messages.
#[derive(Debug, Default)]
struct ActorTotals {
    busy_us: AtomicU64,
    queue_us: AtomicU64,
    /// By queue time: one per bound, and those above.
    queued: [AtomicU64; QUEUE_US.len() + 1],
}

/// Messages of one actor since the system started.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ActorView {
    /// Its name.
    pub actor: &'static str,
    /// Messages that it handled.
    pub messages: u64,
    /// Time that they spent in its mailbox, all together.
    pub queue_us: u64,
    /// Time that it spent on them.
    pub busy_us: u64,
    /// Messages by queue time: up to each of [`QUEUE_US`], and above.
    pub queued: Vec<u64>,
}

/// Counts since the system started, for benchmarks and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTotals {
    /// Steps whose results were applied.
    pub steps: u64,
    /// Time that they spent on the device, from launch to end.
    pub device_time: Duration,
}

impl Default for Tracer {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            listening: AtomicBool::new(false),
            records: Mutex::new(Vec::new()),
            steps: AtomicU64::new(0),
            device_ns: AtomicU64::new(0),
            actors: Default::default(),
        }
    }
}

impl Tracer {
    /// Starts or stops recording.
    pub fn listen(&self, on: bool) {
        self.listening.store(on, Ordering::Relaxed);
    }
    /// Time since the system started.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Counts of all steps so far.
    pub fn totals(&self) -> StepTotals {
        let device_time = Duration::from_nanos(self.device_ns.load(Ordering::Relaxed));
        StepTotals { steps: self.steps.load(Ordering::Relaxed), device_time }
    }
    /// Messages of every actor so far.
    pub fn actors(&self) -> Vec<ActorView> {
        let view = |(actor, totals): (&&'static str, &ActorTotals)| {
            let queued: Vec<u64> = totals.queued.iter().map(|n| n.load(Ordering::Relaxed)).collect();
            ActorView {
                actor,
                messages: queued.iter().sum(),
                queue_us: totals.queue_us.load(Ordering::Relaxed),
                busy_us: totals.busy_us.load(Ordering::Relaxed),
                queued,
            }
        };
        ACTORS.iter().zip(&self.actors).map(view).collect()
    }
    pub(crate) fn step_done(&self, device_time: Duration) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.device_ns.fetch_add(device_time.as_nanos() as u64, Ordering::Relaxed);
    }

    fn push(&self, record: impl FnOnce() -> Record) {
        if self.listening.load(Ordering::Relaxed) {
            // A panic while pushing cannot leave the vector broken: go on with it.
            self.records.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(record());
        }
    }

    pub(crate) fn message(&self, span: Span) {
        let micros = |from: Instant, to: Instant| to.duration_since(from).as_micros() as u64;
        let (queue_us, busy_us) = (micros(span.sent, span.taken), micros(span.taken, span.done));
        if let Some(totals) = ACTORS.iter().position(|a| *a == span.actor).map(|i| &self.actors[i]) {
            let bucket = QUEUE_US.iter().position(|b| queue_us <= *b).unwrap_or(QUEUE_US.len());
            totals.queued[bucket].fetch_add(1, Ordering::Relaxed);
            totals.queue_us.fetch_add(queue_us, Ordering::Relaxed);
            totals.busy_us.fetch_add(busy_us, Ordering::Relaxed);
        }
        tracing::trace!(target: "ponder::message", actor = span.actor, name = span.name, step = span.step, queue_us, busy_us);
        self.push(|| Record::Message(span));
    }
    pub(crate) fn phase(&self, seq: SeqId, phase: LifePhase) {
        tracing::debug!(target: "ponder::request", request = seq.request.0, choice = seq.choice, phase = phase.name());
        self.push(|| Record::Phase { seq, phase, at: Instant::now() });
    }
    pub(crate) fn step_members(&self, step: u64, seqs: impl Iterator<Item = SeqId>) {
        self.push(|| Record::Step { step, seqs: seqs.collect() });
    }

    fn taken(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
    fn micros(&self, at: Instant) -> f64 {
        at.duration_since(self.start).as_secs_f64() * 1e6
    }

    /// Everything so far in the Chrome trace event format: a track per actor, a track per answer.
    pub fn chrome_json(&self) -> serde_json::Value {
        let mut events = Vec::new();
        let mut open: HashMap<SeqId, (LifePhase, Instant)> = HashMap::new();
        for record in self.taken() {
            match record {
                Record::Message(s) => events.push(json!({
                    "name": s.name, "cat": "message", "ph": "X", "pid": "actors", "tid": s.actor,
                    "ts": self.micros(s.taken), "dur": self.micros(s.done) - self.micros(s.taken),
                    "args": { "step": s.step, "queue_us": self.micros(s.taken) - self.micros(s.sent) },
                })),
                Record::Phase { seq, phase, at } => {
                    if let Some((last, since)) = open.insert(seq, (phase, at)) {
                        events.push(json!({
                            "name": last.name(), "cat": "request", "ph": "X", "pid": "requests",
                            "tid": format!("request {} answer {}", seq.request.0, seq.choice),
                            "ts": self.micros(since), "dur": self.micros(at) - self.micros(since),
                        }));
                    }
                }
                Record::Step { .. } => {}
            }
        }
        json!({ "traceEvents": events, "displayTimeUnit": "ms" })
    }

    /// The life of one answer as a tree: its phases, and under each the messages of its steps with their
    /// counts. Times are left out, so that the tree is the same at every run.
    pub fn span_tree(&self, seq: SeqId) -> String {
        let records = self.taken();
        let steps = |step: u64| {
            records.iter().any(|r| matches!(r, Record::Step { step: s, seqs } if *s == step && seqs.contains(&seq)))
        };
        let phases: Vec<(LifePhase, Instant)> = records
            .iter()
            .filter_map(|r| match r {
                Record::Phase { seq: s, phase, at } if *s == seq => Some((*phase, *at)),
                _ => None,
            })
            .collect();
        let mut out = format!("request {} answer {}\n", seq.request.0, seq.choice);
        for (i, (phase, since)) in phases.iter().enumerate() {
            let until = phases.get(i + 1).map(|p| p.1);
            let _ = writeln!(out, "  {}", phase.name());
            let mut counts: Vec<(String, usize)> = Vec::new();
            for record in &records {
                let Record::Message(span) = record else { continue };
                // A step's plan starts the phase, so its reservation is the first message inside.
                let inside = span.sent >= *since && until.is_none_or(|u| span.sent < u);
                if span.step == 0 || !inside || !steps(span.step) {
                    continue;
                }
                let name = format!("{}.{}", span.actor, span.name);
                match counts.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((name, 1)),
                }
            }
            for (name, count) in counts {
                let _ = writeln!(out, "    {name} x{count}");
            }
        }
        out
    }
}
