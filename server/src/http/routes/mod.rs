//! The routes: one file per concept.

pub mod chat;
pub mod completions;
pub mod console;
pub mod control;
pub mod debug;
pub mod health;
pub mod live;
pub mod messages;
pub mod models;
pub mod responses;
pub mod tokens;
pub mod trace;

use std::sync::Arc;

use actix_web::web::{Data, ServiceConfig, get, head, post, resource};
use actix_web::{HttpRequest, HttpResponse};

use super::error::ApiError;
use super::state::State;

/// All routes.
pub fn configure(config: &mut ServiceConfig) {
    config
        .service(resource("/v1/chat/completions").route(post().to(chat::chat)))
        .service(resource("/v1/chat/completions/control").route(post().to(control::control)))
        .service(resource("/v1/completions").route(post().to(completions::completions)))
        .service(resource("/v1/responses").route(post().to(responses::responses)))
        .service(resource("/v1/messages").route(post().to(messages::messages)))
        .service(resource("/v1/messages/count_tokens").route(post().to(messages::count)))
        .service(resource("/v1/models").route(get().to(models::list)))
        .service(resource("/v1/models/{name:.*}").route(get().to(models::one)))
        .service(resource("/tokenize").route(post().to(tokens::tokenize)))
        .service(resource("/detokenize").route(post().to(tokens::detokenize)))
        .service(resource(["/health", "/health/live"]).route(get().to(health::live)))
        .service(resource(["/ready", "/health/ready"]).route(get().to(health::ready)))
        .service(resource("/metrics").route(get().to(debug::metrics)))
        .service(resource("/openapi.json").route(get().to(super::openapi::document)))
        .service(resource("/debug/trace").route(post().to(trace::record)))
        .service(resource("/debug/engine").route(get().to(debug::engine)))
        .service(resource("/debug/live").route(get().to(live::live)))
        .service(resource("/debug/life").route(get().to(live::life)))
        .service(resource(["/", "/console/{file:.*}"]).route(get().to(console::asset)).route(head().to(console::asset)))
        .default_service(actix_web::web::to(nothing));
}

async fn nothing(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let path: String = request.path().chars().take(100).collect();
    Err(ApiError::not_found(format!("there is nothing at {path}; see /openapi.json")))
}

/// The shared state, out of actix's wrapper.
fn shared(state: &Data<State>) -> Arc<State> {
    Arc::clone(state)
}

/// A JSON reply, with what was taken and changed nothing in a header.
fn reply(value: &impl serde::Serialize, ignored: &[&str]) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    if !ignored.is_empty() {
        response.insert_header(("x-ignored-params", ignored.join(", ")));
    }
    response.json(value)
}

/// The header of [`reply`] on a response that streams.
fn with_ignored(mut response: HttpResponse, ignored: &[&str]) -> HttpResponse {
    use actix_web::http::header::{HeaderName, HeaderValue};
    if !ignored.is_empty()
        && let Ok(value) = HeaderValue::from_str(&ignored.join(", "))
    {
        response.headers_mut().insert(HeaderName::from_static("x-ignored-params"), value);
    }
    response
}

/// Runs what takes its time on another thread.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match actix_web::web::block(work).await {
        Ok(done) => done,
        Err(_) => Err(ApiError::internal("internal error")),
    }
}
