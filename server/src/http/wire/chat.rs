//! `/v1/chat/completions`: the request, the reply, and the chunks of a stream.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::sampling::{Sampling, sampled_request};
use super::usage::{Timings, Usage};
use crate::http::error::ApiError;
use ponder_engine::text::Message;

/// Arguments for the chat template, by name.
pub type TemplateArguments = Map<String, Value>;

sampled_request! {
    /// A chat that the model continues.
    ChatRequest {
        /// The chat so far.
        #[schema(min_items = 1)]
        pub messages: Vec<ChatMessage>,
        /// Most tokens to generate, thinking included.
        #[schema(minimum = 1)]
        pub max_completion_tokens: Option<u32>,
        /// The older name of `max_completion_tokens`.
        #[schema(minimum = 1)]
        pub max_tokens: Option<u32>,
        /// none, minimal, low, medium, high, xhigh, max, or auto: as the question needs.
        pub reasoning_effort: Option<String>,
        /// Most tokens of thinking, exactly; 0 is none, -1 no cap.
        #[schema(minimum = -1)]
        pub thinking_token_budget: Option<i64>,
        /// llama.cpp's name of `thinking_token_budget`.
        #[schema(minimum = -1)]
        pub thinking_budget_tokens: Option<i64>,
        /// False: thinking is not sent.
        pub include_reasoning: Option<bool>,
        /// SGLang's flag; true, as it always is here.
        pub separate_reasoning: Option<bool>,
        /// Arguments for the chat template: `enable_thinking`, or what else it knows.
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<TemplateArguments>,
    }
}

/// One message of a chat.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: ChatRole,
    /// What is said.
    pub content: Option<Content>,
    /// Which speaker of that role.
    pub name: Option<String>,
    /// What an assistant thought before.
    pub reasoning_content: Option<String>,
    /// The same, under vLLM's name.
    pub reasoning: Option<String>,
    /// What an assistant refused.
    pub refusal: Option<String>,
    /// Tools that an assistant called.
    pub tool_calls: Option<Vec<Value>>,
    /// Which call a tool answers.
    pub tool_call_id: Option<String>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChatRole {
    /// The operator.
    System,
    /// The same, under its newer name.
    Developer,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// A tool.
    Tool,
}

impl ChatRole {
    /// What templates call it.
    pub fn name(self) -> &'static str {
        match self {
            ChatRole::System | ChatRole::Developer => "system",
            ChatRole::User => "user",
            ChatRole::Assistant => "assistant",
            ChatRole::Tool => "tool",
        }
    }
}

/// What is said.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Content {
    /// Text.
    Text(String),
    /// Text in parts.
    Parts(Vec<ContentPart>),
}

/// A part of what is said.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct ContentPart {
    /// `text`: this is a server for text.
    #[serde(rename = "type")]
    #[schema(pattern = "^text$")]
    pub kind: String,
    /// The text.
    pub text: Option<String>,
    /// Fields of other kinds, for the error.
    #[serde(flatten)]
    #[schema(ignore)]
    pub rest: Map<String, Value>,
}

impl ContentPart {
    /// Its text.
    ///
    /// # Errors
    /// 400 if it is none.
    pub fn text(&self, at: &str) -> Result<&str, ApiError> {
        let known = ["text", "input_text", "output_text", "reasoning_text"].contains(&self.kind.as_str());
        // What an earlier response of ours had beside its text.
        let rest = |field: &&String| !["annotations", "logprobs"].contains(&field.as_str());
        match (&self.text, self.rest.keys().find(rest)) {
            _ if !known => Err(ApiError::invalid(format!("{at}.type"), "only text is understood here")),
            (_, Some(field)) => {
                Err(ApiError::invalid(format!("{at}.{field}"), "is not a field of a text, or not implemented"))
            }
            (None, None) => Err(ApiError::invalid(format!("{at}.text"), "is missing")),
            (Some(text), None) => Ok(text),
        }
    }
}

impl Content {
    /// All its text.
    ///
    /// # Errors
    /// 400 if a part is no text.
    pub fn text(&self, at: &str) -> Result<String, ApiError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Parts(parts) => {
                parts.iter().enumerate().map(|(i, p)| p.text(&format!("{at}[{i}]"))).collect::<Result<String, _>>()
            }
        }
    }
}

