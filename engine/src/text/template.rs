//! Chat templates: Jinja as transformers runs it, with content kept apart from scaffold.
//!
//! A chat is rendered twice, once as it is and once with its content between marks (see
//! [`super::marks`]). Cut at the marks, the second rendering must say the same as the first; where it does
//! not (a template that slices strings), content is protected in another way, and where that fails too,
//! the template is refused. So the text is always what the template means, and special tokens in it are
//! always the template's own.
//!
//! Templates run with bounded fuel and without access to files or the environment. Fuel does not bound
//! every way to waste time: a template is the operator's, never a request's.

use minijinja::value::Serde;
use minijinja::{Environment, Error as JinjaError, ErrorKind, Value, context};
use serde_json::{Map, Value as Json};

use super::guard::guarded;
use super::marks::{Piece, Protection};
use super::python;
use crate::error::{Error, Result};

/// Longest template, in bytes.
const MAX_SOURCE: usize = 1 << 20;
/// Instructions that one rendering may take.
const FUEL: u64 = 5_000_000;
/// Names of the context that a request's template arguments may not set.
const RESERVED: [&str; 9] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
    "tokenize",
];
/// Keys whose values templates compare with names of their own; plain identifiers there stay unmarked.
const NAMING_KEYS: [&str; 2] = ["type", "role"];

/// One message of a chat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what the template knows: letters, digits, `_`, `-`.
    pub role: String,
    /// What it says.
    pub content: String,
    /// What an assistant thought before, if the client sent it back.
    pub reasoning_content: Option<String>,
    /// Further fields: `tool_calls`, `name`, `tool_call_id`, ... A field named above goes before it.
    pub extra: Map<String, Json>,
}

impl Message {
    /// A message of a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), ..Message::default() }
    }
}

/// How to render.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RenderOptions {
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// `enable_thinking`, for templates that know it.
    pub enable_thinking: Option<bool>,
    /// Tools in OpenAI's form.
    pub tools: Option<Json>,
    /// Further template arguments.
    pub kwargs: Map<String, Json>,
    /// The moment that `strftime_now` tells, in seconds since 1970; without one the function is undefined.
    pub now: Option<i64>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles `source`; `bos_text` and `eos_text` are what it sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`Error::Template`] if it does not parse.
    pub fn new(source: &str, bos_text: &str, eos_text: &str) -> Result<ChatTemplate> {
        if source.len() > MAX_SOURCE {
            return Err(Error::Template(format!("{} bytes; {MAX_SOURCE} at most are compiled", source.len())));
        }
        let env = guarded(|| environment(source)).map_err(Error::Template)?;
        let env = env.map_err(|e| Error::Template(in_words(&e)))?;
        Ok(ChatTemplate { env, source: source.into(), bos: bos_text.into(), eos: eos_text.into() })
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a chat into pieces; joined, they are the text that transformers would render.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a role or argument that cannot be, [`Error::Template`] if the template
    /// raises an exception, runs out of fuel, or takes content apart in a way that cannot be followed.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<Vec<Piece>> {
        check(messages, options)?;
        let text = |pieces: &[Piece]| pieces.iter().map(Piece::text).collect::<String>();
        let plain = self.render_as(Protection::None, messages, options)?;
        let plain = Protection::None.pieces(&plain).map(|p| text(&p));
        for protection in [Protection::Marks, Protection::Broken] {
            let Ok(rendered) = self.render_as(protection, messages, options) else { continue };
            let Some(pieces) = protection.pieces(&rendered) else { continue };
            if Some(text(&pieces)) == plain {
                return Ok(pieces);
            }
        }
        Err(Error::Template("it takes message text apart so that content cannot be told from scaffold".into()))
    }

    fn render_as(&self, protection: Protection, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let messages: Vec<Json> = messages.iter().map(|m| protect_message(m, protection)).collect();
        let mut ctx: Map<String, Json> =
            options.kwargs.iter().map(|(k, v)| (k.clone(), protect(v, true, protection))).collect();
        if let Some(enable) = options.enable_thinking {
            ctx.insert("enable_thinking".into(), enable.into());
        }
        ctx.insert("messages".into(), messages.into());
        ctx.insert("tools".into(), options.tools.as_ref().map_or(Json::Null, |t| protect(t, false, protection)));
        ctx.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        ctx.insert("bos_token".into(), self.bos.clone().into());
        ctx.insert("eos_token".into(), self.eos.clone().into());
        let base = Value::from(Serde(ctx));
        let full = match options.now {
            Some(now) => {
                let strftime = Value::from_function(move |format: String| python::strftime(&format, now));
                context! { strftime_now => strftime, ..base }
            }
            None => base,
        };
        let rendered = guarded(|| self.env.get_template("chat").and_then(|t| t.render(full)));
        rendered.map_err(Error::Template)?.map_err(|e| Error::Template(in_words(&e)))
    }
}

