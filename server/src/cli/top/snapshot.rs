//! A server at one moment, read with patience: what another version leaves out, or has otherwise, is `None`.

use serde_json::Value;

use super::metrics::Metrics;

/// What a server showed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The model's name.
    pub model: Option<String>,
    /// Since the engine started.
    pub now_ms: Option<u64>,
    /// Number of the last step.
    pub step: Option<u64>,
    /// Time on the device of all steps.
    pub device_us: Option<u64>,
    /// Sequences that can run at once.
    pub seats: Option<u64>,
    /// It takes no requests any more.
    pub draining: bool,
    /// Blocks of the pool, and those that nobody holds.
    pub blocks: Option<(u64, u64)>,
    /// Blocks that nobody holds and whose content can be used again.
    pub cached_blocks: Option<u64>,
    /// Sequences, those that run first.
    pub lanes: Vec<Lane>,
    /// Actors.
    pub actors: Vec<Actor>,
    /// `/metrics`
    pub metrics: Metrics,
}

/// A sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lane {
    /// Request and choice, the engine's name for it.
    pub key: (u64, u64),
    /// Its name on the wire.
    pub id: Option<String>,
    /// What it does.
    pub phase: Phase,
    /// Tokens of its prompt.
    pub prompt: Option<u64>,
    /// Tokens generated.
    pub output: Option<u64>,
    /// Most tokens that it may generate.
    pub max: Option<u64>,
    /// Tokens whose keys and values are cached.
    pub cached: Option<u64>,
    /// Tokens of thinking.
    pub thinking: Option<u64>,
    /// Cap on the thinking.
    pub budget: Option<u64>,
    /// Tokens computed more than once.
    pub recomputed: Option<u64>,
    /// Tokens guessed.
    pub drafted: Option<u64>,
    /// Those that were right.
    pub accepted: Option<u64>,
    /// Since it arrived.
    pub age_ms: Option<u64>,
    /// Blocks that it holds.
    pub blocks: Option<u64>,
}

impl Lane {
    /// Whether it has a seat.
    pub fn runs(&self) -> bool {
        !matches!(self.phase, Phase::Queued | Phase::Preempted)
    }
    /// A name for a narrow column.
    pub fn short(&self) -> String {
        let tail = self.id.as_deref().map(|id| id.chars().skip(id.chars().count().saturating_sub(8)).collect());
        tail.unwrap_or_else(|| format!("#{}.{}", self.key.0, self.key.1))
    }
}

/// What a sequence does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It has not started.
    Queued,
    /// It gave its blocks up for others.
    Preempted,
    /// Its prompt is computed.
    Prefill,
    /// It thinks.
    Thinking,
    /// It answers.
    Answer,
    /// It writes a tool call.
    ToolCall,
    /// Something that this version does not know.
    #[default]
    Other,
}

impl Phase {
    /// All of them, in the order of a life.
    pub const ALL: [Phase; 7] = [
        Phase::Queued,
        Phase::Preempted,
        Phase::Prefill,
        Phase::Thinking,
        Phase::Answer,
        Phase::ToolCall,
        Phase::Other,
    ];
    /// The word for it.
    pub fn name(self) -> &'static str {
        ["queued", "preempted", "prefill", "thinking", "answer", "tool_call", "other"][self as usize]
    }
    fn of(word: &str) -> Self {
        Self::ALL.into_iter().find(|p| p.name() == word).unwrap_or_default()
    }
}

/// An actor, since the engine started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Actor {
    /// Its name.
    pub name: String,
    /// Messages that it handled.
    pub messages: Option<u64>,
    /// Time that they waited, all together.
    pub queue_us: Option<u64>,
    /// Time that it spent on them.
    pub busy_us: Option<u64>,
}

