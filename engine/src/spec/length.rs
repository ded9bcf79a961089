//! How many tokens to guess: as many as pay, and none where they do not.
//!
//! For a sequence with survival estimates `s[i]` (the chance that guess `i` and all before it are
//! accepted) a step with k guesses brings `1 + s[0] + … + s[k-1]` tokens. A step's time as a function of
//! its rows is learnt online. The whole batch's lengths are chosen together: guesses are taken in order of
//! survival while expected tokens over expected time still grow (the idea of DSpark's admission).

use std::collections::BTreeMap;

/// Limits of the controller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthOptions {
    /// Most guesses per sequence and step.
    pub max: usize,
    /// Weight of a new observation.
    pub decay: f64,
}

impl Default for LengthOptions {
    fn default() -> Self {
        Self { max: 8, decay: 0.05 }
    }
}

/// Mean times of steps by rows, in microseconds, decayed; linear between the row counts that were seen.
#[derive(Clone, Debug, Default)]
struct CostTable {
    by_rows: BTreeMap<usize, f64>,
}

impl CostTable {
    fn observe(&mut self, rows: usize, us: f64, decay: f64) {
        let mean = self.by_rows.entry(rows).or_insert(us);
        // A step that was disturbed (a busy machine, a first compilation) is an outlier upwards.
        *mean += decay * (us.min(3.0 * *mean) - *mean);
    }
    /// Before anything is known a row costs nothing: so the first guesses are tried.
    fn at(&self, rows: usize) -> f64 {
        let below = self.by_rows.range(..=rows).next_back();
        let above = self.by_rows.range(rows..).next();
        match (below, above) {
            (Some((r0, t0)), Some((r1, t1))) if r0 != r1 => t0 + (t1 - t0) * (rows - r0) as f64 / (r1 - r0) as f64,
            (Some((_, t)), Some(_)) | (None, Some((_, t))) => *t,
            (Some((r0, t0)), None) => {
                // Beyond what was seen: the last slope, at least flat.
                let slope = self.by_rows.range(..r0).next_back().map_or(0.0, |(r, t)| (t0 - t) / (r0 - r) as f64);
                t0 + slope.max(0.0) * (rows - r0) as f64
            }
            (None, None) => 1.0,
        }
    }
}

/// Survival estimates of one sequence.
#[derive(Clone, Debug)]
pub struct Survival {
    by_position: Vec<f64>,
}

impl Survival {
    fn new(max: usize) -> Self {
        // An optimist: guesses are tried, and measured, before they are judged.
        Self { by_position: (0..max).map(|i| 0.7f64.powi(i as i32 + 1)).collect() }
    }
    fn observe(&mut self, drafted: usize, accepted: usize, decay: f64) {
        for (i, s) in self.by_position.iter_mut().enumerate().take(drafted) {
            *s += decay * (f64::from(u8::from(i < accepted)) - *s);
        }
    }
}

/// The controller of one engine.
#[derive(Clone, Debug)]
pub struct DraftLength {
    options: LengthOptions,
    cost: CostTable,
    steps: u64,
}

impl DraftLength {
    /// Nothing is known yet.
    pub fn new(options: LengthOptions) -> Self {
        Self { options, cost: CostTable::default(), steps: 0 }
    }
    /// Fresh estimates for a new sequence.
    pub fn survival(&self) -> Survival {
        Survival::new(self.options.max)
    }
    /// A step of `rows` rows took `us` microseconds, drafting included.
    pub fn observe_step(&mut self, rows: usize, us: f64) {
        self.cost.observe(rows, us, self.options.decay);
        self.steps += 1;
    }
    /// Of `drafted` guesses `accepted` were right.
    pub fn observe_guesses(&self, survival: &mut Survival, drafted: usize, accepted: usize) {
        survival.observe(drafted, accepted, self.options.decay.max(0.1));
    }

    /// Guesses for each decoding sequence of a step that has `other_rows` rows besides.
    ///
    /// Every 64th step tries one guess where none would pay, so that the estimates stay alive.
    pub fn choose(&self, survivals: &[&Survival], other_rows: usize) -> Vec<usize> {
        let mut lengths = vec![0usize; survivals.len()];
        let mut rows = other_rows + survivals.len();
        let mut tokens = survivals.len() as f64;
        let mut pairs: Vec<(f64, usize)> = Vec::new();
        for (seq, survival) in survivals.iter().enumerate() {
            pairs.extend(survival.by_position.iter().map(|s| (*s, seq)));
        }
        // Survival falls with the position, so this order takes each sequence's guesses front to back.
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut best = tokens / self.cost.at(rows).max(1e-9);
        let (mut taken, mut kept) = (lengths.clone(), lengths.clone());
        for (survival, seq) in pairs {
            taken[seq] += 1;
            rows += 1;
            tokens += survival;
            let rate = tokens / self.cost.at(rows).max(1e-9);
            if rate > best {
                best = rate;
                kept.clone_from(&taken);
            }
        }
        lengths.clone_from(&kept);
        if self.steps % 64 == 63 {
            lengths.iter_mut().for_each(|l| *l = (*l).max(1.min(self.options.max)));
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(us: impl Fn(usize) -> f64) -> DraftLength {
        let mut c = DraftLength::new(LengthOptions::default());
        (1..200).for_each(|rows| c.observe_step(rows, us(rows)));
        c.steps = 0;
        c
    }
    fn survival(rate: f64) -> Survival {
        Survival { by_position: (1..=8).map(|i| rate.powi(i)).collect() }
    }

    #[test]
    fn guesses_where_rows_are_cheap_and_not_where_they_cost() {
        let memory_bound = controller(|rows| 1000.0 + 10.0 * rows as f64);
        assert_eq!(memory_bound.choose(&[&survival(0.9)], 0), [8]);
        assert!((2..=5).contains(&memory_bound.choose(&[&survival(0.4)], 0)[0]));
        let compute_bound = controller(|rows| 1000.0 * rows as f64);
        assert_eq!(compute_bound.choose(&[&survival(0.9)], 0), [0]);
        // A batch that fills the device: the same sequence stops guessing.
        let knee = controller(|rows| 1000.0 + 200.0 * rows.saturating_sub(16) as f64);
        let good = survival(0.8);
        let small: usize = knee.choose(&[&good; 2], 0).iter().sum();
        let large: usize = knee.choose(&[&good; 32], 0).iter().sum();
        assert!(small >= 8 && large < 32, "{small} {large}");
    }

    #[test]
    fn learns_who_is_predictable() {
        let c = controller(|rows| 1000.0 + 60.0 * rows as f64);
        let (mut good, mut bad) = (c.survival(), c.survival());
        for _ in 0..100 {
            c.observe_guesses(&mut good, 8, 8);
            c.observe_guesses(&mut bad, 8, 0);
        }
        let lengths = c.choose(&[&good, &bad], 0);
        assert!(lengths[0] == 8 && lengths[1] == 0, "{lengths:?}");
    }
}
