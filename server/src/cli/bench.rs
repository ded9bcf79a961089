//! `ponder bench`: speed, through everything that a request passes: scheduler, actors, device, streamer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use clap::builder::FalseyValueParser;
use ponder::{Engine, EngineOptions, Opened};
use ponder_actors::{Generation, Submission};
use ponder_engine::Error;
use ponder_engine::checkpoint::plan::bytes_in_words;
use ponder_engine::request::SamplingParams;
use ponder_engine::schedule::DraftPolicy;
use serde_json::{Value, json};

use super::args::{ModelArgs, OutputArgs};
use super::progress::Loading;
use super::speculation::draft_policy;

/// Flags of `ponder bench`.
#[derive(Args)]
#[command(after_help = "Figures are medians over --repeats. Prefill: --batch prompts of --prompt-tokens random tokens,
from the call to the first token of the last one. Decode: all of them generate at once, after
their prompts; the time of --decode-tokens steps in which every one of them took part. Host time
per step is the median over steps of all but the device's own work, from launch to end: plan,
reserve, messages, inputs, apply, and waking threads. The fraction of the memory bandwidth is
bytes of weights and cache that a step must read, by the bytes that the same threads read in
the same time when they do nothing else; it is measured on the CPU only.

Examples:
  ponder bench --model smollm2.gguf --backend cpu --threads 2
  ponder bench --model smollm2.gguf --batch 16 --decode-tokens 64 --json
  ponder bench --draft-model bundled --workload problems.jsonl       what guessing brings")]
pub struct BenchArgs {
    /// Tokens of each prompt
    #[arg(
        long,
        short,
        env = "PONDER_PROMPT_TOKENS",
        allow_negative_numbers = true,
        default_value_t = 512,
        value_name = "P"
    )]
    pub prompt_tokens: usize,
    /// Steps of decoding that are timed
    #[arg(
        long,
        short,
        env = "PONDER_DECODE_TOKENS",
        allow_negative_numbers = true,
        default_value_t = 128,
        value_name = "D"
    )]
    pub decode_tokens: usize,
    /// Requests at once
    #[arg(long, env = "PONDER_BATCH", allow_negative_numbers = true, default_value_t = 1, value_name = "B")]
    pub batch: usize,
    /// Measurements, of which the median is told
    #[arg(long, short, env = "PONDER_REPEATS", allow_negative_numbers = true, default_value_t = 3, value_name = "R")]
    pub repeats: usize,
    /// Prompts, one JSON object a line ({"prompt": ...} or {"messages": ...}): compares no guesses with some; needs
    /// --draft-model
    #[arg(long, env = "PONDER_WORKLOAD", value_name = "FILE")]
    pub workload: Option<PathBuf>,
    /// With --workload: most tokens of each answer
    #[arg(long, env = "PONDER_WORKLOAD_TOKENS", default_value_t = 512, value_name = "N")]
    pub workload_tokens: usize,
    /// With --workload: temperature of every request
    #[arg(long, env = "PONDER_WORKLOAD_TEMPERATURE", default_value_t = 0.0, value_name = "T")]
    pub workload_temperature: f32,
    /// With --workload: how many guesses are compared with none: numbers, and auto for as many as pay
    #[arg(long, env = "PONDER_WORKLOAD_LENGTHS", value_delimiter = ',', value_parser = draft_policy, default_value = "1,2,3,4,5,6,7,8,auto", value_name = "K,...")]
    pub workload_lengths: Vec<DraftPolicy>,
    /// With --workload: compare the ways to accept a draft model's guesses, at temperatures 0, 0.6 and 1, instead
    #[arg(long, env = "PONDER_ACCEPTANCE", requires = "workload", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub acceptance: bool,
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Sample {
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    step_us: f64,
    host_us: f64,
    actors_us: f64,
}

