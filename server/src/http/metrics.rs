//! What happened, for Prometheus: vLLM's names where vLLM has the metric, so that its dashboards work, and
//! under `ponder:` what nobody else counts (thinking and answer apart, why thinking ended, actors).
//!
//! Counters are added to as requests end; gauges are read from the engine when somebody asks.

use std::fmt::Write as _;

use ponder_engine::reason::CloseReason;
use ponder_engine::schedule::Lane;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::Completion;
use ponder_actors::trace::QUEUE_US;
use ponder_actors::view::EngineView;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Model {
    model_name: String,
}
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Which {
    model_name: String,
    /// Finish reason, lane, or cause.
    kind: String,
}
/// vLLM's label of `request_success`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Finished {
    model_name: String,
    finished_reason: String,
}

/// Seconds, as vLLM cuts them.
const SECONDS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0];
/// Tokens, as vLLM cuts them.
const TOKENS: [f64; 14] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 50_000.0];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}
fn tokens() -> Histogram {
    Histogram::new(TOKENS)
}

type Histograms = Family<Model, Histogram, fn() -> Histogram>;

/// All metrics of one model.
pub struct Metrics {
    registry: Registry,
    name: String,
    /// Time between two pieces of text of an answer.
    pub inter_token: Histogram,
    /// Time to the first text.
    pub first_token: Histogram,
    first_answer: Histogram,
    whole: Histogram,
    request_prompt: Histogram,
    request_generation: Histogram,
    request_reasoning: Histogram,
    prompt: Counter,
    cached: Counter,
    generation: Counter,
    reasoning: Counter,
    answer: Counter,
    drafted: Counter,
    accepted: Counter,
    recomputed: Counter,
    cancelled: Counter,
    refused: Counter,
    success: Family<Finished, Counter>,
    failed: Family<Which, Counter>,
    closed: Family<Which, Counter>,
    running: Gauge,
    waiting: Gauge,
    kv_usage: Gauge<f64, std::sync::atomic::AtomicU64>,
    sequences: Family<Which, Gauge>,
    blocks: Family<Which, Gauge>,
}

