//! Fits the depth classifier to labelled queries.
//!
//! Soft-max and least squares on one set of features, by stochastic gradient descent with Adagrad's rates
//! (Duchi, Hazan, Singer 2011). Every fifth query is kept out: its errors give the quantiles and the report.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::classify::{Classifier, Depth, Quantiles, Row, WordRow, softmax};
use super::features::{Facts, NUMBERS};
use crate::error::{Error, Result};

/// One labelled query: a line of JSONL. Other fields are ignored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Sample {
    /// The query.
    #[serde(alias = "prompt", alias = "query")]
    pub question: String,
    /// Its depth; from the length if it is missing.
    #[serde(default)]
    pub depth: Option<Depth>,
    /// Tokens of thinking that the model needed for it.
    #[serde(default)]
    pub thinking_tokens: Option<u32>,
}

/// Reads samples.
///
/// # Errors
/// Names the line that is no sample, or has neither label.
pub fn read_samples(text: &str) -> Result<Vec<Sample>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            let bad = |what: String| Error::invalid(format!("line {}", at + 1), what);
            let sample: Sample = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
            if sample.depth.is_none() && sample.thinking_tokens.is_none() {
                return Err(bad("has neither \"depth\" nor \"thinking_tokens\"".into()));
            }
            Ok(sample)
        })
        .collect()
}

/// How to fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitOptions {
    /// Times over the data.
    pub epochs: usize,
    /// Most words that get weights: the most frequent.
    pub words: usize,
    /// A word occurs in at least so many queries.
    pub min_count: usize,
    /// First step size.
    pub rate: f32,
    /// Longest thinking of the first three depths, for samples without a depth.
    pub bounds: [u32; 3],
}

impl Default for FitOptions {
    fn default() -> Self {
        Self { epochs: 40, words: 400, min_count: 3, rate: 0.1, bounds: [32, 256, 2048] }
    }
}

/// How well it went, on queries that were not learnt from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FitReport {
    /// Queries learnt from.
    pub learnt: usize,
    /// Queries kept out.
    pub held_out: usize,
    /// Share of those whose depth was right.
    pub accuracy: f32,
    /// Share whose depth was right or a neighbour.
    pub within_one: f32,
    /// `confusion[true][predicted]`.
    pub confusion: [[usize; 4]; 4],
    /// Typical factor between expected and true length: exp of the mean absolute logarithm; 0 without lengths.
    pub length_factor: f32,
}

/// Lengths of samples that have only a depth.
const USUAL: [f32; 4] = [24.0, 120.0, 600.0, 3000.0];
/// Weight of the length's error beside the depth's.
const LENGTH_WEIGHT: f32 = 0.3;

struct Example {
    features: Vec<(usize, f32)>,
    facts: Facts,
    depth: Depth,
    ln_tokens: f32,
}

/// Fits a classifier.
///
/// # Errors
/// If there are fewer than 20 samples.
pub fn fit(samples: &[Sample], options: &FitOptions) -> Result<(Classifier, FitReport)> {
    if samples.len() < 20 {
        return Err(Error::invalid("samples", format!("{} are too few; 20 at least, better 1000", samples.len())));
    }
    let facts: Vec<Facts> = samples.iter().map(|s| Facts::of(&s.question)).collect();
    let words = frequent(&facts, options);
    let index: HashMap<&str, usize> = words.iter().enumerate().map(|(i, w)| (w.as_str(), i)).collect();
    let examples: Vec<Example> =
        samples.iter().zip(facts).map(|(sample, facts)| example(sample, facts, &index, options)).collect();
    let learnt: Vec<&Example> = examples.iter().enumerate().filter(|(i, _)| i % 5 != 4).map(|e| e.1).collect();
    let held_out: Vec<&Example> = examples.iter().enumerate().filter(|(i, _)| i % 5 == 4).map(|e| e.1).collect();
    let weights = descend(&learnt, 1 + NUMBERS.len() + 3 * words.len(), options);
    let mut classifier = pack(&weights, &words, samples.len());
    let with_lengths = samples.iter().any(|s| s.thinking_tokens.is_some());
    classifier.spread = spread(&classifier, &held_out, with_lengths);
    let report = report(&classifier, learnt.len(), &held_out, with_lengths);
    Ok((classifier, report))
}

/// The most frequent words.
fn frequent(facts: &[Facts], options: &FitOptions) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    facts.iter().flat_map(|f| &f.words).for_each(|w| *counts.entry(w).or_default() += 1);
    let mut words: Vec<(&str, usize)> = counts.into_iter().filter(|w| w.1 >= options.min_count).collect();
    words.sort_by_key(|w| std::cmp::Reverse(w.1));
    words.into_iter().take(options.words).map(|w| w.0.to_string()).collect()
}

