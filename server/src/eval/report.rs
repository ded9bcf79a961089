//! Outcomes summed up: overall, by depth, by kind, and by both.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::problem::Problem;
use super::run::Outcome;

/// One configuration's results.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The configuration's name.
    pub name: String,
    /// All problems together.
    pub overall: Summary,
    /// By depth.
    pub depths: BTreeMap<String, Summary>,
    /// By kind.
    pub kinds: BTreeMap<String, Summary>,
    /// By kind and depth, as `kind.depth`.
    pub cells: BTreeMap<String, Summary>,
    /// Wall time of the whole run.
    pub seconds: f64,
    /// Generated tokens by that time.
    pub tokens_per_second: f64,
}

/// Results of a group of problems.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Problems.
    pub problems: usize,
    /// Right answers.
    pub right: usize,
    /// Their share.
    pub accuracy: f64,
    /// Its 95% confidence interval (Wilson 1927).
    pub accuracy_95: [f64; 2],
    /// Tokens of thinking.
    pub thinking_tokens: Spread,
    /// Tokens after the thinking.
    pub answer_tokens: Spread,
    /// Share that went in circles.
    pub loop_rate: f64,
    /// Share whose thinking was closed by its cap.
    pub capped: f64,
    /// Time to the first token, in milliseconds, waiting included.
    pub ttft_ms: Spread,
    /// Time to the first text of the answer, in milliseconds.
    pub first_answer_ms: Spread,
}

/// A distribution in four numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: f64,
    /// 95th percentile (nearest rank).
    pub p95: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of these values; all zero of none.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let Some(max) = values.last().copied() else { return Self::default() };
        let rank = |q: f64| values[((q * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1];
        Self { mean: values.iter().sum::<f64>() / values.len() as f64, median: rank(0.5), p95: rank(0.95), max }
    }
}

/// Wilson's interval at 95%: stays within 0 and 1, and has a width even where all are right.
pub fn wilson(right: usize, n: usize) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    const Z: f64 = 1.959_964;
    let (n, p) = (n as f64, right as f64 / n as f64);
    let middle = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    [((middle - half) / scale).max(0.0), ((middle + half) / scale).min(1.0)]
}

impl Summary {
    fn of(outcomes: &[&Outcome]) -> Self {
        let n = outcomes.len();
        let count = |f: &dyn Fn(&Outcome) -> bool| outcomes.iter().filter(|o| f(o)).count();
        let right = count(&|o| o.right);
        let share = |count: usize| count as f64 / n.max(1) as f64;
        let spread = |f: &dyn Fn(&Outcome) -> f64| Spread::of(outcomes.iter().map(|o| f(o)));
        Self {
            problems: n,
            right,
            accuracy: share(right),
            accuracy_95: wilson(right, n),
            thinking_tokens: spread(&|o| o.completion.reasoning_tokens as f64),
            answer_tokens: spread(&|o| o.answer_tokens() as f64),
            loop_rate: share(count(&Outcome::looped)),
            capped: share(count(&Outcome::hit_cap)),
            ttft_ms: spread(&|o| o.completion.timings.ttft_ms),
            first_answer_ms: Spread::of(outcomes.iter().filter_map(|o| o.completion.timings.first_answer_ms)),
        }
    }
}

impl Report {
    /// Sums up.
    pub fn new(name: &str, problems: &[Problem], outcomes: &[Outcome], took: Duration) -> Self {
        let group = |key: &dyn Fn(&Problem) -> String| {
            let mut groups: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
            for outcome in outcomes {
                groups.entry(key(&problems[outcome.index])).or_default().push(outcome);
            }
            groups.remove("");
            groups.into_iter().map(|(name, group)| (name, Summary::of(&group))).collect()
        };
        let cell = |p: &Problem| match (p.kind.as_str(), p.depth.as_str()) {
            ("", _) | (_, "") => String::new(),
            (kind, depth) => format!("{kind}.{depth}"),
        };
        let tokens: usize = outcomes.iter().map(|o| o.completion.completion_tokens).sum();
        Self {
            name: name.to_string(),
            overall: Summary::of(&outcomes.iter().collect::<Vec<_>>()),
            depths: group(&|p| p.depth.clone()),
            kinds: group(&|p| p.kind.clone()),
            cells: group(&cell),
            seconds: took.as_secs_f64(),
            tokens_per_second: tokens as f64 / took.as_secs_f64().max(1e-9),
        }
    }

