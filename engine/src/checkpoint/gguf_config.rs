//! From GGUF metadata to a [`ModelConfig`] and the generation defaults. The keys are those of ggml's
//! `docs/gguf.md` and of llama.cpp's converter.

use super::GenerationDefaults;
use super::gguf::{Fault, Gguf, Value};
use super::keys::{Keys, limits};
use crate::model::{Family, LocalAttention, ModelConfig, Pairing, Rope, RopeScaling, family::FAMILIES};

type Result<T> = std::result::Result<T, Fault>;

/// Reads the configuration. Whether the embedding is tied and whether rotary factors are stored is
/// known only from the tensors: `tied` and `factors` say so.
pub fn config(gguf: &Gguf, bytes: &[u8], tied: bool, factors: Option<Vec<f32>>) -> Result<ModelConfig> {
    let Some(Value::Str(arch)) = gguf.get(bytes, "general.architecture") else {
        return Err(Fault::new("general.architecture", "missing or not a string"));
    };
    let family = Family::by_gguf(arch).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|f| f.gguf).collect();
        Fault::new("general.architecture", format!("`{arch}` is not supported; these are: {}", known.join(", ")))
    })?;
    let keys = Keys::Gguf(gguf, bytes, arch);
    if keys.int_opt("split.count", 0..=u64::MAX)?.unwrap_or(1) > 1 {
        return Err(Fault::new("split.count", "one part of a split model; merge the parts into one file first"));
    }
    let hidden = keys.int("%.embedding_length", limits::WIDTH)?;
    let heads = keys.int("%.attention.head_count", limits::HEADS)?;
    let kv_heads = keys.int_opt("%.attention.head_count_kv", limits::HEADS)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(keys.fault("%.attention.head_count_kv", format!("{heads} heads are no multiple of {kv_heads}")));
    }
    let head_dim = head_dim(&keys, hidden, heads)?;
    let layers = keys.int("%.block_count", limits::LAYERS)?;
    let context = keys.int("%.context_length", limits::CONTEXT)?;
    let config = ModelConfig {
        family,
        name: keys.str_opt("general.name")?.unwrap_or_default().to_string(),
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        ffn: keys.int("%.feed_forward_length", limits::WIDTH)?,
        vocab: vocab(&keys, gguf, bytes)?,
        context,
        norm_eps: keys
            .positive_opt("%.attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| keys.fault("%.attention.layer_norm_rms_epsilon", "missing"))?,
        rope: rope(&keys, family, head_dim, context, factors)?,
        local: local(&keys, family, head_dim)?,
        tied,
        attention_scale: attention_scale(family, layers, hidden, heads, head_dim),
    };
    if keys.has("%.expert_count") {
        return Err(keys.fault("%.expert_count", "mixtures of experts are not supported"));
    }
    Ok(config)
}

fn head_dim(keys: &Keys<'_>, hidden: usize, heads: usize) -> Result<usize> {
    let head_dim = match keys.int_opt("%.attention.key_length", limits::WIDTH)? {
        Some(d) => d,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(keys.fault("%.embedding_length", format!("{hidden} is no multiple of {heads} heads")));
        }
    };
    if keys.int_opt("%.attention.value_length", limits::WIDTH)?.is_some_and(|v| v != head_dim) {
        return Err(keys.fault("%.attention.value_length", "differs from the key length, which is not supported"));
    }
    Ok(head_dim)
}

/// The number of tokens, which every place that states it must agree on.
fn vocab(keys: &Keys<'_>, gguf: &Gguf, bytes: &[u8]) -> Result<usize> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    let Some(Value::Array(tokens)) = gguf.get(bytes, TOKENS) else {
        return Err(Fault::new(TOKENS, "missing or not an array"));
    };
    if !limits::VOCAB.contains(&(tokens.len as u64)) {
        return Err(Fault::new(TOKENS, format!("{} tokens", tokens.len)));
    }
    match keys.int_opt("%.vocab_size", limits::VOCAB)? {
        Some(v) if v != tokens.len => {
            Err(keys.fault("%.vocab_size", format!("{v}, but the vocabulary has {} tokens", tokens.len)))
        }
        _ => Ok(tokens.len),
    }
}

fn rope(keys: &Keys<'_>, family: &Family, head_dim: usize, context: usize, factors: Option<Vec<f32>>) -> Result<Rope> {
    let dim = keys.int_opt("%.rope.dimension_count", limits::WIDTH)?.unwrap_or(head_dim);
    if dim % 2 != 0 || dim > head_dim {
        return Err(keys.fault("%.rope.dimension_count", format!("{dim} is odd or wider than a head ({head_dim})")));
    }
    let scaling = match (scaling(keys, context)?, factors) {
        (scaling, None) => scaling,
        (RopeScaling::None, Some(f)) => RopeScaling::Factors(check_factors(f, dim)?),
        _ => return Err(Fault::new("rope_freqs.weight", "together with another rope scaling is not supported")),
    };
    let theta = keys.positive_opt("%.rope.freq_base")?.unwrap_or(10_000.0);
    let pairing = if family.gguf_interleaved_rope { Pairing::Interleaved } else { Pairing::Halves };
    Ok(Rope { theta, dim, pairing, scaling })
}

fn check_factors(factors: Vec<f32>, dim: usize) -> Result<Vec<f32>> {
    if factors.len() != dim / 2 {
        let why = format!("{} factors for {} rotated pairs", factors.len(), dim / 2);
        return Err(Fault::new("rope_freqs.weight", why));
    }
    match factors.iter().find(|f| !f.is_finite() || **f <= 0.0) {
        Some(f) => Err(Fault::new("rope_freqs.weight", format!("a factor of {f}"))),
        None => Ok(factors),
    }
}

