//! A tokenizer from a Hugging Face `tokenizer.json`.
//!
//! The file's added tokens are taken out before the `tokenizers` crate sees it: they are ours to match
//! ([`super::special`]), because the crate would find those that are not flagged special (`<think>` in
//! Qwen 3) in plain text too. So is its post-processor: beginning-of-text is the caller's decision.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::alphabet::{TokenTable, from_alphabet, from_sentence_piece};
use super::guard::guarded;
use super::special::{Special, Specials};
use super::tokenizer::{Core, Spelling, Tokenizer};
use crate::checkpoint::gguf::Fault;

type Result<T> = std::result::Result<T, Fault>;

/// Largest id that is believed.
const MAX_ID: u64 = 1 << 24;

struct Added {
    id: u32,
    content: String,
    hidden: bool,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
}

impl Tokenizer {
    /// Builds the tokenizer from the text of a `tokenizer.json`.
    pub fn from_json(text: &str) -> Result<Tokenizer> {
        let mut json: Json = serde_json::from_str(text).map_err(|e| Fault::new("JSON", e.to_string()))?;
        let added = added_tokens(&mut json)?;
        let spelling = spelling(&json)?;
        let byte_level = spelling == Spelling::ByteLevel;
        for (key, value) in [("post_processor", Json::Null), ("truncation", Json::Null), ("padding", Json::Null)] {
            json[key] = value;
        }
        let built = guarded(|| serde_json::from_value::<tokenizers::Tokenizer>(json));
        let hub = built.map_err(|e| Fault::new("model", e))?.map_err(|e| Fault::new("model", e.to_string()))?;
        let mut specials = Specials::default();
        for a in &added {
            let space = a.content.chars().all(|c| c.is_whitespace() || c == '▁');
            let marker = a.hidden || (byte_level && !space);
            let (lstrip, rstrip, single_word) = (a.lstrip, a.rstrip, a.single_word);
            specials.insert(&a.content, Special { id: a.id, marker, lstrip, rstrip, single_word });
        }
        let table = table(&hub.get_vocab(false), &added, spelling)?;
        Ok(Tokenizer { core: Core::Hub(Box::new(hub)), specials, table: table.into(), spelling })
    }
}

/// Removes the added tokens from the file and returns them.
fn added_tokens(json: &mut Json) -> Result<Vec<Added>> {
    const KEY: &str = "added_tokens";
    let Some(object) = json.as_object_mut() else { return Err(Fault::new("JSON", "not an object")) };
    let list = match object.insert(KEY.into(), Json::Array(Vec::new())) {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Array(list)) => list,
        Some(_) => return Err(Fault::new(KEY, "not a list")),
    };
    let read = |t: &Json| {
        let flag = |key: &str| t.get(key).and_then(Json::as_bool).unwrap_or(false);
        Some(Added {
            id: t.get("id")?.as_u64().filter(|id| *id < MAX_ID)? as u32,
            content: t.get("content")?.as_str()?.to_string(),
            hidden: flag("special"),
            lstrip: flag("lstrip"),
            rstrip: flag("rstrip"),
            single_word: flag("single_word"),
        })
    };
    list.iter().map(|t| read(t).ok_or_else(|| Fault::new(KEY, format!("{t} is no token")))).collect()
}

/// How tokens spell bytes, from the kinds of the decoders.
fn spelling(json: &Json) -> Result<Spelling> {
    let decoder = json.get("decoder").unwrap_or(&Json::Null);
    let steps = match decoder.get("decoders").and_then(Json::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![decoder],
    };
    let kind = |step: &&Json, name: &str| step.get("type").and_then(Json::as_str) == Some(name);
    let any = |name: &str| steps.iter().any(|s| kind(s, name));
    if any("ByteLevel") {
        return Ok(Spelling::ByteLevel);
    }
    let replaces = |s: &&Json| kind(s, "Replace") && s.pointer("/pattern/String").and_then(Json::as_str) == Some("▁");
    if any("Metaspace") || steps.iter().any(replaces) {
        let never = |s: &&Json| s.get("prepend_scheme").and_then(Json::as_str) == Some("never");
        let strip = any("Strip") || steps.iter().any(|s| kind(s, "Metaspace") && !never(s));
        return Ok(Spelling::SentencePiece { strip });
    }
    Err(Fault::new("decoder", "neither byte-level nor SentencePiece; other kinds are not supported"))
}

fn table(vocab: &HashMap<String, u32>, added: &[Added], spelling: Spelling) -> Result<TokenTable> {
    let last = vocab.values().copied().chain(added.iter().map(|a| a.id)).max().unwrap_or(0);
    if u64::from(last) >= MAX_ID {
        return Err(Fault::new("model.vocab", format!("an id of {last}")));
    }
    let mut rows: Vec<(Vec<u8>, bool)> = vec![(Vec::new(), false); last as usize + 1];
    for (token, id) in vocab {
        rows[*id as usize].0 = match spelling {
            Spelling::ByteLevel => from_alphabet(token).unwrap_or_else(|| token.as_bytes().to_vec()),
            Spelling::SentencePiece { .. } => from_sentence_piece(token),
        };
    }
    for a in added {
        let text = if a.hidden { a.content.clone() } else { a.content.replace('▁', " ") };
        rows[a.id as usize] = (text.into_bytes(), a.hidden);
    }
    let mut table = TokenTable::default();
    rows.iter().for_each(|(bytes, hidden)| table.push(bytes, *hidden));
    Ok(table)
}
