//! Flags that several commands share. Every flag is also an environment variable, `PONDER_` and its name.

use std::path::PathBuf;

use clap::Args;
use clap::builder::FalseyValueParser;
use ponder::models::{self, DEFAULT_MODEL};

use ponder::{BackendChoice, DEFAULT_GROWTH_QUANTILE, EngineOptions};
use ponder_engine::checkpoint::GenerationDefaults;
use ponder_engine::format::KvFormat;
use ponder_engine::kv::Preemption;
use ponder_engine::reason::{Effort, MarkerTexts};
use ponder_engine::request::SamplingParams;
use ponder_engine::schedule::SchedulingPolicy;

use super::speculation::SpeculationArgs;

/// Which model, on what, with how much memory.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A .gguf file, a Hugging Face folder, or `bundled`
    #[arg(long, short, env = "PONDER_MODEL", default_value = DEFAULT_MODEL, value_name = "PATH")]
    pub model: String,
    /// auto, cpu, wgpu, cuda or reference; auto is CUDA if a device answers, else a hardware GPU
    /// through wgpu, else the CPU; reference is the slow f64 oracle
    #[arg(long, env = "PONDER_BACKEND", default_value = "auto", value_name = "B")]
    pub backend: BackendChoice,
    /// Which GPU: its number, or a part of its name (see `ponder devices`)
    #[arg(long, env = "PONDER_ADAPTER", value_name = "NAME")]
    pub adapter: Option<String>,
    /// Threads of the CPU backend; 0 is one per core
    #[arg(long, short, env = "PONDER_THREADS", allow_negative_numbers = true, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// Storage of cached keys and values: f32, f16, bf16 or fp8 (with scales: half the memory of f16)
    #[arg(long, env = "PONDER_KV_CACHE_DTYPE", default_value = "f16", value_name = "T")]
    pub kv_cache_dtype: KvFormat,
    /// Longest prompt and answer together, in tokens [default: the model's context, at most 8192]
    #[arg(long, env = "PONDER_MAX_MODEL_LEN", allow_negative_numbers = true, value_name = "N")]
    pub max_model_len: Option<usize>,
    /// Bytes of the KV pool, such as 500M or 2G [default: a few of the longest sequences]
    #[arg(long, env = "PONDER_KV_MEMORY", value_parser = byte_count, value_name = "BYTES")]
    pub kv_memory: Option<u64>,
    /// Share of the device's memory to use, such as 0.9: the KV pool takes all that weights and activations
    /// leave of it [default: a few of the longest sequences, within 0.9]
    #[arg(long, env = "PONDER_GPU_MEMORY_UTILIZATION", allow_negative_numbers = true, value_name = "F")]
    pub gpu_memory_utilization: Option<f64>,
    /// Compute every prompt from its first token, whatever others computed before
    #[arg(long, env = "PONDER_NO_ENABLE_PREFIX_CACHING", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub no_enable_prefix_caching: bool,
    /// GiB of host memory for requests that are preempted; taken as needed, a quarter of what is free at most
    #[arg(long, env = "PONDER_SWAP_SPACE", default_value = "4", value_parser = gibibytes, value_name = "GIB", hide_short_help = true)]
    pub swap_space: u64,
    /// What becomes of a request's KV cache when the pool is short: recompute, swap, or auto, whichever is measured
    /// to cost less
    #[arg(long, env = "PONDER_PREEMPTION_MODE", default_value = "auto", value_name = "MODE", hide_short_help = true)]
    pub preemption_mode: Preemption,
    /// Where the KV pool is too small for all, end the thinking of whoever would be preempted next; answers then depend
    /// on what else runs
    #[arg(long, env = "PONDER_SQUEEZE_THINKING", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue, hide_short_help = true)]
    pub squeeze_thinking: bool,
    /// Tokens per KV block
    #[arg(
        long,
        env = "PONDER_BLOCK_SIZE",
        allow_negative_numbers = true,
        default_value_t = 16,
        value_name = "N",
        hide_short_help = true
    )]
    pub block_size: usize,
    /// Most tokens of one prompt in one step
    #[arg(
        long,
        env = "PONDER_PREFILL_CHUNK",
        allow_negative_numbers = true,
        default_value_t = 512,
        value_name = "N",
        hide_short_help = true
    )]
    pub prefill_chunk: usize,
    /// Most tokens of one step, all sequences together
    #[arg(
        long,
        env = "PONDER_MAX_STEP_TOKENS",
        allow_negative_numbers = true,
        default_value_t = 512,
        value_name = "N",
        hide_short_help = true
    )]
    pub max_step_tokens: usize,
    /// Who goes first where not all can: fcfs, priority (the request's own), or reasoning, short work first with
    /// nobody kept waiting for ever
    #[arg(long, env = "PONDER_SCHEDULING_POLICY", default_value_t, value_name = "P", hide_short_help = true)]
    pub scheduling_policy: SchedulingPolicy,
    /// Admit a request when the KV pool will hold it as far as this quantile of the lengths seen before can tell;
    /// 0 does not look ahead
    #[arg(long, env = "PONDER_GROWTH_QUANTILE", default_value_t = DEFAULT_GROWTH_QUANTILE, value_name = "Q", hide_short_help = true)]
    pub growth_quantile: f64,
    /// Remember in this file how long requests think and answer, so that the next run predicts as well as this one
    #[arg(long, env = "PONDER_LENGTH_STATS", value_name = "FILE", hide_short_help = true)]
    pub length_stats: Option<PathBuf>,
    #[command(flatten)]
    pub speculation: SpeculationArgs,
    /// What the efforts mean, how `auto` decides, and the soft landing, as JSON [default: reasoning.json
    /// in the model's folder, if there is one]
    #[arg(long, env = "PONDER_REASONING_POLICY", value_name = "FILE", hide_short_help = true)]
    pub reasoning_policy: Option<PathBuf>,
    /// Weights that tell how deep a question is, written by `ponder fit` [default: depth.json in the
    /// model's folder, else built-in ones]
    #[arg(long, env = "PONDER_DEPTH_CLASSIFIER", value_name = "FILE", hide_short_help = true)]
    pub depth_classifier: Option<PathBuf>,
    /// What begins thinking, where neither the model's tokens nor its chat template show it; with --think-end
    #[arg(long, env = "PONDER_THINK_START", value_name = "TEXT", hide_short_help = true)]
    pub think_start: Option<String>,
    /// What ends thinking
    #[arg(long, env = "PONDER_THINK_END", value_name = "TEXT", hide_short_help = true)]
    pub think_end: Option<String>,
    /// What begins a tool call, where it is none of the usual markers
    #[arg(long, env = "PONDER_TOOL_CALL_START", value_name = "TEXT", hide_short_help = true)]
    pub tool_call_start: Option<String>,
    /// What ends a tool call; the end of the turn if not given
    #[arg(long, env = "PONDER_TOOL_CALL_END", value_name = "TEXT", hide_short_help = true)]
    pub tool_call_end: Option<String>,
    /// A sentence to write into the thinking shortly before its cap
    #[arg(long, env = "PONDER_SOFT_LANDING", value_name = "TEXT", hide_short_help = true)]
    pub soft_landing: Option<String>,
}