fn example(sample: &Sample, facts: Facts, index: &HashMap<&str, usize>, options: &FitOptions) -> Example {
    let by_length = |tokens: u32| Depth::ALL[options.bounds.iter().filter(|b| tokens > **b).count()];
    let depth = sample.depth.or(sample.thinking_tokens.map(by_length)).unwrap_or(Depth::Easy);
    let tokens = sample.thinking_tokens.map_or(USUAL[depth as usize], |t| t as f32);
    let mut features = vec![(0, 1.0)];
    features.extend(facts.numbers.iter().enumerate().map(|(i, v)| (1 + i, *v)).filter(|f| f.1 != 0.0));
    for word in facts.words.iter().filter_map(|w| index.get(w.as_str())) {
        let at = 1 + NUMBERS.len() + 3 * word;
        features.extend([(at, 1.0), (at + 1, facts.magnitude()), (at + 2, facts.sentences())]);
    }
    Example { features, facts, depth, ln_tokens: (1.0 + tokens).ln() }
}

/// Stochastic gradient descent; the order of the samples is a fixed permutation per epoch.
fn descend(examples: &[&Example], len: usize, options: &FitOptions) -> Vec<Row> {
    let mut weights = vec![[0f32; 5]; len];
    let mut squares = vec![[1e-6f32; 5]; len];
    let mut order: Vec<usize> = (0..examples.len()).collect();
    let mut state = 1u64;
    for _ in 0..options.epochs {
        for i in (1..order.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(i, (state >> 33) as usize % (i + 1));
        }
        for example in order.iter().map(|i| examples[*i]) {
            let mut sum = [0f32; 5];
            for (at, value) in &example.features {
                sum.iter_mut().zip(weights[*at]).for_each(|(s, w)| *s += w * value);
            }
            let p = softmax([sum[0], sum[1], sum[2], sum[3]]);
            let mut error = [p[0], p[1], p[2], p[3], LENGTH_WEIGHT * (sum[4] - example.ln_tokens).clamp(-3.0, 3.0)];
            error[example.depth as usize] -= 1.0;
            for (at, value) in &example.features {
                for k in 0..5 {
                    let gradient = error[k] * value + 1e-5 * weights[*at][k];
                    squares[*at][k] += gradient * gradient;
                    weights[*at][k] -= options.rate * gradient / squares[*at][k].sqrt();
                }
            }
        }
    }
    weights
}

fn pack(weights: &[Row], words: &[String], samples: usize) -> Classifier {
    // Three decimals are plenty, and the file stays readable.
    let round = |row: Row| row.map(|w| (w * 1000.0).round() / 1000.0);
    let numbers = NUMBERS.iter().zip(&weights[1..]).map(|(n, w)| (n.to_string(), round(*w))).collect();
    let rows = weights[1 + NUMBERS.len()..].chunks_exact(3);
    let row = |w: &[Row]| WordRow { alone: round(w[0]), by_magnitude: round(w[1]), by_sentences: round(w[2]) };
    Classifier {
        version: 1,
        about: format!(
            "Fitted to {samples} labelled queries. Columns: trivial, easy, middle, hard, ln(1 + thinking tokens)."
        ),
        bias: round(weights[0]),
        numbers,
        words: words.iter().cloned().zip(rows.map(row)).collect(),
        spread: Quantiles { p50: 0.0, p90: 0.0, p95: 0.0 },
    }
}

/// Quantiles of the errors of the logarithm; without lengths the usual spread of thinking.
fn spread(classifier: &Classifier, held_out: &[&Example], with_lengths: bool) -> Quantiles {
    let mut errors: Vec<f32> = held_out.iter().map(|e| e.ln_tokens - expected(classifier, e)).collect();
    if !with_lengths || errors.is_empty() {
        return Quantiles { p50: 0.0, p90: 1.3, p95: 1.7 };
    }
    errors.sort_by(f32::total_cmp);
    let at = |q: f32| errors[((q * errors.len() as f32).ceil() as usize).clamp(1, errors.len()) - 1];
    Quantiles { p50: at(0.5), p90: at(0.9), p95: at(0.95) }
}

/// Expected logarithm of one plus the tokens, without its spread.
fn expected(classifier: &Classifier, example: &Example) -> f32 {
    (1.0 + classifier.predict_facts(&example.facts).tokens.p50).ln() - classifier.spread.p50
}

