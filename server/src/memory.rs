//! How large everything gets: the memory plan, made before anything is allocated.

use std::fmt;

use ponder_engine::checkpoint::plan::{MemoryPlan, bytes_in_words};
use ponder_engine::model::ModelConfig;
use ponder_engine::model::record::KvShape;
use ponder_engine::model::runner::RunnerOptions;
use ponder_engine::{Error, Result};

use crate::options::{DEFAULT_MODEL_LEN, DEFAULT_POOL_SEQS, EngineOptions};

/// Most rows of one step whose logits are computed; more sequences than this do not decode in one step.
pub const MAX_LOGIT_ROWS: usize = 64;

/// What will be allocated, and what there is. Prints as the table that a load shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// Bytes of the model, and how many tokens all of the memory would hold.
    pub plan: MemoryPlan,
    /// Whether the device told how much memory is free; if not, nothing was checked.
    pub known: bool,
    /// The sizes that the runner is loaded with.
    pub runner: RunnerOptions,
}

impl Sizing {
    /// Tokens that the KV pool holds.
    pub fn pool_tokens(&self) -> usize {
        self.runner.kv.blocks * self.runner.kv.block_size
    }
    /// Blocks of host memory for preempted sequences: as asked for, but never more than a quarter of what is free.
    pub fn swap_blocks(&self, swap_space: u64) -> usize {
        let bytes = free_main_memory().map_or(swap_space, |free| swap_space.min(free / 4));
        (bytes / (self.plan.kv_per_token * self.runner.kv.block_size as u64).max(1)).min(u32::MAX.into()) as usize
    }
    /// Bytes of the KV pool.
    pub fn pool_bytes(&self) -> u64 {
        self.pool_tokens() as u64 * self.plan.kv_per_token
    }
}

/// Sizes for a model of `weights` bytes where `free` bytes may be had.
///
/// # Errors
/// If it does not fit, with what would.
pub fn size(options: &EngineOptions, config: &ModelConfig, weights: u64, free: Option<u64>) -> Result<Sizing> {
    options.validate()?;
    if let Some(len) = options.max_model_len
        && len > config.context
    {
        let why = format!("{len} tokens, but the model was made for a context of {}", config.context);
        return Err(Error::invalid("max_model_len", why));
    }
    let scratch = scratch_bytes(options, config);
    // A tenth stays free: for the program itself, the tokenizer, and everyone else.
    let budget = free.map_or(u64::MAX, |f| f / 10 * 9);
    let plan = MemoryPlan::new(config, weights, options.kv_cache_dtype, scratch, budget);
    if let Some(missing) = plan.missing() {
        let (needs, has) = (bytes_in_words(weights + scratch), bytes_in_words(budget));
        let why = format!(
            "needs {needs} and {has} may be used: {} too little; use a smaller quantisation or a smaller model",
            bytes_in_words(missing)
        );
        return Err(Error::invalid("model", why));
    }
    let len = longest(options, config, &plan)?;
    let blocks = pool_blocks(options, len, &plan)?;
    let runner = RunnerOptions {
        max_rows: options.max_step_tokens,
        max_logit_rows: MAX_LOGIT_ROWS.max(options.max_num_seqs).min(options.max_step_tokens),
        max_seqs: options.max_num_seqs,
        max_model_len: len,
        kv: KvShape { blocks, block_size: options.block_size, format: options.kv_cache_dtype },
    };
    Ok(Sizing { plan, known: free.is_some(), runner })
}

/// The longest sequence: as asked, or as far as model, default and memory go.
fn longest(options: &EngineOptions, config: &ModelConfig, plan: &MemoryPlan) -> Result<usize> {
    let fits = plan.tokens().min(usize::MAX as u64) as usize / options.block_size * options.block_size;
    let too_long = |len: usize| {
        let why = format!(
            "{len} tokens of KV cache do not fit; {fits} would, or twice as many with a smaller kv_cache_dtype"
        );
        Err(Error::invalid("max_model_len", why))
    };
    match options.max_model_len {
        Some(len) if len > fits => too_long(len),
        Some(len) => Ok(len),
        None => {
            let wanted = config.context.min(DEFAULT_MODEL_LEN);
            // Shorter than a page of text is no use to anyone.
            if fits < wanted.min(512) { too_long(wanted.min(512)) } else { Ok(wanted.min(fits)) }
        }
    }
}

/// Blocks of the pool: as many bytes as asked for, or a few of the longest sequences as far as memory goes.
fn pool_blocks(options: &EngineOptions, len: usize, plan: &MemoryPlan) -> Result<usize> {
    let block_bytes = plan.kv_per_token * options.block_size as u64;
    let one = len.div_ceil(options.block_size);
    let most = (plan.kv_budget() / block_bytes.max(1)).min(u32::MAX as u64) as usize;
    let Some(bytes) = options.kv_memory else {
        return Ok((one * options.max_num_seqs.min(DEFAULT_POOL_SEQS)).min(most.max(one)));
    };
    let blocks = (bytes / block_bytes.max(1)) as usize;
    if blocks < one {
        let least = bytes_in_words(one as u64 * block_bytes);
        let why = format!(
            "{} do not hold one sequence of {len} tokens; use {least} or lower max_model_len",
            bytes_in_words(bytes)
        );
        return Err(Error::invalid("kv_memory", why));
    }
    if blocks > most {
        let why = format!("{} do not fit; {} would", bytes_in_words(bytes), bytes_in_words(most as u64 * block_bytes));
        return Err(Error::invalid("kv_memory", why));
    }
    Ok(blocks)
}