impl ModelArgs {
    /// The engine's options for `seqs` sequences at once.
    pub fn options(&self, seqs: usize) -> ponder_engine::Result<EngineOptions> {
        let mut options = EngineOptions {
            backend: self.backend,
            adapter: self.adapter.clone(),
            threads: self.threads,
            kv_cache_dtype: self.kv_cache_dtype,
            max_model_len: self.max_model_len,
            max_num_seqs: seqs,
            kv_memory: self.kv_memory,
            gpu_memory_utilization: self.gpu_memory_utilization,
            prefix_caching: !self.no_enable_prefix_caching,
            swap_space: self.swap_space,
            preemption: self.preemption_mode,
            squeeze_thinking: self.squeeze_thinking,
            block_size: self.block_size,
            prefill_chunk: self.prefill_chunk,
            max_step_tokens: self.max_step_tokens.max(seqs),
            scheduling_policy: self.scheduling_policy,
            growth_quantile: self.growth_quantile,
            length_stats: self.length_stats.clone(),
            reasoning_policy: self.reasoning_policy.clone(),
            depth_classifier: self.depth_classifier.clone(),
            markers: MarkerTexts {
                open: self.think_start.clone(),
                close: self.think_end.clone(),
                tool_open: self.tool_call_start.clone(),
                tool_close: self.tool_call_end.clone(),
                after_close: None,
            },
            soft_landing: self.soft_landing.clone(),
            ..EngineOptions::new(models::resolve(&self.model)?)
        };
        self.speculation.apply(&mut options)?;
        Ok(options)
    }
}

