//! Flags of speculative decoding, under our own names and under vLLM's.

use clap::Args;
use ponder::{BackendChoice, DraftOptions, EngineOptions, models};
use ponder_engine::schedule::DraftPolicy;
use ponder_engine::spec::{Acceptance, LengthOptions, Lookup, Source, SpecReport};
use ponder_engine::{Error, Result};
use serde_json::{Value, json};

/// Who guesses, and how much.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Speculative decoding")]
pub struct SpeculationArgs {
    /// Who guesses tokens ahead, for the model to check several at once: none, ngram, suffix, `bundled`, or the
    /// path of a smaller model with the same tokens. The answer stays the same
    #[arg(long, env = "PONDER_DRAFT_MODEL", default_value = "none", value_name = "DRAFTER")]
    pub draft_model: String,
    /// How many tokens are guessed at once: a number up to 32, or as many as pay
    #[arg(long, env = "PONDER_NUM_SPECULATIVE_TOKENS", allow_negative_numbers = true, default_value = "auto", value_parser = draft_policy, value_name = "K|auto")]
    pub num_speculative_tokens: DraftPolicy,
    /// What is looked up beside a draft model, and taken where it is as likely to be right: none, ngram or suffix
    #[arg(long, env = "PONDER_DRAFT_LOOKUP", default_value = "suffix", value_name = "L", hide_short_help = true)]
    pub draft_lookup: Lookup,
    /// Backend of the draft model [default: the model's]
    #[arg(long, env = "PONDER_DRAFT_BACKEND", value_name = "B", hide_short_help = true)]
    pub draft_backend: Option<BackendChoice>,
    /// Threads of a draft model on the CPU; 0 is one for a tiny model, else as many as the model has
    #[arg(long, env = "PONDER_DRAFT_THREADS", default_value_t = 0, value_name = "N", hide_short_help = true)]
    pub draft_threads: usize,
    /// The same in vLLM's words: {"model": PATH, "num_speculative_tokens": K, "method": M}
    #[arg(long, env = "PONDER_SPECULATIVE_CONFIG", value_name = "JSON", hide_short_help = true)]
    pub speculative_config: Option<String>,
}

impl SpeculationArgs {
    /// The flags as options of an engine.
    pub fn apply(&self, options: &mut EngineOptions) -> Result<()> {
        let (drafter, drafts) = match &self.speculative_config {
            Some(_) if self.draft_model != "none" => {
                return Err(Error::invalid("speculative_config", "says the same as draft_model; give one of them"));
            }
            Some(json) => vllm(json, self.num_speculative_tokens)?,
            None => (self.draft_model.clone(), self.num_speculative_tokens),
        };
        options.drafts = drafts;
        match drafter.parse() {
            Ok(lookup) => options.lookup = lookup,
            Err(_) => {
                let model = match drafter.as_str() {
                    "bundled" => models::resolve("bundled-draft"),
                    path => models::resolve(path),
                };
                let model = model.map_err(|e| Error::invalid("draft_model", e.to_string()))?;
                options.draft = Some(DraftOptions { model, backend: self.draft_backend, threads: self.draft_threads });
                options.lookup = self.draft_lookup;
            }
        }
        Ok(())
    }
}

