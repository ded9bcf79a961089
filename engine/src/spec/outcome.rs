//! Whether guessing pays, by what came of it: tokens per time of steps with guesses beside those without.
//!
//! The cost tables say which length is best if times add up as they were seen. Here is what they cannot know: what
//! guessing costs elsewhere (threads that share a core, a draft that catches up, longer messages). Steps that lose are
//! followed by a rest, four times as long as the one before while trials go on to lose: after each, drafts catch up.

use std::collections::BTreeMap;

/// Steps with guesses after which they are judged.
const TRIAL: usize = 12;
/// Steps with guesses that are not judged, at first and after a rest: in them the draft catches up with all that was
/// said meanwhile, which is the price of having rested.
const CATCH_UP: usize = 1;
/// Steps without guesses that are needed to judge by.
const PLAIN: usize = 2;
/// Rests, in steps.
const REST_FIRST: u64 = 128;
const REST_LAST: u64 = 4096;
/// How much of an old observation is left after the next.
const KEEP: f64 = 0.95;

/// Tokens and time of steps of one kind, decayed.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    steps: usize,
    tokens: f64,
    us: f64,
    weight: f64,
}

impl Rate {
    fn observe(&mut self, tokens: usize, us: f64) {
        // A step that was disturbed counts as a slow one, not as many.
        let us = if self.steps > 0 { us.min(2.0 * self.us / self.weight) } else { us };
        self.tokens = KEEP * self.tokens + tokens as f64;
        self.us = KEEP * self.us + us;
        self.weight = KEEP * self.weight + 1.0;
        self.steps += 1;
    }
    fn per_us(&self) -> f64 {
        self.tokens / self.us
    }
}

/// Steps with so many sequences.
#[derive(Clone, Debug)]
struct Size {
    plain: Rate,
    guessed: Rate,
    rest_left: u64,
    rest: u64,
    catches_up: usize,
}

/// What came of steps, by sequences in powers of two.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    sizes: BTreeMap<u32, Size>,
}

impl Outcomes {
    fn size(&mut self, seqs: usize) -> &mut Size {
        let new = || Size {
            plain: Rate::default(),
            guessed: Rate::default(),
            rest_left: 0,
            rest: REST_FIRST,
            catches_up: CATCH_UP,
        };
        self.sizes.entry(usize::BITS - seqs.leading_zeros()).or_insert_with(new)
    }

    /// A step in which `seqs` sequences chose `tokens` tokens, with or without guesses, took `us` microseconds, its
    /// guessing included.
    pub fn observe(&mut self, seqs: usize, guessed: bool, tokens: usize, us: f64) {
        if us <= 0.0 {
            return;
        }
        let size = self.size(seqs);
        if !guessed {
            return size.plain.observe(tokens, us);
        }
        if size.catches_up > 0 {
            size.catches_up -= 1;
            return;
        }
        size.guessed.observe(tokens, us);
        if size.guessed.steps < TRIAL || size.plain.steps < PLAIN {
            return;
        }
        if size.guessed.per_us() < size.plain.per_us() {
            (size.rest_left, size.rest) = (size.rest, (4 * size.rest).min(REST_LAST));
            (size.guessed, size.catches_up) = (Rate::default(), CATCH_UP);
        } else if size.guessed.steps > 20 * TRIAL {
            size.rest = REST_FIRST;
        }
    }

    /// Whether the next step with `seqs` sequences is one of a rest.
    pub fn rests(&mut self, seqs: usize) -> bool {
        let size = self.size(seqs);
        let rests = size.rest_left > 0;
        size.rest_left = size.rest_left.saturating_sub(1);
        rests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps out of 2,000 with guesses, where those make `tokens` in `us` and others one in 100.
    fn guessed(tokens: usize, us: impl Fn(usize) -> f64) -> usize {
        guessed_after_catching_up(tokens, us, 0.0)
    }

    /// The same where every first step with guesses takes `more`.
    fn guessed_after_catching_up(tokens: usize, us: impl Fn(usize) -> f64, more: f64) -> usize {
        let mut rested = true;
        let mut outcomes = Outcomes::default();
        (0..4).for_each(|_| outcomes.observe(1, false, 1, 100.0));
        let step = |i: usize| {
            let rests = outcomes.rests(1);
            let late = if rested && !rests { more } else { 0.0 };
            rested = rests;
            let (made, took) = if rests { (1, 100.0) } else { (tokens, us(i) + late) };
            outcomes.observe(1, !rests, made, took);
            usize::from(!rests)
        };
        (0..2000).map(step).sum()
    }

    #[test]
    fn what_loses_rests_and_what_wins_goes_on() {
        assert_eq!(guessed(3, |_| 200.0), 2000);
        assert!(guessed(3, |_| 310.0) < 80, "a loss is tried a few times");
        // Disturbed steps do not make a good guesser rest.
        assert!(guessed(3, |i| if i % 40 == 7 { 50_000.0 } else { 200.0 }) > 1900);
        // What it cost to catch up after a rest does not begin the next.
        assert!(guessed_after_catching_up(3, |i| if i < 40 { 400.0 } else { 250.0 }, 2_000.0) > 1500);
        // It pays from some time on: it is found.
        assert!(guessed(3, |i| if i < 300 { 400.0 } else { 150.0 }) > 1000);
    }

    #[test]
    fn sizes_are_apart() {
        let mut outcomes = Outcomes::default();
        for seqs in [1, 16] {
            (0..4).for_each(|_| outcomes.observe(seqs, false, seqs, 100.0));
        }
        (0..TRIAL + CATCH_UP).for_each(|_| outcomes.observe(16, true, 32, 300.0));
        assert!(outcomes.rests(16) && outcomes.rests(31) && !outcomes.rests(1) && !outcomes.rests(15));
    }
}
