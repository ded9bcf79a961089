//! What happened, for people: message spans with queue and busy time, request phases, one line per step.
//!
//! Recording is off until somebody listens; then a record is one push into a vector. A file written by
//! [`Tracer::chrome_json`] opens in Perfetto and in chrome://tracing.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ponder_engine::request::SeqId;
use ponder_engine::spec::SpecReport;
use serde_json::{Value, json};

use crate::life::{LifePhase, LifeView};

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

#[derive(Clone, Debug)]
enum Record {
    Message(Span),
    Phase { seq: SeqId, phase: LifePhase, at: Instant },
    Step { step: u64, at: Instant, seqs: Vec<(SeqId, LifePhase)> },
    End { seq: SeqId, at: Instant, life: Option<Box<LifeView>> },
}

/// The recorder. Shared by all actors; cheap when nobody listens.
#[derive(Debug)]
pub struct Tracer {
    start: Instant,
    listening: AtomicBool,
    records: Mutex<Vec<Record>>,
    steps: AtomicU64,
    device_ns: AtomicU64,
    actors_ns: AtomicU64,
    /// When the target's device answered last, in nanoseconds since the start; 0: nothing was to be done since.
    answered_ns: AtomicU64,
    speculation: Mutex<SpecReport>,
    draft_faults: AtomicU64,
    foreseen: AtomicU64,
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
    /// Time between an answer of the target's device and its next work, guessing left out: what the actors take to
    /// settle, apply, plan and reserve, their messages included.
    pub actors_time: Duration,
}

impl Default for Tracer {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            listening: AtomicBool::new(false),
            records: Mutex::new(Vec::new()),
            steps: AtomicU64::new(0),
            device_ns: AtomicU64::new(0),
            actors_ns: AtomicU64::new(0),
            answered_ns: AtomicU64::new(0),
            speculation: Mutex::default(),
            draft_faults: AtomicU64::new(0),
            foreseen: AtomicU64::new(0),
            actors: Default::default(),
        }
    }
}

