//! How deep a request is to think: the effort table, the levers of `auto`, the classifier of queries, and the
//! lengths seen before, as a model or its operator has them.
//!
//! A model folder may hold `reasoning.json` (efforts, `auto`, soft landing) and `depth.json` (the classifier's
//! weights, written by `ponder fit`); files that are named on the command line go before them.

use std::path::{Path, PathBuf};

use ponder_engine::reason::{AutoOptions, Classifier, Decision, EffortTable, Landing, Part, Policy, Survival, decide};
use ponder_engine::request::SamplingParams;
use ponder_engine::text::{Message, Tokenizer};
use ponder_engine::{Error, Result};
use serde::Deserialize;

use crate::options::EngineOptions;

/// Name of the policy in a model folder.
const POLICY_FILE: &str = "reasoning.json";
/// Name of the classifier's weights in a model folder.
const DEPTH_FILE: &str = "depth.json";
/// Share of the cap at which the soft landing is written, if the file does not say.
const LANDING_AT: f32 = 0.9;

/// Decides about requests; the same request always gets the same decision.
#[derive(Default)]
pub struct Reasoner {
    policy: Policy,
    survival: Survival,
    /// Written into the thinking near its cap.
    pub landing: Option<Landing>,
}

/// `reasoning.json`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyFile {
    efforts: EffortTable,
    auto: AutoOptions,
    soft_landing: Option<SoftLanding>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SoftLanding {
    text: String,
    #[serde(default = "landing_at")]
    at: f32,
}

fn landing_at() -> f32 {
    LANDING_AT
}

impl Reasoner {
    /// Reads the files that the options name, else those beside the model, else the built-in values.
    ///
    /// # Errors
    /// If a file cannot be read, or says what no policy can be.
    pub fn load(options: &EngineOptions, tokenizer: &Tokenizer) -> Result<Self> {
        let policy = given_or_beside(options.reasoning_policy.as_deref(), &options.model, POLICY_FILE);
        let file = policy.as_deref().map_or(Ok(PolicyFile::default()), read_policy)?;
        let weights = given_or_beside(options.depth_classifier.as_deref(), &options.model, DEPTH_FILE);
        let classifier = weights.map_or(Ok(Classifier::default()), |path| {
            Classifier::load(&path).map_err(|e| Error::checkpoint(path, "weights", e.to_string()))
        })?;
        let said = options.soft_landing.as_ref().map(|text| SoftLanding { text: text.clone(), at: LANDING_AT });
        let landing = said.or(file.soft_landing).filter(|l| !l.text.is_empty());
        let landing = landing.map(|l| Ok::<_, Error>(Landing { tokens: tokenizer.encode(&l.text)?, at: l.at }));
        let landing = landing.transpose()?;
        landing.as_ref().map_or(Ok(()), Landing::validate)?;
        let policy = Policy { efforts: file.efforts, auto: file.auto, classifier };
        Ok(Self { policy, survival: Survival::default(), landing })
    }

    /// Decides about a conversation, if the request names an effort.
    ///
    /// # Errors
    /// If the effort contradicts the budget or `enable_thinking`.
    pub fn decide(
        &self,
        messages: &[Message],
        params: &SamplingParams,
        enable_thinking: Option<bool>,
    ) -> Result<Option<Decision>> {
        let Some(effort) = params.reasoning_effort else { return Ok(None) };
        let query = last_question(messages);
        let mut decision = decide(effort, params.thinking_token_budget, query, &self.policy, &self.survival)?;
        if let Some(think) = enable_thinking.filter(|think| *think != decision.think) {
            if decision.think && params.reasoning_effort != Some(ponder_engine::reason::Effort::Auto) {
                let why = format!("contradicts reasoning_effort \"{effort}\"; leave one of them out");
                return Err(Error::invalid("enable_thinking", why));
            }
            decision.think = think;
            decision.reasons.push(format!("the request: enable_thinking {think}"));
            decision.budget = if think { None } else { Some(0) };
        }
        Ok(Some(decision))
    }

