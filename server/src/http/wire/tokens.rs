//! `/tokenize` and `/detokenize`, as vLLM has them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::chat::{ChatMessage, TemplateArguments};

/// Text to tokens: a `prompt`, or `messages` through the chat template.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeRequest {
    /// Name of the model; the first one served if it is left out.
    pub model: Option<String>,
    /// Plain text.
    pub prompt: Option<String>,
    /// A chat.
    pub messages: Option<Vec<ChatMessage>>,
    /// Begins plain text with the model's token for that, where it has one; true if left out.
    pub add_special_tokens: Option<bool>,
    /// Ends a chat with the opening of the answer; true if left out.
    pub add_generation_prompt: Option<bool>,
    /// For the chat template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<TemplateArguments>,
    /// Tells the text of each token too.
    pub return_token_strs: Option<bool>,
}

/// Tokens of a text.
#[derive(Serialize, ToSchema)]
pub struct TokenizeResponse {
    /// How many.
    pub count: usize,
    /// Longest prompt and answer together.
    pub max_model_len: usize,
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The text of each; bytes that are no whole character become U+FFFD.
    pub token_strs: Option<Vec<String>>,
}

/// Tokens to text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    /// Name of the model; the first one served if it is left out.
    pub model: Option<String>,
    /// The tokens.
    #[schema(max_items = 1048576)]
    pub tokens: Vec<u32>,
}

/// Text of tokens.
#[derive(Serialize, ToSchema)]
pub struct DetokenizeResponse {
    /// The text, control tokens included.
    pub prompt: String,
}
