//! `/openapi.json`, made from the types and the routes themselves.

use actix_web::HttpResponse;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi};

use super::error::ErrorBody;
use super::routes::{chat, completions, control, debug, health, live, messages, models, responses, tokens, trace};
use super::wire;

/// Errors of a route that takes a body.
#[derive(IntoResponses)]
pub enum Errors {
    /// A field is wrong, unknown or not implemented.
    #[response(status = 400)]
    BadRequest(ErrorBody),
    /// No or wrong API key.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// The wrong host name.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// There is no such model, or no such request.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// The body did not come in time.
    #[response(status = 408)]
    Timeout(ErrorBody),
    /// The body is too long.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The body is no JSON.
    #[response(status = 415)]
    NoJson(ErrorBody),
    /// More than a key's share is in flight.
    #[response(status = 429)]
    OverShare(ErrorBody),
    /// The engine failed.
    #[response(status = 500)]
    Internal(ErrorBody),
    /// Too much is in flight, or the server is shutting down.
    #[response(status = 503)]
    Unavailable(ErrorBody),
    /// The answer took too long.
    #[response(status = 504)]
    TookTooLong(ErrorBody),
}

/// Errors of a route without parameters.
#[derive(IntoResponses)]
pub enum Refusals {
    /// No or wrong API key.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// The wrong host name.
    #[response(status = 403)]
    Forbidden(ErrorBody),
}

/// Errors of a route that looks something up.
#[derive(IntoResponses)]
pub enum Lookups {
    /// A parameter is wrong.
    #[response(status = 400)]
    BadRequest(ErrorBody),
    /// No or wrong API key.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// The wrong host name.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// There is no such thing.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// The server is shutting down.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// Errors of a route that asks the engine how it is.
#[derive(IntoResponses)]
pub enum Unready {
    /// No or wrong API key.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// The wrong host name.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// The engine does not answer, or the server is shutting down.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

struct Key;

impl Modify for Key {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("key", bearer);
    }
}

/// The document.
#[derive(OpenApi)]
#[openapi(
    info(title = "Ponder", description = "An inference server for reasoning models."),
    paths(
        chat::chat, completions::completions, control::control, responses::responses,
        messages::messages, messages::count, models::list, models::one,
        tokens::tokenize, tokens::detokenize, health::live, health::ready, debug::metrics, debug::engine,
        live::live, live::life, trace::record, document,
    ),
    components(schemas(ErrorBody, wire::chat::ChatChunk, wire::live::LiveView)),
    security((), ("key" = [])),
    modifiers(&Key)
)]
struct Document;

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json"), Refusals))]
pub async fn document() -> HttpResponse {
    HttpResponse::Ok().json(Document::openapi())
}
