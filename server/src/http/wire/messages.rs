//! `/v1/messages`: Anthropic's format, with thinking blocks.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::sampling::ignored;
use super::usage::Usage;
use crate::Completion;
use crate::http::error::ApiError;
use ponder_engine::request::Finish;
use ponder_engine::text::Message;

/// A chat in Anthropic's format.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessagesRequest {
    /// Name of the model.
    pub model: String,
    /// The chat so far.
    #[schema(min_items = 1)]
    pub messages: Vec<TurnMessage>,
    /// Most tokens to generate, thinking included.
    #[schema(minimum = 1)]
    pub max_tokens: u32,
    /// A system message.
    pub system: Option<Blocks>,
    /// 0 is greedy.
    #[schema(minimum = 0, maximum = 1)]
    pub temperature: Option<f32>,
    /// Keep the likeliest tokens up to this share of the probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Keep this many of the likeliest tokens.
    #[schema(minimum = 0, maximum = 4294967295i64)]
    pub top_k: Option<i64>,
    /// The answer ends before any of these.
    #[schema(max_items = 16)]
    pub stop_sequences: Option<Vec<String>>,
    /// How deep to think; as the model likes if it is left out.
    pub thinking: Option<ThinkingOptions>,
    /// Events are sent while the answer is generated.
    pub stream: Option<bool>,
    /// Without effect here.
    pub metadata: Option<Value>,
    /// Without effect here.
    pub service_tier: Option<Value>,
}

/// A chat whose tokens are counted.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CountRequest {
    /// Name of the model.
    pub model: String,
    /// The chat so far.
    #[schema(min_items = 1)]
    pub messages: Vec<TurnMessage>,
    /// A system message.
    pub system: Option<Blocks>,
    /// How deep to think.
    pub thinking: Option<ThinkingOptions>,
}

/// How many tokens a chat has.
#[derive(Serialize, ToSchema)]
pub struct CountResponse {
    /// Tokens of the prompt that would be made of it.
    pub input_tokens: usize,
}

/// How deep to think.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ThinkingOptions {
    /// Whether at all.
    #[serde(rename = "type")]
    pub kind: ThinkingKind,
    /// Most tokens of thinking, exactly; with `enabled`.
    #[schema(minimum = 1)]
    pub budget_tokens: Option<u32>,
    /// Without effect here: thinking is sent as it is.
    pub display: Option<String>,
}

/// Whether to think.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThinkingKind {
    /// Up to the budget.
    Enabled,
    /// Not at all.
    Disabled,
    /// As the question needs.
    Adaptive,
}

impl ThinkingOptions {
    /// Budget and effort.
    ///
    /// # Errors
    /// 400 for a budget that contradicts the kind, or that leaves no room for an answer.
    pub fn read(options: Option<&Self>, max_tokens: Option<u32>) -> Result<(Option<i64>, Option<String>), ApiError> {
        let Some(Self { kind, budget_tokens, .. }) = options else { return Ok((None, None)) };
        match (kind, budget_tokens) {
            (ThinkingKind::Enabled, Some(budget)) if max_tokens.is_none_or(|m| *budget < m) && *budget > 0 => {
                Ok((Some(i64::from(*budget)), None))
            }
            (ThinkingKind::Enabled, Some(_)) => {
                Err(ApiError::invalid("thinking.budget_tokens", "must be at least 1 and below max_tokens"))
            }
            (ThinkingKind::Enabled, None) => Err(ApiError::invalid("thinking.budget_tokens", "is missing")),
            (_, Some(_)) => Err(ApiError::invalid("thinking.budget_tokens", "is for `enabled` only")),
            (ThinkingKind::Disabled, None) => Ok((Some(0), None)),
            (ThinkingKind::Adaptive, None) => Ok((None, Some("auto".into()))),
        }
    }
}

/// One turn.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TurnMessage {
    /// Who speaks.
    pub role: TurnRole,
    /// What is said.
    pub content: Blocks,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TurnRole {
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// A text, or blocks.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Blocks {
    /// A text.
    Text(String),
    /// Blocks.
    Blocks(Vec<Block>),
}

/// A block of text or of thinking.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// `text`, `thinking` or `redacted_thinking`.
    #[serde(rename = "type")]
    #[schema(pattern = "^(text|thinking|redacted_thinking)$")]
    pub kind: String,
    /// The text.
    pub text: Option<String>,
    /// The thinking.
    pub thinking: Option<String>,
    /// Not looked at.
    pub signature: Option<String>,
    /// Not looked at.
    pub data: Option<String>,
    /// Without effect here: whole prompts are cached anyway.
    pub cache_control: Option<Value>,
    /// Not looked at.
    pub citations: Option<Value>,
}

