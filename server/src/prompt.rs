//! From what a user asks to the tokens that the model sees.

use std::borrow::Cow;
use std::sync::Arc;

use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::grammar::GrammarSource;
use ponder_engine::reason::{Markers, Thinking};
use ponder_engine::request::SamplingParams;
use ponder_engine::text::{ChatTemplate, Message, RenderOptions, Tokenizer};
use ponder_engine::{Error, Result};

use crate::options::EngineOptions;
use crate::reasoner::{Reasoner, last_question, with_hint};
use crate::warm::Turn;

/// What a user asks.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Plain text that the model continues. No chat template; thinking is not parted from the answer.
    Raw(String),
    /// Messages, through the model's chat template.
    Chat(Vec<Message>, RenderOptions),
    /// Tokens, as they are. Thinking is not parted from the answer.
    Tokens(Vec<u32>),
}

impl Prompt {
    /// One question.
    pub fn user(text: impl Into<String>) -> Self {
        Self::chat(vec![Message::new("user", text)])
    }

    /// A conversation that the model shall continue with its answer.
    pub fn chat(messages: Vec<Message>) -> Self {
        Self::Chat(messages, RenderOptions { add_generation_prompt: true, ..RenderOptions::default() })
    }
}

/// A prompt as the model sees it.
pub struct Rendered {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// How its answer thinks; `None`: all of it is the answer.
    pub thinking: Option<Arc<Thinking>>,
    /// What its answers keep to; `None`, as the prompter makes it: nothing.
    pub grammar: Option<GrammarSource>,
    /// The conversation that it is a turn of.
    pub(crate) turn: Option<Turn>,
}

/// Turns prompts into tokens.
pub struct Prompter {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    markers: Option<Arc<Markers>>,
    reasoner: Reasoner,
    /// Token that begins plain text, where the model has that.
    bos: Option<u32>,
}

impl Prompter {
    /// From the model's files.
    ///
    /// # Errors
    /// If they have no usable tokenizer, a chat template that is broken, or a reasoning policy that is none.
    pub fn new(checkpoint: &Checkpoint, options: &EngineOptions) -> Result<Self> {
        let tokenizer = Arc::new(checkpoint.tokenizer()?);
        let generation = &checkpoint.generation;
        let template = checkpoint.chat_template()?;
        let source = template.as_ref().map(ChatTemplate::source);
        let markers = Markers::find(&*tokenizer, source, &options.markers)?.map(Arc::new);
        let reasoner = Reasoner::load(options, &tokenizer)?;
        Ok(Self { tokenizer, template, markers, reasoner, bos: generation.bos.filter(|_| generation.add_bos) })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Whether the model has markers of its own for tool calls.
    pub fn marks_calls(&self) -> bool {
        self.markers.as_ref().is_some_and(|m| m.texts().tool_open.is_some())
    }

    /// Whether the chat template tells the model of tools.
    pub fn knows_tools(&self) -> bool {
        self.template.as_ref().is_some_and(|t| t.source().contains("tools"))
    }

    /// The tokens of plain text, after BOS where the model begins texts with it.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn text_tokens(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens: Vec<u32> = self.bos.into_iter().collect();
        tokens.extend(self.tokenizer.encode(text)?);
        Ok(tokens)
    }

    /// The prompt's tokens, and how its answer will be parted.
    ///
    /// # Errors
    /// If the prompt is empty, if the model has no chat template but needs one, and those of the tokenizer.
    pub fn render(&self, prompt: &Prompt) -> Result<Rendered> {
        let empty = || Err(Error::invalid("prompt", "is empty"));
        let tokens = match prompt {
            Prompt::Raw(text) if text.is_empty() => return empty(),
            Prompt::Raw(text) => self.text_tokens(text)?,
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Chat(messages, options) => return self.chat(messages, options),
        };
        if tokens.is_empty() { empty() } else { Ok(Rendered { tokens, thinking: None, grammar: None, turn: None }) }
    }

    /// A conversation's tokens.
    pub(crate) fn chat_tokens(&self, messages: &[Message], options: &RenderOptions) -> Result<Vec<u32>> {
        self.chat(messages, options).map(|rendered| rendered.tokens)
    }

    /// The same for a request: its effort may add a sentence to the system prompt, switch the thinking off, or
    /// cap it.
    ///
    /// # Errors
    /// Those of [`render`](Self::render), an effort that contradicts the rest of the request, and a budget where
    /// thinking cannot be told from the rest.
    pub fn prepare(&self, prompt: &Prompt, params: &SamplingParams) -> Result<Rendered> {
        // A limit that nobody would keep is refused.
        let capped = params.thinking_token_budget.is_some_and(|budget| budget >= 0);
        let Prompt::Chat(messages, options) = prompt else {
            let asked = if params.reasoning_effort.is_some() { Some("reasoning_effort") } else { None };
            return match asked.or(capped.then_some("thinking_token_budget")) {
                None => self.render(prompt),
                Some(field) => Err(Error::invalid(field, "needs a conversation, not plain text")),
            };
        };
        if capped && self.markers.as_ref().is_none_or(|m| m.texts().close.is_none()) {
            let why = "this model has no known markers of thinking; name them with --think-start and --think-end";
            return Err(Error::invalid("thinking_token_budget", why));
        }
        let decision = self.reasoner.decide(messages, params, options.enable_thinking)?;
        let (mut messages, mut options) = (Cow::Borrowed(messages), Cow::Borrowed(options));
        if let Some(hint) = decision.as_ref().and_then(|d| d.hint.as_ref()) {
            messages = Cow::Owned(with_hint(&messages, hint));
        }
        let thinks = decision.as_ref().map_or(params.thinking_cap()? != Some(0), |d| d.think);
        if !thinks && options.enable_thinking.is_none() {
            options.to_mut().enable_thinking = Some(false);
        }
        let mut rendered = self.chat(&messages, &options)?;
        if let Some(thinking) = &mut rendered.thinking {
            let landing = self.reasoner.landing.clone();
            *thinking = Arc::new(Thinking { decision, landing, ..Thinking::clone(thinking) });
        }
        Ok(rendered)
    }

    /// Tokens that the answer of a rendered prompt will hardly exceed, as far as one can tell: to choose where it
    /// runs, never what it says.
    pub fn expected_tokens(&self, rendered: &Rendered, params: &SamplingParams) -> f64 {
        let query = rendered.turn.as_ref().map_or("", |turn| last_question(&turn.messages));
        let decision = rendered.thinking.as_ref().and_then(|t| t.decision.as_ref());
        let thinks = rendered.thinking.is_some() && !matches!(params.thinking_cap(), Ok(Some(0)));
        self.reasoner.expected_tokens(query, decision, thinks)
    }

    fn chat(&self, messages: &[Message], options: &RenderOptions) -> Result<Rendered> {
        let Some(template) = &self.template else {
            return Err(Error::invalid("prompt", "this model has no chat template; give it plain text (--raw)"));
        };
        if messages.iter().all(|m| m.content.is_empty()) {
            return Err(Error::invalid("prompt", "is empty"));
        }
        let pieces = template.render(messages, options)?;
        let tokens = self.tokenizer.encode_pieces(&pieces)?;
        let thinking = self.markers.as_ref().map(|m| Arc::new(Thinking::new(m.clone(), m.start_of(&pieces))));
        let turn = Some(Turn { messages: messages.to_vec(), options: options.clone() });
        Ok(Rendered { tokens, thinking, grammar: None, turn })
    }
}
