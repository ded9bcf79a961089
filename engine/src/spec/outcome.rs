//! Whether guessing pays, by what came of it: the time of steps with guesses beside that of the steps without which
//! would have chosen as many tokens.
//!
//! The cost tables say which length is best if times add up as they were seen. Here is what they cannot know: what
//! guessing costs elsewhere (threads that share a core, a draft that catches up, longer messages). Every step with
//! guesses wins or loses some time; a run of losses that comes to a few plain steps ends the guessing for a while (the
//! CUSUM test of Page, Biometrika 1954). So a trial costs as much whether it loses fast or slowly. Rests are so long that
//! trials which go on to lose cost about one step in a hundred.

use std::collections::BTreeMap;

use super::cost::CostTables;

/// Losses, in plain steps, that end the guessing.
const LOST: f64 = 4.0;
/// Wins beyond the losses that are remembered: after a turn for the worse they are lost again before it is seen.
const WON: f64 = 8.0;
/// What it takes a draft to catch up with what was said while it rested is put to the account of so many steps.
const SPREAD: f64 = 16.0;
/// Steps without guesses that are needed to judge by.
pub(super) const PLAIN: usize = 2;
/// Weight of a new time of a step without guesses, and what it is at most where many with guesses came between.
const DECAY: f64 = 0.2;
const DECAY_MOST: f64 = 0.6;
/// A time without guesses that is this much off what was expected says that the guesses were judged by a wrong one.
const STALE: f64 = 1.25;
/// Every so many steps with guesses one is wanted without: as long as they win, and when they lose.
const PLAIN_EVERY: u64 = 64;
const PLAIN_IN_DOUBT: u64 = 8;
/// Guesses of a sequence in the first steps with some; each that wins allows twice as many. A first trial with all that
/// seem to pay, before anybody knows what they cost, could take as long as ten plain steps.
const FIRST: usize = 3;
/// Rests, in steps.
const REST_FIRST: u64 = 512;
const REST_LAST: u64 = 8192;

/// Steps with so many sequences.
#[derive(Clone, Debug)]
struct Size {
    plain_steps: usize,
    /// What guessing lost, in plain steps, since it last had won all that counts.
    lost: f64,
    /// Until when it rests, and how long the next rest is.
    rest_until: u64,
    rest: u64,
    /// Time of catching up that no step has answered for yet.
    debt: f64,
    since_plain: u64,
    /// Most guesses of a sequence.
    most: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { plain_steps: 0, lost: 0.0, rest_until: 0, rest: REST_FIRST, debt: 0.0, since_plain: 0, most: FIRST }
    }
}

/// What came of steps, by sequences in octaves around powers of two.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    sizes: BTreeMap<u32, Size>,
    /// Steps so far.
    clock: u64,
    /// Times of steps without guesses by sequences; tables by context.
    plain: CostTables,
}

impl Outcomes {
    /// The nearest power of two: most engines run as many sequences as one of those, or a few less.
    pub(super) fn class(seqs: usize) -> u32 {
        let (seqs, below) = (seqs.max(1), seqs.max(1).ilog2());
        below + u32::from(seqs * seqs >= 1 << (2 * below + 1))
    }
    fn size(&mut self, seqs: usize) -> &mut Size {
        self.sizes.entry(Self::class(seqs)).or_default()
    }

    /// A step in which `seqs` sequences with `context` cached tokens chose `tokens` tokens, with or without guesses, took
    /// `us` microseconds, its guessing included, `reading` of them because a draft had to catch up.
    pub fn observe(&mut self, seqs: usize, context: usize, guessed: bool, tokens: usize, us: f64, reading: f64) {
        if us <= 0.0 || seqs == 0 {
            return;
        }
        let table = self.plain.table(context);
        if !guessed {
            let (knew, expected) = (table.knows(seqs), table.at(seqs));
            let size = self.sizes.entry(Self::class(seqs)).or_default();
            let weight = 1.0 - (1.0 - DECAY).powi(1 + size.since_plain.min(64) as i32);
            table.observe(seqs, us, weight.min(DECAY_MOST));
            if knew && us > STALE * expected {
                size.lost = size.lost.min(0.0);
            }
            size.plain_steps += 1;
            size.since_plain = 0;
            return;
        }
        let (plain, clock) = (table.at(seqs), self.clock);
        let size = self.size(seqs);
        size.since_plain += 1;
        size.debt += reading;
        let due = size.debt / SPREAD;
        size.debt -= due;
        let us = us - reading + due;
        if size.plain_steps < PLAIN {
            return;
        }
        // A step that was disturbed is one that lost, not proof.
        let lost = (us / plain - tokens as f64 / seqs as f64).min(LOST / 4.0);
        size.lost = (size.lost + lost).max(-WON);
        if lost < 0.0 {
            size.most = size.most.saturating_mul(2);
        }
        if size.lost <= -WON {
            size.rest = REST_FIRST;
        } else if size.lost >= LOST {
            (size.rest_until, size.rest) = (clock + size.rest, (4 * size.rest).min(REST_LAST));
            (size.lost, size.debt, size.most) = (0.0, 0.0, FIRST);
        }
    }