fn scaling(keys: &Keys<'_>, context: usize) -> Result<RopeScaling> {
    const TYPE: &str = "%.rope.scaling.type";
    // Old files have only `scale_linear`.
    let old = keys.positive_opt("%.rope.scale_linear")?;
    let kind = keys.str_opt(TYPE)?.unwrap_or(if old.is_some_and(|f| f != 1.0) { "linear" } else { "none" });
    let factor = || -> Result<f32> {
        let factor = keys.positive_opt("%.rope.scaling.factor")?.or(old);
        factor.ok_or_else(|| keys.fault("%.rope.scaling.factor", "missing"))
    };
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "yarn" => {
            let factor = factor()?;
            let given = keys.positive_opt("%.rope.scaling.attn_factor")?.unwrap_or(1.0);
            Ok(RopeScaling::Yarn {
                factor,
                original_context: keys
                    .int_opt("%.rope.scaling.original_context_length", limits::CONTEXT)?
                    .unwrap_or(context),
                beta_fast: keys.positive_opt("%.rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.positive_opt("%.rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                attention_factor: given * yarn_attention_factor(factor),
            })
        }
        other => Err(keys.fault(TYPE, format!("`{other}` is not supported; none, linear and yarn are"))),
    }
}

/// YaRN's temperature as a factor on cos and sin: `0.1 ln(factor) + 1`.
pub fn yarn_attention_factor(factor: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
}

/// Gemma 3's local layers: every sixth is global; the local base is fixed at 10000.
fn local(keys: &Keys<'_>, family: &Family, head_dim: usize) -> Result<Option<LocalAttention>> {
    let Some(window) = keys.int_opt("%.attention.sliding_window", 0..=*limits::CONTEXT.end())? else {
        return Ok(None);
    };
    if window == 0 {
        return Ok(None);
    }
    if family.name != "gemma3" {
        return Err(keys.fault("%.attention.sliding_window", "not supported for this architecture"));
    }
    let pattern = keys.int_opt("%.attention.sliding_window_pattern", 1..=1024)?.unwrap_or(6);
    let theta = keys.positive_opt("%.rope.freq_base_swa")?.unwrap_or(10_000.0);
    let rope = Rope { theta, dim: head_dim, pairing: Pairing::Halves, scaling: RopeScaling::None };
    Ok(Some(LocalAttention { window, pattern, rope }))
}

/// `1/sqrt(head_dim)`, but for Gemma 3 27B (62 layers), which was trained with `1/sqrt(hidden/heads)`.
fn attention_scale(family: &Family, layers: usize, hidden: usize, heads: usize, head_dim: usize) -> f32 {
    let per_head = if family.name == "gemma3" && layers == 62 { hidden / heads } else { head_dim };
    1.0 / (per_head as f32).sqrt()
}

/// Beginning and end tokens, and sampling values that the file recommends.
pub fn generation(gguf: &Gguf, bytes: &[u8], vocab: usize) -> Result<GenerationDefaults> {
    let keys = Keys::Gguf(gguf, bytes, "");
    let id = |key: &str| -> Result<Option<u32>> { Ok(keys.int_opt(key, 0..=vocab as u64 - 1)?.map(|id| id as u32)) };
    let mut eos = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        eos.extend(id(key)?);
    }
    if let Some(Value::Array(tokens)) = gguf.get(bytes, "tokenizer.ggml.tokens") {
        let named = tokens.iter().zip(0u32..).filter(|(t, _)| matches!(t, Value::Str(s) if super::ends_a_turn(s)));
        eos.extend(named.map(|(_, id)| id));
    }
    eos.sort_unstable();
    eos.dedup();
    // What llama.cpp assumes where the file does not say: SentencePiece vocabularies and Llama 3 begin with BOS.
    let spm = keys.str_opt("tokenizer.ggml.model")? == Some("llama");
    let llama3 = matches!(keys.str_opt("tokenizer.ggml.pre")?, Some("llama3" | "llama-v3" | "llama-bpe"));
    let bos = id("tokenizer.ggml.bos_token_id")?;
    let add_bos = keys.bool_opt("tokenizer.ggml.add_bos_token")?.unwrap_or(spm || llama3);
    Ok(GenerationDefaults {
        eos,
        bos,
        add_bos: add_bos && bos.is_some(),
        temperature: keys.float_opt("general.sampling.temp")?.filter(|t| *t >= 0.0),
        top_k: keys.int_opt("general.sampling.top_k", 0..=u64::from(u32::MAX))?.map(|k| k as u32),
        top_p: keys.positive_opt("general.sampling.top_p")?,
        min_p: keys.float_opt("general.sampling.min_p")?,
        repetition_penalty: keys.positive_opt("general.sampling.penalty_repeat")?,
    })
}

/// The texts of the beginning and end tokens, which chat templates call `bos_token` and `eos_token`.
pub fn bos_eos_text<'a>(gguf: &Gguf, bytes: &'a [u8]) -> Result<(&'a str, &'a str)> {
    let keys = Keys::Gguf(gguf, bytes, "");
    let text = |key: &str| -> Result<&'a str> {
        let Some(id) = keys.int_opt(key, 0..=*limits::VOCAB.end())? else { return Ok("") };
        let Some(Value::Array(tokens)) = gguf.get(bytes, "tokenizer.ggml.tokens") else { return Ok("") };
        match tokens.iter().nth(id) {
            Some(Value::Str(text)) => Ok(text),
            _ => Err(keys.fault(key, format!("{id} is no token"))),
        }
    };
    Ok((text("tokenizer.ggml.bos_token_id")?, text("tokenizer.ggml.eos_token_id")?))
}