impl Blocks {
    /// Text and thinking.
    fn read(&self, at: &str) -> Result<(String, Option<String>), ApiError> {
        let blocks = match self {
            Self::Text(text) => return Ok((text.clone(), None)),
            Self::Blocks(blocks) => blocks,
        };
        let (mut text, mut thought) = (String::new(), None);
        for (i, block) in blocks.iter().enumerate() {
            let missing = |field: &str| ApiError::invalid(format!("{at}[{i}].{field}"), "is missing");
            match block.kind.as_str() {
                "text" => text += block.text.as_ref().ok_or_else(|| missing("text"))?,
                "thinking" => thought = Some(block.thinking.clone().ok_or_else(|| missing("thinking"))?),
                "redacted_thinking" => {}
                _ => return Err(ApiError::invalid(format!("{at}[{i}].type"), "is not implemented")),
            }
        }
        Ok((text, thought))
    }
}

/// The chat as templates see it.
///
/// # Errors
/// 400 for an empty chat, or a block that is not understood.
pub fn messages(system: Option<&Blocks>, turns: &[TurnMessage]) -> Result<Vec<Message>, ApiError> {
    if turns.is_empty() {
        return Err(ApiError::invalid("messages", "is empty"));
    }
    let mut messages = Vec::new();
    if let Some(system) = system {
        messages.push(Message::new("system", system.read("system")?.0));
    }
    for (i, turn) in turns.iter().enumerate() {
        let (content, reasoning_content) = turn.content.read(&format!("messages[{i}].content"))?;
        let role = if turn.role == TurnRole::User { "user" } else { "assistant" };
        messages.push(Message { reasoning_content, ..Message::new(role, content) });
    }
    Ok(messages)
}

impl MessagesRequest {
    /// Fields that were given and change nothing.
    pub fn ignored(&self) -> Vec<&'static str> {
        ignored(&[("metadata", &self.metadata), ("service_tier", &self.service_tier)])
    }
}

/// A reply.
#[derive(Serialize, ToSchema)]
pub struct MessageReply {
    /// Its id.
    pub id: String,
    /// `message`.
    pub r#type: &'static str,
    /// `assistant`.
    pub role: &'static str,
    /// The model's name, as it was asked for.
    pub model: String,
    /// Thinking, then text.
    pub content: Vec<Value>,
    /// end_turn, max_tokens or stop_sequence.
    pub stop_reason: Option<&'static str>,
    /// Which of the stop sequences.
    pub stop_sequence: Option<String>,
    /// Always null here.
    pub stop_details: Option<Value>,
    /// Always null here.
    pub container: Option<Value>,
    /// What it cost.
    pub usage: MessageUsage,
}

/// What a reply cost.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct MessageUsage {
    /// Tokens of the prompt that were computed.
    pub input_tokens: usize,
    /// Tokens that were written to the cache; they are not counted here.
    pub cache_creation_input_tokens: usize,
    /// Tokens of the prompt that were cached.
    pub cache_read_input_tokens: usize,
    /// Tokens generated.
    pub output_tokens: usize,
    /// Parts of them.
    pub output_tokens_details: MessageOutput,
    /// Always null here, as what follows.
    pub cache_creation: Option<u64>,
    /// Always null here.
    pub inference_geo: Option<u64>,
    /// Always null here.
    pub server_tool_use: Option<u64>,
    /// `standard`.
    pub service_tier: &'static str,
}

/// Parts of what was generated.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct MessageOutput {
    /// Thinking.
    pub thinking_tokens: usize,
}

impl From<&Usage> for MessageUsage {
    fn from(usage: &Usage) -> Self {
        let cached = usage.prompt_tokens_details.cached_tokens;
        Self {
            input_tokens: usage.prompt_tokens - cached,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: usage.completion_tokens,
            output_tokens_details: MessageOutput { thinking_tokens: usage.completion_tokens_details.reasoning_tokens },
            cache_creation: None,
            inference_geo: None,
            server_tool_use: None,
            service_tier: "standard",
        }
    }
}

/// Why it ended, and the stop sequence if that was why.
pub fn stop(done: &Completion) -> (&'static str, Option<String>) {
    match &done.finish {
        Finish::Length => ("max_tokens", None),
        Finish::StopString { text } => ("stop_sequence", Some(text.clone())),
        _ => ("end_turn", None),
    }
}
