//! The engine, looked into: metrics for machines, a live view for people.

use std::sync::Arc;
use std::time::Duration;

use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::shared;
use crate::http::error::ApiError;
use crate::http::metrics::joined;
use crate::http::sse::{self, Frames};
use crate::http::state::{Served, State};
use ponder_actors::view::EngineView;

/// Metrics in the OpenMetrics format.
#[utoipa::path(get, path = "/metrics", tag = "operation",
    responses((status = 200, description = "Metrics", body = String, content_type = "application/openmetrics-text"),
        crate::http::openapi::Unready))]
pub async fn metrics(state: Data<State>) -> Result<HttpResponse, ApiError> {
    let mut texts = Vec::new();
    for model in &state.models {
        let view = model.engine.handle().view().await?;
        texts.push(model.metrics.text(&view));
    }
    let text = joined(&texts) + "# EOF\n";
    Ok(HttpResponse::Ok().content_type("application/openmetrics-text; version=1.0.0; charset=utf-8").body(text))
}

/// What to show.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Which model; the first one if it is left out.
    model: Option<String>,
    /// Milliseconds between two views, 50 to 10,000; 200 if it is left out.
    interval_ms: Option<u64>,
    /// One view as JSON instead of a stream of them.
    once: Option<bool>,
}

/// The state of the engine: sequences by what they do, blocks by who holds them, messages by actor.
#[utoipa::path(get, path = "/debug/engine", tag = "operation",
    params(("model" = Option<String>, Query, description = "Which model"),
        ("interval_ms" = Option<u64>, Query, description = "Milliseconds between two views, 50 to 10,000"),
        ("once" = Option<bool>, Query, description = "One view instead of a stream")),
    responses((status = 200, description = "Server-sent events, or one view", content(
            (Value = "text/event-stream"), (Value = "application/json"))),
        crate::http::openapi::Lookups))]
pub async fn engine(request: HttpRequest, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let watch =
        Query::<Watch>::from_query(request.query_string()).map_err(|e| ApiError::invalid("query", e))?.into_inner();
    self::watch(&watch, state, |state, model, view| shown(state, model, &view)).await
}

/// One view, or a stream of them, as `shown` makes them.
///
/// # Errors
/// If there is no such model, or the interval is out of range.
pub(super) async fn watch<T: Serialize + 'static>(
    watch: &Watch,
    state: Data<State>,
    shown: fn(&State, &Arc<Served>, EngineView) -> T,
) -> Result<HttpResponse, ApiError> {
    let interval = watch.interval_ms.unwrap_or(200);
    if !(50..=10_000).contains(&interval) {
        return Err(ApiError::invalid("interval_ms", format!("{interval} is not between 50 and 10000")));
    }
    let model = state.model(watch.model.as_deref())?.0.clone();
    if watch.once.unwrap_or(false) {
        let view = model.engine.handle().view().await?;
        return Ok(HttpResponse::Ok().json(shown(&state, &model, view)));
    }
    let state = shared(&state);
    Ok(sse::respond(state.options.limits.slow_client, move |mut sender| async move {
        let mut frames = Frames::default();
        while let Ok(view) = model.engine.handle().view().await {
            frames.data(&shown(&state, &model, view));
            if sender.send(&mut frames).await.is_err() {
                break;
            }
            if sender.during(tokio::time::sleep(Duration::from_millis(interval))).await.is_err() {
                break;
            }
        }
    }))
}

/// A view with the names that requests have on the wire.
fn shown(state: &State, model: &Arc<Served>, view: &EngineView) -> Value {
    let names = state.names(model);
    let mut json = serde_json::to_value(view).unwrap_or_default();
    for lane in json["lanes"].as_array_mut().into_iter().flatten() {
        let name = lane["request"].as_u64().and_then(|id| names.get(&id)).cloned();
        lane["id"] = name.into();
    }
    json["model"] = json!(model.names[0]);
    json["draining"] = json!(state.is_draining());
    json["admitted"] = json!({
        "answers": model.admission.in_flight().answers, "tokens": model.admission.in_flight().tokens,
    });
    json
}
