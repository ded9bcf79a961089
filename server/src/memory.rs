//! How large everything gets: the memory plan, made before anything is allocated.

use std::fmt;

use ponder_engine::backend::DeviceMemory;
use ponder_engine::checkpoint::plan::{MemoryPlan, bytes_in_words};
use ponder_engine::format::KvFormat;
use ponder_engine::kv::bytes::KvBytes;
use ponder_engine::model::ModelConfig;
use ponder_engine::model::record::KvShape;
use ponder_engine::model::runner::RunnerOptions;
use ponder_engine::{Error, Result};

use crate::options::{DEFAULT_MEMORY_SHARE, DEFAULT_MODEL_LEN, DEFAULT_POOL_SEQS, EngineOptions};

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
    /// Bytes of the KV pool, scales aside.
    /// Blocks of host memory for preempted sequences: as asked for, but never more than a quarter of what is free.
    pub fn swap_blocks(&self, swap_space: u64) -> usize {
        let bytes = main_memory().map_or(swap_space, |m| swap_space.min(m.free / 4));
        let block = self.plan.kv.per_block(self.runner.kv.block_size);
        (bytes / block.max(1)).min(u32::MAX.into()) as usize
    }
    /// Bytes of the KV pool.
    pub fn pool_bytes(&self) -> u64 {
        self.pool_tokens() as u64 * self.plan.kv_per_token()
    }
    /// Bytes of the scales of the pool's tokens.
    pub fn scale_bytes(&self) -> u64 {
        self.pool_tokens() as u64 * self.plan.kv.scales_per_token()
    }
}

/// Sizes for a model of `weights` bytes on a device with this memory.
///
/// # Errors
/// If it does not fit, with what would.
pub fn size(
    options: &EngineOptions,
    config: &ModelConfig,
    weights: u64,
    memory: Option<DeviceMemory>,
) -> Result<Sizing> {
    size_beside(options, config, weights, None, memory)
}

/// What a draft model takes of the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beside {
    /// Bytes of its weights and activations.
    pub fixed: u64,
    /// Its keys and values: its cache has the same blocks.
    pub kv: KvBytes,
}

impl Beside {
    /// That of a draft `config` with `weights` bytes.
    pub fn of(options: &EngineOptions, config: &ModelConfig, weights: u64) -> Self {
        Self { fixed: weights + scratch_bytes(options, config), kv: config.kv_bytes(options.kv_cache_dtype) }
    }
}

/// As [`size`], with a draft model beside it.
///
/// # Errors
/// As there.
pub fn size_beside(
    options: &EngineOptions,
    config: &ModelConfig,
    weights: u64,
    beside: Option<Beside>,
    memory: Option<DeviceMemory>,
) -> Result<Sizing> {
    options.validate()?;
    if let Some(len) = options.max_model_len
        && len > config.context
    {
        let why = format!("{len} tokens, but the model was made for a context of {}", config.context);
        return Err(Error::invalid("max_model_len", why));
    }
    let scratch = scratch_bytes(options, config) + beside.map_or(0, |b| b.fixed);
    let budget = memory.map_or(u64::MAX, |m| usable(options, m));
    if memory.is_none() && options.gpu_memory_utilization.is_some() {
        let why = "this device does not tell how much memory it has; set kv_memory instead";
        return Err(Error::invalid("gpu_memory_utilization", why));
    }
    let (block_size, context) = (options.block_size, config.context as u64);
    let (kv, beside) = (config.kv_bytes(options.kv_cache_dtype), beside.map(|b| b.kv));
    let plan = MemoryPlan { weights, kv, beside, block_size, scratch, budget, context };
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
    Ok(Sizing { plan, known: memory.is_some(), runner })
}

/// Bytes that may be used: the share of all that was asked for, as far as it is free. A tenth of what is free
/// stays so (less, if a larger share was asked for): for the program itself, the tokenizer, and everyone else.
fn usable(options: &EngineOptions, memory: DeviceMemory) -> u64 {
    let share = options.gpu_memory_utilization.unwrap_or(DEFAULT_MEMORY_SHARE);
    let of = |bytes: u64, share: f64| (bytes as f64 * share) as u64;
    of(memory.total, share).min(of(memory.free, share.max(DEFAULT_MEMORY_SHARE)))
}

