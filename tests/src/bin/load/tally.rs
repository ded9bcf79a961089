//! What the clients of a load found, added up.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// Counts and times of one load.
#[derive(Default)]
pub struct Tally {
    /// Answers that were read to the end and were right.
    pub whole: usize,
    /// The same by clients that read slowly.
    pub slow: usize,
    /// Clients that left in the middle, by closing, resetting or half-closing.
    pub left: usize,
    /// Clients that stopped reading for a while.
    pub stalled: usize,
    /// Clients that never finished their request.
    pub silent: usize,
    /// Refusals by status.
    pub refused: BTreeMap<u16, usize>,
    /// Tokens of answers that were read to the end.
    pub tokens: usize,
    /// Of good clients' answers: time to the first text.
    pub first: Vec<Duration>,
    /// And to the end.
    pub all: Vec<Duration>,
    /// Laws that were broken.
    pub broken: Vec<String>,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.whole += other.whole;
        self.slow += other.slow;
        self.left += other.left;
        self.stalled += other.stalled;
        self.silent += other.silent;
        self.tokens += other.tokens;
        for (status, n) in other.refused {
            *self.refused.entry(status).or_default() += n;
        }
        self.first.extend(other.first);
        self.all.extend(other.all);
        self.broken.extend(other.broken);
    }
}

/// The value below which a share `q` of them lies.
fn quantile(times: &[Duration], q: f64) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(((sorted.len() as f64 * q).ceil() as usize).saturating_sub(1)).copied()
}

/// Loads side by side: their name, clients, seconds, and what was found. The last column of the times is the last
/// load's by the first one's.
pub fn table(loads: &[(&str, usize, u64, &Tally)]) -> String {
    let mut out = String::new();
    let mut line = |name: &str, cells: Vec<String>| {
        let cells: String = cells.iter().map(|c| format!("{c:>12}")).collect();
        let _ = writeln!(out, "{name:<24}{cells}");
    };
    let each = |of: &dyn Fn(&Tally) -> String| loads.iter().map(|l| of(l.3)).collect::<Vec<_>>();
    line("load", loads.iter().map(|l| l.0.to_string()).collect());
    line("clients", loads.iter().map(|l| l.1.to_string()).collect());
    line("seconds", loads.iter().map(|l| l.2.to_string()).collect());
    line("answers, whole", each(&|t| t.whole.to_string()));
    line("answers, read slowly", each(&|t| t.slow.to_string()));
    line("left in the middle", each(&|t| t.left.to_string()));
    line("stopped reading", each(&|t| t.stalled.to_string()));
    line("never finished asking", each(&|t| t.silent.to_string()));
    line("refused with 429", each(&|t| t.refused.get(&429).unwrap_or(&0).to_string()));
    line("refused with 503", each(&|t| t.refused.get(&503).unwrap_or(&0).to_string()));
    line("laws broken", each(&|t| t.broken.len().to_string()));
    line("tokens/s, verified", loads.iter().map(|l| format!("{:.0}", l.3.tokens as f64 / l.2.max(1) as f64)).collect());
    for (name, times) in [("first text", (|t| &t.first) as fn(&Tally) -> &Vec<Duration>), ("whole answer", |t| &t.all)]
    {
        for (word, q) in [("p50", 0.5), ("p99", 0.99)] {
            let seconds: Vec<Option<f64>> =
                loads.iter().map(|l| quantile(times(l.3), q).map(|d| d.as_secs_f64())).collect();
            let mut cells: Vec<String> =
                seconds.iter().map(|s| s.map_or("-".into(), |s| format!("{s:.3} s"))).collect();
            if let (Some(Some(first)), Some(Some(last))) = (seconds.first(), seconds.last()) {
                cells.push(format!("x {:.2}", last / first));
            }
            line(&format!("{name}, {word}"), cells);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_a_table() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let at = |q| quantile(&times, q).unwrap().as_millis();
        assert_eq!((at(0.5), at(0.99), at(1.0), quantile(&[], 0.5)), (100, 198, 200, None));
        let few = Tally { all: vec![Duration::from_secs(1)], ..Tally::default() };
        let many = Tally { all: vec![Duration::from_secs(3)], whole: 7, ..Tally::default() };
        let text = table(&[("few", 1, 1, &few), ("all", 2, 1, &many)]);
        assert!(text.contains("x 3.00") && text.lines().any(|l| l.starts_with("answers, whole") && l.ends_with('7')));
    }
}
