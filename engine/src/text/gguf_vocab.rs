//! A tokenizer from the vocabulary inside a GGUF file.

use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::alphabet::{TokenTable, from_alphabet, from_sentence_piece};
use super::guard::guarded;
use super::pre_tokenizer::PreTokenizer;
use super::special::{Special, Specials};
use super::spm::Spm;
use super::tokenizer::{Core, Spelling, Tokenizer};
use crate::checkpoint::ends_a_turn;
use crate::checkpoint::gguf::{Array, Fault, Gguf, Value};

type Result<T> = std::result::Result<T, Fault>;

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";

/// ggml's `llama_token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The vocabulary's arrays, borrowed.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<TokenType>,
}

impl Tokenizer {
    /// Builds the tokenizer of a GGUF file.
    pub(crate) fn from_gguf(gguf: &Gguf, bytes: &[u8]) -> Result<Tokenizer> {
        let vocabulary = Vocabulary::read(gguf, bytes)?;
        match text(gguf, bytes, MODEL)? {
            Some("gpt2") => byte_level(gguf, bytes, &vocabulary),
            Some("llama") => sentence_piece(gguf, bytes, &vocabulary),
            Some(other) => Err(Fault::new(MODEL, format!("`{other}` is not supported; gpt2 and llama are"))),
            None => Err(Fault::new(MODEL, "missing: this file has no tokenizer")),
        }
    }
}

fn text<'a>(gguf: &Gguf, bytes: &'a [u8], key: &str) -> Result<Option<&'a str>> {
    match gguf.get(bytes, key) {
        None => Ok(None),
        Some(Value::Str(s)) => Ok(Some(s)),
        Some(_) => Err(Fault::new(key, "not a string")),
    }
}

fn array<'a>(gguf: &Gguf, bytes: &'a [u8], key: &str) -> Result<Option<Array<'a>>> {
    match gguf.get(bytes, key) {
        None => Ok(None),
        Some(Value::Array(a)) => Ok(Some(a)),
        Some(_) => Err(Fault::new(key, "not an array")),
    }
}

fn flag(gguf: &Gguf, bytes: &[u8], key: &str) -> Result<Option<bool>> {
    match gguf.get(bytes, key) {
        None => Ok(None),
        Some(Value::Bool(b)) => Ok(Some(b)),
        Some(_) => Err(Fault::new(key, "not a boolean")),
    }
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &Gguf, bytes: &'a [u8]) -> Result<Vocabulary<'a>> {
        let tokens = array(gguf, bytes, TOKENS)?.ok_or_else(|| Fault::new(TOKENS, "missing"))?;
        let as_text = |v| if let Value::Str(s) = v { Some(s) } else { None };
        let tokens: Option<Vec<&str>> = tokens.iter().map(as_text).collect();
        let tokens = tokens.ok_or_else(|| Fault::new(TOKENS, "not an array of strings"))?;
        let types = match array(gguf, bytes, TYPES)? {
            None => vec![TokenType::Normal; tokens.len()],
            Some(a) if a.len != tokens.len() => {
                return Err(Fault::new(TYPES, format!("{} types for {} tokens", a.len, tokens.len())));
            }
            Some(a) => {
                a.iter().map(TokenType::of).collect::<Option<_>>().ok_or_else(|| Fault::new(TYPES, "not 1 to 6"))?
            }
        };
        Ok(Vocabulary { tokens, types })
    }

    fn rows(&self) -> impl Iterator<Item = (u32, &'a str, TokenType)> {
        (0..).zip(self.tokens.iter().zip(&self.types)).map(|(id, (token, t))| (id, *token, *t))
    }

    /// The tokens matched as a whole. In byte-level vocabularies, those that were added (`<think>`, `<tool_call>`)
    /// are markers like control tokens; in SentencePiece ones they are ordinary pieces (runs of newlines, HTML tags).
    fn specials(&self, added_are_markers: bool) -> Specials {
        let mut specials = Specials::default();
        for (id, token, t) in self.rows() {
            let is_space = token.chars().all(|c| c.is_whitespace() || c == '▁');
            match t {
                TokenType::Control | TokenType::Unknown => specials.insert(token, Special::new(id, true)),
                // What ends texts elsewhere is a marker whatever its type, as in llama.cpp.
                TokenType::UserDefined => {
                    let marker = (added_are_markers && !is_space) || token == "</s>" || ends_a_turn(token);
                    specials.insert(token, Special::new(id, marker));
                }
                TokenType::Normal | TokenType::Unused | TokenType::Byte => {}
            }
        }
        specials
    }

    fn table(&self, spell: impl Fn(&str) -> Vec<u8>) -> TokenTable {
        let mut table = TokenTable::default();
        for (_, token, t) in self.rows() {
            match t {
                TokenType::Control | TokenType::Unknown | TokenType::Unused => table.push(token.as_bytes(), true),
                TokenType::UserDefined => table.push(token.replace('▁', " ").as_bytes(), false),
                TokenType::Normal | TokenType::Byte => table.push(&spell(token), false),
            }
        }
        table
    }
}

