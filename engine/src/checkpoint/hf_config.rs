//! From `config.json` and `generation_config.json` to a [`ModelConfig`] and the generation defaults.
//! The keys and their defaults are those of transformers; both spellings of rotary scaling are read
//! (`rope_scaling` beside `rope_theta`, and the newer `rope_parameters`).

use serde_json::Value as Json;

use super::GenerationDefaults;
use super::gguf::Fault;
use super::gguf_config::yarn_attention_factor;
use super::int4;
use super::keys::{Keys, limits};
use crate::model::{Activation, Family, LocalAttention, ModelConfig, Pairing, Rope, RopeScaling, family::FAMILIES};

type Result<T> = std::result::Result<T, Fault>;

/// Reads the configuration of a model.
pub fn config(json: &Json) -> Result<ModelConfig> {
    let family = family(json)?;
    let keys = Keys::Json(json);
    refuse_what_we_lack(&keys, json, family)?;
    let hidden = keys.int("hidden_size", limits::WIDTH)?;
    let heads = keys.int("num_attention_heads", limits::HEADS)?;
    let kv_heads = keys.int_opt("num_key_value_heads", limits::HEADS)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(keys.fault("num_key_value_heads", format!("{heads} heads are no multiple of {kv_heads}")));
    }
    let head_dim = match keys.int_opt("head_dim", limits::WIDTH)? {
        Some(d) => d,
        None if hidden % heads == 0 => hidden / heads,
        None => return Err(keys.fault("hidden_size", format!("{hidden} is no multiple of {heads} heads"))),
    };
    let context = keys.int("max_position_embeddings", limits::CONTEXT)?;
    let (rope, local) = ropes(json, family, head_dim, context)?;
    let stretched = match rope.scaling {
        RopeScaling::Yarn { factor, original_context, .. } => (original_context as f64 * f64::from(factor)) as usize,
        _ => 0,
    };
    let per_score = keys.positive_opt("query_pre_attn_scalar")?.filter(|_| family.name == "gemma3");
    Ok(ModelConfig {
        family,
        name: keys.str_opt("_name_or_path")?.unwrap_or_default().to_string(),
        layers: keys.int("num_hidden_layers", limits::LAYERS)?,
        hidden,
        heads,
        kv_heads,
        head_dim,
        ffn: keys.int("intermediate_size", limits::WIDTH)?,
        vocab: keys.int("vocab_size", limits::VOCAB)?,
        context: context.max(stretched),
        norm_eps: keys.positive_opt("rms_norm_eps")?.unwrap_or(1e-6),
        rope,
        local,
        tied: keys.bool_opt("tie_word_embeddings")?.unwrap_or(family.name == "gemma3"),
        attention_scale: 1.0 / per_score.unwrap_or(head_dim as f32).sqrt(),
    })
}

fn family(json: &Json) -> Result<&'static Family> {
    const KEY: &str = "architectures";
    let arch = json.get(KEY).and_then(|a| a.get(0)).and_then(Json::as_str);
    let arch = arch.ok_or_else(|| Fault::new(KEY, "missing, or not a list of names"))?;
    Family::by_hf(arch).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|f| f.hf).copied().collect();
        Fault::new(KEY, format!("`{arch}` is not supported; these are: {}", known.join(", ")))
    })
}