    /// Every group with its name, the whole first.
    fn groups(&self) -> impl Iterator<Item = (&str, &Summary)> {
        let parts = [&self.depths, &self.kinds, &self.cells].into_iter().flatten();
        std::iter::once(("overall", &self.overall)).chain(parts.map(|(n, s)| (n.as_str(), s)))
    }

    /// One configuration as a table.
    pub fn table(&self) -> String {
        let mut out = format!(
            "{:<18} {:>5} {:>7} {:>14}   {:>25}   {:>6} {:>6} {:>6}   {:>9} {:>9}\n",
            "", "n", "right", "95%", "thinking mean/med/p95/max", "answer", "loops", "capped", "ttft ms", "answer ms"
        );
        for (name, s) in self.groups() {
            let t = &s.thinking_tokens;
            out += &format!(
                "{name:<18} {:>5} {:>6.1}% {:>6.1} to {:>4.1}   {:>7.1} {:>5.0} {:>5.0} {:>5.0}   {:>6.1} {:>5.1}% {:>5.1}%   {:>9.1} {:>9.1}\n",
                s.problems,
                100.0 * s.accuracy,
                100.0 * s.accuracy_95[0],
                100.0 * s.accuracy_95[1],
                t.mean,
                t.median,
                t.p95,
                t.max,
                s.answer_tokens.mean,
                100.0 * s.loop_rate,
                100.0 * s.capped,
                s.ttft_ms.median,
                s.first_answer_ms.median,
            );
        }
        out + &format!("{:.1} s, {:.0} tokens/s\n", self.seconds, self.tokens_per_second)
    }
}

/// Several configurations side by side: accuracy and mean thinking of each group; the last line tells how much
/// less than the first configuration each thinks.
pub fn side_by_side(reports: &[Report]) -> String {
    let width = reports.iter().map(|r| r.name.len()).max().unwrap_or(0).max(15);
    let mut out = format!("{:<18}", "right, thinking");
    reports.iter().for_each(|r| out += &format!("  {:>width$}", r.name));
    out.push('\n');
    let first: Vec<&str> = reports.first().map_or(Vec::new(), |r| r.groups().map(|g| g.0).collect());
    for (row, name) in first.iter().enumerate() {
        out += &format!("{name:<18}");
        for report in reports {
            let cell = report
                .groups()
                .nth(row)
                .map_or(String::new(), |(_, s)| format!("{:.1}% {:>7.1}", 100.0 * s.accuracy, s.thinking_tokens.mean));
            out += &format!("  {cell:>width$}");
        }
        out.push('\n');
    }
    out += &format!("{:<18}", "less thinking");
    let whole = reports.first().map_or(0.0, |r| r.overall.thinking_tokens.mean);
    for report in reports {
        let less = if whole > 0.0 { 1.0 - report.overall.thinking_tokens.mean / whole } else { 0.0 };
        out += &format!("  {:>width$}", format!("{:.1}%", 100.0 * less));
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_wilsons() {
        // Worked by hand for 8 of 10.
        let [low, high] = wilson(8, 10);
        assert!((low - 0.490).abs() < 1e-3 && (high - 0.943).abs() < 1e-3, "{low} {high}");
        let [low, high] = wilson(10, 10);
        assert!((low - 0.722).abs() < 1e-3 && high > 0.999_999);
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
    }

    #[test]
    fn spreads() {
        let s = Spread::of((1..=100).map(f64::from));
        assert_eq!((s.mean, s.median, s.p95, s.max), (50.5, 50.0, 95.0, 100.0));
        assert_eq!(Spread::of([].into_iter()), Spread::default());
    }
}