impl Snapshot {
    /// Of what `/debug/engine` and `/metrics` said.
    pub fn read(engine: &Value, metrics: &str) -> Self {
        let model = engine["model"].as_str().map(plain);
        let kv = &engine["kv"];
        let total = kv["total"].as_u64();
        let list = |name: &str| engine[name].as_array().cloned().unwrap_or_default();
        Self {
            now_ms: engine["now_ms"].as_u64(),
            step: engine["step"].as_u64(),
            device_us: engine["device_us"].as_u64(),
            seats: engine["seats"].as_u64(),
            draining: engine["draining"].as_bool().unwrap_or(false),
            blocks: total.zip(kv["free"].as_u64()),
            cached_blocks: kv["cached"].as_u64(),
            lanes: list("lanes").iter().map(lane).collect(),
            actors: list("actors").iter().map(actor).collect(),
            metrics: Metrics::read(metrics, model.as_deref()),
            model,
        }
    }

    /// Sequences that run, and those that wait.
    pub fn counts(&self) -> (usize, usize) {
        let running = self.lanes.iter().filter(|l| l.runs()).count();
        (running, self.lanes.len() - running)
    }
}

fn lane(json: &Value) -> Lane {
    let number = |name: &str| json[name].as_u64();
    Lane {
        key: (number("request").unwrap_or(0), number("choice").unwrap_or(0)),
        id: json["id"].as_str().map(plain),
        phase: Phase::of(json["lane"].as_str().unwrap_or_default()),
        prompt: number("prompt_tokens"),
        output: number("output_tokens"),
        max: number("max_tokens"),
        cached: number("cached_tokens"),
        thinking: json["counts"]["reasoning"].as_u64(),
        budget: number("thinking_budget"),
        recomputed: number("recomputed_tokens"),
        drafted: number("drafted_tokens"),
        accepted: number("accepted_tokens"),
        age_ms: number("age_ms"),
        blocks: json["blocks"].as_array().map(|b| b.len() as u64).or(number("blocks")),
    }
}

fn actor(json: &Value) -> Actor {
    let number = |name: &str| json[name].as_u64();
    Actor {
        name: json["actor"].as_str().map_or("?".into(), plain),
        messages: number("messages"),
        queue_us: number("queue_us"),
        busy_us: number("busy_us"),
    }
}

/// A name without what a terminal would obey.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What a server showed while one sequence was in every phase.
    pub fn recorded() -> Snapshot {
        let engine = serde_json::from_str(include_str!("recorded/engine.json")).unwrap();
        Snapshot::read(&engine, include_str!("recorded/metrics.txt"))
    }

    #[test]
    fn what_was_recorded() {
        let s = recorded();
        assert_eq!((s.model.as_deref(), s.seats, s.step, s.draining), (Some("bundled"), Some(4), Some(866), false));
        let phases: Vec<Phase> = s.lanes.iter().map(|l| l.phase).collect();
        let all = [Phase::Answer, Phase::Thinking, Phase::Prefill, Phase::Preempted, Phase::Queued];
        assert_eq!((phases, s.counts()), (all.to_vec(), (3, 2)));
        let first = &s.lanes[0];
        assert_eq!((first.output, first.thinking, first.blocks, first.budget), (Some(657), Some(522), Some(43), None));
        assert_eq!((first.short().as_str(), s.lanes[1].budget), ("7d8b0736", Some(512)));
        assert_eq!(s.actors.len(), 6);
        assert!(s.metrics.quantile("vllm:time_to_first_token_seconds", None, 0.5).is_some());
    }

    #[test]
    fn what_is_missing_or_strange_is_none() {
        for json in [
            "null",
            "[]",
            "{}",
            r#"{"kv": 3, "lanes": {}, "actors": "x"}"#,
            r#"{"lanes": [null, 1, {}], "actors": [{"messages": -1}], "kv": {"total": "many"}, "draining": 1}"#,
        ] {
            let s = Snapshot::read(&serde_json::from_str(json).unwrap(), "");
            assert_eq!((s.blocks, s.seats, s.draining), (None, None, false), "{json}");
            assert!(s.lanes.iter().all(|l| l.phase == Phase::Other && l.output.is_none()), "{json}");
        }
        let s = Snapshot::read(&serde_json::json!({ "lanes": [{ "lane": "dreaming", "id": "a\u{1b}[31mb" }] }), "");
        assert_eq!((s.lanes[0].phase, s.lanes[0].short().as_str()), (Phase::Other, "a[31mb"));
    }
}