/// Bytes of activations, logits and tables for the largest step.
fn scratch_bytes(options: &EngineOptions, c: &ModelConfig) -> u64 {
    let rows = options.max_step_tokens as u64;
    let heads = (2 * c.heads + 2 * c.kv_heads) as u64 * c.head_dim as u64;
    let row = 3 * c.hidden as u64 + heads + c.ffn as u64 + c.rope.dim as u64;
    let logit_rows = MAX_LOGIT_ROWS.max(options.max_num_seqs) as u64;
    4 * (rows * row + logit_rows * (c.vocab + c.hidden) as u64)
}

impl fmt::Display for Sizing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, what: &str, bytes: u64, more: &str| {
            writeln!(f, "{what:<12} {:>10}{more}", bytes_in_words(bytes))
        };
        row(f, "weights", self.plan.weights, "")?;
        row(f, "activations", self.plan.scratch, "")?;
        let (tokens, len) = (self.pool_tokens(), self.runner.max_model_len);
        let per_token = bytes_in_words(self.plan.kv_per_token);
        let more =
            format!("  {tokens} tokens of {per_token} ({:?}); {len} at most in one sequence", self.plan.kv_format);
        row(f, "KV pool", self.pool_bytes(), &more)?;
        if self.known {
            let more = format!("  may be used; {} tokens would fit", self.plan.tokens());
            row(f, "memory", self.plan.budget, &more)?;
        }
        Ok(())
    }
}

/// Bytes of main memory that this process may still take, where the system tells: what is available,
/// or what a container's limit leaves.
pub fn free_main_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let meminfo = read("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024;
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let limit = number("/sys/fs/cgroup/memory.max");
    let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0);
    // Cached file pages count as used but are given back on demand.
    let cached = read("/sys/fs/cgroup/memory.stat")
        .and_then(|s| s.lines().find_map(|l| l.strip_prefix("inactive_file "))?.trim().parse::<u64>().ok());
    let left = limit.map(|l| l.saturating_sub(used.saturating_sub(cached.unwrap_or(0))));
    Some(left.map_or(available, |l| l.min(available)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ponder_engine::format::KvFormat;
    use ponder_engine::model::{Family, Pairing, Rope, RopeScaling};

    /// SmolLM2-135M's numbers.
    fn config() -> ModelConfig {
        ModelConfig {
            family: Family::by_gguf("llama").unwrap(),
            name: String::new(),
            layers: 30,
            hidden: 576,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            ffn: 1536,
            vocab: 49152,
            context: 8192,
            norm_eps: 1e-5,
            rope: Rope { theta: 1e5, dim: 64, pairing: Pairing::Interleaved, scaling: RopeScaling::None },
            local: None,
            tied: true,
            attention_scale: 0.125,
        }
    }
    const WEIGHTS: u64 = 98_000_000;

    #[test]
    fn the_default_pool_is_modest_and_bounded_by_memory() {
        let options = EngineOptions::new("m");
        let roomy = size(&options, &config(), WEIGHTS, Some(8 << 30)).unwrap();
        assert_eq!((roomy.runner.max_model_len, roomy.pool_tokens()), (8192, 4 * 8192));
        assert_eq!(roomy.pool_bytes(), 4 * 8192 * 23_040);
        assert!(roomy.to_string().contains("32768 tokens of 23.0 kB (F16); 8192 at most in one sequence"), "{roomy}");
        let one = size(&EngineOptions { max_num_seqs: 1, ..options.clone() }, &config(), WEIGHTS, None).unwrap();
        assert_eq!((one.pool_tokens(), one.known), (8192, false));
        let tight = size(&options, &config(), WEIGHTS, Some(200 << 20)).unwrap();
        assert!(tight.pool_bytes() + WEIGHTS < 200 << 20 && tight.runner.max_model_len < 8192, "{tight}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let refused =
            |options: &EngineOptions, free| size(options, &config(), WEIGHTS, Some(free)).unwrap_err().to_string();
        let options = EngineOptions::new("m");
        assert!(refused(&options, 50 << 20).starts_with("model: needs "));
        let long = EngineOptions { max_model_len: Some(9000), ..options.clone() };
        assert!(refused(&long, 8 << 30).contains("a context of 8192"));
        let long = EngineOptions { max_model_len: Some(8192), kv_cache_dtype: KvFormat::F32, ..options.clone() };
        assert!(refused(&long, 300 << 20).starts_with("max_model_len: 8192 tokens of KV cache do not fit"));
        let small = EngineOptions { kv_memory: Some(1 << 20), ..options.clone() };
        assert!(refused(&small, 8 << 30).contains("do not hold one sequence of 8192 tokens"));
        let large = EngineOptions { kv_memory: Some(8 << 30), ..options };
        assert!(refused(&large, 4 << 30).contains("do not fit"));
    }
}
