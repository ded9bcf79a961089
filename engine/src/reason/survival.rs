//! How much longer a request will go on: survival curves learnt from those that finished.
//!
//! For each depth and phase a hazard per length bin: of the requests that reached the bin, the share that
//! ended in it (Kaplan and Meier 1958, on geometric bins). A request that was cut counts as having reached its
//! length, not as having ended there, so caps do not teach the curve that thinking is short. Old observations
//! fade. A log-normal prior of a few pseudo-observations makes the curves sensible before any data.

use std::path::Path;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::classify::Depth;
use crate::error::{Error, Result};

/// Bins per doubling of length.
const PER_OCTAVE: usize = 4;
/// Lengths up to 2^18 tokens.
const BINS: usize = 18 * PER_OCTAVE;
/// Weight of an observation after one more: about the last 2,000 count.
const FADE: f64 = 0.9995;
/// Pseudo-observations of the prior.
const PRIOR: f64 = 6.0;

/// A part of the answer whose length is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Tokens of thinking.
    Thinking,
    /// Tokens of the answer after it.
    Answer,
}

/// Medians of the prior in tokens by depth (`None` last), for thinking and answer; the spread is a factor of e.
const MEDIANS: [[f64; 2]; 5] = [[24.0, 24.0], [120.0, 48.0], [600.0, 120.0], [3000.0, 240.0], [400.0, 96.0]];

/// The longest lengths of the bins. Every step asks for some of them for every sequence.
static EDGES: LazyLock<[f64; BINS]> =
    LazyLock::new(|| std::array::from_fn(|bin| 2f64.powf((bin + 1) as f64 / PER_OCTAVE as f64)));

/// The longest length of a bin.
fn edge(bin: usize) -> f64 {
    EDGES[bin]
}
/// The first bin whose lengths reach `len`.
fn bin_of(len: f64) -> usize {
    let octave = (len.max(1.0) as u64).ilog2() as usize;
    let first = (octave * PER_OCTAVE).saturating_sub(1).min(BINS - 1);
    first + EDGES[first..BINS - 1].iter().take_while(|edge| **edge < len).count()
}

/// Logistic approximation of the log-normal's survival: within 0.02 of it, and smooth.
fn prior_survival(median: f64, len: f64) -> f64 {
    1.0 / (1.0 + (1.702 * (len.max(1e-9) / median).ln()).exp())
}

/// One curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    median: f64,
    reached: Vec<f64>,
    ended: Vec<f64>,
}

impl Curve {
    /// A curve that knows only its prior.
    pub fn new(median: f64) -> Self {
        Self { median, reached: vec![0.0; BINS], ended: vec![0.0; BINS] }
    }

    /// A request of `len` tokens; `ended`: it ended there by itself, else it was cut.
    pub fn observe(&mut self, len: usize, ended: bool) {
        self.end(len, ended, 0);
    }

    /// A request in flight is past `len` tokens, and `passed` of its bins are counted already: counts those since.
    /// So curves do not take the short ones, which end first, for all.
    pub fn reach(&mut self, len: usize, passed: &mut usize) -> bool {
        let last = bin_of(len as f64);
        if last <= *passed {
            return false;
        }
        if *passed == 0 {
            self.reached.iter_mut().chain(&mut self.ended).for_each(|n| *n *= FADE);
        }
        self.reached[*passed..last].iter_mut().for_each(|n| *n += 1.0);
        *passed = last;
        true
    }

    /// It is over after `len` tokens; see [`Curve::observe`].
    pub fn end(&mut self, len: usize, ended: bool, mut passed: usize) {
        self.reach(len, &mut passed);
        let last = bin_of(len as f64).max(passed);
        if ended {
            self.reached[last] += 1.0;
            self.ended[last] += 1.0;
        }
    }

    /// Faded number of observations.
    pub fn weight(&self) -> f64 {
        self.reached[0]
    }

    /// Share of those that reach `bin` that end in it.
    fn hazard(&self, bin: usize) -> f64 {
        let below = if bin == 0 { 0.0 } else { edge(bin - 1) };
        let reach = prior_survival(self.median, below);
        let end = reach - prior_survival(self.median, edge(bin));
        // The prior's requests reach a bin as seldom as it says, but never less than a trace of one.
        let weight = (PRIOR * reach).max(1e-6);
        ((self.ended[bin] + weight * end / reach) / (self.reached[bin] + weight)).min(1.0)
    }