impl Metrics {
    /// Of the model of this name.
    pub fn new(name: &str) -> Self {
        let mut registry = Registry::default();
        let label = Model { model_name: name.into() };
        let mut histogram = |metric: &str, help: &str, make: fn() -> Histogram| {
            let family = Histograms::new_with_constructor(make);
            registry.register(metric, help, family.clone());
            family.get_or_create(&label).clone()
        };
        let inter_token =
            histogram("vllm:inter_token_latency_seconds", "Between two pieces of text of an answer", seconds);
        let first_token = histogram("vllm:time_to_first_token_seconds", "From arrival to the first text", seconds);
        let first_answer = histogram(
            "ponder:time_to_first_answer_token_seconds",
            "From arrival to the first text of the answer",
            seconds,
        );
        let whole = histogram("vllm:e2e_request_latency_seconds", "From arrival to the end of an answer", seconds);
        let request_prompt = histogram("vllm:request_prompt_tokens", "Tokens of a prompt", tokens);
        let request_generation = histogram("vllm:request_generation_tokens", "Tokens of an answer", tokens);
        let request_reasoning = histogram("ponder:request_reasoning_tokens", "Tokens of thinking of an answer", tokens);
        let mut counter = |metric: &str, help: &str| {
            let family = Family::<Model, Counter>::default();
            registry.register(metric, help, family.clone());
            family.get_or_create(&label).clone()
        };
        let prompt = counter("vllm:prompt_tokens", "Tokens of prompts");
        let cached = counter("vllm:prefix_cache_hits", "Tokens of prompts that were cached");
        let generation = counter("vllm:generation_tokens", "Tokens generated");
        let reasoning = counter("ponder:reasoning_tokens", "Tokens of thinking");
        let answer = counter("ponder:answer_tokens", "Tokens generated that are not thinking");
        let drafted = counter("vllm:spec_decode_num_draft_tokens", "Tokens guessed");
        let accepted = counter("vllm:spec_decode_num_accepted_tokens", "Guesses that were right");
        let recomputed = counter("ponder:recomputed_tokens", "Tokens computed more than once");
        let cancelled = counter("ponder:requests_cancelled", "Requests whose clients left");
        let refused = counter("ponder:requests_refused", "Requests for which there was no room");
        let mut gauge = |metric: &str, help: &str| {
            let family = Family::<Model, Gauge>::default();
            registry.register(metric, help, family.clone());
            family.get_or_create(&label).clone()
        };
        let running = gauge("vllm:num_requests_running", "Sequences that run");
        let waiting = gauge("vllm:num_requests_waiting", "Sequences that wait");
        let kv_usage = Family::<Model, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
        registry.register("vllm:kv_cache_usage_perc", "Share of the KV blocks that are held, 0 to 1", kv_usage.clone());
        let kv_usage = kv_usage.get_or_create(&label).clone();
        let success = Family::default();
        registry.register("vllm:request_success", "Answers that ended well", success.clone());
        let failed = Family::default();
        registry.register("ponder:requests_failed", "Requests that failed, by cause", failed.clone());
        let closed = Family::default();
        registry.register("ponder:thinking_closed", "Why thinking ended", closed.clone());
        let sequences = Family::default();
        registry.register("ponder:sequences", "Sequences by what they do", sequences.clone());
        let blocks = Family::default();
        registry.register("ponder:kv_blocks", "KV blocks by what their holders do", blocks.clone());
        Self {
            name: name.into(),
            registry,
            inter_token,
            first_token,
            first_answer,
            whole,
            request_prompt,
            request_generation,
            request_reasoning,
            prompt,
            cached,
            generation,
            reasoning,
            answer,
            drafted,
            accepted,
            recomputed,
            cancelled,
            refused,
            success,
            failed,
            closed,
            running,
            waiting,
            kv_usage,
            sequences,
            blocks,
        }
    }

    fn which(&self, kind: &str) -> Which {
        Which { model_name: self.name.clone(), kind: kind.into() }
    }

    /// An answer ended well.
    pub fn finished(&self, done: &Completion, with_prompt: bool) {
        if with_prompt {
            self.prompt.inc_by(done.prompt_tokens as u64);
            self.cached.inc_by(done.cached_tokens as u64);
            self.request_prompt.observe(done.prompt_tokens as f64);
        }
        self.generation.inc_by(done.completion_tokens as u64);
        self.reasoning.inc_by(done.reasoning_tokens as u64);
        self.answer.inc_by((done.completion_tokens - done.reasoning_tokens) as u64);
        self.drafted.inc_by(done.drafted_tokens as u64);
        self.accepted.inc_by(done.accepted_tokens as u64);
        self.recomputed.inc_by(done.recomputed_tokens as u64);
        self.request_generation.observe(done.completion_tokens as f64);
        self.request_reasoning.observe(done.reasoning_tokens as f64);
        self.whole.observe(done.timings.total_ms / 1e3);
        if let Some(first) = done.timings.first_answer_ms {
            self.first_answer.observe(first / 1e3);
        }
        let finished_reason = done.finish_reason().to_string();
        self.success.get_or_create(&Finished { model_name: self.name.clone(), finished_reason }).inc();
        if let Some(by) = done.thinking.and_then(|t| t.closed_by) {
            self.closed.get_or_create(&self.which(close_name(by))).inc();
        }
    }
    /// A request failed.
    pub fn failed(&self, how: &str) {
        self.failed.get_or_create(&self.which(how)).inc();
    }
    /// A client left.
    pub fn cancelled(&self) {
        self.cancelled.inc();
    }
    /// There was no room.
    pub fn refused(&self) {
        self.refused.inc();
    }

