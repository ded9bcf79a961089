//! `/tokenize` and `/detokenize`.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};

use super::{blocking, reply};
use crate::http::body;
use crate::http::error::ApiError;
use crate::http::prompt::{ChatPrompt, messages, render};
use crate::http::state::{Served, State};
use crate::http::wire::tokens::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};

/// Tokens of a text or a chat.
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest,
    responses((status = 200, body = TokenizeResponse), crate::http::openapi::Errors))]
pub async fn tokenize(request: HttpRequest, state: Data<State>, payload: Payload) -> Result<HttpResponse, ApiError> {
    let asked: TokenizeRequest = body::read(&request, payload, &state.options.limits).await?;
    let model = state.model(asked.model.as_deref())?.0.clone();
    let done = blocking(move || {
        let tokens = tokens(&model, &asked)?;
        let tokenizer = model.engine.tokenizer();
        let strs = || tokens.iter().map(|t| tokenizer.decode_with_special(&[*t])).collect();
        let token_strs = asked.return_token_strs.unwrap_or(false).then(strs);
        Ok(TokenizeResponse { count: tokens.len(), max_model_len: model.engine.max_model_len(), tokens, token_strs })
    });
    Ok(reply(&done.await?, &[]))
}

fn tokens(model: &Served, asked: &TokenizeRequest) -> Result<Vec<u32>, ApiError> {
    match (&asked.prompt, &asked.messages) {
        (Some(text), None) => {
            for (field, given) in [
                ("add_generation_prompt", asked.add_generation_prompt.is_some()),
                ("chat_template_kwargs", asked.chat_template_kwargs.is_some()),
            ] {
                if given {
                    return Err(ApiError::invalid(field, "is for messages, not for a prompt"));
                }
            }
            let prompter = model.engine.prompter();
            let special = asked.add_special_tokens.unwrap_or(true);
            Ok(if special { prompter.text_tokens(text)? } else { prompter.tokenizer().encode(text)? })
        }
        (None, Some(chat)) => {
            if asked.add_special_tokens.is_some() {
                return Err(ApiError::invalid("add_special_tokens", "is for a prompt; the chat template decides"));
            }
            let kwargs = asked.chat_template_kwargs.clone().unwrap_or_default();
            let prompt = ChatPrompt { messages: messages(chat)?, kwargs, ..ChatPrompt::default() };
            Ok(render(model, prompt, asked.add_generation_prompt.unwrap_or(true))?.tokens)
        }
        (None, None) => Err(ApiError::invalid("prompt", "is missing; so is messages")),
        (Some(_), Some(_)) => Err(ApiError::invalid("messages", "is given beside prompt; leave one of them out")),
    }
}

/// Text of tokens.
#[utoipa::path(post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest,
    responses((status = 200, body = DetokenizeResponse), crate::http::openapi::Errors))]
pub async fn detokenize(request: HttpRequest, state: Data<State>, payload: Payload) -> Result<HttpResponse, ApiError> {
    let asked: DetokenizeRequest = body::read(&request, payload, &state.options.limits).await?;
    let engine = &state.model(asked.model.as_deref())?.0.engine;
    let vocab = engine.config().vocab;
    if let Some(token) = asked.tokens.iter().find(|t| **t as usize >= vocab) {
        return Err(ApiError::invalid("tokens", format!("{token} is not below the vocabulary's {vocab}")));
    }
    Ok(reply(&DetokenizeResponse { prompt: engine.tokenizer().decode_with_special(&asked.tokens) }, &[]))
}
