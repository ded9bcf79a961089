//! Prompt lookup: what followed the last few tokens when they stood in the log before.
//! Source of the idea: Saxena, "Prompt Lookup Decoding" (2023).

use std::collections::HashMap;

use super::{Drafter, Guess, Source};

/// Longest beginning that is looked up.
const LONGEST: usize = 4;
/// Shortest: two tokens repeat by chance too often to pay.
const SHORTEST: usize = 2;

/// Looks up the last n tokens, longest n first; the latest occurrence wins.
#[derive(Clone, Debug, Default)]
pub struct Ngram {
    /// For each n-gram: where the text after its latest and its second-latest occurrence begins.
    /// The latest is the end of the log itself.
    places: HashMap<Vec<u32>, (usize, Option<usize>)>,
    seen: usize,
}

impl Ngram {
    fn index(&mut self, log: &[u32]) {
        for end in self.seen + 1..=log.len() {
            for n in SHORTEST..=LONGEST.min(end) {
                let place = self.places.entry(log[end - n..end].to_vec()).or_insert((end, None));
                if place.0 != end {
                    *place = (end, Some(place.0));
                }
            }
        }
        self.seen = log.len();
    }
}

impl Drafter for Ngram {
    fn observe(&mut self, log: &[u32], _: usize) {
        self.index(log);
    }
    fn rewind(&mut self, log: &[u32]) {
        *self = Self::default();
        self.index(log);
    }
    fn propose(&mut self, log: &[u32], max: usize) -> Guess {
        for n in (SHORTEST..=LONGEST.min(log.len())).rev() {
            let before = match self.places.get(&log[log.len() - n..]) {
                Some((latest, second)) if *latest == log.len() => *second,
                Some((latest, _)) => Some(*latest),
                None => None,
            };
            if let Some(at) = before {
                let tokens = log[at..].iter().take(max).copied().collect();
                return Guess { tokens, source: Source::Ngram, matched: n };
            }
        }
        Guess::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(log: &[u32], max: usize) -> Vec<u32> {
        let mut drafter = Ngram::default();
        drafter.observe(log, log.len());
        drafter.propose(log, max).tokens
    }

    #[test]
    fn continues_what_stood_before() {
        assert_eq!(proposal(&[1, 2, 3, 4, 5, 1, 2], 3), [3, 4, 5]);
        assert_eq!(proposal(&[1, 2, 9, 1, 2, 8, 1, 2], 1), [8], "the latest occurrence wins");
        assert_eq!(proposal(&[7, 1, 2, 9, 1, 2, 8, 7, 1, 2], 1), [9], "a longer match wins over a later one");
        assert_eq!(proposal(&[1, 2, 3], 3), [0u32; 0]);
        assert_eq!(proposal(&[5, 5, 5], 4), [5], "a match may overlap its own continuation");
    }

    #[test]
    fn rewinding_forgets() {
        let mut drafter = Ngram::default();
        let log = [1, 2, 3, 9, 1, 2];
        drafter.observe(&log, 6);
        assert_eq!(drafter.propose(&log, 2).tokens, [3, 9]);
        drafter.rewind(&log[..4]);
        let other = [1, 2, 3, 9, 3, 9];
        drafter.observe(&other, 2);
        assert_eq!(drafter.propose(&other, 4).tokens, [3, 9]);
        let third = [1, 2, 3, 9, 3, 9, 1, 7];
        drafter.observe(&third, 2);
        assert!(drafter.propose(&third, 4).tokens.is_empty(), "(9, 1) was rewound");
    }
}