    /// Tokens that an answer to `query` will hardly exceed: nine tenths of such thinking, and an answer.
    pub fn expected_tokens(&self, query: &str, decision: Option<&Decision>, thinks: bool) -> f64 {
        let answer = |depth| self.survival.curve(depth, Part::Answer).quantile(0, 0.5);
        if !thinks || decision.is_some_and(|d| !d.think) {
            return answer(None);
        }
        let known = decision.and_then(|d| d.prediction.clone());
        let prediction = known.unwrap_or_else(|| self.policy.classifier.predict(query));
        let cap = decision.and_then(|d| d.budget).map_or(f64::MAX, |b| b as f64);
        f64::from(prediction.tokens.p90).min(cap) + answer(Some(prediction.depth))
    }
}

/// What the user asked last.
pub fn last_question(messages: &[Message]) -> &str {
    messages.iter().rev().find(|m| m.role == "user").map_or("", |m| &m.content)
}

fn given_or_beside(given: Option<&Path>, model: &Path, name: &str) -> Option<PathBuf> {
    let beside = || model.is_dir().then(|| model.join(name)).filter(|path| path.is_file());
    given.map(Path::to_path_buf).or_else(beside)
}

fn read_policy(path: &Path) -> Result<PolicyFile> {
    let bad = |e: String| Error::checkpoint(path, "reasoning policy", e);
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let file: PolicyFile = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    file.efforts.validate().and_then(|()| file.auto.validate()).map_err(|e| bad(e.to_string()))?;
    Ok(file)
}

/// The messages with a sentence in the system prompt.
pub fn with_hint(messages: &[Message], hint: &str) -> Vec<Message> {
    let mut messages = messages.to_vec();
    match messages.first_mut().filter(|m| m.role == "system") {
        Some(system) if !system.content.is_empty() => system.content = format!("{}\n\n{hint}", system.content),
        Some(system) => system.content = hint.to_string(),
        None => messages.insert(0, Message::new("system", hint)),
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use ponder_engine::reason::Effort;

    fn ask(effort: Effort) -> SamplingParams {
        SamplingParams { reasoning_effort: Some(effort), ..SamplingParams::default() }
    }

    #[test]
    fn hints_join_the_system_prompt() {
        let user = Message::new("user", "Hi");
        assert_eq!(with_hint(std::slice::from_ref(&user), "Be brief.")[0], Message::new("system", "Be brief."));
        let both = with_hint(&[Message::new("system", "Speak French."), user], "Be brief.");
        assert_eq!((both[0].content.as_str(), both.len()), ("Speak French.\n\nBe brief.", 2));
    }

    #[test]
    fn contradictions_are_named_and_auto_gives_way() {
        let reasoner = Reasoner::default();
        let messages = [Message::new("user", "What is 2 + 2?")];
        let error = reasoner.decide(&messages, &ask(Effort::High), Some(false)).unwrap_err().to_string();
        assert!(error.starts_with("enable_thinking: contradicts"), "{error}");
        let auto = reasoner.decide(&messages, &ask(Effort::Auto), Some(false)).unwrap().unwrap();
        assert!(!auto.think && auto.budget == Some(0));
        assert_eq!(reasoner.decide(&messages, &SamplingParams::default(), None).unwrap(), None);
        // An earlier question does not count.
        let talk = [Message::new("user", "Prove Fermat's last theorem."), Message::new("user", "Hi!")];
        assert!(!reasoner.decide(&talk, &ask(Effort::Auto), None).unwrap().unwrap().think);
    }

    #[test]
    fn a_broken_policy_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.json");
        for (text, part) in [
            (r#"{"efort": {}}"#, "efort"),
            (r#"{"auto": {"quantile": 3}}"#, "auto.quantile"),
            (r#"{"efforts": {"high": {"budget": 1}}}"#, "efforts.high"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read_policy(&path).err().unwrap().to_string();
            assert!(error.contains("p.json") && error.contains(part), "{error}");
        }
    }
}
