//! Tokens back to text, one at a time, never half a character.

use std::sync::Arc;

use super::alphabet::TokenTable;

/// The state of one sequence: the bytes of a character that is not complete yet.
///
/// What all calls of [`push`](Self::push) and the one of [`finish`](Self::finish) return, joined, is what
/// `decode` gives for all tokens at once.
#[derive(Clone)]
pub struct Detokenizer {
    table: Arc<TokenTable>,
    keep_special: bool,
    pending: Vec<u8>, // at most 3 bytes between calls
}

impl Detokenizer {
    pub(super) fn new(table: Arc<TokenTable>, keep_special: bool) -> Detokenizer {
        Detokenizer { table, keep_special, pending: Vec::new() }
    }

    /// The text that is certain after one more token; empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> String {
        if self.table.is_special(id) && !self.keep_special {
            return String::new();
        }
        self.pending.extend(self.table.bytes(id));
        let mut out = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    out.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    rest = after;
                    // No length: the bytes are the beginning of a character. A length: they never will be one.
                    let Some(len) = e.error_len() else { break };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[len..];
                }
            }
        }
        let kept = rest.len();
        self.pending.drain(..self.pending.len() - kept);
        out
    }

    /// What is left at the end: one U+FFFD if the model stopped inside a character.
    pub fn finish(&mut self) -> String {
        let left = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A vocabulary of the 256 bytes and one special token.
    fn bytes() -> Arc<TokenTable> {
        let mut table = TokenTable::default();
        (0..=255u8).for_each(|b| table.push(&[b], false));
        table.push(b"<end>", true);
        Arc::new(table)
    }

    #[test]
    fn holds_back_half_a_character() {
        let mut d = Detokenizer::new(bytes(), false);
        let shown: Vec<String> = "a😀é".bytes().map(|b| d.push(b.into())).collect();
        assert_eq!(shown, ["a", "", "", "", "😀", "", "é"]);
        assert_eq!((d.push(256), d.finish()), (String::new(), String::new()));
        d.push(0xf0);
        d.push(0x9f);
        assert_eq!(d.finish(), "\u{fffd}");
        assert_eq!(Detokenizer::new(bytes(), true).push(256), "<end>");
    }

    proptest! {
        #[test]
        fn equals_decoding_at_once(input in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut d = Detokenizer::new(bytes(), false);
            let mut joined: String = input.iter().map(|b| d.push(u32::from(*b))).collect();
            joined.push_str(&d.finish());
            prop_assert_eq!(joined, String::from_utf8_lossy(&input));
        }
        #[test]
        fn text_comes_back(text in "\\PC{0,32}") {
            let mut d = Detokenizer::new(bytes(), false);
            let shown: Vec<String> = text.bytes().map(|b| d.push(b.into())).collect();
            prop_assert_eq!(shown.concat(), text);
        }
    }
}
