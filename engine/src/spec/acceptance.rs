//! How often guesses are right: counts for reports, and decayed rates for the choice of lengths.

use super::Source;

/// Positions that are counted apart; later ones count as the last.
pub const POSITIONS: usize = 32;
/// Positions whose rates are learnt apart.
const LEARNT: usize = 8;

/// Hits and tries, decayed.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    hits: f64,
    tries: f64,
}

impl Rate {
    fn observe(&mut self, hit: bool, keep: f64) {
        self.hits = self.hits * keep + f64::from(u8::from(hit));
        self.tries = self.tries * keep + 1.0;
    }
    fn fade(&mut self, keep: f64) {
        (self.hits, self.tries) = (self.hits * keep, self.tries * keep);
    }
    /// The mean, with `prior` counting as `weight` tries.
    fn mean(&self, prior: f64, weight: f64) -> f64 {
        (self.hits + weight * prior) / (self.tries + weight)
    }
}

/// Rates of one drafter in one phase, by position.
#[derive(Clone, Debug, Default)]
struct ByPosition {
    each: [Rate; LEARNT],
    all: Rate,
}

impl ByPosition {
    fn observe(&mut self, drafted: usize, accepted: usize, keep: f64) {
        // What stands behind a rejected guess says nothing.
        for i in 0..drafted.min(accepted + 1) {
            self.each[i.min(LEARNT - 1)].observe(i < accepted, keep);
            self.all.observe(i < accepted, keep);
        }
    }
    fn at(&self, position: usize, prior: f64) -> f64 {
        let all = self.all.mean(prior, 4.0);
        self.each[position.min(LEARNT - 1)].mean(all, 4.0)
    }
}

/// Conditional acceptance rates by phase and drafter: the chance that a guess is right if all before it are.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// `[phase][source]`.
    table: [[ByPosition; Source::ALL.len()]; 2],
}

/// Before anything is known guesses are tried, and measured, before they are judged.
const OPTIMISM: f64 = 0.75;

impl Rates {
    /// Of `drafted` guesses `accepted` were right; `keep` is what older observations keep of their weight.
    pub fn observe(&mut self, thinking: bool, source: Source, drafted: usize, accepted: usize, keep: f64) {
        self.table[usize::from(thinking)][source as usize].observe(drafted, accepted, keep);
    }
    /// Nobody guessed in a step: what was seen before counts `keep` of what it did.
    pub fn fade(&mut self, keep: f64) {
        for by_position in self.table.iter_mut().flatten() {
            by_position.each.iter_mut().chain([&mut by_position.all]).for_each(|rate| rate.fade(keep));
        }
    }
    /// The chance that the first `i + 1` guesses are all right, for `i` below `max`: a sequence's own rates,
    /// where it has few yet those of all.
    pub fn survival(&self, all: &Rates, thinking: bool, source: Source, max: usize) -> Vec<f64> {
        let of = |rates: &Rates, i: usize, prior: f64| rates.table[usize::from(thinking)][source as usize].at(i, prior);
        let mut alive = 1.0;
        (0..max)
            .map(|i| {
                alive *= of(self, i, of(all, i, OPTIMISM));
                alive
            })
            .collect()
    }
}

/// Counts of one drafter in one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// Steps in which it guessed.
    pub steps: u64,
    /// Guesses.
    pub drafted: u64,
    /// Right ones among them.
    pub accepted: u64,
    /// Guesses by position.
    pub drafted_at: [u64; POSITIONS],
    /// Right ones by position.
    pub accepted_at: [u64; POSITIONS],
}

impl Acceptance {
    fn add(&mut self, other: &Acceptance) {
        self.steps += other.steps;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
        self.drafted_at.iter_mut().zip(other.drafted_at).for_each(|(a, b)| *a += b);
        self.accepted_at.iter_mut().zip(other.accepted_at).for_each(|(a, b)| *a += b);
    }
    /// Right guesses per step with guesses.
    pub fn mean_accepted(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.accepted as f64 / self.steps as f64 }
    }
}

/// What guessing did, for one answer or for a whole engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecReport {
    /// `[phase][source]`; phase 1 is thinking.
    pub counts: [[Acceptance; Source::ALL.len()]; 2],
    /// Target passes that chose tokens, per answer.
    pub passes: u64,
    /// Tokens that they chose.
    pub chosen: u64,
    /// Time of guessing, in microseconds: of the steps that the answer took part in.
    pub draft_us: u64,
    /// Time of the target, in microseconds.
    pub verify_us: u64,
}

