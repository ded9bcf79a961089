//! The tokenizer: special tokens by our own matcher, words by the `tokenizers` crate or by scores.

use std::sync::Arc;

use tokenizers::Tokenizer as HubTokenizer;

use super::Detokenizer;
use super::alphabet::{TokenTable, to_alphabet};
use super::guard::guarded;
use super::marks::Piece;
use super::special::Specials;
use super::spm::Spm;
use crate::error::{Error, Result};

/// Longest text that is encoded, in bytes. Encoding a megabyte takes up to a second.
pub const MAX_INPUT: usize = 8 << 20;

/// How the text between special tokens is encoded.
pub(super) enum Core {
    /// Pre-tokeniser, merges and normaliser of the `tokenizers` crate, without its special tokens.
    Hub(Box<HubTokenizer>),
    /// SentencePiece by scores.
    Spm(Box<Spm>),
}

/// How tokens spell bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spelling {
    /// GPT-2's alphabet of bytes.
    ByteLevel,
    /// `▁` for a space, `<0xAB>` for a byte; `strip`: the first space of a text is not part of it.
    SentencePiece {
        /// Drop one leading space when a whole text is decoded.
        strip: bool,
    },
}

/// Text to token ids and back. Cheap to share (`Arc`), safe to use from any thread.
pub struct Tokenizer {
    pub(super) core: Core,
    pub(super) specials: Specials,
    pub(super) table: Arc<TokenTable>,
    pub(super) spelling: Spelling,
}

impl Tokenizer {
    /// The ids of plain text. No special token is ever recognised: `<|im_end|>` is eight or so ordinary tokens.
    ///
    /// # Errors
    /// If the text is longer than [`MAX_INPUT`] or the vocabulary cannot express it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_pieces(&[Piece::Content(text.to_string())])
    }

    /// The ids of a text in which special tokens count: for text that we or a template wrote, never a user's.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_pieces(&[Piece::Scaffold(text.to_string())])
    }

    /// The ids of a rendered chat. Special tokens count in scaffold only; between them, neighbouring
    /// pieces are one text, so a border between scaffold and content is no border between words.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_pieces(&self, pieces: &[Piece]) -> Result<Vec<u32>> {
        let len: usize = pieces.iter().map(|p| p.text().len()).sum();
        if len > MAX_INPUT {
            return Err(Error::invalid("prompt", format!("{len} bytes of text; {MAX_INPUT} at most are tokenised")));
        }
        let mut ids = Vec::new();
        let mut run = String::new();
        for piece in pieces {
            let text = piece.text();
            let mut at = 0;
            if let Piece::Scaffold(_) = piece {
                while let Some((range, id)) = self.specials.find(text, at, true) {
                    run.push_str(&text[at..range.start]);
                    self.encode_run(&run, &mut ids)?;
                    run.clear();
                    ids.push(id);
                    at = range.end;
                }
            }
            run.push_str(&text[at..]);
        }
        self.encode_run(&run, &mut ids)?;
        Ok(ids)
    }

    /// Text without markers: the pieces that are always tokens, and what lies between them.
    fn encode_run(&self, run: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mut at = 0;
        while let Some((range, id)) = self.specials.find(run, at, false) {
            self.encode_words(&run[at..range.start], ids)?;
            ids.push(id);
            at = range.end;
        }
        self.encode_words(&run[at..], ids)
    }

    fn encode_words(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        match &self.core {
            Core::Spm(spm) => ids.extend(spm.encode(text)),
            Core::Hub(hub) => {
                let encoded = guarded(|| hub.encode_fast(text, false)).map_err(Error::Tokenizer)?;
                let encoded = encoded.map_err(|e| Error::Tokenizer(e.to_string()))?;
                ids.extend(encoded.get_ids());
            }
        }
        Ok(())
    }

    /// The text of `ids`, control tokens left out; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, false)
    }

    /// The text of `ids`, control tokens included.
    pub fn decode_with_special(&self, ids: &[u32]) -> String {
        self.decode_with(ids, true)
    }

    fn decode_with(&self, ids: &[u32], keep_special: bool) -> String {
        let shown = ids.iter().filter(|id| keep_special || !self.table.is_special(**id));
        let bytes: Vec<u8> = shown.flat_map(|id| self.table.bytes(*id)).copied().collect();
        let strip = self.spelling == Spelling::SentencePiece { strip: true } && bytes.first() == Some(&b' ');
        String::from_utf8_lossy(&bytes[usize::from(strip)..]).into_owned()
    }

    /// The state to detokenise one sequence; `keep_special`: control tokens are shown.
    pub fn detokenizer(&self, keep_special: bool) -> Detokenizer {
        Detokenizer::new(self.table.clone(), keep_special)
    }

    /// The bytes of a token (not always a whole character); none for an unknown id.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.table.bytes(id)
    }

    /// The id of the token that says exactly `text`, special or not.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        if let Some(special) = self.specials.get(text) {
            return Some(special.id);
        }
        match &self.core {
            Core::Spm(spm) => spm.id_of(&text.replace(' ', "▁")),
            Core::Hub(hub) => {
                let spelled = match self.spelling {
                    Spelling::ByteLevel => to_alphabet(text.as_bytes()),
                    Spelling::SentencePiece { .. } => text.replace(' ', "▁"),
                };
                hub.token_to_id(&spelled)
            }
        }
    }

    /// Whether `id` is a control token: no text, hidden unless asked for.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.is_special(id)
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }
}
