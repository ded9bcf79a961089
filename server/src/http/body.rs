//! Request bodies: bounded in size and time, strict in content. Whatever is wrong is named by its field.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, web};
use futures::StreamExt;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::options::Limits;

/// Reads a JSON body. A field that is not known is refused by its name.
///
/// # Errors
/// 400 for what is no such request, 408 if it comes too slowly, 413 if it is too long, 415 if it is no JSON.
pub async fn read<T: DeserializeOwned>(
    request: &HttpRequest,
    payload: web::Payload,
    limits: &Limits,
) -> Result<T, ApiError> {
    let json = request.headers().get(CONTENT_TYPE).and_then(|t| t.to_str().ok()).is_some_and(is_json);
    if !json {
        let message = "content-type: must be application/json";
        return Err(ApiError { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, ..ApiError::malformed(message) });
    }
    parse(&bytes(payload, limits.body_bytes, limits.arrival).await?)
}

/// `application/json`, with parameters or without.
fn is_json(value: &str) -> bool {
    value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

async fn bytes(mut payload: web::Payload, limit: usize, within: Duration) -> Result<Vec<u8>, ApiError> {
    let read = async {
        let mut body = Vec::new();
        while let Some(chunk) = payload.next().await {
            let chunk = chunk.map_err(|e| ApiError::malformed(format!("the body breaks off: {e}")))?;
            if body.len() + chunk.len() > limit {
                return Err(ApiError::too_large(limit));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    tokio::time::timeout(within, read).await.unwrap_or_else(|_| Err(ApiError::slow_body(within.as_secs())))
}

/// Reads a request from JSON.
///
/// # Errors
/// 400, with the field if it is about one.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed: T = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        refused(if path == "." { "" } else { &path }, error.inner())
    })?;
    json.end().map_err(|e| ApiError::malformed(format!("the body is not one JSON value: {e}")))?;
    Ok(parsed)
}

fn refused(path: &str, error: &serde_json::Error) -> ApiError {
    if !error.is_data() {
        return ApiError::malformed(format!("the body is not valid JSON: {error}"));
    }
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(before, _)| before);
    let named = |text: &str| text.split('`').nth(1).unwrap_or_default().to_string();
    let inside = |name: String| if path.is_empty() { name } else { format!("{path}.{name}") };
    if text.starts_with("unknown field") {
        // The path has the name already, unless the field is inside something that was read ahead.
        let name = named(text);
        let known = path == name || path.ends_with(&format!(".{name}"));
        return ApiError::invalid(
            if known { path.to_string() } else { inside(name) },
            "is not a field of this request, or not implemented",
        );
    }
    if text.starts_with("missing field") {
        return ApiError::invalid(inside(named(text)), "is missing");
    }
    ApiError::invalid(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[allow(dead_code)]
        n: u8,
    }
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code)]
        list: Vec<Inner>,
        #[allow(dead_code)]
        name: Option<String>,
    }

    #[test]
    fn what_is_wrong_has_a_name() {
        let param = |json: &str| {
            let error = parse::<Outer>(json.as_bytes()).unwrap_err();
            assert_eq!(error.status, 400);
            (error.param, error.message)
        };
        assert_eq!(param(r#"{"list": [], "nmae": 1}"#).0.as_deref(), Some("nmae"));
        assert_eq!(param(r#"{"list": [{"n": 1}, {"n": 1, "m": 2}]}"#).0.as_deref(), Some("list[1].m"));
        assert_eq!(param(r#"{"list": [{"n": "1"}]}"#).0.as_deref(), Some("list[0].n"));
        assert_eq!(param(r#"{"list": [{"n": 256}]}"#).0.as_deref(), Some("list[0].n"));
        assert_eq!(param("{}").0.as_deref(), Some("list"));
        assert_eq!(param("[]").0, None);
        for broken in ["", "{", "{\"list\": []} x", "\u{feff}{}", "{\"list\": [1e999]}", "\"\\ud800\""] {
            param(broken);
        }
        param(&"[".repeat(100_000));
        assert!(parse::<Outer>(br#"{"list": [], "name": null}"#).is_ok());
    }
}
