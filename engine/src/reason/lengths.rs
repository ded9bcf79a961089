//! Survival curves that are asked often: tabled, and made anew now and then as requests finish.

use super::classify::Depth;
use super::survival::{Part, Progress, Remaining, Survival, Table};

/// Observations between two makings of the tables.
const REFRESH: usize = 8;

/// What is known of the lengths of one model's requests, and what is learnt from each that finishes.
#[derive(Clone, Debug)]
pub struct Lengths {
    survival: Survival,
    tables: Vec<[Table; 2]>,
    /// Observations that the tables do not know.
    unseen: usize,
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
        Self { tables: survival.tables(), survival, unseen: 0, observed: 0 }
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
        self.refresh(usize::from(news));
    }

    /// A part is over; `ended`: by itself, else it was cut. `passed`: from [`Lengths::reach`].
    pub fn end(&mut self, depth: Option<Depth>, part: Part, len: usize, ended: bool, passed: usize) {
        self.survival.learning(depth, part).for_each(|curve| curve.end(len, ended, passed));
        self.observed += 1;
        self.refresh(1);
    }

    fn refresh(&mut self, news: usize) {
        self.unseen += news;
        if self.unseen >= REFRESH {
            (self.tables, self.unseen) = (self.survival.tables(), 0);
        }
    }

    fn table(&self, depth: Option<Depth>, part: Part) -> &Table {
        &self.tables[depth.map_or(self.tables.len() - 1, |d| d as usize)][part as usize]
    }

    /// Tokens still to come on average, and those that a share `q` of such requests does not exceed.
    pub fn remaining(&self, p: &Progress, q: f64) -> (f64, f64) {
        let (table, room) = (self.table(p.depth, p.part), p.room as f64);
        let (cap, after) = match p.part {
            Part::Thinking => (p.thinking_cap, self.table(p.depth, Part::Answer)),
            Part::Answer => (usize::MAX, self.table(p.depth, p.part)),
        };
        let reach = cap.min(p.so_far.saturating_add(p.room));
        let (mut mean, mut most) = (table.mean_remaining(p.so_far, reach), table.quantile(p.so_far, q));
        most = (most - p.so_far as f64).min(cap.saturating_sub(p.so_far) as f64);
        if p.part == Part::Thinking {
            mean += after.mean_remaining(0, p.room);
            most += after.mean_remaining(0, p.room);
        }
        (mean.min(room), most.min(room))
    }

    /// The same for the usual quantiles.
    pub fn quantiles(&self, p: &Progress) -> Remaining {
        let ((mean, p50), (_, p90)) = (self.remaining(p, 0.5), self.remaining(p, 0.9));
        Remaining { mean, p50, p90 }
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
