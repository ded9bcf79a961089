//! Who may ask: keys, compared by digest in constant time, and host names.
//!
//! A page in a browser can be made to ask `localhost` under a name of its own (DNS rebinding); so on
//! loopback the `Host` header must be a local name or one that was allowed.

use actix_web::http::header::HeaderMap;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::error::ApiError;
use super::options::ServeOptions;
use super::routes::console;

/// Paths that need no key: they say that the server lives, and nothing else. The console's files need none either:
/// they are the same for everybody, and what they show is asked for with a key.
const PUBLIC: [&str; 4] = ["/health", "/health/live", "/health/ready", "/ready"];

/// Who may ask.
pub struct Access {
    digests: Vec<[u8; 32]>,
    /// `None`: any host name.
    hosts: Option<Vec<String>>,
}

/// Which key asked; 0 where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(pub usize);

impl Access {
    /// From the options.
    pub fn new(options: &ServeOptions) -> Self {
        let digests = options.api_keys.iter().map(|k| Sha256::digest(k.as_bytes()).into()).collect();
        let allowed = options.allowed_hosts.iter().map(|h| h.to_ascii_lowercase());
        let local = ["localhost", "127.0.0.1", "[::1]"].map(String::from);
        let hosts = if options.host.is_loopback() {
            Some(local.into_iter().chain(allowed).collect())
        } else if options.allowed_hosts.is_empty() {
            None
        } else {
            Some(allowed.collect())
        };
        Self { digests, hosts }
    }

    /// Whether keys are asked for at all.
    pub fn has_keys(&self) -> bool {
        !self.digests.is_empty()
    }

    /// Lets a request in or says why not. `path` is the one that routes are chosen by.
    ///
    /// # Errors
    /// 403 for the wrong host, 401 without a key.
    pub fn check(&self, path: &str, headers: &HeaderMap, authority: Option<&str>) -> Result<KeyId, ApiError> {
        self.check_host(headers, authority)?;
        if self.digests.is_empty() || PUBLIC.contains(&path) || console::is_asset(path) {
            return Ok(KeyId(0));
        }
        key_of(headers).and_then(|key| self.find(key)).ok_or_else(ApiError::unauthorized)
    }

    fn check_host(&self, headers: &HeaderMap, authority: Option<&str>) -> Result<(), ApiError> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let named = headers.get_all("host").map(|h| h.to_str().unwrap_or_default());
        let mut named = named.chain(authority).peekable();
        let known = |host: &str| hosts.iter().any(|h| h.eq_ignore_ascii_case(without_port(host)));
        if named.peek().is_some() && named.all(known) {
            return Ok(());
        }
        Err(ApiError::forbidden("this server does not go by that host name; --allowed-host adds one"))
    }

    /// Looks at every key, whichever fits.
    fn find(&self, key: &[u8]) -> Option<KeyId> {
        let digest: [u8; 32] = Sha256::digest(key).into();
        let mut found = None;
        for (i, known) in self.digests.iter().enumerate() {
            let same: Choice = known.ct_eq(&digest);
            if bool::from(same) {
                found = Some(KeyId(i));
            }
        }
        found
    }
}

/// The key that a request brings: OpenAI's header or Anthropic's.
fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get("authorization") {
        let (scheme, key) = value.as_bytes().split_at_checked(7)?;
        return scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii());
    }
    headers.get("x-api-key").map(|k| k.as_bytes())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::{HeaderName, HeaderValue};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(n, v): &(&'static str, &str)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn keys_of_both_headers() {
        let options = ServeOptions { api_keys: vec!["one".into(), "two".into()], ..ServeOptions::default() };
        let access = Access::new(&options);
        let ask = |path: &str, name: &'static str, value: &str| {
            access
                .check(path, &headers(&[("host", "localhost:8000"), (name, value)]), None)
                .map_err(|e| e.status.as_u16())
        };
        assert_eq!(ask("/v1/models", "authorization", "Bearer two"), Ok(KeyId(1)));
        assert_eq!(ask("/v1/models", "authorization", "bearer one"), Ok(KeyId(0)));
        assert_eq!(ask("/v1/messages", "x-api-key", "one"), Ok(KeyId(0)));
        for wrong in ["Bearer on", "Bearer onee", "Bearer", "Basic one", "", "one"] {
            assert_eq!(ask("/v1/models", "authorization", wrong), Err(401), "{wrong}");
        }
        assert_eq!(ask("/health", "x-api-key", "wrong"), Ok(KeyId(0)));
        assert_eq!(ask("/metrics", "x-api-key", "wrong"), Err(401));
        assert_eq!(ask("/healthx", "x-api-key", ""), Err(401));
    }

    #[test]
    fn hosts_of_loopback() {
        let access = Access::new(&ServeOptions { allowed_hosts: vec!["Ponder.lan".into()], ..ServeOptions::default() });
        for good in ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]", "ponder.lan:80"] {
            assert!(access.check("/", &headers(&[("host", good)]), None).is_ok(), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:8000", "", "localhost:80:80", "[::2]"] {
            assert_eq!(access.check("/health", &headers(&[("host", bad)]), None).unwrap_err().status, 403, "{bad}");
        }
        let other = access.check("/", &headers(&[("host", "localhost")]), Some("evil.example"));
        assert_eq!(other.unwrap_err().status, 403, "an absolute target counts too");
        assert!(access.check("/", &headers(&[]), None).is_err());
    }
}
