//! What a request cost, in OpenAI's shape, and how long its parts took.

use ponder_engine::reason::{Decision, Phase, ThinkingReport};
use ponder_engine::request::Finish;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::Completion;

/// Tokens of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: usize,
    /// Generated, thinking and end tokens included.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// Parts of the prompt.
    pub prompt_tokens_details: PromptDetails,
    /// Parts of what was generated.
    pub completion_tokens_details: CompletionDetails,
}

/// Parts of the prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct PromptDetails {
    /// Taken from the cache.
    pub cached_tokens: usize,
}

/// Parts of what was generated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionDetails {
    /// Thinking.
    pub reasoning_tokens: usize,
}

impl Usage {
    /// Counts an answer; its prompt too, unless another answer has counted it.
    pub fn add(&mut self, done: &Completion, with_prompt: bool) {
        if with_prompt {
            self.prompt_tokens += done.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += done.cached_tokens;
        }
        self.completion_tokens += done.completion_tokens;
        self.completion_tokens_details.reasoning_tokens += done.reasoning_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// Times and counts of one answer: llama.cpp's names, then our own.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Timings {
    /// Prompt tokens taken from the cache.
    pub cache_n: usize,
    /// Prompt tokens computed.
    pub prompt_n: usize,
    /// Until the first token.
    pub prompt_ms: f64,
    /// Prompt tokens by that time.
    pub prompt_per_second: f64,
    /// Tokens generated.
    pub predicted_n: usize,
    /// From the first token to the last.
    pub predicted_ms: f64,
    /// Tokens after the first by that time.
    pub predicted_per_second: f64,
    /// Tokens guessed.
    pub draft_n: usize,
    /// Guesses that were right.
    pub draft_n_accepted: usize,
    /// From the request's arrival to its first token.
    pub ttft_ms: f64,
    /// From the request's arrival to the first text of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttfa_ms: Option<f64>,
    /// From arrival to end.
    pub total_ms: f64,
    /// Tokens computed again, after a preemption or a lost device.
    pub recomputed_n: usize,
    /// What became of the thinking, for models that think.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<Value>,
    /// How deep the answer was to think, and why, where `reasoning_effort` was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Value>,
}

impl Timings {
    /// Of a finished answer.
    pub fn of(done: &Completion) -> Self {
        let t = &done.timings;
        let json = |report: &ThinkingReport| serde_json::to_value(report).unwrap_or_default();
        let decided = |decision: &Decision| serde_json::to_value(decision).unwrap_or_default();
        Self {
            cache_n: done.cached_tokens,
            prompt_n: done.prompt_tokens - done.cached_tokens,
            prompt_ms: t.ttft_ms,
            prompt_per_second: t.prefill_tokens_per_second,
            predicted_n: done.completion_tokens,
            predicted_ms: t.total_ms - t.ttft_ms,
            predicted_per_second: t.decode_tokens_per_second,
            draft_n: done.drafted_tokens,
            draft_n_accepted: done.accepted_tokens,
            ttft_ms: t.ttft_ms,
            ttfa_ms: t.first_answer_ms,
            total_ms: t.total_ms,
            recomputed_n: done.recomputed_tokens,
            thinking: done.thinking.as_ref().map(json),
            decision: done.decision.as_ref().map(decided),
        }
    }
}

/// vLLM's `stop_reason`: what exactly ended the answer.
pub fn stop_reason(done: &Completion, eos: &[u32]) -> Value {
    match &done.finish {
        Finish::StopString { text } => text.as_str().into(),
        Finish::Stop { token } if !eos.contains(token) => (*token).into(),
        Finish::Length if done.thinking.is_some_and(|t| t.ended_in == Phase::Thinking) => "length_in_reasoning".into(),
        _ => Value::Null,
    }
}
