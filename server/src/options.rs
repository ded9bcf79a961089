//! What a caller chooses when an engine is loaded.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ponder_engine::format::KvFormat;
use ponder_engine::kv::Preemption;
use ponder_engine::reason::MarkerTexts;
use ponder_engine::schedule::{DraftPolicy, SchedulingPolicy};
use ponder_engine::spec::{LengthOptions, Lookup};
use ponder_engine::{Error, Result};

/// Which kind of device runs the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// CUDA if a device answers, else a hardware GPU through wgpu, else the CPU.
    #[default]
    Auto,
    /// Our own CPU kernels.
    Cpu,
    /// Vulkan, Metal or DX12; software adapters too.
    Wgpu,
    /// NVIDIA.
    Cuda,
    /// The oracle: every op as its definition says, in f64. Hundreds of times slower; for comparisons.
    Reference,
}

impl BackendChoice {
    /// Every choice, in the order in which help texts list them.
    pub const ALL: [BackendChoice; 5] =
        [BackendChoice::Auto, BackendChoice::Cpu, BackendChoice::Wgpu, BackendChoice::Cuda, BackendChoice::Reference];

    /// The word for it on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            BackendChoice::Auto => "auto",
            BackendChoice::Cpu => "cpu",
            BackendChoice::Wgpu => "wgpu",
            BackendChoice::Cuda => "cuda",
            BackendChoice::Reference => "reference",
        }
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendChoice {
    type Err = Error;
    fn from_str(word: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|b| b.name() == word);
        found.ok_or_else(|| Error::invalid("backend", format!("{word:?} is none of auto, cpu, wgpu, cuda, reference")))
    }
}

/// A draft model and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftOptions {
    /// A `.gguf` file or a Hugging Face folder.
    pub model: PathBuf,
    /// Its backend; the model's if `None`.
    pub backend: Option<BackendChoice>,
    /// Threads, where it runs on the CPU; 0: one for a model that fits in a core's cache, else as many as
    /// the model has.
    pub threads: usize,
}

impl DraftOptions {
    /// On the model's own backend.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self { model: model.into(), backend: None, threads: 0 }
    }
}

/// How an engine is loaded. [`EngineOptions::new`] has defaults that suit one user on one machine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// A `.gguf` file or a Hugging Face folder.
    pub model: PathBuf,
    /// Where it runs.
    pub backend: BackendChoice,
    /// Which GPU: its number, or a part of its name; the best one if `None`.
    pub adapter: Option<String>,
    /// Threads of the CPU backend; 0 is one per core.
    pub threads: usize,
    /// How cached keys and values are stored.
    pub kv_cache_dtype: KvFormat,
    /// Longest prompt and answer together, in tokens; the model's own context, at most
    /// [`DEFAULT_MODEL_LEN`], if `None`.
    pub max_model_len: Option<usize>,
    /// Most sequences in flight.
    pub max_num_seqs: usize,
    /// Bytes of the KV pool; enough for [`DEFAULT_POOL_SEQS`] of the longest sequences (or
    /// `max_num_seqs`, if that is less), as far as memory goes, if `None`.
    pub kv_memory: Option<u64>,
    /// Share of the device's memory that may be used, above 0 and at most 1. If it is given, the KV pool takes
    /// all that weights and activations leave of it; if not, [`DEFAULT_MEMORY_SHARE`] bounds a modest pool.
    pub gpu_memory_utilization: Option<f64>,
    /// Whether what one request computed serves others that begin the same.
    pub prefix_caching: bool,
    /// Bytes of host memory for preempted requests, taken as they are needed.
    pub swap_space: u64,
    /// How requests are preempted when the KV pool is short.
    pub preemption: Preemption,
    /// Tokens per KV block.
    pub block_size: usize,
    /// Most tokens of one prompt in one step.
    pub prefill_chunk: usize,
    /// Most tokens of one step, all sequences together.
    pub max_step_tokens: usize,
    /// Who goes first where not all can.
    pub scheduling_policy: SchedulingPolicy,
    /// An answer starts when the KV pool will hold it and all in flight as far as this quantile of the lengths seen
    /// before can tell; 0 looks at what is known to be needed, no further.
    pub growth_quantile: f64,
    /// Where the lengths of finished requests are remembered from one run to the next.
    pub length_stats: Option<PathBuf>,
    /// What is looked up in logs as guesses: beside a draft model, or alone.
    pub lookup: Lookup,
    /// The draft model: a smaller one with the same tokens.
    pub draft: Option<DraftOptions>,
    /// How many tokens are guessed, where somebody guesses.
    pub drafts: DraftPolicy,
    /// Efforts, the levers of `auto` and the soft landing, as JSON; `reasoning.json` beside the model if `None`.
    pub reasoning_policy: Option<PathBuf>,
    /// Weights of the depth classifier; `depth.json` beside the model if `None`.
    pub depth_classifier: Option<PathBuf>,
    /// Markers of thinking and tool calls that are not those of the model's tokenizer and template, or that its
    /// template does not show.
    pub markers: MarkerTexts,
    /// A sentence that is written into the thinking shortly before its cap; the policy's if `None`, "" is none.
    pub soft_landing: Option<String>,
    /// Whether the thinking of one request is cut short where the KV pool is too small for all and somebody would be
    /// preempted otherwise. Answers then depend on what else runs.
    pub squeeze_thinking: bool,
    /// Longest wait of a request before its first step; `None` is no bound.
    pub max_wait: Option<std::time::Duration>,
    /// Where the trace goes: a file for Perfetto and chrome://tracing.
    pub trace: Option<PathBuf>,
}

