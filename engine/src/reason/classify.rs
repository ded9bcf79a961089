//! How deep a query is: a linear classifier over [`Facts`], its weights in a JSON file that one can read.
//!
//! Each feature adds five numbers: evidence for the four depths, and to the expected logarithm of the length of
//! the thinking. A word's evidence grows with the size of the numbers and the count of sentences beside it,
//! for a product of two digits is not a product of ten.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::features::{Facts, NUMBERS};
use crate::error::{Error, Result};

/// How much thought a query needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// None.
    Trivial,
    /// A few lines.
    Easy,
    /// Some steps.
    Middle,
    /// Many.
    Hard,
}

impl Depth {
    /// All, in order.
    pub const ALL: [Depth; 4] = [Depth::Trivial, Depth::Easy, Depth::Middle, Depth::Hard];
}

/// Tokens of thinking that a share of such queries does not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Half of them.
    pub p50: f32,
    /// Nine of ten.
    pub p90: f32,
    /// Nineteen of twenty.
    pub p95: f32,
}

/// What the classifier thinks of a query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The most likely depth.
    pub depth: Depth,
    /// Probability of each depth, in order.
    pub probabilities: [f32; 4],
    /// Expected length of the thinking.
    pub tokens: Quantiles,
}

/// Evidence for each depth, then logarithm of one plus the thinking tokens.
pub type Row = [f32; 5];

/// Weights of a word that occurs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordRow {
    /// By itself.
    pub alone: Row,
    /// Times the `ln_magnitude` of the query.
    #[serde(default)]
    pub by_magnitude: Row,
    /// Times its `ln_sentences`.
    #[serde(default)]
    pub by_sentences: Row,
}

/// The classifier of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classifier {
    /// Of the format: 1.
    pub version: u32,
    /// Where the weights come from.
    pub about: String,
    /// For every query.
    pub bias: Row,
    /// By name of a count, see [`NUMBERS`].
    pub numbers: BTreeMap<String, Row>,
    /// By word.
    pub words: BTreeMap<String, WordRow>,
    /// What is added to the expected logarithm for each quantile.
    pub spread: Quantiles,
}

/// Weights by hand, for models that bring none.
const DEFAULT: &str = include_str!("default_depth.json");

impl Default for Classifier {
    fn default() -> Self {
        Self::from_json(DEFAULT).expect("the built-in file is sound")
    }
}

impl Classifier {
    /// Reads weights.
    ///
    /// # Errors
    /// If the text is no such file, names an unknown count, or holds a number that is not finite.
    pub fn from_json(text: &str) -> Result<Self> {
        let bad = |what: String| Error::invalid("depth classifier", what);
        let read: Classifier = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        if read.version != 1 {
            return Err(bad(format!("version {}, this program reads 1", read.version)));
        }
        if let Some(name) = read.numbers.keys().find(|n| !NUMBERS.contains(&n.as_str())) {
            return Err(bad(format!("numbers.{name}: there are {}", NUMBERS.join(", "))));
        }
        let of_words = read.words.values().flat_map(|w| [w.alone, w.by_magnitude, w.by_sentences]);
        let rows = read.numbers.values().copied().chain(of_words).chain([read.bias]);
        let Quantiles { p50, p90, p95 } = read.spread;
        if !rows.flatten().chain([p50, p90, p95]).all(f32::is_finite) || p50 > p90 || p90 > p95 {
            return Err(bad("a weight is not finite, or the quantiles fall".into()));
        }
        Ok(read)
    }