fn environment(source: &str) -> std::result::Result<Environment<'static>, JinjaError> {
    let mut env = Environment::new();
    env.set_syntax(minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(python::method);
    env.add_filter("tojson", python::tojson);
    env.add_filter("trim", python::trim);
    env.add_filter("length", python::length);
    env.add_filter("count", python::length);
    env.add_function("raise_exception", |message: String| -> std::result::Result<Value, JinjaError> {
        Err(JinjaError::new(ErrorKind::InvalidOperation, message))
    });
    env.add_template_owned("chat", without_generation_tags(source))?;
    Ok(env)
}

/// transformers marks the assistant's text with `{% generation %}`, which changes nothing that is
/// printed: the tags become an `if` that always holds.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((inner, after)) = tag.split_once("%}") else {
            out.push_str(tag);
            return out;
        };
        match inner.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&inner.replace("generation", "if true")),
            "endgeneration" => out.push_str(&inner.replace("endgeneration", "endif")),
            _ => out.push_str(inner),
        }
        out.push_str("%}");
        rest = after;
    }
    out.push_str(rest);
    out
}

fn check(messages: &[Message], options: &RenderOptions) -> Result<()> {
    for (i, m) in messages.iter().enumerate() {
        if m.role.is_empty() || !is_identifier(&m.role) {
            let shown: String = m.role.chars().take(40).collect();
            let why = format!("{shown:?} is no role: 1 to 64 letters, digits, `_` or `-`");
            return Err(Error::invalid(format!("messages[{i}].role"), why));
        }
    }
    match options.kwargs.keys().find(|k| RESERVED.contains(&k.as_str())) {
        Some(key) => Err(Error::invalid("chat_template_kwargs", format!("`{key}` cannot be set this way"))),
        None => Ok(()),
    }
}

fn is_identifier(text: &str) -> bool {
    text.len() <= 64 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

fn protect_message(m: &Message, protection: Protection) -> Json {
    let mut out = Map::new();
    out.insert("role".into(), m.role.clone().into());
    out.insert("content".into(), protection.apply(&m.content).into());
    if let Some(reasoning) = &m.reasoning_content {
        out.insert("reasoning_content".into(), protection.apply(reasoning).into());
    }
    for (key, value) in &m.extra {
        if key != "role" {
            out.insert(protect_key(key, protection), protect(value, false, protection));
        }
    }
    out.into()
}

/// Protects every string of a value; `naming`: identifiers stay as they are.
fn protect(value: &Json, naming: bool, protection: Protection) -> Json {
    match value {
        Json::String(s) if naming && is_identifier(s) => value.clone(),
        Json::String(s) => protection.apply(s).into(),
        Json::Array(list) => list.iter().map(|v| protect(v, naming, protection)).collect(),
        Json::Object(map) => {
            let entries = map.iter().map(|(k, v)| {
                let naming = naming || NAMING_KEYS.contains(&k.as_str());
                (protect_key(k, protection), protect(v, naming, protection))
            });
            Json::Object(entries.collect())
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => value.clone(),
    }
}

/// Keys are looked up by name, so identifiers stay; others are content.
fn protect_key(key: &str, protection: Protection) -> String {
    if is_identifier(key) { key.to_string() } else { protection.apply(key) }
}

/// An error with its causes and its line.
fn in_words(e: &JinjaError) -> String {
    let mut text = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        text.push_str(": ");
        text.push_str(&c.to_string());
        cause = c.source();
    }
    text
}