/// Whatever would change the mathematics and is not implemented is an error, never ignored.
fn refuse_what_we_lack(keys: &Keys<'_>, json: &Json, family: &Family) -> Result<()> {
    if let Some(config) = json.get("quantization_config").filter(|c| !c.is_null()) {
        // Which tensors are FP8 or INT4, and what shares a scale of FP8, their types and shapes say.
        let word = |key: &str| config.get(key).and_then(Json::as_str).unwrap_or_default();
        let is_fp8 = match word("quant_method") {
            "fp8" => ["", "e4m3"].contains(&word("fmt")),
            "compressed-tensors" => word("format") == "float-quantized",
            _ => false,
        };
        if !is_fp8 && int4::scheme(json)?.is_none() {
            let why = "not supported but for FP8 (E4M3; quant_method fp8, or compressed-tensors), GPTQ and AWQ";
            return Err(keys.fault("quantization_config", why));
        }
    }
    if keys.has("auto_map") && family.name.is_empty() {
        return Err(keys.fault("auto_map", "models that bring their own code are refused"));
    }
    for key in ["attention_bias", "mlp_bias"] {
        let expected = key == "attention_bias" && family.qkv_bias;
        if keys.bool_opt(key)?.unwrap_or(expected) != expected {
            return Err(keys.fault(key, format!("not supported for {} models", family.name)));
        }
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if keys.has(key) {
            return Err(keys.fault(key, "not supported"));
        }
    }
    let act = keys.str_opt("hidden_activation")?.or(keys.str_opt("hidden_act")?);
    let right = match (act, family.activation) {
        (None, _) | (Some("silu" | "swish"), Activation::Silu) => true,
        (Some("gelu_pytorch_tanh" | "gelu_new"), Activation::GeluTanh) => true,
        (Some(_), _) => false,
    };
    if !right {
        return Err(keys.fault("hidden_act", format!("`{}` in a {} model", act.unwrap_or_default(), family.name)));
    }
    let windowed = keys.bool_opt("use_sliding_window")?.unwrap_or(false)
        || layer_types(json)?.is_some_and(|t| t.contains(&"sliding_attention"));
    if windowed && family.name != "gemma3" {
        return Err(keys.fault("use_sliding_window", format!("not supported for {} models", family.name)));
    }
    Ok(())
}

fn layer_types(json: &Json) -> Result<Option<Vec<&str>>> {
    let Some(list) = json.get("layer_types").filter(|l| !l.is_null()) else { return Ok(None) };
    let names: Option<Vec<&str>> = list.as_array().and_then(|l| l.iter().map(Json::as_str).collect());
    let names = names.ok_or_else(|| Fault::new("layer_types", "not a list of names"))?;
    match names.iter().find(|n| !["full_attention", "sliding_attention"].contains(n)) {
        Some(other) => Err(Fault::new("layer_types", format!("`{other}` is not supported"))),
        None => Ok(Some(names)),
    }
}

/// The rotary embedding of global layers, and the local layers where the family has them.
fn ropes(json: &Json, family: &Family, head_dim: usize, context: usize) -> Result<(Rope, Option<LocalAttention>)> {
    let parameters = json.get("rope_parameters").filter(|p| !p.is_null());
    let global = parameters.map(|p| p.get("full_attention").unwrap_or(p));
    let rope = rope(json, global.or(json.get("rope_scaling")), "rope_theta", default_theta(family), head_dim, context)?;
    let keys = Keys::Json(json);
    let window = keys.int_opt("sliding_window", 1..=*limits::CONTEXT.end())?;
    let Some(window) = window.filter(|_| family.name == "gemma3") else { return Ok((rope, None)) };
    let pattern = local_pattern(json)?;
    let scaling = parameters.and_then(|p| p.get("sliding_attention"));
    let local = self::rope(json, scaling, "rope_local_base_freq", 10_000.0, head_dim, context)?;
    Ok((rope, Some(LocalAttention { window, pattern, rope: local })))
}

fn default_theta(family: &Family) -> f32 {
    if family.name == "gemma3" { 1e6 } else { 10_000.0 }
}

/// "Every n-th layer is global", checked against the list of layer types if there is one.
fn local_pattern(json: &Json) -> Result<usize> {
    let keys = Keys::Json(json);
    let given = match keys.int_opt("sliding_window_pattern", 1..=1024)? {
        None => keys.int_opt("_sliding_window_pattern", 1..=1024)?,
        given => given,
    };
    let Some(types) = layer_types(json)? else { return Ok(given.unwrap_or(6)) };
    let first_global = types.iter().position(|t| *t == "full_attention").map_or(types.len() + 1, |i| i + 1);
    let pattern = given.unwrap_or(first_global);
    let regular = types.iter().enumerate().all(|(i, t)| (*t == "full_attention") == ((i + 1) % pattern == 0));
    if regular { Ok(pattern) } else { Err(Fault::new("layer_types", "not every n-th layer is global")) }
}

