//! Where snapshots come from: a server, asked over HTTP every so often on a thread of its own.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use super::snapshot::Snapshot;

/// A server that does not answer in this time is away.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most bytes of a page; a pool of a million blocks has a few megabytes.
const PAGE: u64 = 64 << 20;

/// A server.
#[derive(Clone)]
pub struct Source {
    agent: ureq::Agent,
    url: String,
    key: Option<String>,
    model: Option<String>,
}

impl Source {
    /// A server at `url`; without a name its first model.
    ///
    /// # Errors
    /// If that is no URL of a server that can be asked.
    pub fn new(url: &str, key: Option<String>, model: Option<String>) -> Result<Self> {
        let url = url.trim_end_matches('/').to_string();
        if let Some(rest) = url.strip_prefix("https://") {
            bail!("url: https://{rest}: no TLS is spoken here; ask the server itself over http, or a tunnel to it");
        }
        let url = if url.contains("://") { url } else { format!("http://{url}") };
        if !url.starts_with("http://") || url.parse::<ureq::http::Uri>().map_or(true, |u| u.host().is_none()) {
            bail!("url: {url:?} is no address such as http://127.0.0.1:8000");
        }
        if key.iter().any(|k| ureq::http::HeaderValue::from_str(k).is_err()) {
            bail!("api-key: has characters that no header can hold");
        }
        // A proxy of the environment is for the world, not for a server of ours.
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
        let config = config.proxy(None).max_redirects(0).user_agent("ponder-top");
        Ok(Self { agent: config.build().new_agent(), url, key, model })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Looks once. Counters first: what ends in between is then missed once, not counted twice.
    pub fn look(&self) -> Result<Snapshot> {
        let metrics = self.get("/metrics", &[])?;
        let mut query = vec![("once", "true")];
        query.extend(self.model.iter().map(|m| ("model", m.as_str())));
        let engine = self.get("/debug/engine", &query)?;
        match serde_json::from_str::<Value>(&engine) {
            Ok(engine) if engine.is_object() => Ok(Snapshot::read(&engine, &metrics)),
            _ => bail!("{}/debug/engine: is not what a ponder server shows", self.url),
        }
    }

    fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<String> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        request = query.iter().fold(request, |r, (name, value)| r.query(*name, *value));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let told = |why: String| anyhow::anyhow!("{}{path}: {}", self.url, why.lines().next().unwrap_or_default());
        let mut response = request.call().map_err(|e| told(said(&e)))?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(PAGE).read_to_string();
        match status {
            200 => body.map_err(|e| told(said(&e))),
            401 | 403 => Err(told(format!("status {status}: it wants another --api-key, or another host name"))),
            404 if self.model.is_some() => Err(told("status 404: no such model there, or no ponder server".into())),
            404 => Err(told("status 404: there is no ponder server".into())),
            _ => Err(told(format!("status {status}"))),
        }
    }

    /// Looks every so often, until nobody listens. A snapshot that is not taken in time is not followed by more.
    pub fn watch(self, every: Duration) -> Receiver<Result<Snapshot, String>> {
        let (sender, receiver): (SyncSender<_>, _) = sync_channel(1);
        std::thread::spawn(move || {
            while sender.send(self.look().map_err(|e| format!("{e:#}"))).is_ok() {
                std::thread::sleep(every);
            }
        });
        receiver
    }
}

/// What the matter is, in the words of the operating system where it has some.
fn said(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (url, meant) in [
            ("http://a:1/", "http://a:1"),
            ("127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://[::1]:8", "http://[::1]:8"),
        ] {
            assert_eq!(Source::new(url, None, None).unwrap().url(), meant);
        }
        for (url, part) in
            [("https://a", "TLS"), ("ftp://a", "no address"), ("", "no address"), ("http://a b", "no address")]
        {
            let said = Source::new(url, None, None).err().expect(url).to_string();
            assert!(said.contains(part) && said.starts_with("url: "), "{url}: {said}");
        }
        assert!(Source::new("http://a", Some("a\nb".into()), None).is_err());
    }

    #[test]
    fn a_server_that_is_away_is_said_in_a_line() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let said = Source::new(&address.to_string(), None, None).unwrap().look().unwrap_err().to_string();
        assert!(said.contains(&format!("http://{address}/metrics")) && said.lines().count() == 1, "{said}");
    }
}
