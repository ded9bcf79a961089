//! `/v1/completions`: text that goes on, without a chat.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::sampling::{Sampling, sampled_request};
use super::usage::{Timings, Usage};
use crate::http::error::ApiError;
use crate::prompt::Prompt;

/// OpenAI's default of `max_tokens` here.
const MAX_TOKENS: u32 = 16;
/// Most prompts of one request.
pub const MAX_PROMPTS: usize = 128;

sampled_request! {
    /// Texts that the model continues.
    CompletionRequest {
        /// One text or several, as text or as tokens.
        pub prompt: PromptInput,
        /// Most tokens to generate; 16 if it is left out.
        #[schema(minimum = 1)]
        pub max_tokens: Option<u32>,
        /// Puts the prompt before the answer.
        pub echo: Option<bool>,
        /// As many as `n`: all answers are returned.
        #[schema(minimum = 1, maximum = 128)]
        pub best_of: Option<u32>,
    }
}

/// One text or several, as text or as tokens.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum PromptInput {
    /// A text.
    Text(String),
    /// Tokens of one text.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Tokens of several texts.
    TokenLists(Vec<Vec<u32>>),
}

impl PromptInput {
    /// All of them.
    pub fn prompts(&self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Raw(text.clone())],
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens.clone())],
            Self::Texts(texts) => texts.iter().map(|t| Prompt::Raw(t.clone())).collect(),
            Self::TokenLists(lists) => lists.iter().map(|t| Prompt::Tokens(t.clone())).collect(),
        }
    }
}

impl CompletionRequest {
    /// The fields about sampling.
    ///
    /// # Errors
    /// 400 if `best_of` asks for answers that are thrown away.
    pub fn sampling(&self) -> Result<Sampling<'_>, ApiError> {
        if self.best_of.is_some_and(|b| b != self.n.unwrap_or(1)) {
            return Err(ApiError::invalid("best_of", "is not n; choosing among answers is not implemented"));
        }
        Ok(Sampling { max_tokens: Some(self.max_tokens.unwrap_or(MAX_TOKENS)), ..self.shared_sampling() })
    }
}

/// A reply, or a part of one in a stream.
#[derive(Serialize, ToSchema)]
pub struct TextCompletion<'a> {
    /// Its id.
    pub id: &'a str,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name, as it was asked for.
    pub model: &'a str,
    /// The answers.
    pub choices: Vec<TextChoice>,
    /// Which program answered.
    pub system_fingerprint: &'static str,
    /// What they cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// How long it took; of the answer that ended last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// An answer.
#[derive(Serialize, ToSchema)]
pub struct TextChoice {
    /// Which: those of the first prompt come first.
    pub index: usize,
    /// What it says, or what is new.
    pub text: String,
    /// Always null here.
    pub logprobs: Option<Value>,
    /// stop or length; null before the end.
    pub finish_reason: Option<&'static str>,
    /// The stop string or token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
}