impl TokenType {
    fn of(value: Value<'_>) -> Option<TokenType> {
        use TokenType::*;
        let Value::Int(code) = value else { return None };
        // 0 is ggml's "undefined": an ordinary token.
        [Normal, Normal, Unknown, Control, UserDefined, Unused, Byte].get(usize::try_from(code).ok()?).copied()
    }
}

fn byte_level(gguf: &Gguf, bytes: &[u8], vocabulary: &Vocabulary<'_>) -> Result<Tokenizer> {
    let name = text(gguf, bytes, PRE)?.unwrap_or("default");
    let pre = PreTokenizer::by_name(name)
        .ok_or_else(|| Fault::new(PRE, format!("`{name}` is not supported; these are: {}", PreTokenizer::known())))?;
    if flag(gguf, bytes, "tokenizer.ggml.add_space_prefix")? == Some(true) {
        return Err(Fault::new("tokenizer.ggml.add_space_prefix", "not supported for byte-level vocabularies"));
    }
    let specials = vocabulary.specials(true);
    // Where a whole word may be taken without merges, a marker must not be in reach.
    let hidden = |token: &str| pre.ignore_merges && specials.get(token).is_some();
    let vocab: Vocab = vocabulary.rows().filter(|(_, t, _)| !hidden(t)).map(|(id, t, _)| (t.to_string(), id)).collect();
    let merges = merges(array(gguf, bytes, MERGES)?.ok_or_else(|| Fault::new(MERGES, "missing"))?)?;
    let built = guarded(|| -> tokenizers::Result<tokenizers::Tokenizer> {
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(pre.ignore_merges).build()?;
        let mut hub = tokenizers::Tokenizer::new(bpe);
        hub.with_pre_tokenizer(Some(pre.build()?));
        Ok(hub)
    });
    let hub = built.map_err(|e| Fault::new(MERGES, e))?.map_err(|e| Fault::new(MERGES, e.to_string()))?;
    let table = vocabulary.table(|token| from_alphabet(token).unwrap_or_else(|| token.as_bytes().to_vec()));
    Ok(Tokenizer { core: Core::Hub(Box::new(hub)), specials, table: table.into(), spelling: Spelling::ByteLevel })
}

/// Each merge is two tokens with a space between; a token itself may begin with a space.
fn merges(list: Array<'_>) -> Result<Merges> {
    let mut merges = Vec::new();
    for (i, merge) in list.iter().enumerate() {
        let pair = match merge {
            Value::Str(s) => s.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| (&s[..at], &s[at + 1..])),
            _ => None,
        };
        let (left, right) = pair.ok_or_else(|| Fault::new(MERGES, format!("merge {i} is not two tokens")))?;
        merges.push((left.to_string(), right.to_string()));
    }
    Ok(merges)
}

fn sentence_piece(gguf: &Gguf, bytes: &[u8], vocabulary: &Vocabulary<'_>) -> Result<Tokenizer> {
    let scores = array(gguf, bytes, SCORES)?.ok_or_else(|| Fault::new(SCORES, "missing"))?;
    if scores.len != vocabulary.tokens.len() {
        return Err(Fault::new(SCORES, format!("{} scores for {} tokens", scores.len, vocabulary.tokens.len())));
    }
    let scores = scores.iter().map(|v| if let Value::Float(s) = v { s as f32 } else { 0.0 });
    let pieces = vocabulary.rows().map(|(_, token, t)| match t {
        // Text never joins up to a control token.
        TokenType::Control | TokenType::Unknown | TokenType::Unused => "",
        _ => token,
    });
    let unknown = vocabulary.rows().find(|(_, _, t)| *t == TokenType::Unknown).map(|(id, ..)| id);
    let space_prefix = flag(gguf, bytes, "tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let core = Core::Spm(Box::new(Spm::new(pieces.zip(scores), unknown, space_prefix)));
    let table = vocabulary.table(from_sentence_piece);
    let spelling = Spelling::SentencePiece { strip: space_prefix };
    Ok(Tokenizer { core, specials: vocabulary.specials(false), table: table.into(), spelling })
}
