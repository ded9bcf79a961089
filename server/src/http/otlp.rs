//! Spans of requests for an OpenTelemetry collector, by OTLP over HTTP as JSON.
//!
//! An answer is a span under the caller's (W3C's `traceparent`), named and attributed as vLLM does it, so that what
//! reads vLLM's spans reads these; what nobody else counts stands under `ponder.`. Its children are what it did, one
//! after the other. Spans are made when an answer has ended, from times that it knows anyway, and are sent by a thread
//! in the background: a collector that is away costs spans and a line in the log. No text of anybody is in them.
//! OpenTelemetry's variables (`OTEL_TRACES_SAMPLER`, `OTEL_BSP_SCHEDULE_DELAY`, `OTEL_EXPORTER_OTLP_HEADERS`,
//! `OTEL_SERVICE_NAME`, ...) say the rest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    Span, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, TraceFlags, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{self as sdk, SdkTracer, SdkTracerProvider};
use ponder_engine::{Error, Result};

use super::job::Asked;
use crate::Completion;

/// A collector that does not answer in this time is away.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the last spans may hold up the end of the program.
const LAST: Duration = Duration::from_secs(3);
/// Most bytes of a collector's answer.
const ANSWER: u64 = 1 << 20;

/// Where spans go.
pub struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Spans {
    /// The whole URL of a collector at `endpoint`: one without a path means `/v1/traces`.
    ///
    /// # Errors
    /// If that is no URL that can be reached from here.
    pub fn url(endpoint: &str) -> Result<String> {
        let uri = endpoint.parse::<ureq::http::Uri>().ok();
        match uri.filter(|u| u.scheme_str() == Some("http") && u.host().is_some_and(|h| !h.is_empty())) {
            Some(uri) if matches!(uri.path(), "" | "/") => Ok(format!("{}/v1/traces", endpoint.trim_end_matches('/'))),
            Some(_) => Ok(endpoint.to_string()),
            None => {
                let good = "http://127.0.0.1:4318/v1/traces (TLS is not spoken here)";
                Err(Error::invalid("otlp-traces-endpoint", format!("{endpoint:?} is no address such as {good}")))
            }
        }
    }

    /// Spans for the collector at `endpoint`.
    ///
    /// # Errors
    /// As [`url`](Self::url), or if OpenTelemetry's variables contradict.
    pub fn new(endpoint: &str) -> Result<Self> {
        let whole = Self::url(endpoint)?;
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
        // A proxy of the environment is for the world, not for a collector of ours.
        let config = config.proxy(None).max_redirects(0).user_agent("ponder");
        let collector =
            Collector { agent: config.build().new_agent(), url: whole.clone(), away: AtomicBool::new(false) };
        let exporter = SpanExporter::builder().with_http().with_http_client(collector);
        let exporter = exporter.with_endpoint(whole).with_protocol(Protocol::HttpJson).build();
        let exporter = exporter.map_err(|e| Error::invalid("otlp-traces-endpoint", e.to_string()))?;
        let mut resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("ponder");
        }
        let provider =
            SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build();
        let tracer = provider.tracer("ponder");
        Ok(Self { provider, tracer })
    }

    /// An answer ended as it should.
    pub fn answered(&self, asked: &Asked, choice: usize, done: &Completion) {
        let clock = Clock::of(asked.arrived);
        let Some(mut root) = self.root(asked, &clock) else { return };
        let t = &done.timings;
        let started = t.prepared_ms + t.queue_ms;
        // The first token is seen a little after it was made, never before it ran; clocks of two threads say so.
        let first = t.ttft_ms.max(started);
        let thinks = done.reasoning_tokens > 0;
        let answer = if thinks { t.first_answer_ms.map(|a| a.max(first)) } else { Some(first) };
        let stretches = [
            ("prompt", 0.0, Some(t.prepared_ms)),
            ("queue", t.prepared_ms, Some(started)),
            ("prefill", started, Some(first)),
            ("thinking", first, thinks.then(|| answer.unwrap_or(t.total_ms))),
            ("answer", answer.unwrap_or(t.total_ms), answer.map(|a| t.total_ms.max(a))),
        ];
        let within = Context::new().with_remote_span_context(root.span_context().clone());
        for (name, from, until) in stretches {
            let Some(until) = until else { continue };
            let span = SpanBuilder::from_name(name).with_start_time(clock.at(from));
            self.tracer.build_with_context(span, &within).end_with_timestamp(clock.at(until));
        }
        let tokens = |name: &'static str, n: usize| KeyValue::new(name, n as i64);
        let seconds = |name: &'static str, ms: f64| KeyValue::new(name, ms / 1e3);
        let finish = Value::Array(Array::String(vec![StringValue::from(done.finish_reason())]));
        root.set_attributes([
            KeyValue::new("gen_ai.response.finish_reasons", finish),
            tokens("gen_ai.usage.prompt_tokens", done.prompt_tokens),
            tokens("gen_ai.usage.completion_tokens", done.completion_tokens),
            seconds("gen_ai.latency.time_in_queue", t.queue_ms),
            seconds("gen_ai.latency.time_to_first_token", t.ttft_ms),
            seconds("gen_ai.latency.time_in_model_prefill", first - started),
            seconds("gen_ai.latency.time_in_model_decode", t.total_ms - t.ttft_ms),
            seconds("gen_ai.latency.time_in_model_inference", t.total_ms - started),
            seconds("gen_ai.latency.e2e", t.total_ms),
            tokens("ponder.choice", choice),
            tokens("ponder.usage.cached_tokens", done.cached_tokens),
            tokens("ponder.usage.thinking_tokens", done.reasoning_tokens),
            tokens("ponder.usage.recomputed_tokens", done.recomputed_tokens),
        ]);
        if let Some(first) = t.first_answer_ms {
            root.set_attribute(seconds("ponder.latency.time_to_first_answer_token", first));
        }
        if done.drafted_tokens > 0 {
            root.set_attribute(tokens("ponder.draft.tokens", done.drafted_tokens));
            let rate = done.accepted_tokens as f64 / done.drafted_tokens as f64;
            root.set_attribute(KeyValue::new("ponder.draft.acceptance", rate));
        }
        root.end_with_timestamp(clock.at(t.total_ms));
    }

    /// A request ended before its answers did; `how` is a word for it.
    pub fn broken(&self, asked: &Asked, how: &'static str) {
        let Some(mut root) = self.root(asked, &Clock::of(asked.arrived)) else { return };
        root.set_attribute(KeyValue::new("error.type", how));
        root.set_status(Status::error(how));
        root.end();
    }

    /// The span of an answer; `None` if nobody records it.
    fn root(&self, asked: &Asked, clock: &Clock) -> Option<sdk::Span> {
        let caller = asked.trace.map(|trace| {
            let flags = if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
            SpanContext::new(trace.id.into(), trace.parent.into(), flags, true, TraceState::default())
        });
        let within = caller.map_or_else(Context::new, |caller| Context::new().with_remote_span_context(caller));
        let span = SpanBuilder::from_name("llm_request").with_kind(SpanKind::Server).with_start_time(clock.at(0.0));
        let mut span = self.tracer.build_with_context(span, &within);
        if !span.is_recording() {
            return None;
        }
        span.set_attributes([
            KeyValue::new("gen_ai.request.id", asked.id.to_string()),
            KeyValue::new("gen_ai.request.model", asked.model.to_string()),
            KeyValue::new("gen_ai.request.temperature", f64::from(asked.params.temperature)),
            KeyValue::new("gen_ai.request.top_p", f64::from(asked.params.top_p)),
            KeyValue::new("gen_ai.request.n", i64::from(asked.params.n)),
        ]);
        if let Some(most) = asked.params.max_tokens {
            span.set_attribute(KeyValue::new("gen_ai.request.max_tokens", most as i64));
        }
        Some(span)
    }

    /// Sends what has not been sent, for a few seconds at most.
    pub fn end(&self) {
        // What went wrong, the collector's client has said.
        let _ = self.provider.shutdown_with_timeout(LAST);
    }
}

