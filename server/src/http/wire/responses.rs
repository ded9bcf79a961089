//! `/v1/responses`, without state: what goes in, and what comes out. Items and events are OpenAI's.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::chat::{ChatRole, Content};
use super::sampling::ignored;
use super::usage::Usage;
use crate::Completion;
use crate::http::error::ApiError;
use ponder_engine::request::Finish;
use ponder_engine::text::Message;

/// Something to answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponsesRequest {
    /// Name of the model; the first one served if it is left out.
    pub model: Option<String>,
    /// A text, or items.
    pub input: Input,
    /// A system message before the input.
    pub instructions: Option<String>,
    /// Most tokens to generate, thinking included.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<u32>,
    /// 0 is greedy.
    #[schema(minimum = 0, maximum = 100)]
    pub temperature: Option<f32>,
    /// Keep the likeliest tokens up to this share of the probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// How deep to think.
    pub reasoning: Option<ReasoningOptions>,
    /// Events are sent while the answer is generated.
    pub stream: Option<bool>,
    /// Only `disabled`: what does not fit is refused.
    #[schema(pattern = "^disabled$")]
    pub truncation: Option<String>,
    /// Only text.
    pub text: Option<TextOptions>,
    /// Without effect here: nothing is stored.
    pub store: Option<Value>,
    /// Without effect here.
    pub metadata: Option<Value>,
    /// Without effect here.
    pub user: Option<Value>,
    /// Without effect here.
    pub service_tier: Option<Value>,
    /// Without effect here.
    pub safety_identifier: Option<Value>,
    /// Without effect here.
    pub prompt_cache_key: Option<Value>,
    /// Without effect here.
    pub include: Option<Value>,
}

/// How deep to think.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReasoningOptions {
    /// As `reasoning_effort` in chats.
    pub effort: Option<String>,
    /// Without effect here: thinking is sent as it is, not as a summary.
    pub summary: Option<Value>,
}

/// The form of the answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextOptions {
    /// Only `text`.
    pub format: Option<TextFormat>,
}

/// The form of the answer.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextFormat {
    /// Only `text`.
    #[serde(rename = "type")]
    #[schema(pattern = "^text$")]
    pub kind: String,
}

/// A text, or items.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Input {
    /// One message of the user.
    Text(String),
    /// Messages and what came between them.
    Items(Vec<InputItem>),
}

/// A message, or reasoning that an earlier response had.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputItem {
    /// `message`, if it is left out, or `reasoning`.
    #[serde(rename = "type")]
    #[schema(pattern = "^(message|reasoning)$")]
    pub kind: Option<String>,
    /// Who speaks.
    pub role: Option<ChatRole>,
    /// What is said, or thought.
    pub content: Option<Content>,
    /// Of an earlier response.
    pub id: Option<String>,
    /// Of an earlier response.
    pub status: Option<String>,
    /// Of an earlier response.
    pub summary: Option<Value>,
    /// Of another server; nothing can be made of it here.
    pub encrypted_content: Option<Value>,
}

impl ResponsesRequest {
    /// The chat that it means.
    ///
    /// # Errors
    /// 400 for an item that cannot be understood.
    pub fn messages(&self) -> Result<Vec<Message>, ApiError> {
        let mut messages: Vec<Message> = self.instructions.iter().map(|i| Message::new("system", i)).collect();
        match &self.input {
            Input::Text(text) => messages.push(Message::new("user", text)),
            Input::Items(items) => {
                let mut thought = None;
                for (i, item) in items.iter().enumerate() {
                    match item.kind.as_deref().unwrap_or("message") {
                        "reasoning" => thought = item.thought(i)?,
                        "message" => messages.push(item.message(i, thought.take())?),
                        _ => return Err(ApiError::invalid(format!("input[{i}].type"), "is not implemented")),
                    }
                }
            }
        }
        if messages.iter().all(|m| m.role == "system") && self.instructions.is_none() && messages.is_empty() {
            return Err(ApiError::invalid("input", "is empty"));
        }
        Ok(messages)
    }