impl SpecReport {
    /// A pass that chose `chosen` tokens after `drafted` guesses.
    pub fn pass(&mut self, thinking: bool, source: Source, drafted: usize, chosen: usize) {
        self.passes += 1;
        self.chosen += chosen as u64;
        if drafted == 0 {
            return;
        }
        let accepted = chosen.saturating_sub(1);
        let counts = &mut self.counts[usize::from(thinking)][source as usize];
        counts.steps += 1;
        counts.drafted += drafted as u64;
        counts.accepted += accepted as u64;
        for i in 0..drafted {
            counts.drafted_at[i.min(POSITIONS - 1)] += 1;
            counts.accepted_at[i.min(POSITIONS - 1)] += u64::from(i < accepted);
        }
    }
    /// The step took so long.
    pub fn took(&mut self, draft_us: u64, verify_us: u64) {
        self.draft_us += draft_us;
        self.verify_us += verify_us;
    }
    /// Becomes `later`, a state of the same report after passes without guesses: the counts, thousands of bytes, stay.
    pub fn keep_up(&mut self, later: &SpecReport) {
        (self.passes, self.chosen) = (later.passes, later.chosen);
        (self.draft_us, self.verify_us) = (later.draft_us, later.verify_us);
    }
    /// Adds the counts of another report.
    pub fn add(&mut self, other: &SpecReport) {
        for (mine, theirs) in self.counts.iter_mut().flatten().zip(other.counts.iter().flatten()) {
            mine.add(theirs);
        }
        self.passes += other.passes;
        self.chosen += other.chosen;
        self.took(other.draft_us, other.verify_us);
    }
    /// What was added since `earlier`, a state of the same report.
    pub fn since(&self, earlier: &SpecReport) -> SpecReport {
        let mut since = self.clone();
        for (now, then) in since.counts.iter_mut().flatten().zip(earlier.counts.iter().flatten()) {
            now.steps -= then.steps;
            now.drafted -= then.drafted;
            now.accepted -= then.accepted;
            now.drafted_at.iter_mut().zip(then.drafted_at).for_each(|(a, b)| *a -= b);
            now.accepted_at.iter_mut().zip(then.accepted_at).for_each(|(a, b)| *a -= b);
        }
        since.passes -= earlier.passes;
        since.chosen -= earlier.chosen;
        since.draft_us -= earlier.draft_us;
        since.verify_us -= earlier.verify_us;
        since
    }
    /// Counts of all phases and drafters together.
    pub fn total(&self) -> Acceptance {
        let mut total = Acceptance::default();
        self.counts.iter().flatten().for_each(|c| total.add(c));
        total
    }
    /// Tokens per pass of the target; 1 without guessing.
    pub fn tokens_per_pass(&self) -> f64 {
        if self.passes == 0 { 0.0 } else { self.chosen as f64 / self.passes as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survival_falls_and_learns_by_phase_and_drafter() {
        let (mut own, mut all) = (Rates::default(), Rates::default());
        let fresh = own.survival(&all, true, Source::Model, 4);
        assert!(fresh.windows(2).all(|w| w[1] < w[0]) && fresh[0] == OPTIMISM, "{fresh:?}");
        for _ in 0..50 {
            all.observe(true, Source::Model, 4, 4, 0.98);
            all.observe(false, Source::Model, 4, 0, 0.98);
        }
        let thinking = own.survival(&all, true, Source::Model, 4);
        assert!(thinking[3] > 0.8, "a new sequence begins with what others showed: {thinking:?}");
        assert!(own.survival(&all, false, Source::Model, 4)[0] < 0.15);
        assert_eq!(own.survival(&all, true, Source::Ngram, 4), fresh);
        for _ in 0..50 {
            own.observe(true, Source::Model, 4, 1, 0.95);
        }
        let learnt = own.survival(&all, true, Source::Model, 4);
        assert!(learnt[0] > 0.9 && learnt[1] < 0.4 && learnt[2] <= learnt[1], "{learnt:?}");
    }

    #[test]
    fn reports_count() {
        let mut report = SpecReport::default();
        report.pass(true, Source::Model, 3, 3);
        report.pass(true, Source::Nobody, 0, 1);
        report.pass(false, Source::Suffix, 2, 1);
        let total = report.total();
        assert_eq!((total.steps, total.drafted, total.accepted), (2, 5, 2));
        assert_eq!((total.drafted_at[..3].to_vec(), total.accepted_at[..3].to_vec()), (vec![2, 2, 1], vec![1, 1, 0]));
        assert_eq!((report.passes, report.chosen), (3, 5));
        let mut twice = report.clone();
        twice.add(&report);
        assert_eq!((twice.total().drafted, twice.passes), (10, 6));
        assert_eq!(twice.since(&report), report);
        let before = twice.clone();
        twice.pass(true, Source::Nobody, 0, 1);
        twice.took(5, 7);
        let mut kept = before;
        kept.keep_up(&twice);
        assert_eq!(kept, twice);
    }
}