fn report(classifier: &Classifier, learnt: usize, held_out: &[&Example], with_lengths: bool) -> FitReport {
    let mut confusion = [[0; 4]; 4];
    let mut error = 0f32;
    for example in held_out {
        let p = classifier.predict_facts(&example.facts);
        confusion[example.depth as usize][p.depth as usize] += 1;
        error += ((1.0 + p.tokens.p50).ln() - example.ln_tokens).abs();
    }
    let share = |far: usize| {
        let near = (0..16).filter(|i| (i / 4usize).abs_diff(i % 4) <= far).map(|i| confusion[i / 4][i % 4]);
        near.sum::<usize>() as f32 / held_out.len().max(1) as f32
    };
    let length_factor = if with_lengths { (error / held_out.len().max(1) as f32).exp() } else { 0.0 };
    let (accuracy, within_one) = (share(0), share(1));
    FitReport { learnt, held_out: held_out.len(), accuracy, within_one, confusion, length_factor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::threefry2x32;

    /// Questions whose depth follows from kind and size together.
    fn world(n: u32) -> Vec<Sample> {
        let sample = |i: u32| {
            let dice = |k: u32| threefry2x32([11, 12], [i, k])[0];
            let digits = 1 + dice(0) % 6;
            let number = |k| dice(k) % 10u32.pow(digits);
            let (question, steps) = match dice(1) % 3 {
                0 => (format!("What is the last digit of {}?", number(2)), 1),
                1 => (format!("Add {} + {}.", number(2), number(3)), 6 * digits),
                _ => (format!("Find the product {} * {}.", number(2), number(3)), 12 * digits * digits),
            };
            let tokens = steps + dice(4) % (1 + steps / 4);
            let depth = Some(Depth::ALL[[8, 40, 160].iter().filter(|b| steps > **b).count()]);
            Sample { question, depth, thinking_tokens: Some(tokens) }
        };
        (0..n).map(sample).collect()
    }

    #[test]
    fn depth_and_length_are_learnt_from_kind_and_size() {
        let (classifier, report) = fit(&world(1500), &FitOptions::default()).unwrap();
        assert!(report.accuracy > 0.9 && report.within_one > 0.98, "{report:?}");
        assert!(report.length_factor < 1.6, "{report:?}");
        assert_eq!((report.learnt, report.held_out), (1200, 300));
        let p = classifier.predict("Find the product 48123 * 99231.");
        assert_eq!(p.depth, Depth::Hard);
        assert!(p.tokens.p90 > 300.0 && p.tokens.p50 < 700.0, "{p:?}");
        assert_eq!(classifier.predict("What is the last digit of 58123?").depth, Depth::Trivial);
        assert_eq!(Classifier::from_json(&classifier.to_json()).unwrap(), classifier);
        // Nine of ten fresh questions are within p90.
        let fresh = world(3000).split_off(1500);
        let within =
            fresh.iter().filter(|s| s.thinking_tokens.unwrap() as f32 <= classifier.predict(&s.question).tokens.p90);
        let share = within.count() as f32 / 1500.0;
        assert!((0.86..0.95).contains(&share), "{share}");
    }

    #[test]
    fn the_same_data_give_the_same_weights() {
        let (a, b) =
            (fit(&world(100), &FitOptions::default()).unwrap(), fit(&world(100), &FitOptions::default()).unwrap());
        assert_eq!(a, b);
    }

    #[test]
    fn one_label_is_enough() {
        let mut only_depth = world(400);
        only_depth.iter_mut().for_each(|s| s.thinking_tokens = None);
        let (_, report) = fit(&only_depth, &FitOptions::default()).unwrap();
        assert!(report.accuracy > 0.8 && report.length_factor == 0.0, "{report:?}");
        let mut only_length = world(400);
        only_length.iter_mut().for_each(|s| s.depth = None);
        assert!(
            fit(&only_length, &FitOptions { bounds: [8, 40, 160], ..FitOptions::default() }).unwrap().1.accuracy > 0.7
        );
    }

    #[test]
    fn lines_that_are_no_samples_are_named() {
        let good = r#"{"id": "x", "kind": "mul", "depth": "easy", "question": "What is 3 * 4?", "answer": "12"}"#;
        assert_eq!(read_samples(&format!("{good}\n\n{good}\n")).unwrap().len(), 2);
        let error = |line: &str| read_samples(&format!("{good}\n{line}")).unwrap_err().to_string();
        assert!(error("{").starts_with("line 2"));
        assert!(error(r#"{"question": "x"}"#).contains("neither"));
        assert!(error(r#"{"question": "x", "depth": "deep"}"#).contains("deep"));
        assert!(error(r#"{"depth": "easy"}"#).contains("question"));
        assert!(fit(&world(3), &FitOptions::default()).unwrap_err().to_string().contains("too few"));
    }
}
