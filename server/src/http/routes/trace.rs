//! A trace of the next seconds, for Perfetto.

use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;

use crate::http::error::ApiError;
use crate::http::state::{Served, State};

/// Longest trace, in seconds.
const LONGEST: u64 = 60;

/// What to record.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// How long.
    seconds: Option<u64>,
    /// Which model; the first one if it is left out.
    model: Option<String>,
}

/// Records every actor message and request phase for some seconds; the reply opens in Perfetto.
#[utoipa::path(post, path = "/debug/trace", tag = "operation",
    params(("seconds" = Option<u64>, Query, description = "1 to 60; 5 if it is left out"),
        ("model" = Option<String>, Query, description = "Which model")),
    responses((status = 200, description = "Chrome's trace event format", body = serde_json::Value,
            content_type = "application/json"),
        crate::http::openapi::Lookups))]
pub async fn record(request: HttpRequest, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let asked =
        Query::<Record>::from_query(request.query_string()).map_err(|e| ApiError::invalid("query", e))?.into_inner();
    let seconds = asked.seconds.unwrap_or(5);
    if !(1..=LONGEST).contains(&seconds) {
        return Err(ApiError::invalid("seconds", format!("{seconds} is not between 1 and {LONGEST}")));
    }
    let model = state.model(asked.model.as_deref())?.0.clone();
    if model.tracing.swap(true, Ordering::Relaxed) {
        return Err(ApiError::unavailable("busy", "a trace is being recorded already", seconds));
    }
    let tracer = model.engine.handle().tracer();
    // Where the whole run is recorded, that goes on.
    let recording = Recording { model: &model, always: tracer.is_listening() };
    tracer.listen(true);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let trace = tracer.chrome_json().to_string();
    drop(recording);
    Ok(HttpResponse::Ok().content_type("application/json").body(trace))
}

/// Ends with the request, however that ends.
struct Recording<'a> {
    model: &'a Served,
    always: bool,
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.always {
            let tracer = self.model.engine.handle().tracer();
            tracer.listen(false);
            tracer.clear();
        }
        self.model.tracing.store(false, Ordering::Relaxed);
    }
}