impl ChatMessage {
    /// The message as templates see it.
    ///
    /// # Errors
    /// 400 if it says nothing, or something that is no text.
    pub fn to_message(&self, index: usize) -> Result<Message, ApiError> {
        let at = format!("messages[{index}].content");
        let content = match (&self.content, &self.refusal) {
            (Some(content), _) => content.text(&at)?,
            (None, Some(refusal)) => refusal.clone(),
            (None, None) if self.role == ChatRole::Assistant => String::new(),
            (None, None) => return Err(ApiError::invalid(at, "is missing")),
        };
        let mut extra = Map::new();
        for (key, value) in [("name", &self.name), ("tool_call_id", &self.tool_call_id)] {
            if let Some(value) = value {
                extra.insert(key.into(), value.as_str().into());
            }
        }
        if let Some(calls) = &self.tool_calls {
            extra.insert("tool_calls".into(), calls.iter().map(with_arguments).collect());
        }
        let reasoning_content = self.reasoning_content.clone().or_else(|| self.reasoning.clone());
        Ok(Message { role: self.role.name().into(), content, reasoning_content, extra })
    }
}

/// Templates expect a call's arguments as an object; clients send its text.
fn with_arguments(call: &Value) -> Value {
    let mut call = call.clone();
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(object) = arguments.as_str().and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok())
    {
        *arguments = Value::Object(object);
    }
    call
}

impl ChatRequest {
    /// The fields about sampling.
    ///
    /// # Errors
    /// 400 for two names of one field that say different things.
    pub fn sampling(&self) -> Result<Sampling<'_>, ApiError> {
        Ok(Sampling {
            max_tokens: self.max_completion_tokens.or(self.max_tokens),
            thinking_token_budget: self.budget()?,
            ..self.shared_sampling()
        })
    }

    /// The thinking budget, under either name.
    ///
    /// # Errors
    /// As [`sampling`](Self::sampling).
    pub fn budget(&self) -> Result<Option<i64>, ApiError> {
        match (self.thinking_token_budget, self.thinking_budget_tokens) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                Err(ApiError::invalid("thinking_budget_tokens", "says something else than thinking_token_budget"))
            }
            (ours, theirs) => Ok(ours.or(theirs)),
        }
    }
}

/// A reply.
#[derive(Serialize, ToSchema)]
pub struct ChatCompletion {
    /// Its id.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name, as it was asked for.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// What they cost.
    pub usage: Usage,
    /// Which program answered.
    pub system_fingerprint: &'static str,
    /// How long it took; of the answer that ended last.
    pub timings: Option<Timings>,
}

/// An answer.
#[derive(Serialize, ToSchema)]
pub struct ChatChoice {
    /// Which.
    pub index: usize,
    /// What it says.
    pub message: AnswerMessage,
    /// Always null here.
    pub logprobs: Option<Value>,
    /// stop or length.
    pub finish_reason: &'static str,
    /// The stop string or token, or `length_in_reasoning`.
    pub stop_reason: Value,
}

/// What an answer says.
#[derive(Serialize, ToSchema)]
pub struct AnswerMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The answer.
    pub content: Option<String>,
    /// The thinking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The same, under vLLM's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Always null here.
    pub refusal: Option<String>,
}

/// A part of a streamed reply.
#[derive(Serialize, ToSchema)]
pub struct ChatChunk<'a> {
    /// The reply's id.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name, as it was asked for.
    pub model: &'a str,
    /// At most one.
    pub choices: Vec<ChunkChoice<'a>>,
    /// Which program answers.
    pub system_fingerprint: &'static str,
    /// In the last chunk, if it was asked for; null before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// With the end of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// More of an answer.
#[derive(Serialize, ToSchema)]
pub struct ChunkChoice<'a> {
    /// Which.
    pub index: usize,
    /// What is new.
    pub delta: Delta<'a>,
    /// Always null here.
    pub logprobs: Option<Value>,
    /// At the end: stop or length.
    pub finish_reason: Option<&'static str>,
    /// At the end: the stop string or token, or `length_in_reasoning`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
}

/// What is new.
#[derive(Default, Serialize, ToSchema)]
pub struct Delta<'a> {
    /// First of all: `assistant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    /// More of the thinking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<&'a str>,
    /// The same, under vLLM's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<&'a str>,
}
