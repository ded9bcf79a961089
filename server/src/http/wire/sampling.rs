//! The fields that chat and plain completions share, and what they mean for the engine.

use std::collections::BTreeMap;

use ponder_engine::checkpoint::GenerationDefaults;
use ponder_engine::request::SamplingParams;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::http::error::ApiError;

/// Most stop strings, and the longest.
const MAX_STOPS: usize = 16;

/// One text or several.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    /// All of them.
    pub fn to_vec(&self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text.clone()],
            Self::Many(texts) => texts.clone(),
        }
    }
}

/// What a stream tells beside the text.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// One more chunk with the usage, before the end.
    pub include_usage: Option<bool>,
}

/// How the next token is chosen: the wire's fields, borrowed from a request.
#[derive(Default)]
pub struct Sampling<'a> {
    /// As in the request, for each of these.
    pub temperature: Option<f32>,
    /// See `temperature`.
    pub top_p: Option<f32>,
    /// See `temperature`; -1 and 0 are off.
    pub top_k: Option<i64>,
    /// See `temperature`.
    pub min_p: Option<f32>,
    /// See `temperature`.
    pub repetition_penalty: Option<f32>,
    /// See `temperature`.
    pub presence_penalty: Option<f32>,
    /// See `temperature`.
    pub frequency_penalty: Option<f32>,
    /// Token ids as text.
    pub logit_bias: Option<&'a BTreeMap<String, f32>>,
    /// Absent: another one each time.
    pub seed: Option<i64>,
    /// Answers.
    pub n: Option<u32>,
    /// Most tokens to generate.
    pub max_tokens: Option<u32>,
    /// Stop strings.
    pub stop: Option<&'a OneOrMany>,
    /// Stop tokens.
    pub stop_token_ids: Option<&'a [u32]>,
    /// Goes on after the model's end tokens.
    pub ignore_eos: Option<bool>,
    /// Exact cap on the thinking; -1 is none.
    pub thinking_token_budget: Option<i64>,
    /// Whose cache it may use.
    pub cache_salt: Option<&'a str>,
    /// Importance: the smaller goes first.
    pub priority: Option<i32>,
}

impl Sampling<'_> {
    /// The engine's parameters: the request's over the model's own over OpenAI's.
    ///
    /// # Errors
    /// 400 for a value out of its range, with the field.
    pub fn params(&self, model: &GenerationDefaults, vocab: usize) -> Result<SamplingParams, ApiError> {
        let d = SamplingParams::default();
        let n = self.n.unwrap_or(1);
        if !(1..=128).contains(&n) {
            return Err(ApiError::invalid("n", format!("{n} is not between 1 and 128")));
        }
        let params = SamplingParams {
            temperature: self.temperature.or(model.temperature).unwrap_or(1.0),
            top_p: self.top_p.or(model.top_p).unwrap_or(d.top_p),
            top_k: self.top_k()?.or(model.top_k).unwrap_or(d.top_k),
            min_p: self.min_p.or(model.min_p).unwrap_or(d.min_p),
            repetition_penalty: self.repetition_penalty.or(model.repetition_penalty).unwrap_or(d.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(d.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(d.frequency_penalty),
            logit_bias: self.logit_bias(vocab)?,
            seed: self.seed.map_or_else(super::random, |s| s as u64),
            n: n as u8,
            max_tokens: self.max_tokens.map(|m| m as usize),
            stop: self.stop.map(OneOrMany::to_vec).unwrap_or_default(),
            stop_token_ids: self.stop_token_ids.unwrap_or_default().to_vec(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            thinking_token_budget: self.thinking_token_budget,
            cache_salt: self.cache_salt.unwrap_or("").into(),
            priority: self.priority.unwrap_or(d.priority),
            ..d
        };
        if let Some(token) = params.stop_token_ids.iter().find(|t| **t as usize >= vocab) {
            return Err(ApiError::invalid(
                "stop_token_ids",
                format!("token {token} is not below the vocabulary's {vocab}"),
            ));
        }
        if params.stop_token_ids.len() > MAX_STOPS {
            return Err(ApiError::invalid("stop_token_ids", format!("more than {MAX_STOPS}")));
        }
        params.validate(vocab)?;
        Ok(params)
    }

    fn top_k(&self) -> Result<Option<u32>, ApiError> {
        match self.top_k {
            None => Ok(None),
            Some(-1) => Ok(Some(0)),
            Some(k) => match u32::try_from(k) {
                Ok(k) => Ok(Some(k)),
                Err(_) => Err(ApiError::invalid("top_k", format!("{k} is neither -1 nor a number of tokens"))),
            },
        }
    }

    fn logit_bias(&self, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
        let of = |(token, bias): (&String, &f32)| match token.parse::<u32>() {
            Ok(id) if (id as usize) < vocab => Ok((id, *bias)),
            _ => {
                let shown: String = token.chars().take(40).collect();
                Err(ApiError::invalid("logit_bias", format!("{shown:?} is no token below the vocabulary's {vocab}")))
            }
        };
        let biases: Vec<(u32, f32)> = self.logit_bias.into_iter().flatten().map(of).collect::<Result<_, _>>()?;
        if biases.len() > 1024 {
            return Err(ApiError::invalid("logit_bias", "more than 1024 tokens"));
        }
        Ok(biases)
    }
}

/// Fields that are taken and change nothing: bookkeeping of OpenAI's service. They are told back in the
/// header `x-ignored-params`.
pub fn ignored<'a>(fields: &[(&'a str, &Option<Value>)]) -> Vec<&'a str> {
    fields.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name).collect()
}