/// The longest sequence: as asked, or as far as model, default and memory go.
fn longest(options: &EngineOptions, config: &ModelConfig, plan: &MemoryPlan) -> Result<usize> {
    let fits = plan.tokens().min(usize::MAX as u64) as usize;
    let too_long = |len: usize| {
        let smaller = if plan.kv.format == KvFormat::E2M5 { "" } else { ", or more with a smaller kv_cache_dtype" };
        let why = format!("{len} tokens of KV cache do not fit; {fits} would{smaller}");
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

/// Blocks of the pool: as many bytes as asked for; else all that a given share of the memory leaves; else a few
/// of the longest sequences as far as memory goes.
fn pool_blocks(options: &EngineOptions, len: usize, plan: &MemoryPlan) -> Result<usize> {
    // Scales are beside the pool: the same bytes hold twice the tokens in half the format.
    let block_bytes = plan.kv_per_token() * options.block_size as u64;
    let one = len.div_ceil(options.block_size);
    // Slots are numbered in an i32.
    let most = plan.blocks().min(i32::MAX as u64 / options.block_size as u64) as usize;
    let Some(bytes) = options.kv_memory else {
        let few = one * options.max_num_seqs.min(DEFAULT_POOL_SEQS);
        return Ok(if options.gpu_memory_utilization.is_some() { most } else { few.min(most.max(one)) });
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
        let per_token = bytes_in_words(self.plan.kv_per_token());
        let more = format!("  {tokens} tokens of {per_token} ({}); {len} at most in one sequence", self.plan.kv.format);
        row(f, "KV pool", self.pool_bytes(), &more)?;
        if self.scale_bytes() > 0 {
            let each = bytes_in_words(self.plan.kv.scales_per_token());
            row(f, "KV scales", self.scale_bytes(), &format!("  {each} for each token"))?;
        }
        if self.known {
            let more = format!("  may be used; {} tokens would fit", self.plan.tokens());
            row(f, "memory", self.plan.budget, &more)?;
        }
        Ok(())
    }
}

/// Main memory, where the system tells: all of it and what is available, or a container's limit and what it
/// leaves.
pub fn main_memory() -> Option<DeviceMemory> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let meminfo = read("/proc/meminfo")?;
    let kilobytes = |key: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(key))?;
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    let (total, available) = (kilobytes("MemTotal:")?, kilobytes("MemAvailable:")?);
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let Some(limit) = number("/sys/fs/cgroup/memory.max") else { return Some(DeviceMemory { free: available, total }) };
    let used = number("/sys/fs/cgroup/memory.current").unwrap_or(0);
    // Cached file pages count as used but are given back on demand.
    let cached = read("/sys/fs/cgroup/memory.stat")
        .and_then(|s| s.lines().find_map(|l| l.strip_prefix("inactive_file "))?.trim().parse::<u64>().ok());
    let left = limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0)));
    Some(DeviceMemory { free: left.min(available), total: limit.min(total) })
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// A device with nothing else on it.
    fn free(bytes: u64) -> Option<DeviceMemory> {
        Some(DeviceMemory { free: bytes, total: bytes })
    }

    #[test]
    fn the_default_pool_is_modest_and_bounded_by_memory() {
        let options = EngineOptions::new("m");
        let roomy = size(&options, &config(), WEIGHTS, free(8 << 30)).unwrap();
        assert_eq!((roomy.runner.max_model_len, roomy.pool_tokens()), (8192, 4 * 8192));
        assert_eq!(roomy.pool_bytes(), 4 * 8192 * 23_040);
        assert!(roomy.to_string().contains("32768 tokens of 23.0 kB (f16); 8192 at most in one sequence"), "{roomy}");
        let one = size(&EngineOptions { max_num_seqs: 1, ..options.clone() }, &config(), WEIGHTS, None).unwrap();
        assert_eq!((one.pool_tokens(), one.known), (8192, false));
        let tight = size(&options, &config(), WEIGHTS, free(200 << 20)).unwrap();
        assert!(tight.pool_bytes() + WEIGHTS < 200 << 20 && tight.runner.max_model_len < 8192, "{tight}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let refused =
            |options: &EngineOptions, bytes| size(options, &config(), WEIGHTS, free(bytes)).unwrap_err().to_string();
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

    #[test]
    fn fp8_holds_twice_the_tokens_and_shows_its_scales() {
        let half = EngineOptions { kv_memory: Some(23_040 * 16 * 1000), ..EngineOptions::new("m") };
        let eighth = EngineOptions { kv_cache_dtype: KvFormat::E2M5, ..half.clone() };
        let half =
            size(&EngineOptions { max_model_len: Some(512), ..half }, &config(), WEIGHTS, free(8 << 30)).unwrap();
        let eighth = size(&EngineOptions { max_model_len: Some(512), ..eighth }, &config(), WEIGHTS, None).unwrap();
        assert_eq!((half.pool_tokens(), eighth.pool_tokens()), (16_000, 32_000));
        assert_eq!(half.pool_bytes(), eighth.pool_bytes());
        assert_eq!((half.scale_bytes(), eighth.scale_bytes()), (0, 2000 * 16 * 30 * 2 * 3 * 4));
        assert!(!half.to_string().contains("scales"));
        assert!(eighth.to_string().contains("KV scales       23.0 MB  720 B for each token"), "{eighth}");
    }

    #[test]
    fn a_share_of_the_memory_is_filled_as_far_as_it_is_free() {
        let half = EngineOptions { gpu_memory_utilization: Some(0.5), ..EngineOptions::new("m") };
        let used = |s: &Sizing| s.plan.weights + s.plan.scratch + s.pool_bytes();
        let alone = size(&half, &config(), WEIGHTS, free(4 << 30)).unwrap();
        assert!(used(&alone) <= 2 << 30 && used(&alone) + 16 * 23_040 > 2 << 30, "{alone}");
        // Beside somebody who left a quarter.
        let beside = DeviceMemory { free: 1 << 30, total: 4 << 30 };
        let beside = size(&half, &config(), WEIGHTS, Some(beside)).unwrap();
        assert_eq!(beside.plan.budget, ((1u64 << 30) as f64 * 0.9) as u64);
        // The default takes no more than it needs.
        let modest = size(&EngineOptions::new("m"), &config(), WEIGHTS, free(4 << 30)).unwrap();
        assert_eq!(modest.pool_tokens(), 4 * 8192);
        let unknown = size(&half, &config(), WEIGHTS, None).unwrap_err().to_string();
        assert!(unknown.starts_with("gpu_memory_utilization: this device does not tell"), "{unknown}");
        let absurd = EngineOptions { gpu_memory_utilization: Some(1.5), ..half };
        assert!(absurd.validate().unwrap_err().to_string().starts_with("gpu_memory_utilization: 1.5"));
    }
}