    /// Share of requests that are longer than `len`.
    pub fn survival(&self, len: f64) -> f64 {
        let last = bin_of(len);
        let whole: f64 = (0..last).map(|b| 1.0 - self.hazard(b)).product();
        let below = if last == 0 { 0.0 } else { edge(last - 1) };
        let share = ((len - below) / (edge(last) - below)).clamp(0.0, 1.0);
        whole * (1.0 - self.hazard(last) * share)
    }

    /// The length that a share `q` of requests does not exceed, of those that reached `so_far`.
    pub fn quantile(&self, so_far: usize, q: f64) -> f64 {
        let goal = self.survival(so_far as f64) * (1.0 - q);
        let (mut low, mut high) = (so_far as f64, edge(BINS - 1).max(so_far as f64));
        for _ in 0..40 {
            let middle = (low + high) / 2.0;
            if self.survival(middle) > goal { low = middle } else { high = middle }
        }
        high
    }

    /// Mean number of tokens after `so_far`, of requests that reached it, if none may exceed `cap`.
    pub fn mean_remaining(&self, so_far: usize, cap: usize) -> f64 {
        let start = self.survival(so_far as f64).max(1e-12);
        let (mut at, mut before, mut sum) = (so_far as f64, start, 0.0);
        for bin in bin_of(so_far as f64)..BINS {
            let end = edge(bin).min(cap as f64);
            if end > at {
                let after = self.survival(end);
                sum += (before + after) / 2.0 * (end - at);
                (at, before) = (end, after);
            }
        }
        sum / start
    }
}

/// A curve as numbers: survival at the edges of the bins, and the area below it up to them.
#[derive(Clone, Debug)]
pub struct Table {
    survival: Vec<f64>,
    area: Vec<f64>,
}

impl Table {
    fn new(curve: &Curve) -> Self {
        let (mut survival, mut area) = (vec![1.0], vec![0.0]);
        for bin in 0..BINS {
            let (before, below) = (survival[bin], if bin == 0 { 0.0 } else { edge(bin - 1) });
            survival.push(before * (1.0 - curve.hazard(bin)));
            area.push(area[bin] + (before + survival[bin + 1]) / 2.0 * (edge(bin) - below));
        }
        Self { survival, area }
    }

    /// Survival at `len`, and the area up to it; straight inside a bin.
    fn at(&self, len: f64) -> (f64, f64) {
        let bin = bin_of(len);
        let below = if bin == 0 { 0.0 } else { edge(bin - 1) };
        let share = ((len - below) / (edge(bin) - below)).clamp(0.0, 1.0);
        let survival = self.survival[bin] + share * (self.survival[bin + 1] - self.survival[bin]);
        (survival, self.area[bin] + (self.survival[bin] + survival) / 2.0 * share * (edge(bin) - below))
    }

    /// See [`Curve::quantile`].
    pub fn quantile(&self, so_far: usize, q: f64) -> f64 {
        let goal = self.at(so_far as f64).0 * (1.0 - q);
        let bin = self.survival.partition_point(|s| *s > goal).clamp(1, BINS) - 1;
        let below = if bin == 0 { 0.0 } else { edge(bin - 1) };
        let drop = (self.survival[bin] - self.survival[bin + 1]).max(1e-300);
        let share = ((self.survival[bin] - goal) / drop).clamp(0.0, 1.0);
        (below + share * (edge(bin) - below)).max(so_far as f64)
    }

    /// See [`Curve::mean_remaining`].
    pub fn mean_remaining(&self, so_far: usize, cap: usize) -> f64 {
        let (alive, before) = self.at(so_far as f64);
        let (_, all) = self.at((cap as f64).min(edge(BINS - 1)));
        (all - before).max(0.0) / alive.max(1e-12)
    }
}

/// What is known of a request in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Its estimated depth.
    pub depth: Option<Depth>,
    /// What it writes now.
    pub part: Part,
    /// Tokens of that part so far.
    pub so_far: usize,
    /// Most tokens of thinking (its budget).
    pub thinking_cap: usize,
    /// Most tokens that may still come, all together.
    pub room: usize,
}