/// Measures and prints.
pub fn bench(args: BenchArgs) -> Result<()> {
    let positive = |field: &str, value: usize| match value {
        0 => Err(Error::invalid(field, "must be at least 1")),
        _ => Ok(()),
    };
    positive("prompt_tokens", args.prompt_tokens)?;
    positive("decode_tokens", args.decode_tokens)?;
    positive("batch", args.batch)?;
    positive("repeats", args.repeats)?;
    if let Some(file) = args.workload.as_ref().filter(|_| args.acceptance) {
        return super::acceptance::compare(&args, file);
    }
    if let Some(file) = &args.workload {
        return super::workload::compare(&args, file);
    }
    let mut options = args.model.options(args.batch)?;
    options.trace.clone_from(&args.output.trace);
    // Each request decodes while the prompts of the others are still computed.
    let answer = args.decode_tokens + prompt_steps(&args, &options) + 4;
    let longest = args.prompt_tokens + answer + 1;
    options.max_model_len = options.max_model_len.or(Some(longest));
    let opened = Opened::open(options)?;
    let weights = opened.checkpoint.weight_bytes();
    let bandwidth = ponder::backends::measure_bandwidth(&opened.options)?;
    let options = EngineOptions {
        kv_memory: opened.options.kv_memory.or(Some(pool_bytes(&args, &opened))),
        ..opened.options.clone()
    };
    let opened = Opened { options, ..opened };
    let mut loading = Loading::new(&args.output);
    let engine = opened.load(|p| loading.show(p))?;
    loading.done();
    let bar = loading.bar(args.repeats as u64, "repeats");
    // Plans are compiled and pages touched before anything is timed.
    measure(&engine, &args, answer, 0)?;
    let mut samples = Vec::new();
    for repeat in 1..=args.repeats {
        samples.push(measure(&engine, &args, answer, repeat as u64)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    engine.write_trace()?;
    report(&args, &engine, &samples, weights, bandwidth);
    Ok(())
}

/// Steps that all prompts together take at most.
fn prompt_steps(args: &BenchArgs, options: &EngineOptions) -> usize {
    let per_step = options.prefill_chunk.min(options.max_step_tokens);
    (args.batch * args.prompt_tokens).div_ceil(per_step) + args.batch
}

/// A KV pool that holds every request of the batch at its full length.
fn pool_bytes(args: &BenchArgs, opened: &Opened) -> u64 {
    let o = &opened.options;
    let len = o.max_model_len.unwrap_or(0).min(opened.checkpoint.config.context);
    let blocks = len.div_ceil(o.block_size) * args.batch;
    (blocks * o.block_size) as u64 * opened.checkpoint.config.kv_bytes(o.kv_cache_dtype).per_token()
}

/// Starts the whole batch, every prompt another one.
fn submit(engine: &Engine, args: &BenchArgs, max_tokens: usize, salt: u64) -> Result<Vec<Generation>> {
    let vocab = engine.config().vocab as u64;
    let prompt = |index: u64| {
        let mut state = (salt << 32) ^ (index << 16) ^ 0x9E37_79B9_7F4A_7C15;
        let mut next = || {
            // A linear congruential generator (Knuth's MMIX constants): only variety matters here.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocab) as u32
        };
        (0..args.prompt_tokens).map(|_| next()).collect::<Vec<u32>>()
    };
    let params = SamplingParams { max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::default() };
    let started = (0..args.batch as u64).map(|i| {
        let (prompt, params) = (prompt(i), params.clone());
        let submission =
            Submission { prompt, params, eos: Vec::new(), thinking: None, grammar: None, tenant: "".into() };
        Ok(engine.handle().submit_blocking(submission)?)
    });
    started.collect()
}

/// Waits for a request's next tokens; false if it has ended.
fn advance(generation: &mut Generation) -> Result<bool> {
    use ponder_engine::request::Finish;
    match generation.next_blocking() {
        Some(update) => match update.finish.map(|f| f.why) {
            Some(Finish::Failed { reason }) => Err(Error::invalid("request", reason).into()),
            finish => Ok(finish.is_none()),
        },
        None => Ok(false),
    }
}

fn measure(engine: &Engine, args: &BenchArgs, answer: usize, salt: u64) -> Result<Sample> {
    let begun = Instant::now();
    for mut generation in submit(engine, args, 1, salt * 2)? {
        while advance(&mut generation)? {}
    }
    let prefill = begun.elapsed();
    let mut generations = submit(engine, args, answer, salt * 2 + 1)?;
    for generation in &mut generations {
        advance(generation)?;
    }
    // From here on every step decodes one token of every request.
    let totals = || engine.handle().tracer().totals();
    let (first, from) = (totals(), Instant::now());
    let (mut last, mut at, mut hosts, mut actors) = (first, from, Vec::new(), Vec::new());
    while last.steps < first.steps + args.decode_tokens as u64 && advance(&mut generations[0])? {
        let (now, total) = (Instant::now(), totals());
        if total.steps > last.steps {
            let each = |time: Duration| time.as_secs_f64() * 1e6 / (total.steps - last.steps) as f64;
            hosts.push(each((now - at).saturating_sub(total.device_time - last.device_time)));
            actors.push(each(total.actors_time - last.actors_time));
            (last, at) = (total, now);
        }
    }
    let (steps, took) = ((last.steps - first.steps).max(1), at - from);
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64();
    Ok(Sample {
        prefill_tokens_per_second: rate(args.batch * args.prompt_tokens, prefill),
        decode_tokens_per_second: rate(args.batch * steps as usize, took),
        step_us: took.as_secs_f64() * 1e6 / steps as f64,
        host_us: middle(hosts),
        actors_us: middle(actors),
    })
}

/// The median; 0 of nothing.
pub(super) fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n => (values[(n - 1) / 2] + values[n / 2]) / 2.0,
    }
}