    /// Reads a file of weights.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_json(&std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?)
    }

    /// As JSON, one feature a line.
    pub fn to_json(&self) -> String {
        let pretty = serde_json::to_string_pretty(self).expect("plain numbers");
        // Rows of numbers on one line each: readable and diffable.
        let mut out = String::new();
        let mut in_row = false;
        for line in pretty.lines() {
            let trimmed = line.trim_start();
            if in_row {
                out.push_str(trimmed)
            } else {
                out.push_str(line)
            }
            in_row = (in_row || line.ends_with('[')) && !trimmed.starts_with(']');
            out.push(if in_row { ' ' } else { '\n' });
        }
        out
    }

    /// Sum of the evidence.
    fn score(&self, facts: &Facts) -> Row {
        let mut sum = self.bias;
        let mut add = |row: &Row, times: f32| sum.iter_mut().zip(row).for_each(|(s, r)| *s += r * times);
        for (name, value) in NUMBERS.iter().zip(facts.numbers) {
            if let Some(row) = self.numbers.get(*name) {
                add(row, value);
            }
        }
        for row in facts.words.iter().filter_map(|w| self.words.get(w)) {
            add(&row.alone, 1.0);
            add(&row.by_magnitude, facts.magnitude());
            add(&row.by_sentences, facts.sentences());
        }
        sum
    }

    /// Looks at a query.
    pub fn predict(&self, query: &str) -> Prediction {
        self.predict_facts(&Facts::of(query))
    }

    pub(super) fn predict_facts(&self, facts: &Facts) -> Prediction {
        let [a, b, c, d, ln_tokens] = self.score(facts);
        let probabilities = softmax([a, b, c, d]);
        let best = (0..4).max_by(|i, j| probabilities[*i].total_cmp(&probabilities[*j])).unwrap_or(0);
        // 2^20 tokens are more than any model writes: no weight file can ask for more.
        let tokens = |spread: f32| ((ln_tokens + spread).exp() - 1.0).clamp(0.0, 1_048_576.0);
        let Quantiles { p50, p90, p95 } = self.spread;
        let tokens = Quantiles { p50: tokens(p50), p90: tokens(p90), p95: tokens(p95) };
        Prediction { depth: Depth::ALL[best], probabilities, tokens }
    }
}

pub(super) fn softmax(logits: [f32; 4]) -> [f32; 4] {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp = logits.map(|l| (l - max).exp());
    let sum: f32 = exp.iter().sum();
    exp.map(|e| e / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_weights_know_small_talk_from_proofs() {
        let c = Classifier::default();
        let trivial = ["Hi!", "Thanks, bye.", "What is the capital of France?", "What is 2 + 3?", "Translate cat."];
        for query in trivial {
            let p = c.predict(query);
            assert!(p.depth <= Depth::Easy, "{query} {p:?}");
            assert!(p.tokens.p50 < 150.0, "{query} {p:?}");
        }
        let hard = [
            "Prove that there are infinitely many primes congruent to 3 modulo 4.",
            "Let n be a positive integer. How many ways are there to tile a 2 x n board with dominoes and squares? \
             Derive a recurrence, solve it in closed form and prove that your formula is right for all n.",
        ];
        for query in hard {
            let p = c.predict(query);
            assert!(p.depth >= Depth::Middle, "{query} {p:?}");
            assert!(p.tokens.p95 > p.tokens.p90 && p.tokens.p50 > 300.0, "{query} {p:?}");
        }
        let sum: f32 = c.predict("").probabilities.iter().sum();
        assert!((sum - 1.0).abs() < 1e-5);
    }

    #[test]
    fn files_are_read_back_and_checked() {
        let c = Classifier::default();
        let text = c.to_json();
        assert_eq!(Classifier::from_json(&text).unwrap(), c);
        assert!(text.lines().any(|l| l.trim_start().starts_with("\"ln_words\": [ ")), "{text}");
        let error = |from: &str, to: &str| Classifier::from_json(&text.replace(from, to)).unwrap_err().to_string();
        assert!(error("\"version\": 1", "\"version\": 2").contains("version 2"));
        assert!(error("\"ln_words\"", "\"ln_worbs\"").contains("ln_worbs"));
        assert!(error("\"bias\": [", "\"bias\": [ 1e99,").contains("depth classifier"));
        assert!(Classifier::load(Path::new("/nowhere/depth.json")).unwrap_err().to_string().contains("nowhere"));
    }

    #[test]
    fn a_query_takes_less_than_a_millisecond() {
        let c = Classifier::default();
        let long = "If Eva has 27 cards and gives 5 friends 3 cards each, how many remain? ".repeat(1000);
        let best = (0..20).map(|_| {
            let start = std::time::Instant::now();
            std::hint::black_box(c.predict(std::hint::black_box(&long)));
            start.elapsed()
        });
        let best = best.min().unwrap();
        assert!(best.as_micros() < 1000, "{best:?}");
    }
}
