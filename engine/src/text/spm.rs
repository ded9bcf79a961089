//! SentencePiece-style encoding by scores, as GGUF files of the type "llama" want it (Gemma, Llama 2).
//!
//! The text starts as single characters; of all neighbours whose join is a token, the pair with the best
//! score (of equals: the leftmost) is joined, until none is left. A piece that is no token falls back to
//! its bytes. This is SentencePiece's BPE (Kudo and Richardson 2018) and what llama.cpp does.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::alphabet::byte_piece;

/// A vocabulary with scores.
pub struct Spm {
    pieces: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
    /// A space is put before the text.
    pub space_prefix: bool,
}

/// A candidate join of `left` and the symbol after it.
struct Join {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Join {}

/// A piece of the text in a doubly linked list; `len` 0 once it is part of its left neighbour.
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

impl Spm {
    /// A vocabulary of `(piece, score)` in the order of ids.
    pub fn new<'a>(tokens: impl Iterator<Item = (&'a str, f32)>, unknown: Option<u32>, space_prefix: bool) -> Spm {
        let mut spm = Spm { pieces: HashMap::new(), scores: Vec::new(), bytes: [None; 256], unknown, space_prefix };
        for ((piece, score), id) in tokens.zip(0u32..) {
            if let Some(byte) = byte_piece(piece) {
                spm.bytes[byte as usize] = Some(id);
            }
            spm.pieces.insert(piece.into(), id);
            spm.scores.push(if score.is_nan() { f32::NEG_INFINITY } else { score });
        }
        spm
    }

    /// The id of a piece, written with `▁` for spaces.
    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.pieces.get(piece).copied()
    }

    /// The ids of `text`, which begins the input or follows a special token (where a space prefix goes).
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut escaped = String::with_capacity(text.len() * 3 / 2);
        if self.space_prefix && !text.is_empty() {
            escaped.push('▁');
        }
        text.chars().for_each(|c| escaped.push(if c == ' ' { '▁' } else { c }));
        let symbols = self.join_all(&escaped);
        let mut ids = Vec::new();
        for s in symbols.iter().filter(|s| s.len > 0) {
            self.put(&escaped[s.start..s.start + s.len], &mut ids);
        }
        ids
    }

    fn join_all(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::new();
        for (i, (start, c)) in text.char_indices().enumerate() {
            symbols.push(Symbol { start, len: c.len_utf8(), previous: i.checked_sub(1), next: Some(i + 1) });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        let mut queue = BinaryHeap::new();
        for left in 0..symbols.len() {
            queue.extend(self.candidate(text, &symbols, left));
        }
        while let Some(join) = queue.pop() {
            let (l, r) = (join.left, join.right);
            let stale = symbols[l].len == 0 || symbols[r].len == 0 || symbols[l].len + symbols[r].len != join.len;
            if stale {
                continue;
            }
            let after = symbols[r].next;
            symbols[l].len = join.len;
            symbols[l].next = after;
            symbols[r].len = 0;
            if let Some(after) = after {
                symbols[after].previous = Some(l);
            }
            let before = symbols[l].previous.and_then(|p| self.candidate(text, &symbols, p));
            queue.extend(before);
            queue.extend(self.candidate(text, &symbols, l));
        }
        symbols
    }

    /// The join of `left` with its neighbour, if that is a token.
    fn candidate(&self, text: &str, symbols: &[Symbol], left: usize) -> Option<Join> {
        let right = symbols[left].next?;
        let len = symbols[left].len + symbols[right].len;
        let id = self.id_of(&text[symbols[left].start..][..len])?;
        Some(Join { score: self.scores[id as usize], left, right, len })
    }

    /// A piece as one token, or as its bytes, or as "unknown".
    fn put(&self, piece: &str, ids: &mut Vec<u32>) {
        if let Some(id) = self.id_of(piece) {
            ids.push(id);
            return;
        }
        for byte in piece.bytes() {
            ids.extend(self.bytes[byte as usize].or(self.unknown));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_score_first_then_leftmost_then_bytes() {
        let vocab = [("<unk>", 0.0), ("<0xC3>", 0.0), ("<0xA9>", 0.0), ("a", -9.0), ("b", -9.0), ("▁", -9.0)];
        let joins = [("ab", -2.0), ("ba", -1.0), ("aa", -3.0), ("▁ab", -4.0)];
        let spm = Spm::new(vocab.iter().chain(&joins).copied(), Some(0), false);
        let name = |ids: Vec<u32>| -> Vec<&str> {
            ids.iter().map(|id| vocab.iter().chain(&joins).nth(*id as usize).map_or("?", |t| t.0)).collect()
        };
        assert_eq!(name(spm.encode("aba")), ["a", "ba"]); // ba scores better than ab
        assert_eq!(name(spm.encode("aaa")), ["aa", "a"]); // leftmost of equals
        assert_eq!(name(spm.encode(" ab")), ["▁ab"]);
        assert_eq!(name(spm.encode("é")), ["<0xC3>", "<0xA9>"]);
        assert!(spm.encode("").is_empty());
        let prefixed = Spm { space_prefix: true, ..spm };
        assert_eq!(name(prefixed.encode("ab")), ["▁ab"]);
    }
}
