//! Whether the server lives, and whether it takes requests. Neither asks the engine for a token.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::Serialize;
use utoipa::ToSchema;

use super::reply;
use crate::http::error::ApiError;
use crate::http::state::State;

/// How it stands.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    status: &'static str,
}

/// The program lives.
#[utoipa::path(get, path = "/health", tag = "health", responses((status = 200, body = Health), crate::http::openapi::Refusals))]
pub async fn live() -> HttpResponse {
    reply(&Health { status: "ok" }, &[])
}

/// It takes requests: it is not shutting down, and the engine's actors answer.
#[utoipa::path(get, path = "/ready", tag = "health", responses((status = 200, body = Health), crate::http::openapi::Unready))]
pub async fn ready(state: Data<State>) -> Result<HttpResponse, ApiError> {
    if state.is_draining() {
        return Err(ApiError::unavailable("shutting_down", "the server is shutting down", 5));
    }
    for model in &state.models {
        let view = tokio::time::timeout(Duration::from_secs(1), model.engine.handle().view()).await;
        if !matches!(view, Ok(Ok(_))) {
            return Err(ApiError::unavailable("not_ready", "the engine does not answer", 5));
        }
    }
    Ok(reply(&Health { status: "ok" }, &[]))
}
