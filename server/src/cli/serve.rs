//! `ponder serve`: models over HTTP.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use ponder::Opened;
use ponder::http::{self, Instance, Limits, Offer, ReasoningField, ServeOptions};

use super::args::OutputArgs;
use super::config::{self, InstanceArgs, InstancePlan, ModelPlan};
use super::progress::Loading;

/// Flags of `ponder serve`.
#[derive(Args)]
#[command(after_help = "The first signal (Ctrl-C, SIGTERM) lets running requests finish, the second stops at once.
/openapi.json lists all routes; /metrics is for Prometheus.

Examples:
  ponder serve                                         the bundled model on http://127.0.0.1:8000
  ponder serve --model qwen3.gguf --served-model-name qwen3 --served-model-name gpt-4o
  ponder serve --config models.toml                    several models, short and long requests apart
  PONDER_API_KEY=secret ponder serve --host 0.0.0.0 --model ./QwQ-32B
  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"model\": \"bundled\", \"messages\": [{\"role\": \"user\", \"content\": \"What is 15% of 80?\"}]}'")]
pub struct ServeArgs {
    /// Address to listen at; others than loopback need an API key
    #[arg(long, env = "PONDER_HOST", default_value = "127.0.0.1", value_name = "IP")]
    host: IpAddr,
    /// Port to listen at; 0 takes a free one and prints it
    #[arg(long, env = "PONDER_PORT", default_value_t = 8000, value_name = "PORT")]
    port: u16,
    /// A key that clients must send; may be given several times
    #[arg(long, env = "PONDER_API_KEY", hide_env_values = true, value_delimiter = ',', value_name = "KEY")]
    api_key: Vec<String>,
    /// Let everybody ask who reaches the port, without a key
    #[arg(long, env = "PONDER_INSECURE_NO_AUTH", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    insecure_no_auth: bool,
    /// A host name under which clients may ask; on loopback, localhost and 127.0.0.1 always
    #[arg(long, env = "PONDER_ALLOWED_HOST", value_delimiter = ',', value_name = "NAME")]
    allowed_host: Vec<String>,
    /// A name of the model in requests; may be given several times [default: that of its file or folder]
    #[arg(long, env = "PONDER_SERVED_MODEL_NAME", value_delimiter = ',', value_name = "NAME")]
    served_model_name: Vec<String>,
    /// Several models, or several instances of one, from this file; examples/models.toml is one
    #[arg(long, env = "PONDER_CONFIG", value_name = "FILE", conflicts_with = "served_model_name")]
    config: Option<PathBuf>,
    /// Under which names thinking is sent: both, reasoning_content or reasoning
    #[arg(long, env = "PONDER_REASONING_FIELD", default_value = "both", value_name = "F")]
    reasoning_field: ReasoningField,
    #[command(flatten)]
    limits: LimitArgs,
    /// Threads for HTTP; 0 chooses
    #[arg(long, env = "PONDER_HTTP_WORKERS", default_value_t = 0, value_name = "N", hide_short_help = true)]
    http_workers: usize,
    /// Write one JSON object per line to the log
    #[arg(long, env = "PONDER_LOG_JSON", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    log_json: bool,
    /// Write prompts to the log
    #[arg(long, env = "PONDER_LOG_PROMPTS", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    log_prompts: bool,
    /// Send a span of every request to this OpenTelemetry collector (OTLP over HTTP)
    #[arg(long, env = "PONDER_OTLP_TRACES_ENDPOINT", value_name = "URL")]
    otlp_traces_endpoint: Option<String>,
    #[command(flatten)]
    instance: InstanceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Bounds on what clients may take.
#[derive(Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Most bytes of a request's body
    #[arg(long, env = "PONDER_MAX_BODY_BYTES", default_value_t = 8 << 20, value_name = "BYTES")]
    max_body_bytes: usize,
    /// Most connections at once
    #[arg(long, env = "PONDER_MAX_CONNECTIONS", default_value_t = 1024, value_name = "N")]
    max_connections: usize,
    /// Most answers that wait for a seat; more are refused with 503
    #[arg(long, env = "PONDER_MAX_QUEUED", default_value_t = 256, value_name = "N")]
    max_queued: usize,
    /// Most tokens, prompts and longest answers together, of all requests in flight; more are refused with 503
    #[arg(long, env = "PONDER_MAX_TOKENS_IN_FLIGHT", default_value_t = 16 << 20, value_name = "N")]
    max_tokens_in_flight: usize,
    /// Most answers in flight of one API key, 0 for no bound; more are refused with 429
    #[arg(long, env = "PONDER_MAX_PER_KEY", default_value_t = 0, value_name = "N")]
    max_per_key: usize,
    /// Seconds that a request may wait for a seat; 0 is no bound
    #[arg(long, env = "PONDER_QUEUE_TIMEOUT", default_value_t = 300.0, value_name = "S")]
    queue_timeout: f64,
    /// Seconds that a request may take in all; 0 is no bound
    #[arg(long, env = "PONDER_REQUEST_TIMEOUT", default_value_t = 3600.0, value_name = "S")]
    request_timeout: f64,
    /// Seconds until a request's head, and then its body, must have arrived
    #[arg(long, env = "PONDER_ARRIVAL_TIMEOUT", default_value_t = 30.0, value_name = "S")]
    arrival_timeout: f64,
    /// Seconds that a client may read nothing of its stream
    #[arg(long, env = "PONDER_SLOW_CLIENT_TIMEOUT", default_value_t = 30.0, value_name = "S")]
    slow_client_timeout: f64,
    /// Seconds that running requests may take after the first signal
    #[arg(long, env = "PONDER_DRAIN_TIMEOUT", default_value_t = 30.0, value_name = "S")]
    drain_timeout: f64,
}

