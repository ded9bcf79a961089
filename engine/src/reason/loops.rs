//! Finds thinking that goes round in a circle, while it does.
//!
//! A text with period p repeats the token of p places ago. The last place of the same few tokens (a hash map)
//! proposes p; from then on one comparison per token counts how long the period has held. So each token costs
//! one hash and one comparison, and what is reported is an exact repetition, token by token, never a guess.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// When a repetition is a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoopOptions {
    /// Longest period, in tokens.
    pub max_period: usize,
    /// A period was seen this often, the first time included.
    pub min_repeats: usize,
    /// And the repetitions after the first have at least this many tokens: a row of zeros is no loop.
    pub min_tokens: usize,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { max_period: 1024, min_repeats: 4, min_tokens: 128 }
    }
}

/// A loop that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loop {
    /// Its length in tokens.
    pub period: usize,
    /// Tokens after the first time round.
    pub repeated: usize,
}

/// Tokens that propose a period together: enough to be rare inside a period, fewer than any loop has.
const GRAM: usize = 16;

/// The detector of one answer's thinking.
#[derive(Clone, Debug)]
pub struct LoopDetector {
    options: LoopOptions,
    /// The last `max_period + GRAM` tokens, as a ring.
    ring: Vec<u32>,
    seen: usize,
    /// Where each group of tokens was last, by its hash.
    last: HashMap<u64, usize>,
    period: usize,
    repeated: usize,
}

impl LoopDetector {
    /// A detector that has seen nothing.
    pub fn new(options: LoopOptions) -> Self {
        Self { options, ring: Vec::new(), seen: 0, last: HashMap::new(), period: 0, repeated: 0 }
    }

    fn capacity(&self) -> usize {
        self.options.max_period + GRAM
    }
    fn back(&self, distance: usize) -> u32 {
        self.ring[(self.seen - distance) % self.capacity()]
    }

    /// Takes the next token of thinking; returns the loop once there is one.
    pub fn push(&mut self, token: u32) -> Option<Loop> {
        // Before the token enters the ring: its counterpart one period ago.
        if self.period > 0 && self.back(self.period) == token {
            self.repeated += 1;
        } else {
            (self.period, self.repeated) = (0, 0);
        }
        let at = self.seen % self.capacity();
        if at == self.ring.len() {
            self.ring.push(token)
        } else {
            self.ring[at] = token
        }
        self.seen += 1;
        self.propose();
        self.found()
    }

    /// Remembers the last tokens' place, and takes their distance as a period if none holds.
    fn propose(&mut self) {
        if self.seen < GRAM || self.options.max_period == 0 {
            return;
        }
        let hash =
            (1..=GRAM).fold(0u64, |h, d| (h ^ self.back(d) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29));
        if self.last.len() > 2 * self.capacity() {
            let oldest = self.seen - self.capacity();
            self.last.retain(|_, place| *place >= oldest);
        }
        let before = self.last.insert(hash, self.seen);
        let distance = before.map_or(0, |place| self.seen - place);
        if self.period == 0 && (1..=self.options.max_period).contains(&distance) {
            // The hash proposes, the tokens decide.
            let same = (1..=GRAM).take_while(|d| {
                let there = d + distance;
                there <= self.seen.min(self.capacity()) && self.back(there) == self.back(*d)
            });
            let same = same.count();
            if same > 0 {
                (self.period, self.repeated) = (distance, same);
            }
        }
    }

    /// The loop that holds now.
    pub fn found(&self) -> Option<Loop> {
        let Self { period, repeated, options, .. } = *self;
        let enough = period > 0 && repeated >= period * options.min_repeats.saturating_sub(1);
        (enough && repeated >= options.min_tokens).then_some(Loop { period, repeated })
    }
    /// Tokens since which the current period holds: a first sign.
    pub fn repeated(&self) -> usize {
        self.repeated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(tokens: impl IntoIterator<Item = u32>, options: LoopOptions) -> Option<(usize, Loop)> {
        let mut detector = LoopDetector::new(options);
        tokens.into_iter().enumerate().find_map(|(i, t)| detector.push(t).map(|found| (i, found)))
    }
    fn noise(n: usize, seed: u32) -> impl Iterator<Item = u32> {
        (0..n as u32).map(move |i| (i ^ seed).wrapping_mul(2_654_435_761).rotate_left(11).wrapping_mul(40_503) >> 8)
    }

    #[test]
    fn every_period_is_found_soon_after_its_last_needed_repeat() {
        let options = LoopOptions { max_period: 600, min_repeats: 3, min_tokens: 48 };
        for period in [1, 2, 3, 5, 17, 100, 599, 600] {
            let round: Vec<u32> = noise(period, 7).collect();
            let text = noise(1000, 99).chain(round.iter().copied().cycle().take(5000));
            let (at, found) = first(text, options).unwrap_or_else(|| panic!("period {period}"));
            assert_eq!(found.period, period);
            let soonest = 1000 + period + (2 * period).max(48) - 1;
            assert!((soonest..soonest + GRAM).contains(&at), "period {period} found at {at}, soonest {soonest}");
        }
    }

    #[test]
    fn a_period_whose_parts_repeat_inside_it() {
        let round = [1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 3];
        let options = LoopOptions { min_tokens: 40, ..LoopOptions::default() };
        let (at, found) = first(round.into_iter().cycle().take(400), options).expect("a loop");
        assert_eq!(found.period, 14);
        assert!(at < 14 + 42 + GRAM, "found at {at}");
    }

    #[test]
    fn what_is_no_loop() {
        let options = LoopOptions::default();
        assert_eq!(first(noise(20_000, 3), options), None);
        assert_eq!(first([7; 100], options), None, "a hundred zeros");
        // A list that counts: each line differs in one token.
        assert_eq!(first((0..400).flat_map(|i| [1, 2, 3, 1000 + i, 4]), options), None);
        // Periods longer than the window.
        let long: Vec<u32> = noise(1500, 1).collect();
        assert_eq!(first(long.iter().copied().cycle().take(9000), options), None);
        assert_eq!(first([5; 9999], LoopOptions { max_period: 0, ..options }), None, "switched off");
    }

    #[test]
    fn memory_is_bounded() {
        let mut detector = LoopDetector::new(LoopOptions { max_period: 100, ..LoopOptions::default() });
        noise(50_000, 5).for_each(|t| {
            detector.push(t);
        });
        assert!(detector.last.len() <= 234 && detector.ring.len() <= 116);
    }
}