/// One rotary embedding from the object that describes its scaling (and, in the newer spelling, its base).
fn rope(
    json: &Json,
    scaling: Option<&Json>,
    theta_key: &str,
    default_theta: f32,
    head_dim: usize,
    context: usize,
) -> Result<Rope> {
    let outer = Keys::Json(json);
    let none = Json::Null;
    let s = Keys::Json(scaling.unwrap_or(&none));
    let theta = match s.positive_opt("rope_theta")? {
        None => outer.positive_opt(theta_key)?,
        theta => theta,
    };
    let partial = match s.positive_opt("partial_rotary_factor")? {
        None => outer.positive_opt("partial_rotary_factor")?,
        partial => partial,
    };
    let dim = (head_dim as f32 * partial.unwrap_or(1.0)) as usize;
    if dim == 0 || !dim.is_multiple_of(2) || dim > head_dim {
        return Err(
            outer.fault("head_dim", format!("{dim} of {head_dim} dimensions would rotate; an even number must"))
        );
    }
    let scaling = rope_scaling(&s, &outer, context)?;
    Ok(Rope { theta: theta.unwrap_or(default_theta), dim, pairing: Pairing::Halves, scaling })
}

fn rope_scaling(s: &Keys<'_>, outer: &Keys<'_>, context: usize) -> Result<RopeScaling> {
    let kind = match s.str_opt("rope_type")? {
        None => s.str_opt("type")?,
        kind => kind,
    };
    let need =
        |key: &str| -> Result<f32> { s.positive_opt(key)?.ok_or_else(|| s.fault(key, "missing from rope_scaling")) };
    let original = || -> Result<usize> {
        const KEY: &str = "original_max_position_embeddings";
        let inner = s.int_opt(KEY, limits::CONTEXT)?;
        Ok(inner.or(outer.int_opt(KEY, limits::CONTEXT)?).unwrap_or(context))
    };
    match kind.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: need("factor")? }),
        "llama3" => {
            let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
            if high <= low {
                return Err(s.fault("high_freq_factor", format!("{high} is not above low_freq_factor {low}")));
            }
            let factor = need("factor")?;
            Ok(RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context: original()?,
            })
        }
        "yarn" => {
            let factor = need("factor")?;
            Ok(RopeScaling::Yarn {
                factor,
                original_context: original()?,
                beta_fast: s.positive_opt("beta_fast")?.unwrap_or(32.0),
                beta_slow: s.positive_opt("beta_slow")?.unwrap_or(1.0),
                attention_factor: attention_factor(s, factor)?,
            })
        }
        other => Err(s.fault("rope_type", format!("`{other}` is not supported; default, linear, llama3 and yarn are"))),
    }
}

/// The factor on cos and sin: as given, or DeepSeek's ratio of two `mscale`s, or YaRN's formula.
fn attention_factor(s: &Keys<'_>, factor: f32) -> Result<f32> {
    if let Some(given) = s.positive_opt("attention_factor")? {
        return Ok(given);
    }
    let scaled = |m: f32| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (s.positive_opt("mscale")?, s.positive_opt("mscale_all_dim")?) {
        (Some(m), Some(all)) => Ok(scaled(m) / scaled(all)),
        _ => Ok(yarn_attention_factor(factor)),
    }
}

/// Generation defaults; `generation_config.json` goes before `config.json`.
pub fn generation(config: &Json, generation: &Json, vocab: usize) -> Result<GenerationDefaults> {
    let g = Keys::Json(generation);
    let mut eos = ids(generation, "eos_token_id", vocab)?;
    eos.extend(ids(config, "eos_token_id", vocab)?);
    eos.sort_unstable();
    eos.dedup();
    let mut bos = ids(generation, "bos_token_id", vocab)?;
    bos.extend(ids(config, "bos_token_id", vocab)?);
    Ok(GenerationDefaults {
        eos,
        bos: bos.first().copied(),
        add_bos: false,
        temperature: match g.bool_opt("do_sample")? {
            Some(false) => Some(0.0),
            _ => g.float_opt("temperature")?.filter(|t| *t >= 0.0),
        },
        top_k: g.int_opt("top_k", 0..=u64::from(u32::MAX))?.map(|k| k as u32),
        top_p: g.positive_opt("top_p")?,
        min_p: g.float_opt("min_p")?,
        repetition_penalty: g.positive_opt("repetition_penalty")?,
    })
}

/// One id or a list of ids.
fn ids(json: &Json, key: &str, vocab: usize) -> Result<Vec<u32>> {
    let values = match json.get(key) {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(Json::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
    };
    let id = |v: &Json| v.as_u64().filter(|id| *id < vocab as u64).map(|id| id as u32);
    let ids: Option<Vec<u32>> = values.into_iter().map(id).collect();
    ids.ok_or_else(|| Fault::new(key, format!("not token ids below {vocab}")))
}