impl LimitArgs {
    fn limits(&self) -> Result<Limits> {
        let seconds = |field: &str, value: f64| match Duration::try_from_secs_f64(value) {
            Ok(duration) if value <= 1e7 => Ok(duration),
            _ => bail!("{field}: {value} is no number of seconds"),
        };
        if self.max_connections == 0 || self.max_body_bytes == 0 {
            bail!("max-connections, max-body-bytes: with 0 nobody could ask anything");
        }
        Ok(Limits {
            body_bytes: self.max_body_bytes,
            arrival: seconds("arrival-timeout", self.arrival_timeout)?,
            connections: self.max_connections,
            queued: self.max_queued,
            tokens: self.max_tokens_in_flight,
            per_key: self.max_per_key,
            queue_wait: seconds("queue-timeout", self.queue_timeout)?,
            request: seconds("request-timeout", self.request_timeout)?,
            slow_client: seconds("slow-client-timeout", self.slow_client_timeout)?,
            drain: seconds("drain-timeout", self.drain_timeout)?,
        })
    }
}

impl ServeArgs {
    /// Whether the log is JSON.
    pub fn json_log(&self) -> bool {
        self.log_json
    }

    fn options(&self) -> Result<ServeOptions> {
        let options = ServeOptions {
            host: self.host,
            port: self.port,
            api_keys: self.api_key.clone(),
            insecure_no_auth: self.insecure_no_auth,
            allowed_hosts: self.allowed_host.clone(),
            reasoning_field: self.reasoning_field,
            limits: self.limits.limits()?,
            workers: self.http_workers,
            log_prompts: self.log_prompts,
            otlp_traces_endpoint: self.otlp_traces_endpoint.clone(),
        };
        options.validate()?;
        Ok(options)
    }
}

impl ServeArgs {
    /// What to load: the file's models, or the one of the command line.
    fn plans(&self) -> Result<Vec<ModelPlan>> {
        if let Some(path) = &self.config {
            return config::read(path, &config::given("serve", &[]));
        }
        let names = match &self.served_model_name[..] {
            [] => vec![default_name(&self.instance.model.model)],
            names => names.to_vec(),
        };
        let only = InstancePlan { name: String::new(), up_to: None, options: self.instance.options()? };
        Ok(vec![ModelPlan { names, instances: vec![only] }])
    }
}

fn load(plan: ModelPlan, options: &ServeOptions, output: &OutputArgs) -> Result<Offer> {
    let several = plan.instances.len() > 1;
    let mut instances = Vec::new();
    for InstancePlan { name, up_to, options: mut engine } in plan.instances {
        let whole = if several { format!("{}-{name}", plan.names[0]) } else { plan.names[0].clone() };
        engine.trace.clone_from(&output.trace);
        if several && let Some(trace) = &mut engine.trace {
            // Every engine has its own clock of steps: one file each.
            let (stem, end) = (trace.file_stem().unwrap_or_default(), trace.extension().unwrap_or_default());
            *trace = trace.with_file_name(format!("{}.{whole}.{}", stem.display(), end.display()));
        }
        engine.max_wait = Some(options.limits.queue_wait).filter(|w| !w.is_zero());
        let opened = Opened::open(engine)?;
        let mut loading = Loading::new(output);
        let engine = opened.load(|p| loading.show(p))?;
        loading.done();
        instances.push(Instance { name, up_to, engine });
    }
    Ok(Offer { names: plan.names, instances })
}

/// Serves.
pub fn serve(args: ServeArgs) -> Result<()> {
    let options = args.options()?;
    // An address that is taken is said before the model is loaded; it is taken when the model can answer.
    drop(http::listen(&options)?);
    let plans = args.plans()?;
    let loaded = plans.into_iter().map(|plan| load(plan, &options, &args.output)).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = loaded.iter().flat_map(|offer| offer.names.clone()).collect();
    let (listener, address) = http::listen(&options)?;
    if !args.output.quiet {
        eprintln!("serving      {} on http://{address}", names.join(", "));
    }
    if args.output.json {
        super::print_json(&serde_json::json!({ "address": address.to_string(), "models": names }));
    }
    let cut = http::run(listener, options, loaded)?;
    if cut > 0 {
        bail!("stopped with {cut} requests in flight");
    }
    Ok(())
}

/// `qwen3` for `models/qwen3.gguf`.
fn default_name(model: &str) -> String {
    let path = Path::new(model);
    let stem = if path.extension().is_some_and(|e| e == "gguf") { path.file_stem() } else { path.file_name() };
    stem.map_or_else(|| model.to_string(), |s| s.to_string_lossy().into_owned())
}