/// Wall-clock times of a request that knows milliseconds since it arrived.
struct Clock(SystemTime);

impl Clock {
    fn of(arrived: Instant) -> Self {
        Self(SystemTime::now() - arrived.elapsed())
    }
    fn at(&self, ms: f64) -> SystemTime {
        self.0 + Duration::from_secs_f64(ms.max(0.0) / 1e3)
    }
}

/// A collector, reached from the thread that sends.
#[derive(Debug)]
struct Collector {
    agent: ureq::Agent,
    url: String,
    away: AtomicBool,
}

impl Collector {
    fn tell(&self, request: Request<Bytes>) -> std::result::Result<Response<Bytes>, ureq::Error> {
        let (head, body) = request.into_parts();
        let mut response = self.agent.run(Request::from_parts(head, &body[..]))?;
        let body = response.body_mut().with_config().limit(ANSWER).read_to_vec()?;
        Ok(response.map(|_| Bytes::from(body)))
    }
    /// Says once that it is away, and once more after it had come back.
    fn note(&self, trouble: Option<String>) {
        let was = self.away.swap(trouble.is_some(), Ordering::Relaxed);
        if let (Some(why), false) = (trouble, was) {
            tracing::warn!(target: "ponder::http", url = self.url, why, "the collector takes no spans; they are dropped until it does");
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    /// Blocks: it is called on a thread that does nothing else.
    async fn send_bytes(&self, request: Request<Bytes>) -> std::result::Result<Response<Bytes>, HttpError> {
        let response = self.tell(request);
        self.note(match &response {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("status {}", response.status().as_u16())),
            Err(error) => Some(error.to_string()),
        });
        Ok(response?)
    }
}