/// vLLM's `--speculative-config`: the drafter, and how much it guesses.
fn vllm(json: &str, drafts: DraftPolicy) -> Result<(String, DraftPolicy)> {
    const FIELD: &str = "speculative_config";
    let config: Value = serde_json::from_str(json).map_err(|e| Error::invalid(FIELD, format!("is no JSON: {e}")))?;
    let Value::Object(fields) = config else { return Err(Error::invalid(FIELD, "is no JSON object")) };
    let (mut model, mut method, mut drafts) = (None, None, drafts);
    for (name, value) in &fields {
        match (name.as_str(), value) {
            ("model", Value::String(path)) => model = Some(path.clone()),
            ("method", Value::String(word)) => method = Some(word.clone()),
            ("num_speculative_tokens", Value::Number(k)) => {
                drafts = draft_policy(&k.to_string()).map_err(|why| Error::invalid(format!("{FIELD}.{name}"), why))?;
            }
            ("model" | "method" | "num_speculative_tokens", _) => {
                return Err(Error::invalid(format!("{FIELD}.{name}"), format!("{value} has the wrong type")));
            }
            _ => {
                let why = "is none of model, method, num_speculative_tokens";
                return Err(Error::invalid(format!("{FIELD}.{name}"), why));
            }
        }
    }
    match (method.as_deref(), model) {
        (None | Some("draft_model"), Some(model)) => Ok((model, drafts)),
        (Some("ngram"), None) => Ok(("ngram".into(), drafts)),
        (Some("suffix"), None) => Ok(("suffix".into(), drafts)),
        (None | Some("draft_model"), None) => Err(Error::invalid(format!("{FIELD}.model"), "is missing")),
        (Some("ngram" | "suffix"), Some(_)) => {
            Err(Error::invalid(format!("{FIELD}.model"), "this method has no model"))
        }
        (Some(other), _) => {
            let why = format!("{other:?} is none of draft_model, ngram, suffix");
            Err(Error::invalid(format!("{FIELD}.method"), why))
        }
    }
}

/// What guessing did, as an object: null where nobody guessed.
pub fn speculation_json(report: &SpecReport) -> Value {
    let total = report.total();
    if total.drafted == 0 {
        return Value::Null;
    }
    let mut by = Vec::new();
    for (phase, sources) in ["answering", "thinking"].iter().zip(&report.counts) {
        for (source, counts) in Source::ALL.iter().zip(sources).filter(|(_, c)| c.drafted > 0) {
            by.push(json!({
                "phase": phase,
                "drafter": source.name(),
                "steps": counts.steps,
                "drafted": counts.drafted,
                "accepted": counts.accepted,
                "mean_accepted": counts.mean_accepted(),
                "acceptance_by_position": by_position(counts),
            }));
        }
    }
    json!({
        "drafted_tokens": total.drafted,
        "accepted_tokens": total.accepted,
        "mean_accepted": total.mean_accepted(),
        "acceptance_by_position": by_position(&total),
        "target_passes": report.passes,
        "tokens_per_pass": report.tokens_per_pass(),
        "draft_ms": report.draft_us as f64 / 1e3,
        "verify_ms": report.verify_us as f64 / 1e3,
        "by": by,
    })
}

/// Share of the guesses at each position that were right (and all before them).
fn by_position(counts: &Acceptance) -> Vec<f64> {
    let pairs = counts.drafted_at.iter().zip(counts.accepted_at).take_while(|(drafted, _)| **drafted > 0);
    pairs.map(|(drafted, accepted)| accepted as f64 / *drafted as f64).collect()
}

/// A number of guesses, or `auto`.
pub(super) fn draft_policy(word: &str) -> std::result::Result<DraftPolicy, String> {
    if word == "auto" {
        return Ok(DraftPolicy::Auto(LengthOptions::default()));
    }
    match word.parse() {
        Ok(k @ 0..=32) => Ok(DraftPolicy::Fixed(k)),
        _ => Err("it is neither auto nor a number from 0 to 32".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllm_s_words() {
        let read = |json: &str| vllm(json, DraftPolicy::Off).map_err(|e| e.to_string());
        let draft = read(r#"{"model": "a/b", "num_speculative_tokens": 5}"#).unwrap();
        assert_eq!(draft, ("a/b".into(), DraftPolicy::Fixed(5)));
        assert_eq!(read(r#"{"method": "ngram"}"#).unwrap(), ("ngram".into(), DraftPolicy::Off));
        for (json, named) in [
            ("[]", "no JSON object"),
            ("{", "no JSON"),
            ("{}", "speculative_config.model: is missing"),
            (r#"{"model": 3}"#, "speculative_config.model: 3"),
            (r#"{"method": "eagle3", "model": "x"}"#, "\"eagle3\" is none of"),
            (r#"{"model": "x", "num_speculative_tokens": -1}"#, "from 0 to 32"),
            (r#"{"model": "x", "draft_tensor_parallel_size": 2}"#, "draft_tensor_parallel_size"),
        ] {
            assert!(read(json).unwrap_err().contains(named), "{json}: {:?}", read(json));
        }
    }
}