/// Tokens that are still to come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remaining {
    /// On average.
    pub mean: f64,
    /// In half of the cases at most.
    pub p50: f64,
    /// In nine of ten cases at most.
    pub p90: f64,
}

/// All curves of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Survival {
    version: u32,
    /// By depth (unknown last), then thinking and answer.
    curves: Vec<[Curve; 2]>,
}

impl Default for Survival {
    fn default() -> Self {
        Self { version: 1, curves: MEDIANS.map(|m| m.map(Curve::new)).to_vec() }
    }
}

const UNKNOWN: usize = MEDIANS.len() - 1;

impl Survival {
    /// The curve of a depth; `None` is all requests together.
    pub fn curve(&self, depth: Option<Depth>, part: Part) -> &Curve {
        &self.curves[depth.map_or(UNKNOWN, |d| d as usize)][part as usize]
    }

    /// A finished request's part of `len` tokens; `ended`: by itself, else it was cut (budget, loop, cancel).
    pub fn observe(&mut self, depth: Option<Depth>, part: Part, len: usize, ended: bool) {
        self.learning(depth, part).for_each(|curve| curve.observe(len, ended));
    }

    /// The curves that learn from a request of this depth: its own, and that of all.
    pub(super) fn learning(&mut self, depth: Option<Depth>, part: Part) -> impl Iterator<Item = &mut Curve> {
        let own = depth.map(|d| d as usize);
        let those = self.curves.iter_mut().enumerate().filter(move |(i, _)| *i == UNKNOWN || Some(*i) == own);
        those.map(move |(_, pair)| &mut pair[part as usize])
    }

    /// All curves as tables, in their order.
    pub(super) fn tables(&self) -> Vec<[Table; 2]> {
        self.curves.iter().map(|pair| [Table::new(&pair[0]), Table::new(&pair[1])]).collect()
    }
    /// One of them.
    pub(super) fn table(&self, index: usize, part: Part) -> Table {
        Table::new(&self.curves[index][part as usize])
    }
    /// The indices of the curves that learn from a request of this depth: its own, and that of all.
    pub(super) fn learners(depth: Option<Depth>) -> impl Iterator<Item = usize> {
        depth.map(|d| d as usize).into_iter().chain([UNKNOWN])
    }

    /// What a request in flight still writes: the rest of its part, and the answer after thinking.
    pub fn remaining(&self, p: &Progress) -> Remaining {
        let curve = self.curve(p.depth, p.part);
        let room = p.room as f64;
        let (cap, after) = match p.part {
            Part::Thinking => {
                let answer = self.curve(p.depth, Part::Answer);
                (p.thinking_cap, answer.mean_remaining(0, p.room))
            }
            Part::Answer => (usize::MAX, 0.0),
        };
        let left = cap.saturating_sub(p.so_far) as f64;
        let of = |q| ((curve.quantile(p.so_far, q) - p.so_far as f64).min(left) + after).min(room);
        let mean = (curve.mean_remaining(p.so_far, cap.min(p.so_far.saturating_add(p.room))) + after).min(room);
        Remaining { mean, p50: of(0.5), p90: of(0.9) }
    }

