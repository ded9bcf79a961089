//! Steering a request that runs.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::reply;
use crate::http::body;
use crate::http::error::ApiError;
use crate::http::state::State;

/// What to do with a request that runs.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlRequest {
    /// The reply's id, as its first chunk has it.
    pub id: String,
    /// What to do.
    pub action: Action,
}

/// What to do.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// End the thinking now and answer. A request that does not think goes on as it is.
    #[serde(alias = "reasoning_end")]
    EndThinking,
}

/// What was done.
#[derive(Serialize, ToSchema)]
pub struct ControlResponse {
    /// The request.
    id: String,
    /// What was done.
    action: Action,
}

/// Ends the thinking of a request that runs: it answers from what it has.
#[utoipa::path(post, path = "/v1/chat/completions/control", tag = "inference", request_body = ControlRequest,
    responses((status = 200, body = ControlResponse), crate::http::openapi::Errors))]
pub async fn control(request: HttpRequest, state: Data<State>, payload: Payload) -> Result<HttpResponse, ApiError> {
    let asked: ControlRequest = body::read(&request, payload, &state.options.limits).await?;
    let Some(running) = state.find(&asked.id) else {
        return Err(ApiError::not_found("id: no such request is running"));
    };
    for request in running.requests {
        running.model.engine.handle().end_thinking(request).await?;
    }
    Ok(reply(&ControlResponse { id: asked.id, action: asked.action }, &[]))
}
