//! What a user asks for, and how a request ends.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::grammar::GrammarSource;
use crate::op::SampleRow;
use crate::reason::{Effort, Thinking, budget_of};

/// A request, from submission to its one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One of a request's `n` answers while it is generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId {
    /// The request.
    pub request: RequestId,
    /// Index among its answers, below 256.
    pub choice: u8,
}

/// Something for each of some sequences. A step looks most of them up many times, and their ids are ours: they need no
/// hash that withstands an attack.
pub type SeqMap<T> = rustc_hash::FxHashMap<SeqId, T>;

/// How tokens are chosen and when generation stops.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus; 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub top_k: u32,
    /// Share of the largest probability; 0 is off.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Source of all randomness of this request.
    pub seed: u64,
    /// Answers to generate.
    pub n: u8,
    /// Most tokens to generate; up to the model's length if `None`.
    pub max_tokens: Option<usize>,
    /// Ends the answer; not part of it.
    pub stop: Vec<String>,
    /// Token ids that end the answer, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Goes on after the model's end tokens (for measurements).
    pub ignore_eos: bool,
    /// Most tokens of thinking, exactly; 0 is none at all, -1 unlimited, `None` as the effort says. A request's
    /// [`Decision`](crate::reason::Decision), where there is one, has taken it into account and counts instead.
    pub thinking_token_budget: Option<i64>,
    /// How hard to think: decided before the prompt is rendered, because it may change the prompt. `None`: the
    /// model as it is, under the budget alone.
    pub reasoning_effort: Option<Effort>,
    /// Whose it is: what requests with another salt computed is never found, nor timed. Empty is a salt too.
    pub cache_salt: Arc<str>,
    /// Tokens of `max_tokens` that thinking leaves to the answer; `None`: 256, or half if that is less.
    pub answer_reserve: Option<usize>,
    /// Importance, with the scheduling policy `priority`: the smaller number goes first. 0 elsewhere.
    pub priority: i32,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            n: 1,
            max_tokens: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            thinking_token_budget: None,
            reasoning_effort: None,
            cache_salt: Arc::from(""),
            answer_reserve: None,
            priority: 0,
        }
    }
}

impl SamplingParams {
    /// Refuses what no sampler can do, naming the field and its range.
    pub fn validate(&self, vocab: usize) -> Result<()> {
        let within = |field: &str, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid(field, format!("{value} is not between {low} and {high}")))
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if !(1..=128).contains(&self.n) {
            return Err(Error::invalid("n", format!("{} is not between 1 and 128", self.n)));
        }
        if self.cache_salt.len() > 256 {
            return Err(Error::invalid("cache_salt", format!("{} bytes, at most 256", self.cache_salt.len())));
        }
        if self.max_tokens == Some(0) {
            return Err(Error::invalid("max_tokens", "must be at least 1"));
        }
        self.thinking_cap()?;
        if let (Some(reserve), Some(max)) = (self.answer_reserve, self.max_tokens)
            && reserve >= max
        {
            let message = format!("{reserve} leaves no token of max_tokens {max} to think with");
            return Err(Error::invalid("answer_reserve", message));
        }
        for (token, bias) in &self.logit_bias {
            if *token as usize >= vocab {
                return Err(Error::invalid(
                    "logit_bias",
                    format!("token {token} is not below the vocabulary's {vocab}"),
                ));
            }
            within("logit_bias", *bias, -100.0, 100.0)?;
        }
        if self.stop.len() > 16 || self.stop.iter().any(|s| s.is_empty() || s.len() > 256) {
            return Err(Error::invalid("stop", "at most 16 strings of 1 to 256 bytes"));
        }
        Ok(())
    }

    /// The thinking budget as a cap in tokens; `None` is none.
    pub fn thinking_cap(&self) -> Result<Option<usize>> {
        self.thinking_token_budget.map_or(Ok(None), |b| budget_of("thinking_token_budget", b))
    }

    /// Whether the logits are changed by what was generated or by biases.
    pub fn adjusts(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || !self.logit_bias.is_empty()
    }

    /// The device's view of these parameters for the token at `position`.
    pub fn row(&self, choice: u8, position: usize) -> SampleRow {
        SampleRow {
            temperature: self.temperature,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition: self.repetition_penalty,
            presence: self.presence_penalty,
            frequency: self.frequency_penalty,
            top_k: self.top_k,
            seed_lo: self.seed as u32,
            seed_hi: (self.seed >> 32) as u32,
            choice: choice.into(),
            position: position as u32,
            mask: 0,
        }
    }
}

/// A request as the scheduler takes it: text is tokens already.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its id, unique while it lives.
    pub id: RequestId,
    /// Prompt tokens, at least one.
    pub prompt: Vec<u32>,
    /// How to go on.
    pub params: SamplingParams,
    /// Ids after which the model has said everything.
    pub eos: Vec<u32>,
    /// How it thinks; `None`: all it says is the answer.
    pub thinking: Option<Arc<Thinking>>,
    /// What its answers keep to; thinking is free.
    pub grammar: Option<GrammarSource>,
    /// Whose it is; what one tenant's answers say serves as guesses for nobody else.
    pub tenant: Arc<str>,
}

impl Request {
    /// Whose cache and whose guesses it shares: the salt that it names, else its tenant.
    pub fn tenant(&self) -> Arc<str> {
        let salt = &self.params.cache_salt;
        if salt.is_empty() { self.tenant.clone() } else { salt.clone() }
    }
}

/// Why an answer ended. Each answer ends exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model's own end token, or one of `stop_token_ids`.
    Stop {
        /// The token, which is not part of the text.
        token: u32,
    },
    /// A stop string was found; the text ends before it.
    StopString {
        /// The string.
        text: String,
    },
    /// `max_tokens`, or the model's length.
    Length,
    /// The client went away or said stop.
    Cancelled,
    /// The request failed; others are not affected.
    Failed {
        /// What happened.
        reason: String,
    },
}

impl Finish {
    /// OpenAI's word for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Finish::Stop { .. } | Finish::StopString { .. } => "stop",
            Finish::Length => "length",
            Finish::Cancelled => "cancelled",
            Finish::Failed { .. } => "error",
        }
    }
}
