//! From a chat request to the tokens that the model sees, and the decision how deep it may think.

use std::sync::Arc;

use ponder_engine::reason::{Decision, Effort, decide};
use ponder_engine::text::{Message, RenderOptions};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::guard::Caller;
use super::job::{Job, Order};
use super::routes::blocking;
use super::state::{Served, State};
use super::wire::chat::ChatMessage;
use super::wire::sampling::Sampling;
use crate::prompt::{Prompt, Rendered};

/// What a chat request says about its prompt, whatever its format.
#[derive(Default)]
pub struct ChatPrompt {
    /// The chat.
    pub messages: Vec<Message>,
    /// `reasoning_effort`.
    pub effort: Option<String>,
    /// Cap on the thinking; -1 is none.
    pub budget: Option<i64>,
    /// Arguments for the template.
    pub kwargs: Map<String, Value>,
    /// Tools in OpenAI's form.
    pub tools: Option<Value>,
}

/// The messages of a chat as templates see them.
///
/// # Errors
/// 400 for a message that says nothing, or that is no text.
pub fn messages(chat: &[ChatMessage]) -> Result<Vec<Message>, ApiError> {
    if chat.is_empty() {
        return Err(ApiError::invalid("messages", "is empty"));
    }
    chat.iter().enumerate().map(|(i, m)| m.to_message(i)).collect()
}

/// What a template's arguments say about thinking, under either name; it is taken out.
fn enable_thinking(kwargs: &mut Map<String, Value>) -> Result<Option<bool>, ApiError> {
    let flag = |value: Value, name: &str| {
        let why = "is no boolean";
        value.as_bool().ok_or_else(|| ApiError::invalid(format!("chat_template_kwargs.{name}"), why))
    };
    let ours = kwargs.remove("enable_thinking").map(|v| flag(v, "enable_thinking")).transpose()?;
    // DeepSeek's templates call it so; others do not look.
    let theirs = kwargs.get("thinking").cloned().map(|v| flag(v, "thinking")).transpose()?;
    Ok(ours.or(theirs))
}

/// Renders and tokenises. This can take a while: not for an event loop.
///
/// # Errors
/// 400 for what the template or the engine refuses, with the field.
pub fn render(model: &Served, mut prompt: ChatPrompt, open: bool) -> Result<Rendered, ApiError> {
    let mut enable = enable_thinking(&mut prompt.kwargs)?;
    let decision = match &prompt.effort {
        Some(word) => Some(decision(model, word, &prompt)?),
        None => None,
    };
    if let Some(decision) = &decision {
        if !decision.think && enable == Some(true) {
            return Err(ApiError::invalid("chat_template_kwargs.enable_thinking", "contradicts reasoning_effort"));
        }
        if let Some(hint) = &decision.hint {
            add_hint(&mut prompt.messages, hint);
        }
        enable = enable.or((!decision.think).then_some(false));
    }
    // No thinking at all: better said to the model than forced on it.
    enable = enable.or((prompt.budget == Some(0)).then_some(false));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let options = RenderOptions {
        add_generation_prompt: open,
        enable_thinking: enable,
        tools: prompt.tools,
        kwargs: prompt.kwargs,
        now: Some(now),
    };
    let mut rendered = model.engine.prompter().render(&Prompt::Chat(prompt.messages, options))?;
    if let (Some(thinking), Some(_)) = (&mut rendered.thinking, &decision) {
        Arc::make_mut(thinking).decision = decision;
    }
    Ok(rendered)
}

fn decision(model: &Served, word: &str, prompt: &ChatPrompt) -> Result<Decision, ApiError> {
    let effort: Effort = word.parse()?;
    let query = prompt.messages.iter().rev().find(|m| m.role == "user").map_or("", |m| m.content.as_str());
    Ok(decide(effort, prompt.budget, query, &model.policy, &model.survival)?)
}

/// Tells the model how deep to think, in the system prompt.
fn add_hint(messages: &mut Vec<Message>, hint: &str) {
    match messages.first_mut().filter(|m| m.role == "system") {
        Some(system) if system.content.is_empty() => system.content = hint.into(),
        Some(system) => system.content = format!("{}\n\n{hint}", system.content),
        None => messages.insert(0, Message::new("system", hint)),
    }
}

/// Starts the one request that a chat is, whatever its format.
///
/// # Errors
/// If it is refused.
pub async fn start(
    state: Arc<State>,
    model: Option<&str>,
    prompt: ChatPrompt,
    sampling: &Sampling<'_>,
    caller: Caller,
    prefix: &'static str,
) -> Result<Job, ApiError> {
    let (model, name) = state.model(model)?;
    let model = model.clone();
    let params = sampling.params(model.engine.generation_defaults(), model.engine.config().vocab)?;
    let Caller { request_id, key, arrived } = caller;
    if state.options.log_prompts {
        tracing::info!(target: "ponder::prompt", request_id, messages = ?prompt.messages, "prompt");
    }
    let renderer = model.clone();
    let rendered = blocking(move || render(&renderer, prompt, true)).await?;
    let order = Order { model, name, prompts: vec![rendered], params, key, arrived, prefix, request_id };
    Job::start(state, order).await
}
