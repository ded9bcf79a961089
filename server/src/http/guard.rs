//! What every request passes: an id, the host and the key, panics, errors in one shape, a line in the log.

use std::fmt::{Display, Formatter};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse, ResponseError, web};
use futures::FutureExt;

use super::auth::KeyId;
use super::error::ApiError;
use super::state::State;
use super::wire;

/// A request's id in logs and headers, and who asked.
#[derive(Clone)]
pub struct Caller {
    /// The client's `x-request-id`, or one of ours.
    pub request_id: String,
    /// The trace that it belongs to.
    pub trace: Option<Trace>,
    /// Which key.
    pub key: KeyId,
    /// When its head had arrived.
    pub arrived: Instant,
}

/// Where in a trace a request stands, by W3C's `traceparent`; shown as the trace's id in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace; never 0.
    pub id: u128,
    /// The caller's span; never 0.
    pub parent: u64,
    /// Whether the caller records it.
    pub sampled: bool,
}

impl Display for Trace {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.id)
    }
}

impl Trace {
    /// The header's: version, trace, parent and flags in hexadecimal.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let parts: Vec<&str> = headers.get("traceparent")?.to_str().ok()?.split('-').collect();
        let hex = |part: &str, len: usize| {
            let good = part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            good.then(|| u128::from_str_radix(part, 16).ok())?
        };
        let [version, trace, parent, flags, ..] = parts[..] else { return None };
        let (version, flags) = (hex(version, 2)?, hex(flags, 2)?);
        let (id, parent) = (hex(trace, 32)?, hex(parent, 16)? as u64);
        (version != 0xff && id != 0 && parent != 0).then_some(Self { id, parent, sampled: flags & 1 == 1 })
    }
}

impl Caller {
    /// Of a request that passed the guard.
    pub fn of(request: &HttpRequest) -> Self {
        request.extensions().get::<Self>().cloned().expect("every request passes the guard")
    }
}

/// The client's own id, if it can stand in a log.
fn request_id(headers: &HeaderMap) -> String {
    let theirs = headers.get("x-request-id").and_then(|v| v.to_str().ok());
    let sane = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    theirs.filter(sane).map_or_else(|| wire::fresh_id("req"), String::from)
}

/// The middleware.
///
/// # Errors
/// Those of the handlers, which are responses already.
pub async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let arrived = Instant::now();
    let state = request.app_data::<web::Data<State>>().map(|s| Arc::clone(s)).expect("set for every worker");
    let (request_id, trace) = (request_id(request.headers()), Trace::of(request.headers()));
    let (method, path) = (request.method().clone(), request.path().to_string());
    let anthropic = path.starts_with("/v1/messages");
    let authority = request.head().uri.authority().map(|a| a.as_str().to_string());
    let access = state.access.check(&path, request.headers(), authority.as_deref());
    let outcome = match access {
        Err(refused) => Ok(request.into_response(refused.error_response())),
        Ok(key) => {
            request.extensions_mut().insert(Caller { request_id: request_id.clone(), trace, key, arrived });
            match AssertUnwindSafe(next.call(request)).catch_unwind().await {
                Ok(outcome) => outcome.map(ServiceResponse::map_into_boxed_body),
                Err(_) => {
                    tracing::error!(target: "ponder::http", request_id, "a handler panicked");
                    Err(InternalError::from_response("panic", ApiError::internal("internal error").error_response())
                        .into())
                }
            }
        }
    };
    let outcome = outcome.map(|response| in_shape(response, anthropic));
    let status = outcome.as_ref().map_or_else(|e| e.as_response_error().status_code(), ServiceResponse::status);
    tracing::info!(
        target: "ponder::http", request_id, trace_id = trace.map(display), %method, path = %shown(&path), status = status.as_u16(),
        ms = arrived.elapsed().as_millis() as u64, "answered"
    );
    outcome.map(|mut response| {
        let headers = response.headers_mut();
        set(headers, "x-request-id", &request_id);
        set(headers, "x-content-type-options", "nosniff");
        if anthropic {
            set(headers, "request-id", &request_id);
        }
        response
    })
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// A path for the log: bounded, and without anything that could break its line.
fn shown(path: &str) -> String {
    path.chars().take(200).flat_map(char::escape_default).collect()
}

/// Errors that are not ours yet get our body; those for Anthropic's clients get theirs.
fn in_shape(response: ServiceResponse<BoxBody>, anthropic: bool) -> ServiceResponse<BoxBody> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let ours = response.response().extensions().get::<ApiError>().cloned();
    let json = response.headers().get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    if ours.is_some() && !anthropic || ours.is_none() && json {
        return response;
    }
    let error = ours.unwrap_or_else(|| ApiError::of_status(status));
    let body = if anthropic { error.anthropic_body() } else { error.body() };
    let (request, old) = response.into_parts();
    let mut new: HttpResponse = error.response(body);
    for name in ["allow", "retry-after"] {
        if let Some(value) = old.headers().get(name) {
            new.headers_mut().insert(HeaderName::from_static(name), value.clone());
        }
    }
    ServiceResponse::new(request, new)
}