    /// As JSON, to outlive the process.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain numbers")
    }

    /// Reads what [`Survival::to_json`] wrote.
    ///
    /// # Errors
    /// If the text is damaged or of another version; the caller starts afresh then.
    pub fn from_json(text: &str) -> Result<Self> {
        let bad = |what: String| Error::invalid("survival curves", what);
        let read: Survival = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        let good = |n: &f64| n.is_finite() && *n >= 0.0;
        let sound = |c: &Curve| {
            c.median.is_finite()
                && c.median > 0.0
                && c.reached.len() == BINS
                && c.ended.len() == BINS
                && c.reached.iter().chain(&c.ended).all(good)
        };
        if read.version != 1 || read.curves.len() != MEDIANS.len() || !read.curves.iter().flatten().all(sound) {
            return Err(bad("of another version or damaged".into()));
        }
        Ok(read)
    }

    /// Reads a file; a missing one is no error but a fresh start.
    pub fn load(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_json(&text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(Error::io(path, e)),
        }
    }

    /// Writes a file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let draft = path.with_extension("tmp");
        std::fs::write(&draft, self.to_json()).map_err(|e| Error::io(&draft, e))?;
        std::fs::rename(&draft, path).map_err(|e| Error::io(path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::threefry2x32;

    fn uniform(i: u32) -> f64 {
        (threefry2x32([3, 4], [i, 0])[0] as f64 + 0.5) / 2f64.powi(32)
    }

    #[test]
    fn sensible_before_any_data() {
        let s = Survival::default();
        let median = |depth| s.curve(Some(depth), Part::Thinking).quantile(0, 0.5);
        assert!((median(Depth::Trivial) / 24.0 - 1.0).abs() < 0.15, "{}", median(Depth::Trivial));
        assert!((median(Depth::Hard) / 3000.0 - 1.0).abs() < 0.15);
        for curve in s.curves.iter().flatten() {
            let points: Vec<f64> = (0..200).map(|i| curve.survival(1.1f64.powi(i))).collect();
            assert!(points.windows(2).all(|w| w[0] >= w[1] && (0.0..=1.0).contains(&w[1])), "survival falls");
            assert!(points[199] < 0.01);
        }
        // Who has thought for long goes on for long.
        let c = s.curve(None, Part::Thinking);
        assert!(c.mean_remaining(4000, 100_000) > c.mean_remaining(10, 100_000));
    }

    #[test]
    fn curves_become_what_was_seen() {
        let mut curve = Curve::new(400.0);
        // Exponential with mean 200: it forgets, so 200 remain at any length.
        for i in 0..4000 {
            curve.observe((-200.0 * uniform(i).ln()) as usize + 1, true);
        }
        for so_far in [1, 100, 300] {
            let mean = curve.mean_remaining(so_far, 1 << 18);
            assert!((170.0..240.0).contains(&mean), "{mean} after {so_far}");
        }
        let (p50, p90) = (curve.quantile(0, 0.5), curve.quantile(0, 0.9));
        assert!((p50 / 138.6 - 1.0).abs() < 0.15 && (p90 / 460.5 - 1.0).abs() < 0.15, "{p50} {p90}");
        assert!(curve.mean_remaining(0, 50) < 50.0, "a cap counts");
    }

    #[test]
    fn cut_requests_do_not_make_the_curve_short() {
        let (mut cut, mut whole) = (Curve::new(400.0), Curve::new(400.0));
        for i in 0..4000 {
            let len = (-200.0 * uniform(i).ln()) as usize + 1;
            whole.observe(len, true);
            let cap = 100 + (i as usize % 5) * 100;
            cut.observe(len.min(cap), len <= cap);
        }
        let ratio = cut.quantile(0, 0.5) / whole.quantile(0, 0.5);
        assert!((0.85..1.15).contains(&ratio), "{ratio}");
    }

    #[test]
    fn remaining_respects_cap_and_room() {
        let s = Survival::default();
        let p = Progress { depth: None, part: Part::Thinking, so_far: 90, thinking_cap: 100, room: 5000 };
        let free = s.remaining(&Progress { thinking_cap: usize::MAX, room: usize::MAX / 2, ..p });
        let capped = s.remaining(&p);
        let answer = s.curve(None, Part::Answer).mean_remaining(0, 5000);
        assert!(capped.p90 <= 10.0 + answer + 1e-9 && capped.mean < free.mean);
        assert_eq!(s.remaining(&Progress { room: 3, ..p }), Remaining { mean: 3.0, p50: 3.0, p90: 3.0 });
        let answering = s.remaining(&Progress { part: Part::Answer, so_far: 0, ..p });
        assert!(answering.p50 <= answering.p90 && answering.p50 > 1.0);
    }

    #[test]
    fn outlives_the_process() {
        let mut s = Survival::default();
        (0..50).for_each(|i| s.observe(Some(Depth::Easy), Part::Thinking, 10 + i, i % 3 > 0));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curves.json");
        assert_eq!(Survival::load(&path).unwrap(), Survival::default());
        s.save(&path).unwrap();
        let read = Survival::load(&path).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs();
        for so_far in [0, 5, 30, 100] {
            let quantile = |s: &Survival| s.curve(Some(Depth::Easy), Part::Thinking).quantile(so_far, 0.9);
            assert!(close(quantile(&read), quantile(&s)));
        }
        for damage in ["", "{}", &s.to_json().replace("\"version\":1", "\"version\":9"), &s.to_json()[..99]] {
            assert!(Survival::from_json(damage).is_err());
        }
    }
}