fn median(samples: &[Sample], of: fn(&Sample) -> f64) -> f64 {
    middle(samples.iter().map(of).collect())
}

fn report(args: &BenchArgs, engine: &Engine, samples: &[Sample], weights: u64, bandwidth: Option<f64>) {
    let prefill = median(samples, |s| s.prefill_tokens_per_second);
    let decode = median(samples, |s| s.decode_tokens_per_second);
    let (step_us, host_us) = (median(samples, |s| s.step_us), median(samples, |s| s.host_us));
    let actors_us = median(samples, |s| s.actors_us);
    // A step reads every weight once, and the cache of every request, on average half-way through its answer.
    let cached = args.batch * (args.prompt_tokens + args.decode_tokens / 2);
    let bytes = weights as f64 + cached as f64 * engine.sizing().plan.kv.per_token() as f64;
    let used = bytes / (step_us * 1e-6);
    let fraction = bandwidth.map(|b| used / b);
    if args.output.json {
        let each = |of: fn(&Sample) -> f64| samples.iter().map(of).collect::<Vec<f64>>();
        super::print_json(&json!({
            "prefill_tokens_per_second": prefill,
            "decode_tokens_per_second": decode,
            "step_us": step_us,
            "host_us_per_step": host_us,
            "actors_us_per_step": actors_us,
            "memory_bandwidth_gb_s": bandwidth.map_or(Value::Null, |b| json!(b / 1e9)),
            "fraction_of_bandwidth": fraction,
            "bytes_per_step": bytes,
            "kv_pool_bytes": engine.sizing().pool_bytes(),
            "prompt_tokens": args.prompt_tokens,
            "decode_tokens": args.decode_tokens,
            "batch": args.batch,
            "repeats": args.repeats,
            "prefill_tokens_per_second_each": each(|s| s.prefill_tokens_per_second),
            "decode_tokens_per_second_each": each(|s| s.decode_tokens_per_second),
            "device": { "backend": engine.device().backend, "name": engine.device().name, "features": engine.device().features },
        }));
        return;
    }
    let mut out = format!(
        "prefill {prefill:>10.1} tokens/s\ndecode  {decode:>10.1} tokens/s\nstep    {step_us:>10.1} us, host {host_us:.1} us, of which the actors {actors_us:.1} us\n"
    );
    if let (Some(b), Some(f)) = (bandwidth, fraction) {
        let gb = |bytes: f64| bytes_in_words(bytes as u64);
        out += &format!("memory  {:>10}/s read by decoding, {:.0}% of {}/s\n", gb(used), f * 100.0, gb(b));
    }
    super::print_text(&out);
}
