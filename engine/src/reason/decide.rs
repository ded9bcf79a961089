//! From a request's effort to a decision: whether to think, how long at most, what to tell the model, and why.
//!
//! `auto` pulls three levers, each alone or together: a hint in the system prompt, the classifier's depth (no
//! thinking where none is needed), and a hard cap from the expected length. Where a cap is hit the question may
//! be deeper than it looked. How likely that is follows from the depths' probabilities and survival curves
//! alone, so it is settled in advance: the same request always gets the same extension, or none.

use serde::{Deserialize, Serialize};

use super::budget::{Extension, budget_of};
use super::classify::{Classifier, Depth, Prediction};
use super::effort::{Effort, EffortTable};
use super::survival::{Part, Survival};
use crate::error::{Error, Result};

/// The levers of `auto`, and how hard they are pulled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoOptions {
    /// Tell the model how deep to think.
    pub hint: bool,
    /// Ask the classifier; without it all queries are of unknown depth.
    pub classify: bool,
    /// Cap the thinking.
    pub cap: bool,
    /// The cap is this quantile of the expected length, between 0.5 and 0.999.
    pub quantile: f32,
    /// Times this.
    pub margin: f32,
    /// And at least so many tokens.
    pub floor: usize,
    /// No thinking where the query is trivial with at least this probability; above 1 never.
    pub skip_above: f32,
    /// Extend the cap once where the answer suffers from it with at least this probability; above 1 never.
    pub extend_above: f32,
}

impl Default for AutoOptions {
    fn default() -> Self {
        Self {
            hint: true,
            classify: true,
            cap: true,
            quantile: 0.9,
            margin: 1.25,
            floor: 32,
            skip_above: 0.8,
            extend_above: 0.5,
        }
    }
}

impl AutoOptions {
    /// Refuses values out of range.
    pub fn validate(&self) -> Result<()> {
        let within = |field: &str, value: f32, low: f32, high: f32| {
            let message = || format!("{value} is not between {low} and {high}");
            if (low..=high).contains(&value) { Ok(()) } else { Err(Error::invalid(format!("auto.{field}"), message())) }
        };
        within("quantile", self.quantile, 0.5, 0.999)?;
        within("margin", self.margin, 0.1, 100.0)?;
        within("skip_above", self.skip_above, 0.0, 2.0)?;
        within("extend_above", self.extend_above, 0.0, 2.0)
    }
}

/// What a decision is made from, besides the request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Fixed efforts.
    pub efforts: EffortTable,
    /// The levers of `auto`.
    pub auto: AutoOptions,
    /// The classifier.
    pub classifier: Classifier,
}

/// What was decided, and why: for the engine, the response's metadata and the trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// What was asked for.
    pub effort: Effort,
    /// False: the prompt is rendered with thinking switched off.
    pub think: bool,
    /// Cap on the thinking in tokens; `None` is none.
    pub budget: Option<usize>,
    /// Sentence for the system prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// A larger cap where this one is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extension: Option<Extension>,
    /// What the classifier said, where it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// In words, in the order in which they counted.
    pub reasons: Vec<String>,
}

impl Decision {
    /// The depth for survival curves and scheduling.
    pub fn depth(&self) -> Option<Depth> {
        self.prediction.as_ref().map(|p| p.depth)
    }
}

/// Decides. `budget`: the request's `thinking_token_budget` (-1 unlimited), if it has one; it is never exceeded.
///
/// # Errors
/// If the budget is below -1, or thinking is asked for and forbidden at once.
pub fn decide(
    effort: Effort,
    budget: Option<i64>,
    query: &str,
    policy: &Policy,
    survival: &Survival,
) -> Result<Decision> {
    let given = budget.map(|b| budget_of("thinking_token_budget", b)).transpose()?;
    if effort == Effort::None && given.is_some_and(|b| b != Some(0)) {
        let message = "contradicts reasoning_effort \"none\"; leave one of them out";
        return Err(Error::invalid("thinking_token_budget", message));
    }
    let mut decision = match effort {
        Effort::Auto => auto(query, policy, survival),
        fixed => {
            let (budget, hint) = policy.efforts.level(fixed);
            let reasons = vec![format!("effort {fixed}: {}", words(budget))];
            let hint = hint.map(str::to_string);
            Decision { effort, think: true, budget, hint, extension: None, prediction: None, reasons }
        }
    };
    if let Some(given) = given {
        limit(&mut decision, given);
    }
    decision.think = decision.budget != Some(0);
    if !decision.think {
        (decision.hint, decision.extension) = (None, None);
    }
    Ok(decision)
}

fn words(budget: Option<usize>) -> String {
    budget.map_or("unlimited thinking".into(), |b| format!("at most {b} tokens of thinking"))
}

