//! Survival curves that are asked often: tabled, and made anew now and then as requests finish.

use super::classify::Depth;
use super::survival::{Part, Progress, Remaining, Survival, Table};

/// Observations of a curve between two makings of its table.
const REFRESH: usize = 8;

/// What is known of the lengths of one model's requests, and what is learnt from each that finishes.
#[derive(Clone, Debug)]
pub struct Lengths {
    survival: Survival,
    tables: Vec<[Table; 2]>,
    /// Observations that each table does not know.
    unseen: Vec<[usize; 2]>,
    observed: u64,
}

impl Default for Lengths {
    fn default() -> Self {
        Self::new(Survival::default())
    }
}

impl Lengths {
    /// What was learnt before.
    pub fn new(survival: Survival) -> Self {
        let tables = survival.tables();
        Self { unseen: vec![[0; 2]; tables.len()], tables, survival, observed: 0 }
    }
    /// The curves.
    pub fn survival(&self) -> &Survival {
        &self.survival
    }
    /// Parts of requests that were learnt from, since the start of the program.
    pub fn observed(&self) -> u64 {
        self.observed
    }

    /// A part in flight has `len` tokens; `passed` is what this function keeps between its calls, 0 at first.
    pub fn reach(&mut self, depth: Option<Depth>, part: Part, len: usize, passed: &mut usize) {
        let (before, mut news) = (*passed, false);
        for curve in self.survival.learning(depth, part) {
            *passed = before;
            news |= curve.reach(len, passed);
        }
        if news {
            self.refresh(depth, part);
        }
    }

    /// A part is over; `ended`: by itself, else it was cut. `passed`: from [`Lengths::reach`].
    pub fn end(&mut self, depth: Option<Depth>, part: Part, len: usize, ended: bool, passed: usize) {
        self.survival.learning(depth, part).for_each(|curve| curve.end(len, ended, passed));
        self.observed += 1;
        self.refresh(depth, part);
    }

    fn refresh(&mut self, depth: Option<Depth>, part: Part) {
        for i in Survival::learners(depth) {
            let unseen = &mut self.unseen[i][part as usize];
            *unseen += 1;
            if *unseen >= REFRESH {
                (self.tables[i][part as usize], *unseen) = (self.survival.table(i, part), 0);
            }
        }
    }

    fn table(&self, depth: Option<Depth>, part: Part) -> &Table {
        &self.tables[depth.map_or(self.tables.len() - 1, |d| d as usize)][part as usize]
    }

    /// Tokens still to come on average.
    pub fn mean_remaining(&self, p: &Progress) -> f64 {
        let reach = Self::cap(p).min(p.so_far.saturating_add(p.room));
        let mean = self.table(p.depth, p.part).mean_remaining(p.so_far, reach);
        (mean + self.answer_after(p)).min(p.room as f64)
    }
    /// Tokens still to come that a share `q` of such requests does not exceed.
    pub fn most_remaining(&self, p: &Progress, q: f64) -> f64 {
        let most = self.table(p.depth, p.part).quantile(p.so_far, q) - p.so_far as f64;
        let left = Self::cap(p).saturating_sub(p.so_far) as f64;
        (most.min(left) + self.answer_after(p)).min(p.room as f64)
    }
    /// Most tokens of the part.
    fn cap(p: &Progress) -> usize {
        if p.part == Part::Thinking { p.thinking_cap } else { usize::MAX }
    }
    /// Tokens of the answer that follows the thinking, on average.
    fn answer_after(&self, p: &Progress) -> f64 {
        match p.part {
            Part::Thinking => self.table(p.depth, Part::Answer).mean_remaining(0, p.room),
            Part::Answer => 0.0,
        }
    }

    /// The same for the usual quantiles.
    pub fn quantiles(&self, p: &Progress) -> Remaining {
        let (p50, p90) = (self.most_remaining(p, 0.5), self.most_remaining(p, 0.9));
        Remaining { mean: self.mean_remaining(p), p50, p90 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_say_what_the_curves_say() {
        let mut lengths = Lengths::default();
        for i in 0..400usize {
            lengths.end(Some(Depth::Easy), Part::Thinking, 20 + (i * i) % 700, i % 7 > 0, 0);
            lengths.end(Some(Depth::Easy), Part::Answer, 10 + i % 50, true, 0);
        }
        let close = |a: f64, b: f64| (a - b).abs() <= 0.03 * b.abs() + 1.0;
        for depth in [None, Some(Depth::Easy), Some(Depth::Hard)] {
            for (so_far, thinking_cap, room) in [(0, usize::MAX, 8000), (10, 600, 5000), (300, 10_000, 900)] {
                let p = Progress { depth, part: Part::Thinking, so_far, thinking_cap, room };
                let (want, got) = (lengths.survival().remaining(&p), lengths.quantiles(&p));
                assert!(
                    close(got.mean, want.mean) && close(got.p50, want.p50) && close(got.p90, want.p90),
                    "{p:?} {want:?} {got:?}"
                );
            }
        }
        assert_eq!(lengths.observed(), 800);
    }

    #[test]
    fn those_in_flight_count_once() {
        let (mut at_once, mut along) = (Lengths::default(), Lengths::default());
        for i in 0..60usize {
            let (len, mut passed) = (5 + (i * 37) % 900, 0);
            at_once.end(None, Part::Thinking, len, i % 3 > 0, 0);
            (1..=len).for_each(|n| along.reach(None, Part::Thinking, n, &mut passed));
            along.end(None, Part::Thinking, len, i % 3 > 0, passed);
        }
        assert_eq!(at_once.survival(), along.survival());
        // One that goes on and on is news before it ends.
        let (before, mut passed) = (along.survival().curve(None, Part::Thinking).survival(20_000.0), 0);
        along.reach(None, Part::Thinking, 30_000, &mut passed);
        assert!(along.survival().curve(None, Part::Thinking).survival(20_000.0) > before);
    }
}
