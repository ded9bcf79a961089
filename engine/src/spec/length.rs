//! How many tokens to guess: as many as pay, and none where they do not.
//!
//! A sequence whose guesses survive with chances `s[i]` gets `1 + s[0] + … + s[k-1]` tokens out of a step
//! with k guesses. What a step costs is learnt online: the time of its rows, and the time of the draft's
//! passes. The lengths of a whole batch are chosen together: guesses are taken in order of survival, and the
//! prefix with the most expected tokens per expected time is kept (the idea of DSpark's admission). [`super::outcome`]
//! judges afterwards whether it paid.

use std::collections::BTreeMap;

use super::cost::CostTables;
use super::outcome::{Outcomes, PLAIN};
use super::{Rates, Source};

/// Limits of the controller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthOptions {
    /// Most guesses per sequence and step.
    pub max: usize,
    /// Weight of a new observation of a time.
    pub decay: f64,
}

impl Default for LengthOptions {
    fn default() -> Self {
        Self { max: 8, decay: 0.05 }
    }
}

/// A sequence that may have guesses.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// What it showed so far.
    pub rates: &'a Rates,
    /// Whether it thinks.
    pub thinking: bool,
    /// Who is likely to guess.
    pub source: Source,
    /// Tokens that the draft model would have to read first.
    pub behind: usize,
    /// Tokens that it will probably still choose.
    pub expected: f64,
    /// Most guesses that can count.
    pub most: usize,
}

impl Candidate<'_> {
    /// How long the draft model would read before it guessed, at `read_us` a token, for each of the steps in which it
    /// will guess then; `tokens` is what those choose.
    fn reading(&self, read_us: f64, tokens: f64) -> f64 {
        let steps = (self.expected / tokens).clamp(1.0, MOST_STEPS);
        if self.source == Source::Model { self.behind.saturating_sub(FEW) as f64 * read_us / steps } else { 0.0 }
    }
}

/// Steps of a size that are run without guesses before the first with some: what guesses cost is a difference.
const PLAIN_FIRST: usize = SETTLING + PLAIN;
/// So many steps without guesses after one with some do not count: they find the caches as the draft left them, and take
/// longer than they would if nobody guessed.
const SETTLING: usize = 2;
/// Where guesses do not pay, they are tried again after so many steps, then after twice as many, ...
const PROBE_FIRST: u64 = 64;
/// ... up to so many.
const PROBE_LAST: u64 = 2048;
/// And never so often that trying takes more than this share of the time.
const PROBE_SHARE: f64 = 0.005;
/// Guesses of a trial.
const PROBE_GUESSES: usize = 2;
/// Where they have paid, it is rather the times of steps with guesses that are out of date.
const PROBE_WINNING: u64 = 16;

/// Tokens a sequence that a draft model reads besides as a matter of course: those that the target put right.
const FEW: usize = 4;
/// Steps to which a draft's catching up is put down at most: it may rest again before an answer ends.
const MOST_STEPS: f64 = 64.0;
/// What guesses must promise, as a multiple of what steps bring without them: to be begun with, for a trial that fails
/// costs something, and to be gone on with.
const MARGIN_FIRST: f64 = 1.15;
const MARGIN: f64 = 1.03;

/// The controller of one engine.
#[derive(Clone, Debug)]
pub struct DraftLength {
    options: LengthOptions,
    /// Steps that prefill nothing, without their guessing, by rows; tables by context.
    step: CostTables,
    /// Guessing, by passes; tables by sequences.
    draft: CostTables,
    /// Mean time in which the draft reads a token that it lacks, decayed.
    read_us: f64,
    outcomes: Outcomes,
    rates: Rates,
    plain_left: usize,
    /// Steps that only chose tokens since the last with guesses.
    plain_run: usize,
    /// The most guesses that a sequence had last, trials apart.
    usual: usize,
    /// Whether the step in flight has guesses only to see whether they pay by now.
    probing: bool,
    /// By the class of [`Outcomes::class`].
    probes: BTreeMap<u32, Probe>,
}

