//! What each token says, as bytes; and the alphabet in which byte-level BPE writes bytes as characters.

use std::collections::HashMap;
use std::sync::LazyLock;

/// GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 onwards.
static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100u32;
    std::array::from_fn(|b| match b {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => b as u8 as char,
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("U+0100 and up")
        }
    })
});

static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| CHARS.iter().copied().zip(0..=255).collect());

/// `text` as byte-level BPE writes it.
pub fn to_alphabet(text: &[u8]) -> String {
    text.iter().map(|b| CHARS[*b as usize]).collect()
}

/// The bytes that a byte-level token stands for; `None` if it is not written in the alphabet.
pub fn from_alphabet(token: &str) -> Option<Vec<u8>> {
    token.chars().map(|c| BYTES.get(&c).copied()).collect()
}

/// The bytes of a SentencePiece token: `▁` is a space, `<0xAB>` a byte.
pub fn from_sentence_piece(token: &str) -> Vec<u8> {
    match byte_piece(token) {
        Some(byte) => vec![byte],
        None => token.replace('▁', " ").into_bytes(),
    }
}

/// The byte of a piece `<0xAB>`.
pub fn byte_piece(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// Bytes and flags of every token, by id.
#[derive(Default)]
pub struct TokenTable {
    bytes: Vec<u8>,
    ends: Vec<u32>, // [vocab], end of each token in `bytes`
    special: Vec<bool>,
}

impl TokenTable {
    /// Appends the next token.
    pub fn push(&mut self, bytes: &[u8], special: bool) {
        self.bytes.extend(bytes);
        self.ends.push(u32::try_from(self.bytes.len()).expect("a vocabulary below 4 GiB"));
        self.special.push(special);
    }
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    /// The bytes of `id`; none for an id that is not there.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }
    /// Whether `id` is a control token, which is no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_alphabet(&to_alphabet(&all)), Some(all));
        assert_eq!(to_alphabet(b" a\n\xad"), "ĠaĊŃ");
        assert_eq!(from_alphabet("日"), None);
    }

    #[test]
    fn sentence_piece() {
        assert_eq!(from_sentence_piece("▁a▁"), b" a ");
        assert_eq!(from_sentence_piece("<0xE2>"), [0xe2]);
        assert_eq!(from_sentence_piece("<0xé>"), "<0xé>".as_bytes());
    }
}