/// The request's own budget: exact for a fixed effort, an upper bound for `auto`.
fn limit(decision: &mut Decision, given: Option<usize>) {
    let least = |a: Option<usize>, b: Option<usize>| a.into_iter().chain(b).min();
    decision.reasons.push(format!("the request: {}", words(given)));
    decision.budget = if decision.effort == Effort::Auto { least(decision.budget, given) } else { given };
    if let Some(extension) = &mut decision.extension {
        extension.to = least(extension.to, given);
    }
    decision.extension = decision.extension.filter(|e| e.to.is_none() || e.to > decision.budget);
}

fn auto(query: &str, policy: &Policy, survival: &Survival) -> Decision {
    let options = &policy.auto;
    let prediction = options.classify.then(|| policy.classifier.predict(query));
    let depth = prediction.as_ref().map(|p| p.depth);
    let mut reasons = Vec::new();
    if let Some(p) = &prediction {
        let share = p.probabilities[p.depth as usize];
        reasons.push(format!("looks {:?} ({:.0}%)", p.depth, 100.0 * share).to_lowercase());
    }
    let hint = options.hint.then(|| hint(depth).to_string());
    let mut decision =
        Decision { effort: Effort::Auto, think: true, budget: None, hint, extension: None, prediction, reasons };
    let trivial = decision.prediction.as_ref().map_or(0.0, |p| p.probabilities[0]);
    if options.classify && trivial >= options.skip_above {
        decision.budget = Some(0);
        decision.reasons.push("needs no thinking".into());
    } else if options.cap {
        let (expected, whence) = expected(decision.prediction.as_ref(), survival, options.quantile);
        let cap = ((expected * options.margin).ceil() as usize).max(options.floor);
        decision.budget = Some(cap);
        let percent = 100.0 * options.quantile;
        decision.reasons.push(format!("{percent:.0}% end within {expected:.0} tokens ({whence}): cap {cap}"));
        decision.extension = extension(decision.prediction.as_ref(), survival, cap, options);
        if let Some(e) = &decision.extension {
            let to = e.to.unwrap_or(usize::MAX);
            decision.reasons.push(format!("extended once to {to} if reached: {:.0}% need more", 100.0 * e.probability));
        }
    }
    decision
}

fn hint(depth: Option<Depth>) -> &'static str {
    match depth {
        None => "Think only as long as the question needs, then answer.",
        Some(Depth::Trivial | Depth::Easy) => "This is an easy question: think in a few short lines, then answer.",
        // Hard work is worth doing with care, but doing it twice is what thinking is mostly wasted on.
        Some(Depth::Middle | Depth::Hard) => "Think step by step, without repeating checks, then answer.",
    }
}

/// Observations after which a curve is believed more than the classifier's estimate.
const ENOUGH: f64 = 50.0;

/// The length that a share `q` does not exceed: from what was seen of this depth, else from the classifier.
fn expected(prediction: Option<&Prediction>, survival: &Survival, q: f32) -> (f32, &'static str) {
    let curve = survival.curve(prediction.map(|p| p.depth), Part::Thinking);
    match prediction {
        Some(p) if curve.weight() < ENOUGH => {
            // Between the known quantiles the logarithm is taken as straight.
            let (p50, p90, p95) = (p.tokens.p50.max(1.0).ln(), p.tokens.p90.max(1.0).ln(), p.tokens.p95.max(1.0).ln());
            let ln = if q <= 0.9 { p50 + (p90 - p50) * (q - 0.5) / 0.4 } else { p90 + (p95 - p90) * (q - 0.9) / 0.05 };
            (ln.exp(), "classifier")
        }
        _ => (curve.quantile(0, f64::from(q)) as f32, "finished requests"),
    }
}