/// How tokens are chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 is greedy [default: what the model's files recommend, else 0]
    #[arg(long, env = "PONDER_TEMPERATURE", allow_negative_numbers = true, value_name = "T")]
    pub temperature: Option<f32>,
    /// Keep the likeliest tokens up to this share of the probability
    #[arg(long, env = "PONDER_TOP_P", allow_negative_numbers = true, value_name = "P")]
    pub top_p: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all
    #[arg(long, env = "PONDER_TOP_K", allow_negative_numbers = true, value_name = "K")]
    pub top_k: Option<u32>,
    /// Keep tokens with at least this share of the largest probability
    #[arg(long, env = "PONDER_MIN_P", allow_negative_numbers = true, value_name = "P")]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens seen in prompt or answer; 1 is off
    #[arg(long, env = "PONDER_REPETITION_PENALTY", allow_negative_numbers = true, value_name = "X")]
    pub repetition_penalty: Option<f32>,
    /// Subtract this once from the logits of tokens in the answer
    #[arg(long, env = "PONDER_PRESENCE_PENALTY", allow_negative_numbers = true, value_name = "X")]
    pub presence_penalty: Option<f32>,
    /// Subtract this per occurrence from the logits of tokens in the answer
    #[arg(long, env = "PONDER_FREQUENCY_PENALTY", allow_negative_numbers = true, value_name = "X")]
    pub frequency_penalty: Option<f32>,
    /// Source of randomness: the same seed gives the same answer, whatever else runs
    #[arg(long, env = "PONDER_SEED", allow_negative_numbers = true, default_value_t = 0, value_name = "S")]
    pub seed: u64,
    /// Most tokens to generate, thinking included [default: as many as the context allows]
    #[arg(long, short = 'n', env = "PONDER_MAX_TOKENS", allow_negative_numbers = true, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Most tokens of thinking, exactly: 0 is none at all, -1 as many as the model likes [default: as
    /// the effort says, else -1]
    #[arg(long, env = "PONDER_THINKING_TOKEN_BUDGET", allow_negative_numbers = true, value_name = "N")]
    pub thinking_token_budget: Option<i64>,
    /// How hard to think: none, minimal, low, medium, high, max, or auto, which looks at the question
    /// [default: as the model likes]
    #[arg(long, env = "PONDER_REASONING_EFFORT", value_name = "E")]
    pub reasoning_effort: Option<Effort>,
    /// Tokens of --max-tokens that thinking leaves to the answer [default: 256, or half if that is less]
    #[arg(long, env = "PONDER_ANSWER_RESERVE", value_name = "N")]
    pub answer_reserve: Option<usize>,
    /// End the answer before this text; may be given several times
    #[arg(long, env = "PONDER_STOP", value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on after the model's end token, for measurements
    #[arg(long, env = "PONDER_IGNORE_EOS", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue, hide_short_help = true)]
    pub ignore_eos: bool,
}

impl SamplingArgs {
    /// The flags over the model's recommendation over the engine's defaults.
    pub fn params(&self, model: &GenerationDefaults) -> SamplingParams {
        let d = SamplingParams::default();
        let recommended = |flag: Option<f32>, file: Option<f32>, ours: f32| flag.or(file).unwrap_or(ours);
        SamplingParams {
            temperature: recommended(self.temperature, model.temperature, d.temperature),
            top_p: recommended(self.top_p, model.top_p, d.top_p),
            top_k: self.top_k.or(model.top_k).unwrap_or(d.top_k),
            min_p: recommended(self.min_p, model.min_p, d.min_p),
            repetition_penalty: recommended(self.repetition_penalty, model.repetition_penalty, d.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(d.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(d.frequency_penalty),
            seed: self.seed,
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            thinking_token_budget: self.thinking_token_budget,
            reasoning_effort: self.reasoning_effort,
            answer_reserve: self.answer_reserve,
            ..d
        }
    }
}

/// What is shown, and where.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Print one JSON object on stdout
    #[arg(long, env = "PONDER_JSON", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub json: bool,
    /// Show no progress and no memory plan
    #[arg(long, short, env = "PONDER_QUIET", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub quiet: bool,
    /// Write every actor message and request phase to a file that Perfetto and chrome://tracing open
    #[arg(long, env = "PONDER_TRACE", value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// `4`, `0.5`: powers of 1024, as vLLM counts its swap space.
fn gibibytes(word: &str) -> Result<u64, String> {
    match word.parse::<f64>() {
        Ok(n) if (0.0..=1e6).contains(&n) => Ok((n * (1u64 << 30) as f64) as u64),
        _ => Err("it is no number of GiB".into()),
    }
}

/// `123`, `500M`, `2G`: powers of 1000, as the memory plan prints them.
fn byte_count(word: &str) -> Result<u64, String> {
    let digits = word.trim_end_matches(['B', 'b']);
    let (digits, unit) = match digits.char_indices().last() {
        Some((at, c)) if c.is_ascii_alphabetic() => (&digits[..at], c.to_ascii_uppercase()),
        _ => (digits, ' '),
    };
    let factor = match unit {
        ' ' => Some(1.0),
        'K' => Some(1e3),
        'M' => Some(1e6),
        'G' => Some(1e9),
        'T' => Some(1e12),
        _ => None,
    };
    match (digits.trim().parse::<f64>(), factor) {
        (Ok(n), Some(factor)) if n.is_finite() && n > 0.0 => Ok((n * factor) as u64),
        _ => Err("it is no number of bytes such as 500M or 2G".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_words_and_back() {
        assert_eq!(
            (byte_count("123"), byte_count("1.5G"), byte_count("500MB")),
            (Ok(123), Ok(1_500_000_000), Ok(500_000_000))
        );
        for wrong in ["", "G", "x", "-1", "1Q", "nan"] {
            assert!(byte_count(wrong).is_err(), "{wrong}");
        }
    }
}
