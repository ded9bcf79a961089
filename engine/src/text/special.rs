//! Finds special tokens in text: leftmost, then longest.

use std::collections::HashMap;
use std::ops::Range;

/// A token that is matched as a whole, before the text around it is split into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Special {
    /// Its id.
    pub id: u32,
    /// Structure (`<|im_end|>`, `<think>`), never found in content; else a plain piece such as a run of newlines.
    pub marker: bool,
    /// Swallows whitespace on its left.
    pub lstrip: bool,
    /// Swallows whitespace on its right.
    pub rstrip: bool,
    /// Matches only between non-word characters.
    pub single_word: bool,
}

impl Special {
    /// A token without the rarer flags.
    pub fn new(id: u32, marker: bool) -> Special {
        Special { id, marker, lstrip: false, rstrip: false, single_word: false }
    }
}

/// All special tokens of a vocabulary.
#[derive(Default)]
pub struct Specials {
    by_text: HashMap<Box<str>, Special>,
    /// By first byte: the lengths that occur, longest first.
    lengths: HashMap<u8, Vec<usize>>,
}

impl Specials {
    /// Adds a token; empty ones are ignored.
    pub fn insert(&mut self, text: &str, special: Special) {
        let Some(&first) = text.as_bytes().first() else { return };
        let lengths = self.lengths.entry(first).or_default();
        if let Err(at) = lengths.binary_search_by(|l| text.len().cmp(l)) {
            lengths.insert(at, text.len());
        }
        self.by_text.insert(text.into(), special);
    }

    /// The token with this text.
    pub fn get(&self, text: &str) -> Option<Special> {
        self.by_text.get(text).copied()
    }

    /// The first token at or after byte `from`, with the range that it takes. `markers`: look for
    /// markers, or for plain pieces.
    pub fn find(&self, text: &str, from: usize, markers: bool) -> Option<(Range<usize>, u32)> {
        let bytes = text.as_bytes();
        for (start, first) in bytes.iter().enumerate().skip(from) {
            let Some(lengths) = self.lengths.get(first) else { continue };
            for &len in lengths {
                let Some(special) = text.get(start..start + len).and_then(|t| self.get(t)) else { continue };
                if special.marker == markers && special.fits(text, start, start + len) {
                    return Some((special.widen(text, from, start..start + len), special.id));
                }
            }
        }
        None
    }
}

impl Special {
    fn fits(&self, text: &str, start: usize, end: usize) -> bool {
        let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !self.single_word || !(word(text[..start].chars().next_back()) || word(text[end..].chars().next()))
    }
    fn widen(&self, text: &str, from: usize, range: Range<usize>) -> Range<usize> {
        let start = if self.lstrip { from + text[from..range.start].trim_end().len() } else { range.start };
        let end = if self.rstrip { text.len() - text[range.end..].trim_start().len() } else { range.end };
        start..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftmost_then_longest() {
        let mut s = Specials::default();
        s.insert("<a>", Special::new(1, true));
        s.insert("<a><b>", Special::new(2, true));
        s.insert("\n\n", Special::new(3, false));
        assert_eq!(s.find("x<a><b><a>", 0, true), Some((1..7, 2)));
        assert_eq!(s.find("x<a><b><a>", 7, true), Some((7..10, 1)));
        assert_eq!(s.find("é\n\n\n", 0, false), Some((2..4, 3)));
        assert_eq!(s.find("é\n\n\n", 0, true), None);
    }

    #[test]
    fn strips_and_words() {
        let mut s = Specials::default();
        s.insert("<m>", Special { lstrip: true, rstrip: true, ..Special::new(1, true) });
        s.insert("of", Special { single_word: true, ..Special::new(2, true) });
        assert_eq!(s.find("a  <m> \nb", 0, true), Some((1..8, 1)));
        assert_eq!(s.find("often, of it", 0, true), Some((7..9, 2)));
    }
}