/// Whether a query that still thinks at the cap is likely one that needs it: by Bayes, from the depths'
/// probabilities and how often each still thinks there. Trivial and easy ones that do are checking again.
fn extension(
    prediction: Option<&Prediction>,
    survival: &Survival,
    cap: usize,
    options: &AutoOptions,
) -> Option<Extension> {
    let probabilities = prediction.map_or([0.25; 4], |p| p.probabilities);
    let alive = Depth::ALL.map(|d| {
        let survives = survival.curve(Some(d), Part::Thinking).survival(cap as f64);
        f64::from(probabilities[d as usize]) * survives
    });
    let all: f64 = alive.iter().sum();
    let probability = if all > 0.0 { ((alive[2] + alive[3]) / all) as f32 } else { 0.0 };
    if probability < options.extend_above {
        return None;
    }
    let deepest = if alive[3] > alive[2] { Depth::Hard } else { Depth::Middle };
    let to = survival.curve(Some(deepest), Part::Thinking).quantile(0, 0.95) as usize;
    Some(Extension { to: Some(to.clamp(2 * cap, 8 * cap)), probability })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARD: &str = "Prove that there are infinitely many primes congruent to 3 modulo 4.";

    fn take(effort: Effort, budget: Option<i64>, query: &str, auto: AutoOptions) -> Decision {
        let policy = Policy { auto, ..Policy::default() };
        decide(effort, budget, query, &policy, &Survival::default()).unwrap()
    }

    #[test]
    fn fixed_efforts_and_budgets() {
        let auto = AutoOptions::default();
        let low = take(Effort::Low, None, HARD, auto);
        assert_eq!((low.budget, low.think), (Some(512), true));
        assert!(low.hint.is_some() && low.prediction.is_none());
        let own = take(Effort::Low, Some(7000), HARD, auto);
        assert_eq!(own.budget, Some(7000), "the request's own number counts");
        assert_eq!(take(Effort::High, Some(-1), HARD, auto).budget, None);
        let none = take(Effort::None, None, HARD, auto);
        assert_eq!((none.budget, none.think, none.hint), (Some(0), false, None));
        assert!(!take(Effort::High, Some(0), HARD, auto).think);
    }

    #[test]
    fn contradictions_are_errors() {
        let fail = |effort, budget| {
            decide(effort, budget, "", &Policy::default(), &Survival::default()).unwrap_err().to_string()
        };
        assert!(fail(Effort::None, Some(100)).contains("contradicts"));
        assert!(fail(Effort::Low, Some(-2)).starts_with("thinking_token_budget: -2"));
        assert!(take(Effort::None, Some(0), "", AutoOptions::default()).budget == Some(0));
        let bad = AutoOptions { quantile: 1.0, ..AutoOptions::default() };
        assert!(bad.validate().unwrap_err().to_string().starts_with("auto.quantile"));
        AutoOptions::default().validate().unwrap();
    }

    #[test]
    fn auto_spends_where_it_is_needed() {
        let auto = AutoOptions::default();
        let greeting = take(Effort::Auto, None, "Hi!", auto);
        assert_eq!((greeting.budget, greeting.think), (Some(0), false));
        let proof = take(Effort::Auto, None, HARD, auto);
        assert!(proof.budget.unwrap() > 1000 && proof.extension.is_some(), "{proof:?}");
        assert!(proof.reasons[0].starts_with("looks hard"), "{proof:?}");
        let bounded = take(Effort::Auto, Some(900), HARD, auto);
        assert_eq!((bounded.budget, bounded.extension), (Some(900), None), "never over the request's budget");
        let zero = take(Effort::Auto, Some(0), HARD, auto);
        assert!(!zero.think);
    }

    #[test]
    fn each_lever_alone() {
        let off = AutoOptions { hint: false, classify: false, cap: false, ..AutoOptions::default() };
        let nothing = take(Effort::Auto, None, HARD, off);
        assert_eq!((nothing.budget, &nothing.hint, &nothing.prediction), (None, &None, &None));
        let hint = take(Effort::Auto, None, "Hi!", AutoOptions { hint: true, ..off });
        assert!(hint.hint.is_some() && hint.budget.is_none());
        let class = take(Effort::Auto, None, "Hi!", AutoOptions { classify: true, ..off });
        assert!(!class.think && class.prediction.is_some());
        let cap = take(Effort::Auto, None, "Hi!", AutoOptions { cap: true, ..off });
        assert_eq!(cap.budget, take(Effort::Auto, None, HARD, AutoOptions { cap: true, ..off }).budget);
        assert!(cap.budget.unwrap() > 400);
    }

    #[test]
    fn what_was_seen_replaces_what_was_guessed() {
        let mut survival = Survival::default();
        let policy = Policy::default();
        let before = decide(Effort::Auto, None, HARD, &policy, &survival).unwrap();
        let depth = before.depth();
        (0..400).for_each(|i| survival.observe(depth, Part::Thinking, 200 + i, true));
        let after = decide(Effort::Auto, None, HARD, &policy, &survival).unwrap();
        assert!(after.reasons.iter().any(|r| r.contains("finished requests")), "{after:?}");
        assert!((500..1000).contains(&after.budget.unwrap()), "{after:?}");
    }

    #[test]
    fn a_decision_is_a_value() {
        let decision = take(Effort::Auto, None, HARD, AutoOptions::default());
        let json = serde_json::to_string(&decision).unwrap();
        assert!(json.contains("\"effort\":\"auto\"") && json.contains("\"depth\":\"hard\""), "{json}");
        assert_eq!(serde_json::from_str::<Decision>(&json).unwrap().reasons, decision.reasons);
    }
}