/// When it is tried again.
#[derive(Clone, Copy, Debug)]
struct Probe {
    /// Steps since the last time.
    waited: u64,
    gap: u64,
}

impl Default for Probe {
    fn default() -> Self {
        Self { waited: 0, gap: PROBE_FIRST }
    }
}

impl DraftLength {
    /// Nothing is known yet.
    pub fn new(options: LengthOptions) -> Self {
        Self {
            options,
            step: CostTables::default(),
            draft: CostTables::default(),
            read_us: 0.0,
            outcomes: Outcomes::default(),
            rates: Rates::default(),
            plain_left: PLAIN_FIRST,
            plain_run: 0,
            usual: PROBE_GUESSES,
            probing: false,
            probes: BTreeMap::new(),
        }
    }

    /// A step of `rows` rows that all choose a token, over `context` cached tokens, took `us` microseconds without its
    /// guessing; `guessed` are those of its rows that were guesses.
    pub fn observe_step(&mut self, rows: usize, guessed: usize, context: usize, us: f64) {
        self.plain_run = if guessed > 0 { 0 } else { self.plain_run + 1 };
        let table = self.step.table(context);
        if guessed > 0 || self.plain_run > SETTLING || !table.knows(rows) {
            table.observe(rows, us, self.options.decay);
        }
    }

    /// Guessing for `seqs` sequences in `passes` passes of a draft model took `us` microseconds, in which it also read
    /// `behind` tokens that it lacked. Returns the time of that reading.
    pub fn observe_draft(&mut self, seqs: usize, passes: usize, behind: usize, us: f64) -> f64 {
        let table = self.draft.table(seqs);
        if behind <= FEW * seqs {
            table.observe(0, 0.0, 1.0);
            table.observe(passes, us, self.options.decay);
            return 0.0;
        }
        let reading = if table.is_empty() { us } else { (us - table.at(passes)).max(0.0) };
        let weight = if self.read_us == 0.0 { 1.0 } else { 4.0 * self.options.decay };
        self.read_us += weight * (reading / behind as f64 - self.read_us);
        reading
    }
    /// A step in which `seqs` sequences with `context` cached tokens chose `tokens` tokens, with or without guesses, took
    /// `us` microseconds in all, `reading` of them because the draft model had to catch up.
    pub fn observe_outcome(
        &mut self,
        seqs: usize,
        context: usize,
        guessed: bool,
        tokens: usize,
        us: f64,
        reading: f64,
    ) {
        let counts = if guessed { !self.probing } else { self.plain_run > SETTLING };
        if counts {
            self.outcomes.observe(seqs, context, guessed, tokens, us, reading);
        }
    }
    /// Of `drafted` guesses `accepted` were right; `own` are the rates of their sequence.
    pub fn observe_guesses(
        &mut self,
        own: &mut Rates,
        thinking: bool,
        source: Source,
        drafted: usize,
        accepted: usize,
    ) {
        own.observe(thinking, source, drafted, accepted, 0.95);
        self.rates.observe(thinking, source, drafted, accepted, 0.995);
    }