    /// Whether guessing for `seqs` sequences has won for long.
    pub fn wins(&mut self, seqs: usize) -> bool {
        self.size(seqs).lost < -WON / 2.0
    }

    /// Most guesses that a sequence should have, one of `seqs`.
    pub fn most(&mut self, seqs: usize) -> usize {
        self.size(seqs).most
    }

    /// Whether the next step with `seqs` sequences should have no guesses: it is one of a rest, or its time is wanted.
    pub fn rests(&mut self, seqs: usize) -> bool {
        self.clock += 1;
        // What does not pay for few sequences pays for many still less: their rows have filled the device before.
        if self.sizes.range(..=Self::class(seqs)).any(|(_, size)| size.rest_until >= self.clock) {
            return true;
        }
        let size = self.size(seqs);
        size.since_plain >= if size.lost > 0.0 { PLAIN_IN_DOUBT } else { PLAIN_EVERY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps out of 2,000 with guesses, where those make `tokens` in `us` and others one in 100; `reading` of it, if the
    /// step before had none, is for catching up.
    fn guessed_after_catching_up(tokens: usize, us: impl Fn(usize) -> f64, reading: f64) -> usize {
        let mut rested = true;
        let mut outcomes = Outcomes::default();
        (0..4).for_each(|_| outcomes.observe(1, 500, false, 1, 100.0, 0.0));
        let step = |i: usize| {
            let rests = outcomes.rests(1);
            let reading = if rested && !rests { reading } else { 0.0 };
            rested = rests;
            let (made, took) = if rests { (1, 100.0) } else { (tokens, us(i) + reading) };
            outcomes.observe(1, 500, !rests, made, took, reading);
            usize::from(!rests)
        };
        (0..2000).map(step).sum()
    }

    fn guessed(tokens: usize, us: impl Fn(usize) -> f64) -> usize {
        guessed_after_catching_up(tokens, us, 0.0)
    }

    #[test]
    fn what_loses_rests_and_what_wins_goes_on() {
        assert!(guessed(3, |_| 200.0) > 1950);
        // Losing fast or slowly costs a few plain steps a trial.
        for (us, most) in [(700.0, 12), (400.0, 24), (310.0, 180)] {
            let steps = guessed(3, |_| us);
            assert!((3..=most).contains(&steps), "{us}: {steps}");
        }
        // Disturbed steps do not make a good guesser rest.
        assert!(guessed(3, |i| if i % 40 == 7 { 50_000.0 } else { 200.0 }) > 1900);
        assert!(guessed(3, |i| if i % 2 == 0 { 380.0 } else { 200.0 }) > 1900, "half of the steps lose");
        // What it cost to catch up is weighed against many steps, not against one.
        assert!(guessed_after_catching_up(3, |_| 250.0, 600.0) > 1900);
        assert!(guessed_after_catching_up(3, |_| 290.0, 5_000.0) < 100);
        // It pays from some time on: it is found.
        assert!(guessed(3, |i| if i < 500 { 400.0 } else { 150.0 }) > 1400);
        // It pays no more: it is seen.
        assert!(guessed(3, |i| if i < 300 { 150.0 } else { 400.0 }) < 340);
    }

    #[test]
    fn sizes_are_apart() {
        let mut outcomes = Outcomes::default();
        for seqs in [1, 16] {
            (0..4).for_each(|_| outcomes.observe(seqs, 500, false, seqs, 100.0, 0.0));
        }
        (0..8).for_each(|_| outcomes.observe(16, 500, true, 32, 300.0, 0.0));
        assert!([15, 16, 22, 31, 64].into_iter().all(|seqs| outcomes.rests(seqs)));
        assert!([1, 4, 8].into_iter().all(|seqs| !outcomes.rests(seqs)));
    }

    #[test]
    fn times_are_compared_at_one_size() {
        let mut outcomes = Outcomes::default();
        (0..4).for_each(|_| outcomes.observe(31, 500, false, 31, 310.0, 0.0));
        (0..4).for_each(|_| outcomes.observe(16, 500, false, 16, 200.0, 0.0));
        // At 16 a step of 190 that makes a token each wins, though it makes fewer a time than one of 31 without guesses.
        (0..40).for_each(|_| outcomes.observe(16, 500, true, 16, 190.0, 0.0));
        assert!(outcomes.sizes.values().all(|s| s.rest_until == 0));
    }
}
