//! Errors on the wire: one type, in OpenAI's shape, or in Anthropic's under `/v1/messages`.
//!
//! Clients retry 408, 429 and all of 5xx on their own. What would fail the same way again says so
//! (`x-should-retry: false`); what is only a matter of time says when (`retry-after`).

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use ponder_engine::Error;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

/// What a client is told instead of an answer.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// OpenAI's `type`.
    pub kind: &'static str,
    /// For people.
    pub message: String,
    /// The field that it is about.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
    /// Seconds after which another try makes sense, 1 to 120.
    pub retry_after: Option<u64>,
}

/// An error's body.
#[derive(Serialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    error: ErrorDetail,
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
pub struct ErrorDetail {
    /// For people.
    message: String,
    /// Kind of error.
    r#type: String,
    /// The field that it is about.
    param: Option<String>,
    /// For programs.
    code: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }
    /// 400 about a field.
    pub fn invalid(param: impl Into<String>, message: impl fmt::Display) -> Self {
        let param = param.into();
        let text = if param.is_empty() { message.to_string() } else { format!("{param}: {message}") };
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", text);
        Self { param: (!param.is_empty()).then_some(param), ..error }
    }
    /// 400 without a field: the body is no JSON, say.
    pub fn malformed(message: impl fmt::Display) -> Self {
        Self::invalid("", message)
    }
    /// 401.
    pub fn unauthorized() -> Self {
        let message = "no or wrong API key; send it as `Authorization: Bearer KEY`";
        let error = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        Self { code: Some("invalid_api_key"), ..error }
    }
    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }
    /// 404 of a model.
    pub fn no_model(name: &str) -> Self {
        let shown: String = name.chars().take(100).collect();
        let message = format!("model: there is no {shown:?} here; see /v1/models");
        let error = Self::new(StatusCode::NOT_FOUND, "not_found_error", message);
        Self { param: Some("model".into()), code: Some("model_not_found"), ..error }
    }
    /// 404 of anything else.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }
    /// 408: the request did not arrive in time.
    pub fn slow_body(seconds: u64) -> Self {
        let message = format!("the request did not arrive within {seconds} s");
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message)
    }
    /// 413.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the request is longer than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }
    /// 429: more than a client's share.
    pub fn over_share(message: impl Into<String>, retry_after: u64) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { code: Some("rate_limit_exceeded"), retry_after: Some(retry_after), ..error }
    }
    /// 503: no more can be taken now.
    pub fn unavailable(code: &'static str, message: impl Into<String>, retry_after: u64) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded_error", message);
        Self { code: Some(code), retry_after: Some(retry_after), ..error }
    }
    /// 504: the request took longer than it may. It would again.
    pub fn timeout(seconds: u64) -> Self {
        let message = format!("the answer did not end within {seconds} s");
        Self { code: Some("timeout"), ..Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", message) }
    }
    /// 500. The message is for the client: no paths, no prompts.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }
    /// An answer that failed in the engine.
    pub fn failed(reason: &str) -> Self {
        if reason.starts_with("numerical error") {
            return Self { code: Some("numerical_error"), ..Self::internal(reason) };
        }
        if reason.starts_with(ponder_engine::grammar::GRAMMAR_ERROR) {
            return Self { code: Some("grammar_error"), ..Self::internal(reason) };
        }
        if reason.starts_with(ponder_engine::schedule::QUEUE_TIMEOUT) {
            return Self::unavailable("queue_timeout", "the request waited longer than it may", 10);
        }
        tracing::error!(target: "ponder::http", reason, "a request failed");
        Self::internal("the engine failed on this request")
    }
    /// For a response without a body of ours.
    pub fn of_status(status: StatusCode) -> Self {
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        let reason = status.canonical_reason().unwrap_or("error").to_lowercase();
        Self::new(status, kind, reason)
    }

    /// The body, in OpenAI's shape.
    pub fn body(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }
    /// The body, in Anthropic's shape.
    pub fn anthropic_body(&self) -> Value {
        let kind = match self.kind {
            "server_error" => "api_error",
            other => other,
        };
        json!({ "type": "error", "error": { "type": kind, "message": self.message }})
    }
    /// The whole response with this body.
    pub fn response(&self, body: Value) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(seconds) = self.retry_after {
            response.insert_header(("retry-after", seconds.clamp(1, 120).to_string()));
        } else if self.status.is_server_error() {
            response.insert_header(("x-should-retry", "false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header(("www-authenticate", "Bearer"));
        }
        let mut response = response.json(body);
        response.extensions_mut().insert(self.clone());
        response
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }
    fn error_response(&self) -> HttpResponse {
        self.response(self.body())
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid { field, message } if field == "engine" => Self::unavailable("shutting_down", message, 5),
            Error::Invalid { field, message } => {
                let too_long = field == "prompt" && message.contains("leave no room");
                let error = Self::invalid(field, message);
                Self { code: too_long.then_some("context_length_exceeded"), ..error }
            }
            Error::Template(message) => Self::invalid("messages", format!("the chat template refuses them: {message}")),
            Error::Tokenizer(message) => Self::invalid("prompt", format!("cannot be tokenised: {message}")),
            other => {
                tracing::error!(target: "ponder::http", error = %other, "internal error");
                Self::internal("internal error")
            }
        }
    }
}