    /// Everything as text, with the state of the engine.
    pub fn text(&self, view: &EngineView) -> String {
        let waiting = view.count(Lane::Queued) + view.count(Lane::Preempted);
        self.waiting.set(waiting as i64);
        self.running.set((view.lanes.len() - waiting) as i64);
        self.kv_usage.set(1.0 - view.kv.free as f64 / view.kv.total.max(1) as f64);
        for lane in Lane::ALL {
            self.sequences.get_or_create(&self.which(lane.name())).set(view.count(lane) as i64);
            self.blocks.get_or_create(&self.which(lane.name())).set(view.blocks(lane) as i64);
        }
        self.blocks.get_or_create(&self.which("free")).set(view.kv.free as i64);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        let end = text.strip_suffix("# EOF\n").map_or(text.len(), str::len);
        text.truncate(end);
        self.actors(&mut text, view);
        text
    }

    /// What the actors counted themselves.
    fn actors(&self, out: &mut String, view: &EngineView) {
        let model = escaped(&self.name);
        let queue = "ponder:actor_queue_seconds";
        let _ = writeln!(out, "# HELP {queue} Time of messages in an actor's mailbox.\n# TYPE {queue} histogram");
        for a in &view.actors {
            let labels = format!("model_name=\"{model}\",actor=\"{}\"", a.actor);
            let mut sum = 0;
            let bounds = QUEUE_US.iter().map(|us| format!("{}", *us as f64 / 1e6)).chain(["+Inf".into()]);
            for (bound, count) in bounds.zip(&a.queued) {
                sum += count;
                let _ = writeln!(out, "{queue}_bucket{{{labels},le=\"{bound}\"}} {sum}");
            }
            let _ =
                writeln!(out, "{queue}_sum{{{labels}}} {}\n{queue}_count{{{labels}}} {sum}", a.queue_us as f64 / 1e6);
        }
        let busy = "ponder:actor_busy_seconds";
        let _ = writeln!(out, "# HELP {busy} Time that an actor spent on messages.\n# TYPE {busy} counter");
        for a in &view.actors {
            let us = a.busy_us as f64 / 1e6;
            let _ = writeln!(out, "{busy}_total{{model_name=\"{model}\",actor=\"{}\"}} {us}", a.actor);
        }
        for (name, help, value) in [
            ("ponder:steps", "Steps planned", view.step as f64),
            ("ponder:device_seconds", "Time of steps on the device", view.device_us as f64 / 1e6),
        ] {
            let _ = writeln!(
                out,
                "# HELP {name} {help}.\n# TYPE {name} counter\n{name}_total{{model_name=\"{model}\"}} {value}"
            );
        }
    }
}

/// A label's value between quotes.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn close_name(by: CloseReason) -> &'static str {
    match by {
        CloseReason::Model => "model",
        CloseReason::Budget => "budget",
        CloseReason::Reserve => "reserve",
        CloseReason::Loop => "loop",
        CloseReason::EndToken => "end_token",
        CloseReason::ToolCall => "tool_call",
        CloseReason::Asked => "asked",
        CloseReason::Memory => "memory",
    }
}
/// The metrics of several models as one exposition: each family once, with the samples of all.
pub fn joined(texts: &[String]) -> String {
    let mut families: Vec<(&str, String)> = Vec::new();
    for (nth, text) in texts.iter().enumerate() {
        let mut at = 0;
        for line in text.lines() {
            let about = line.strip_prefix("# ").and_then(|rest| rest.split(' ').nth(1));
            if let Some(name) = about {
                at = families.iter().position(|(n, _)| *n == name).unwrap_or(families.len());
                if at == families.len() {
                    families.push((name, String::new()));
                }
                // What the first model said about the family stands already.
                if nth > 0 && families[at].1.contains(line) {
                    continue;
                }
            }
            let Some((_, lines)) = families.get_mut(at) else { continue };
            *lines += line;
            lines.push('\n');
        }
    }
    families.into_iter().map(|(_, lines)| lines).collect()
}
