//! What the console watches: the engine several times a second, and the life of one answer.

use std::sync::Arc;

use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use ponder_engine::request::{RequestId, SeqId};
use serde::Deserialize;

use super::debug::{Watch, watch};
use super::reply;
use crate::http::error::ApiError;
use crate::http::state::{Served, State};
use crate::http::wire::live::{Life, LiveView};
use ponder_actors::view::EngineView;

/// The engine, compactly: lanes, a block map of at most 4096 cells, messages by actor, counts.
#[utoipa::path(get, path = "/debug/live", tag = "operation",
    params(("model" = Option<String>, Query, description = "Which model"),
        ("interval_ms" = Option<u64>, Query, description = "Milliseconds between two views, 50 to 10,000"),
        ("once" = Option<bool>, Query, description = "One view instead of a stream")),
    responses((status = 200, description = "Server-sent events with LiveView objects, or one of them", content(
            (LiveView = "application/json"), (serde_json::Value = "text/event-stream"))),
        crate::http::openapi::Lookups))]
pub async fn live(request: HttpRequest, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let asked =
        Query::<Watch>::from_query(request.query_string()).map_err(|e| ApiError::invalid("query", e))?.into_inner();
    watch(&asked, state, shown).await
}

fn shown(state: &State, model: &Arc<Served>, view: EngineView) -> LiveView {
    let report = model.engine.handle().tracer().speculation();
    LiveView {
        draining: state.is_draining(),
        admitted: model.admission.in_flight().answers,
        ..LiveView::new(model.names[0].clone(), view, &report, state.names(model))
    }
}

/// Whose life.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whose {
    /// Which model; the first one if it is left out.
    model: Option<String>,
    /// The engine's number of the request, as a lane has it.
    request: u64,
    /// Which of its answers; the first one if it is left out.
    choice: Option<u8>,
}

/// What an answer did since when, what was decided for it, and what guessing brought: of those in flight and of the
/// last 64 that ended.
#[utoipa::path(get, path = "/debug/life", tag = "operation",
    params(("model" = Option<String>, Query, description = "Which model"),
        ("request" = u64, Query, description = "The engine's number of the request, as a lane has it"),
        ("choice" = Option<u8>, Query, description = "Which of its answers")),
    responses((status = 200, body = Life), crate::http::openapi::Lookups))]
pub async fn life(request: HttpRequest, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let asked =
        Query::<Whose>::from_query(request.query_string()).map_err(|e| ApiError::invalid("query", e))?.into_inner();
    let model = state.model(asked.model.as_deref())?.0.clone();
    let (number, choice) = (asked.request, asked.choice.unwrap_or(0));
    let life = model.engine.handle().life(SeqId { request: RequestId(number), choice }).await?;
    let life = life.ok_or_else(|| ApiError::not_found("request: neither in flight nor among the last that ended"))?;
    let id = state.names(&model).remove(&number);
    Ok(reply(&Life::new(number, choice, id, life), &[]))
}