impl Tracer {
    /// Starts or stops recording.
    pub fn listen(&self, on: bool) {
        self.listening.store(on, Ordering::Relaxed);
    }
    /// Whether it records.
    pub fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }
    /// Forgets what it recorded.
    pub fn clear(&self) {
        self.records.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clear();
    }
    /// Time since the system started.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Counts of all steps so far.
    pub fn totals(&self) -> StepTotals {
        let time = |ns: &AtomicU64| Duration::from_nanos(ns.load(Ordering::Relaxed));
        let (device_time, actors_time) = (time(&self.device_ns), time(&self.actors_ns));
        StepTotals { steps: self.steps.load(Ordering::Relaxed), device_time, actors_time }
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
    /// What guessing did so far.
    pub fn speculation(&self) -> SpecReport {
        self.speculation.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
    /// How often the draft model failed; each time cost guesses and nothing else.
    pub fn draft_faults(&self) -> u64 {
        self.draft_faults.load(Ordering::Relaxed)
    }
    /// Guesses that the draft model made while the target verified those before them, and that served.
    pub fn foreseen_guesses(&self) -> u64 {
        self.foreseen.load(Ordering::Relaxed)
    }
    pub(crate) fn foreseen(&self, guesses: u64) {
        self.foreseen.store(guesses, Ordering::Relaxed);
    }
    pub(crate) fn draft_failed(&self) {
        self.draft_faults.fetch_add(1, Ordering::Relaxed);
    }
    /// A step is over; what guessing did so far changed in the totals only if nobody `guessed` in it.
    pub(crate) fn step_done(&self, device_time: Duration, speculation: &SpecReport, guessed: bool) {
        let mut known = self.speculation.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if guessed {
            known.clone_from(speculation);
        } else {
            known.keep_up(speculation);
        }
        drop(known);
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.device_ns.fetch_add(device_time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The target's device has answered.
    pub(crate) fn answered(&self) {
        self.answered_ns.store(self.now().as_nanos() as u64, Ordering::Relaxed);
    }
    /// It gets its next work, after `guessing` for so long.
    pub(crate) fn asked(&self, guessing: Duration) {
        let since = self.answered_ns.swap(0, Ordering::Relaxed);
        if since > 0 {
            let ns = (self.now().saturating_sub(guessing).as_nanos() as u64).saturating_sub(since);
            self.actors_ns.fetch_add(ns, Ordering::Relaxed);
        }
    }
    /// Nothing is to be done.
    pub(crate) fn idle(&self) {
        self.answered_ns.store(0, Ordering::Relaxed);
    }

    fn push(&self, record: impl FnOnce() -> Record) {
        if self.listening.load(Ordering::Relaxed) {
            // A panic while pushing cannot leave the vector broken: go on with it.
            self.records.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(record());
        }
    }

    /// An actor has handled a message: it is counted, and kept if somebody listens.
    pub fn message(&self, span: Span) {
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
    /// Who takes part in a step, and what each does; asked for only when somebody listens.
    pub(crate) fn step_members(&self, step: u64, seqs: impl FnOnce() -> Vec<(SeqId, LifePhase)>) {
        self.push(|| Record::Step { step, at: Instant::now(), seqs: seqs() });
    }
    pub(crate) fn end(&self, seq: SeqId, life: Option<&LifeView>) {
        tracing::debug!(target: "ponder::request", request = seq.request.0, choice = seq.choice, phase = "done");
        self.push(|| Record::End { seq, at: Instant::now(), life: life.cloned().map(Box::new) });
    }

    fn taken(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
    fn micros(&self, at: Instant) -> f64 {
        at.duration_since(self.start).as_secs_f64() * 1e6
    }

    /// Everything so far in the Chrome trace event format: a track per actor, a track per answer.
    ///
    /// An answer that lived before the recording began, or lives on after it, has its phases from and until then.
    pub fn chrome_json(&self) -> Value {
        let records = self.taken();
        let mut tracks = Tracks { tracer: self, events: Vec::new(), open: BTreeMap::new() };
        let members: HashMap<u64, Vec<String>> = records
            .iter()
            .filter_map(|r| match r {
                Record::Step { step, seqs, .. } => Some((*step, seqs.iter().map(|(s, _)| track(*s)).collect())),
                _ => None,
            })
            .collect();
        let mut last = self.start;
        for record in records {
            match record {
                Record::Message(s) => {
                    last = last.max(s.done);
                    let mut args = json!({ "step": s.step, "queue_us": self.micros(s.taken) - self.micros(s.sent) });
                    if let Some(members) = members.get(&s.step).filter(|_| s.name == "Verify") {
                        args["answers"] = json!(members);
                    }
                    tracks.events.push(json!({
                        "name": s.name, "cat": "message", "ph": "X", "pid": "actors", "tid": s.actor,
                        "ts": self.micros(s.taken), "dur": self.micros(s.done) - self.micros(s.taken),
                        "args": args,
                    }));
                }
                Record::Phase { seq, phase, at } => tracks.enter(seq, phase, at),
                Record::Step { at, seqs, .. } => seqs.into_iter().for_each(|(seq, phase)| tracks.enter(seq, phase, at)),
                Record::End { seq, at, life } => tracks.end(seq, at, life.as_deref()),
            }
        }
        for seq in tracks.open.keys().copied().collect::<Vec<_>>() {
            let (_, since) = tracks.open[&seq];
            tracks.close(seq, last.max(since));
        }
        json!({ "traceEvents": tracks.events, "displayTimeUnit": "ms" })
    }

    /// The life of one answer as a tree: its phases, and under each the messages of its steps with their
    /// counts. Times are left out, so that the tree is the same at every run.
    pub fn span_tree(&self, seq: SeqId) -> String {
        let records = self.taken();
        let of_it = |seqs: &[(SeqId, LifePhase)]| seqs.iter().any(|(id, _)| *id == seq);
        let steps = |step: u64| {
            records.iter().any(|r| matches!(r, Record::Step { step: s, seqs, .. } if *s == step && of_it(seqs)))
        };
        let phases: Vec<(LifePhase, Instant)> = records
            .iter()
            .filter_map(|r| match r {
                Record::Phase { seq: s, phase, at } if *s == seq => Some((*phase, *at)),
                Record::End { seq: s, at, .. } if *s == seq => Some((LifePhase::Done, *at)),
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

/// The name of an answer's track.
fn track(seq: SeqId) -> String {
    format!("request {} answer {}", seq.request.0, seq.choice)
}

/// A trace file while it is written.
struct Tracks<'a> {
    tracer: &'a Tracer,
    events: Vec<Value>,
    open: BTreeMap<SeqId, (LifePhase, Instant)>,
}

impl Tracks<'_> {
    fn enter(&mut self, seq: SeqId, phase: LifePhase, at: Instant) {
        if self.open.get(&seq).is_none_or(|(open, _)| *open != phase) {
            self.close(seq, at);
            self.open.insert(seq, (phase, at));
        }
    }
    fn close(&mut self, seq: SeqId, at: Instant) {
        if let Some((phase, since)) = self.open.remove(&seq) {
            let (ts, until) = (self.tracer.micros(since), self.tracer.micros(at));
            self.events.push(json!({
                "name": phase.name(), "cat": "request", "ph": "X", "pid": "requests", "tid": track(seq),
                "ts": ts, "dur": until - ts,
            }));
        }
    }
    fn end(&mut self, seq: SeqId, at: Instant, life: Option<&LifeView>) {
        self.close(seq, at);
        self.events.push(json!({
            "name": LifePhase::Done.name(), "cat": "request", "ph": "i", "s": "t", "pid": "requests",
            "tid": track(seq), "ts": self.tracer.micros(at), "args": life,
        }));
    }
}
