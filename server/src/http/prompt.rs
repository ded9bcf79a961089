//! From a chat request to the tokens that the model sees, and the decision how deep it may think.

use std::sync::Arc;

use ponder_engine::request::SamplingParams;
use ponder_engine::text::{Message, RenderOptions};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::fleet;
use super::guard::Caller;
use super::job::{Job, Order};
use super::routes::blocking;
use super::state::{Served, State};
use super::tools::Tools;
use super::wire::chat::ChatMessage;
use super::wire::sampling::Sampling;
use crate::prompt::{Prompt, Rendered};
use crate::reasoner::with_hint;

/// What a chat request says about its prompt, whatever its format.
#[derive(Clone, Default)]
pub struct ChatPrompt {
    /// The chat.
    pub messages: Vec<Message>,
    /// `reasoning_effort`.
    pub effort: Option<String>,
    /// Cap on the thinking; -1 is none.
    pub budget: Option<i64>,
    /// Arguments for the template.
    pub kwargs: Map<String, Value>,
    /// Tools that it may or must call.
    pub tools: Option<Tools>,
    /// A schema that the answer keeps to, and where it stands in the request.
    pub schema: Option<(&'static str, Value)>,
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
    let enable_thinking = enable_thinking(&mut prompt.kwargs)?;
    let reasoning_effort = prompt.effort.as_deref().map(str::parse).transpose()?;
    let depth = SamplingParams { thinking_token_budget: prompt.budget, reasoning_effort, ..SamplingParams::default() };
    depth.thinking_cap()?;
    let prompter = model.engine.prompter();
    if let Some(tools) = prompt.tools.as_ref().filter(|_| !prompter.knows_tools()) {
        prompt.messages = with_hint(&prompt.messages, &tools.in_words());
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let options = RenderOptions {
        add_generation_prompt: open,
        enable_thinking,
        tools: prompt.tools.as_ref().map(Tools::for_template),
        kwargs: prompt.kwargs,
        now: Some(now),
    };
    let demanded = prompt.tools.as_ref().filter(|t| t.demanded).map(|t| ("tools", t.schema()));
    let grammar = match (&prompt.schema, demanded) {
        (Some((field, _)), Some(_)) => return Err(ApiError::invalid(*field, "contradicts tool_choice")),
        (Some((field, schema)), None) => Some(model.compiler(field)?.json(field, schema)?),
        (None, Some((field, schema))) => Some(model.compiler(field)?.json(field, &schema)?),
        (None, None) => None,
    };
    let offered = prompt.tools.as_ref().is_some_and(|t| !t.demanded);
    let mut rendered = prompter.prepare(&Prompt::Chat(prompt.messages, options), &depth)?;
    if let Some(thinking) = &mut rendered.thinking {
        Arc::make_mut(thinking).phase.tools = offered;
    }
    rendered.grammar = grammar;
    Ok(rendered)
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
    let (usual, name) = state.model(model)?;
    let members = state.group(model).map_or_else(|| vec![usual.clone()], |group| group.members.clone());
    let params = sampling.params(usual.engine.generation_defaults(), usual.engine.config().vocab)?;
    if let (Some((field, _)), true) = (&prompt.schema, params.ignore_eos) {
        return Err(ApiError::invalid("ignore_eos", format!("contradicts {field}, which has an end")));
    }
    let Caller { request_id, trace, key, arrived } = caller;
    if state.options.log_prompts {
        tracing::info!(target: "ponder::prompt", request_id, messages = ?prompt.messages, "prompt");
    }
    let readers = members.clone();
    let rendered = blocking(move || {
        let read = |reader: &Arc<Served>| render(reader, prompt.clone(), true);
        readers.iter().map(read).collect::<Result<Vec<_>, _>>()
    });
    let mut rendered = rendered.await?;
    let (model, seat, index) =
        fleet::place(state.group(model), &members, &rendered.iter().collect::<Vec<_>>(), &params).await?;
    let params = sampling.params(model.engine.generation_defaults(), model.engine.config().vocab)?;
    let prompts = vec![rendered.swap_remove(index)];
    let order = Order { model, name, prompts, params, key, seat, arrived, prefix, request_id, trace };
    Job::start(state, order).await
}