    /// Refuses what is understood but not done.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.truncation.as_deref().is_some_and(|t| t != "disabled") {
            return Err(ApiError::invalid("truncation", "only `disabled` is implemented"));
        }
        let format = self.text.as_ref().and_then(|t| t.format.as_ref());
        if format.is_some_and(|f| f.kind != "text") {
            return Err(ApiError::invalid("text.format.type", "only `text` is implemented"));
        }
        Ok(())
    }

    /// Fields that were given and change nothing.
    pub fn ignored(&self) -> Vec<&'static str> {
        ignored(&[
            ("store", &self.store),
            ("metadata", &self.metadata),
            ("user", &self.user),
            ("service_tier", &self.service_tier),
            ("safety_identifier", &self.safety_identifier),
            ("prompt_cache_key", &self.prompt_cache_key),
            ("include", &self.include),
        ])
    }
}

impl InputItem {
    fn message(&self, i: usize, thought: Option<String>) -> Result<Message, ApiError> {
        let role = self.role.ok_or_else(|| ApiError::invalid(format!("input[{i}].role"), "is missing"))?;
        let at = format!("input[{i}].content");
        let content = self.content.as_ref().ok_or_else(|| ApiError::invalid(&*at, "is missing"))?;
        let message = Message::new(role.name(), content.text(&at)?);
        Ok(Message { reasoning_content: thought.filter(|_| role == ChatRole::Assistant), ..message })
    }

    fn thought(&self, i: usize) -> Result<Option<String>, ApiError> {
        let Some(content) = &self.content else { return Ok(None) };
        content.text(&format!("input[{i}].content")).map(Some)
    }
}

/// The response object, at any time of its life.
#[derive(Clone)]
pub struct ResponseObject {
    /// Its id.
    pub id: String,
    /// Seconds since 1970.
    pub created_at: u64,
    /// The model's name, as it was asked for.
    pub model: String,
    /// What of the request is told back.
    pub echo: Map<String, Value>,
}

/// A response, for the OpenAPI document; [`ResponseObject::json`] makes it.
#[derive(Serialize, ToSchema)]
pub struct ResponseSchema {
    /// Its id.
    id: String,
    /// `response`.
    object: String,
    /// Seconds since 1970.
    created_at: u64,
    /// in_progress, completed, incomplete or failed.
    status: String,
    /// The model's name, as it was asked for.
    model: String,
    /// Reasoning and message items.
    output: Vec<Value>,
}

impl ResponseObject {
    /// As JSON: with these items, and with usage once it is over.
    pub fn json(&self, status: &str, output: Vec<Value>, usage: Option<&Usage>, error: Option<Value>) -> Value {
        let cut = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
        let usage = usage.map(|u| {
            json!({
                "input_tokens": u.prompt_tokens,
                "input_tokens_details": { "cached_tokens": u.prompt_tokens_details.cached_tokens },
                "output_tokens": u.completion_tokens,
                "output_tokens_details": { "reasoning_tokens": u.completion_tokens_details.reasoning_tokens },
                "total_tokens": u.total_tokens,
            })
        });
        let mut json = json!({
            "id": self.id, "object": "response", "created_at": self.created_at, "status": status,
            "background": false, "error": error, "incomplete_details": cut, "model": self.model, "output": output,
            "parallel_tool_calls": true, "previous_response_id": null, "store": false,
            "text": { "format": { "type": "text" } }, "tool_choice": "auto", "tools": [], "truncation": "disabled",
            "usage": usage, "user": null, "service_tier": "default",
        });
        for (key, value) in &self.echo {
            json[key] = value.clone();
        }
        json
    }
}

/// A reasoning item.
pub fn reasoning_item(id: &str, text: Option<&str>, status: &str) -> Value {
    let content: Vec<Value> = text.map(|t| json!({ "type": "reasoning_text", "text": t })).into_iter().collect();
    json!({ "id": id, "type": "reasoning", "summary": [], "content": content, "status": status })
}

/// A message item.
pub fn message_item(id: &str, text: Option<&str>, status: &str) -> Value {
    let content: Vec<Value> = text.map(output_text).into_iter().collect();
    json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": content })
}

/// The text part of a message item.
pub fn output_text(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

/// How a response ended.
pub fn status(done: &Completion) -> &'static str {
    if done.finish == Finish::Length { "incomplete" } else { "completed" }
}