/// Tokens of the longest sequence where neither the model nor the caller sets a lower bound.
pub const DEFAULT_MODEL_LEN: usize = 8192;

/// Share of the device's memory that may be used if the caller does not say.
pub const DEFAULT_MEMORY_SHARE: f64 = 0.9;
/// Host memory for preempted requests if the caller does not say: 4 GiB, as in vLLM.
pub const DEFAULT_SWAP_SPACE: u64 = 4 << 30;

/// The quantile of predicted lengths by which requests are admitted if the caller does not say: the one with the best
/// throughput at twice the load that can be served (`simulate --policies`).
pub const DEFAULT_GROWTH_QUANTILE: f64 = 0.6;

/// How many of the longest sequences the KV pool holds if the caller does not say.
pub const DEFAULT_POOL_SEQS: usize = 4;

impl EngineOptions {
    /// The defaults for `model`.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            backend: BackendChoice::Auto,
            adapter: None,
            threads: 0,
            kv_cache_dtype: KvFormat::F16,
            max_model_len: None,
            max_num_seqs: 16,
            kv_memory: None,
            gpu_memory_utilization: None,
            prefix_caching: true,
            swap_space: DEFAULT_SWAP_SPACE,
            preemption: Preemption::Auto,
            block_size: 16,
            prefill_chunk: 512,
            max_step_tokens: 512,
            scheduling_policy: SchedulingPolicy::default(),
            growth_quantile: DEFAULT_GROWTH_QUANTILE,
            length_stats: None,
            lookup: Lookup::None,
            draft: None,
            drafts: DraftPolicy::Auto(LengthOptions::default()),
            reasoning_policy: None,
            depth_classifier: None,
            markers: MarkerTexts::default(),
            soft_landing: None,
            squeeze_thinking: false,
            max_wait: None,
            trace: None,
        }
    }

    /// Threads to use: the caller's number, or the machine's.
    pub fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    /// Refuses numbers with which nothing can run, naming the field.
    pub fn validate(&self) -> Result<()> {
        let within = |field: &str, value: usize, low: usize, high: usize| match value {
            v if (low..=high).contains(&v) => Ok(()),
            v => Err(Error::invalid(field, format!("{v} is not between {low} and {high}"))),
        };
        within("threads", self.threads, 0, 1024)?;
        within("max_num_seqs", self.max_num_seqs, 1, 4096)?;
        within("block_size", self.block_size, 1, 1024)?;
        within("prefill_chunk", self.prefill_chunk, 1, 65536)?;
        within("max_step_tokens", self.max_step_tokens, 1, 65536)?;
        if let Some(len) = self.max_model_len {
            within("max_model_len", len, 2, 1 << 24)?;
        }
        if let Some(share) = self.gpu_memory_utilization
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(Error::invalid("gpu_memory_utilization", format!("{share} is not above 0 and at most 1")));
        }
        if !(0.0..1.0).contains(&self.growth_quantile) {
            let why = format!("{} is not at least 0 and below 1", self.growth_quantile);
            return Err(Error::invalid("growth_quantile", why));
        }
        if let DraftPolicy::Fixed(k) = self.drafts {
            within("num_speculative_tokens", k, 0, 32)?;
        }
        if self.max_step_tokens < self.max_num_seqs {
            let (step, seqs) = (self.max_step_tokens, self.max_num_seqs);
            let why = format!("{step} is less than max_num_seqs, {seqs}: every sequence needs a token a step");
            return Err(Error::invalid("max_step_tokens", why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_reads_its_own_name() {
        for choice in BackendChoice::ALL {
            assert_eq!(choice.name().parse::<BackendChoice>().unwrap(), choice);
        }
        assert!("gpu".parse::<BackendChoice>().unwrap_err().to_string().contains("auto, cpu, wgpu, cuda"));
    }

    #[test]
    fn absurd_numbers_are_named() {
        EngineOptions::new("m").validate().unwrap();
        let broken = EngineOptions { block_size: 0, ..EngineOptions::new("m") };
        assert!(broken.validate().unwrap_err().to_string().starts_with("block_size: 0"));
        let broken = EngineOptions { max_step_tokens: 8, ..EngineOptions::new("m") };
        assert!(broken.validate().unwrap_err().to_string().starts_with("max_step_tokens: 8"));
    }
}