    /// Guesses for each candidate of a step that has `other_rows` rows besides theirs, at most `limit` together.
    pub fn choose(
        &mut self,
        candidates: &[Candidate<'_>],
        other_rows: usize,
        context: usize,
        limit: usize,
    ) -> Vec<usize> {
        let none = vec![0; candidates.len()];
        if candidates.is_empty() {
            return none;
        }
        if other_rows == 0 && !self.step.table(context).knows(candidates.len()) {
            self.plain_left = PLAIN_FIRST;
        }
        if self.plain_left > 0 {
            self.plain_left -= 1;
            return none;
        }
        // Guesses that should pay did not, or what a step takes without them is wanted.
        if self.outcomes.rests(candidates.len()) {
            return none;
        }
        let wins = self.outcomes.wins(candidates.len());
        // What guesses bring beside a prompt is seen by nobody: they must have won without one.
        if other_rows > 0 && !wins {
            return none;
        }
        let margin = if wins { MARGIN } else { MARGIN_FIRST };
        let best = self.best(candidates, (other_rows, context), limit, margin);
        self.probing = best.iter().all(|k| *k == 0);
        if self.probing {
            return self.probe(candidates, context, limit, wins);
        }
        self.usual = best.iter().copied().max().unwrap_or(self.usual);
        if wins {
            self.probes.remove(&Outcomes::class(candidates.len()));
        }
        best
    }

    /// One sequence tries two guesses now and then: less often the longer that has not paid, and the more it takes. Where
    /// guesses have won, it tries as many as were usual, and soon.
    fn probe(&mut self, candidates: &[Candidate<'_>], context: usize, limit: usize, wins: bool) -> Vec<usize> {
        let mut lengths = vec![0; candidates.len()];
        // One whose draft has little to catch up with.
        let nearest = (0..candidates.len()).min_by_key(|i| candidates[*i].behind).unwrap_or(0);
        let candidate = &candidates[nearest];
        let times = self.step.table(context);
        let plain = times.at(candidates.len()).max(1e-9);
        let mut takes = times.at(candidates.len() + PROBE_GUESSES) - plain;
        if candidate.source == Source::Model {
            takes += self.draft.table(1).at(PROBE_GUESSES) + candidate.behind as f64 * self.read_us;
        }
        let probe = self.probes.entry(Outcomes::class(candidates.len())).or_default();
        probe.waited += 1;
        let seldom = probe.gap.max((takes / plain / PROBE_SHARE) as u64);
        let (gap, tries) = if wins { (PROBE_WINNING, self.usual) } else { (seldom, PROBE_GUESSES) };
        if probe.waited >= gap {
            *probe = Probe { waited: 0, gap: (2 * probe.gap).min(PROBE_LAST) };
            lengths[nearest] = candidate.most.min(tries).min(self.options.max).min(limit);
        }
        lengths
    }

    /// The guesses that bring most a time, if that is `margin` times what none bring.
    fn best(
        &mut self,
        candidates: &[Candidate<'_>],
        (other_rows, context): (usize, usize),
        limit: usize,
        margin: f64,
    ) -> Vec<usize> {
        let times = self.step.table(context);
        let plain = times.at(candidates.len());
        let base = times.at(other_rows + candidates.len()).max(plain).max(1e-9);
        let most = self.options.max.min(self.outcomes.most(candidates.len()));
        let mut reading = Vec::with_capacity(candidates.len());
        let mut pairs: Vec<(f64, usize)> = Vec::new();
        for (seq, c) in candidates.iter().enumerate() {
            let survival = c.rates.survival(&self.rates, c.thinking, c.source, c.most.min(most));
            // One that would take longer to catch up than its guesses can save is no burden on the others.
            let more: f64 = survival.iter().sum();
            let saves = more * base / candidates.len() as f64;
            reading.push(c.reading(self.read_us, 1.0 + more));
            pairs.extend(survival.into_iter().filter(|_| saves > reading[seq]).map(|s| (s, seq)));
        }
        // Survival falls with the position, so this order takes each sequence's guesses front to back.
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        pairs.truncate(limit);
        let (mut guesses, mut tokens) = (0, candidates.len() as f64);
        let (mut guessing, mut passes) = (0, 0);
        let mut taken = vec![0; candidates.len()];
        let mut kept = taken.clone();
        // What a guess adds to a step is what it adds where nothing is prefilled: that is known better.
        let times: Vec<f64> = (1..=pairs.len()).map(|n| base + times.at(candidates.len() + n) - plain).collect();
        let mut step = base;
        let mut best = margin * tokens / step;
        let mut catching_up = 0.0;
        for (survival, seq) in pairs {
            taken[seq] += 1;
            guesses += 1;
            tokens += survival;
            if candidates[seq].source == Source::Model {
                if taken[seq] == 1 {
                    guessing += 1;
                    catching_up += reading[seq];
                }
                passes = passes.max(taken[seq]);
            }
            let drafting = if passes == 0 { 0.0 } else { self.draft.table(guessing).at(passes) };
            // A larger step is never taken for a shorter one: of many noisy times the luckiest would be chosen.
            step = step.max(times[guesses - 1]);
            let rate = tokens / (step + drafting + catching_up);
            if rate > best {
                best = rate;
                kept.clone_from(&taken);
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(step_us: impl Fn(usize) -> f64, pass_us: f64) -> DraftLength {
        let mut c = DraftLength::new(LengthOptions::default());
        (1..200).for_each(|rows| c.observe_step(rows, rows - 1, 500, step_us(rows)));
        (1..=8).for_each(|passes| assert_eq!(c.observe_draft(1, passes, 0, pass_us * passes as f64), 0.0));
        c.plain_left = 0;
        for seqs in [1, 2, 4, 32] {
            (0..4).for_each(|_| c.outcomes.observe(seqs, 500, false, seqs, 1000.0, 0.0));
            (0..2).for_each(|_| c.outcomes.observe(seqs, 500, true, 2 * seqs, 1000.0, 0.0));
        }
        c
    }
    fn rates(source: Source, hits_of_ten: usize) -> Rates {
        let mut rates = Rates::default();
        for i in 0..400 {
            rates.observe(true, source, 1, usize::from(i % 10 < hits_of_ten), 0.99);
        }
        rates
    }
    fn candidate(rates: &Rates, source: Source) -> Candidate<'_> {
        Candidate { rates, thinking: true, source, behind: 0, expected: 100.0, most: 8 }
    }

    #[test]
    fn guesses_where_rows_are_cheap_and_not_where_they_cost() {
        let (good, poor) = (rates(Source::Suffix, 9), rates(Source::Suffix, 4));
        let [good, poor] = [&good, &poor].map(|r| candidate(r, Source::Suffix));
        let mut memory_bound = controller(|rows| 1000.0 + 10.0 * rows as f64, 0.0);
        assert_eq!(memory_bound.choose(&[good], 0, 500, 999), [8]);
        assert!((2..=5).contains(&memory_bound.choose(&[poor], 0, 500, 999)[0]));
        let mut compute_bound = controller(|rows| 1000.0 * rows as f64, 0.0);
        assert_eq!(compute_bound.choose(&[good], 0, 500, 999), [0]);
        let spread = memory_bound.choose(&[good; 4], 0, 500, 8);
        assert_eq!(spread, [2; 4], "a limit is shared, the surest guesses first");
        // A batch that fills the device: the same sequence stops guessing.
        let mut knee = controller(|rows| 1000.0 + 200.0 * rows.saturating_sub(16) as f64, 0.0);
        let small: usize = knee.choose(&[good; 2], 0, 500, 999).iter().sum();
        let large: usize = knee.choose(&[good; 32], 0, 500, 999).iter().sum();
        assert!(small >= 8 && large < 32, "{small} {large}");
    }

    #[test]
    fn a_dear_draft_guesses_less_than_a_cheap_one() {
        let good = rates(Source::Model, 8);
        let lengths = [10.0, 200.0, 2000.0].map(|pass_us| {
            let mut c = controller(|rows| 1000.0 + 10.0 * rows as f64, pass_us);
            c.choose(&[candidate(&good, Source::Model)], 0, 500, 999)[0]
        });
        assert!(lengths[0] > lengths[1] && lengths[1] > 0 && lengths[2] == 0, "{lengths:?}");
    }

    #[test]
    fn what_does_not_pay_is_tried_less_and_less() {
        let good = rates(Source::Model, 8);
        let mut c = controller(|rows| 1000.0 * rows as f64, 500.0);
        let lengths: Vec<usize> =
            (0..3000).map(|_| c.choose(&[candidate(&good, Source::Model); 3], 0, 500, 999)[0]).collect();
        let probes: Vec<usize> = lengths.iter().enumerate().filter(|(_, k)| **k > 0).map(|(i, _)| i).collect();
        // A probe takes as long as a step, so there are two hundred between two of them, and then more.
        assert!((3..=6).contains(&probes.len()) && (190..220).contains(&probes[0]), "{probes:?}");
        let found = rates(Source::Suffix, 1);
        let mut free = controller(|rows| 1000.0 + 50.0 * rows.saturating_sub(3) as f64, 0.0);
        let tries = |c: &mut DraftLength| c.choose(&[candidate(&found, Source::Suffix); 3], 0, 500, 999)[0] > 0;
        assert!((0..100).any(|_| tries(&mut free)), "what takes little is tried sooner");
        // It pays again: the very next step guesses.
        (1..200).for_each(|rows| (0..200).for_each(|_| c.observe_step(rows, rows - 1, 500, 1000.0)));
        assert!(c.choose(&[candidate(&good, Source::Model); 3], 0, 500, 999)[0] > 0);
    }

    #[test]
    fn a_new_size_is_measured_plain_first_then_with_few_guesses() {
        let good = rates(Source::Model, 9);
        let mut c = DraftLength::new(LengthOptions::default());
        let mut chosen = Vec::new();
        for _ in 0..8 {
            let k = c.choose(&[candidate(&good, Source::Model)], 0, 500, 999)[0];
            c.observe_step(1 + k, k, 500, 1000.0 + 10.0 * k as f64);
            c.observe_draft(1, k, 0, 20.0 * k as f64);
            c.observe_outcome(1, 500, k > 0, 1 + k, 1000.0 + 30.0 * k as f64, 0.0);
            chosen.push(k);
        }
        assert_eq!(chosen, [0, 0, 0, 0, 3, 6, 8, 8]);
    }

    #[test]
    fn steps_right_after_guesses_are_no_measure_of_those_without() {
        let mut c = controller(|rows| 1000.0 + 10.0 * rows as f64, 20.0);
        let plain = |c: &mut DraftLength| c.step.table(500).at(1);
        let before = plain(&mut c);
        c.observe_step(3, 2, 500, 1030.0);
        (0..SETTLING).for_each(|_| c.observe_step(1, 0, 500, 1500.0));
        assert_eq!(plain(&mut c), before);
        c.observe_step(1, 0, 500, 1500.0);
        assert!(plain(&mut c) > before);
    }

    #[test]
    fn who_has_much_to_catch_up_with_does_not_guess() {
        let good = rates(Source::Model, 9);
        let mut c = controller(|rows| 1000.0 + 10.0 * rows as f64, 20.0);
        let behind = |behind| Candidate { behind, ..candidate(&good, Source::Model) };
        assert!(c.choose(&[behind(5000)], 0, 500, 999)[0] > 0, "nothing is known of what it costs");
        assert_eq!(c.observe_draft(1, 4, 500, 1080.0), 1000.0, "four passes take 80");
        assert!(c.choose(&[behind(500)], 0, 500, 999)[0] > 0);
        assert_eq!(c.choose(&[behind(50_000)], 0, 500, 999), [0]);
        let ends = Candidate { expected: 5.0, ..behind(2000) };
        assert!(c.choose(&[ends], 0, 500, 999) == [0] && c.choose(&[behind(2000)], 0, 500, 999)[0] > 0, "it ends soon");
        let lengths = c.choose(&[behind(50_000), behind(0)], 0, 500, 999);
        assert!(lengths[0] == 0 && lengths[1] > 0, "each by itself: {lengths:?}");
    }
}