/// A request with the shared fields after its own.
macro_rules! sampled_request {
    ($(#[$meta:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// Name of the model; the first one served if it is left out.
            pub model: Option<String>,
            /// Answers are sent as server-sent events while they are generated.
            pub stream: Option<bool>,
            /// With `stream` only.
            pub stream_options: Option<$crate::http::wire::sampling::StreamOptions>,
            /// Answers to generate.
            #[schema(minimum = 1, maximum = 128)]
            pub n: Option<u32>,
            /// The same seed gives the same answer; a random one if it is left out.
            pub seed: Option<i64>,
            /// The answer ends before any of these.
            pub stop: Option<$crate::http::wire::sampling::OneOrMany>,
            /// Tokens that end the answer, beside the model's own.
            #[schema(max_items = 16)]
            pub stop_token_ids: Option<Vec<u32>>,
            /// 0 is greedy.
            #[schema(minimum = 0, maximum = 100)]
            pub temperature: Option<f32>,
            /// Keep the likeliest tokens up to this share of the probability.
            #[schema(exclusive_minimum = 0, maximum = 1)]
            pub top_p: Option<f32>,
            /// Keep this many of the likeliest tokens; -1 and 0 keep all.
            #[schema(minimum = -1, maximum = 4294967295i64)]
            pub top_k: Option<i64>,
            /// Keep tokens with at least this share of the largest probability.
            #[schema(minimum = 0, maximum = 1)]
            pub min_p: Option<f32>,
            /// Divides the logits of tokens seen before; 1 is off.
            #[schema(minimum = 0.01, maximum = 100)]
            pub repetition_penalty: Option<f32>,
            /// Subtracted once from tokens of the answer.
            #[schema(minimum = -2, maximum = 2)]
            pub presence_penalty: Option<f32>,
            /// Subtracted per occurrence in the answer.
            #[schema(minimum = -2, maximum = 2)]
            pub frequency_penalty: Option<f32>,
            /// Added to the logits of tokens, by id.
            pub logit_bias: Option<std::collections::BTreeMap<String, f32>>,
            /// Goes on after the model's end tokens.
            pub ignore_eos: Option<bool>,
            /// Only requests with the same salt share cached prompts; at most 256 bytes.
            #[schema(max_length = 256)]
            pub cache_salt: Option<String>,
            /// With `--scheduling-policy priority`, the smaller number goes first; refused with the others.
            pub priority: Option<i32>,
            /// Without effect here.
            pub user: Option<serde_json::Value>,
            /// Without effect here.
            pub metadata: Option<serde_json::Value>,
            /// Without effect here.
            pub store: Option<serde_json::Value>,
            /// Without effect here.
            pub service_tier: Option<serde_json::Value>,
            /// Without effect here.
            pub safety_identifier: Option<serde_json::Value>,
            /// Without effect here.
            pub prompt_cache_key: Option<serde_json::Value>,
        }

        impl $name {
            fn shared_sampling(&self) -> $crate::http::wire::sampling::Sampling<'_> {
                $crate::http::wire::sampling::Sampling {
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    logit_bias: self.logit_bias.as_ref(),
                    seed: self.seed,
                    n: self.n,
                    max_tokens: None,
                    stop: self.stop.as_ref(),
                    stop_token_ids: self.stop_token_ids.as_deref(),
                    ignore_eos: self.ignore_eos,
                    thinking_token_budget: None,
                    cache_salt: self.cache_salt.as_deref(),
                    priority: self.priority,
                }
            }

            /// Fields that were given and change nothing.
            pub fn ignored(&self) -> Vec<&'static str> {
                $crate::http::wire::sampling::ignored(&[
                    ("user", &self.user),
                    ("metadata", &self.metadata),
                    ("store", &self.store),
                    ("service_tier", &self.service_tier),
                    ("safety_identifier", &self.safety_identifier),
                    ("prompt_cache_key", &self.prompt_cache_key),
                ])
            }

            /// Whether a stream is wanted, and with usage.
            ///
            /// # Errors
            /// 400 for options without a stream.
            pub fn streaming(&self) -> Result<(bool, bool), $crate::http::error::ApiError> {
                let stream = self.stream.unwrap_or(false);
                match self.stream_options {
                    Some(_) if !stream => {
                        let why = "is allowed with `stream` only";
                        Err($crate::http::error::ApiError::invalid("stream_options", why))
                    }
                    options => Ok((stream, options.and_then(|o| o.include_usage).unwrap_or(false))),
                }
            }
        }
    };
}
pub(crate) use sampled_request;
