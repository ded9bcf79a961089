//! The web console's files: part of the program, asked for without a key, and allowed to load nothing from elsewhere.

use std::sync::LazyLock;

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse};
use sha2::{Digest, Sha256};

use crate::http::error::ApiError;

/// A file of the page.
struct Asset {
    path: &'static str,
    content_type: &'static str,
    body: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

macro_rules! assets {
    ($($path:literal $kind:ident $file:literal,)*) => {
        &[$(Asset {
            path: $path,
            content_type: $kind,
            body: include_str!(concat!("../../../web/", $file)),
        }),*]
    };
}

/// All files. The page itself is `/`, what it loads lies under `/console/`.
const ASSETS: &[Asset] = assets![
    "/" HTML "index.html",
    "/console/icon.svg" SVG "icon.svg",
    "/console/base.css" CSS "base.css",
    "/console/chat.css" CSS "chat.css",
    "/console/engine.css" CSS "engine.css",
    "/console/main.js" JS "main.js",
    "/console/dom.js" JS "dom.js",
    "/console/api.js" JS "api.js",
    "/console/text.js" JS "text.js",
    "/console/chat.js" JS "chat.js",
    "/console/turn.js" JS "turn.js",
    "/console/engine.js" JS "engine.js",
    "/console/rates.js" JS "rates.js",
    "/console/actors.js" JS "actors.js",
    "/console/lanes.js" JS "lanes.js",
    "/console/blocks.js" JS "blocks.js",
    "/console/plots.js" JS "plots.js",
    "/console/life.js" JS "life.js",
    "/console/trace.js" JS "trace.js",
    "/console/vendor/uPlot.js" JS "vendor/uPlot.min.js",
    "/console/vendor/uPlot.css" CSS "vendor/uPlot.min.css",
    "/console/vendor/LICENSE-uPlot" TEXT "vendor/LICENSE-uPlot",
];

/// Nothing from elsewhere, nothing inline, no frames, no forms.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Strong validators, one per file: a page of another version of the program is never mixed with this one's.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let tag = |asset: &Asset| {
        let digest = Sha256::digest(asset.body.as_bytes());
        let hex: String = digest.iter().take(12).map(|b| format!("{b:02x}")).collect();
        format!("\"{hex}\"")
    };
    ASSETS.iter().map(tag).collect()
});

/// Whether this path is a file of the console.
pub fn is_asset(path: &str) -> bool {
    ASSETS.iter().any(|a| a.path == path)
}

/// A file of the console.
///
/// # Errors
/// 404 if there is no such file.
pub async fn asset(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let found = ASSETS.iter().zip(TAGS.iter()).find(|(a, _)| a.path == request.path());
    let Some((asset, tag)) = found else {
        return Err(ApiError::not_found("the console has no such file"));
    };
    let known = request.headers().get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let known = known.is_some_and(|tags| tags.split(',').any(|t| t.trim().trim_start_matches("W/") == tag));
    let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header((header::ETAG, tag.as_str()))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header(("cross-origin-opener-policy", "same-origin"))
        .insert_header(("cross-origin-resource-policy", "same-origin"));
    if known {
        return Ok(response.finish());
    }
    Ok(response.content_type(asset.content_type).body(asset.body))
}
