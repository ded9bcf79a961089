//! `ponder inspect`: what a model's files say, and the memory it would take. Nothing is loaded.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Result;
use clap::Args;
use ponder::memory::{Sizing, main_memory, size};
use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::checkpoint::plan::bytes_in_words;
use serde_json::{Value, json};

use super::args::{ModelArgs, OutputArgs};

/// Flags of `ponder inspect`.
#[derive(Args)]
#[command(after_help = "Examples:
  ponder inspect --model qwen3.gguf
  ponder inspect --model ./QwQ-32B --tensors
  ponder inspect --model qwen3.gguf --json | jq .config")]
pub struct InspectArgs {
    /// List every tensor, not only the formats (--json always does)
    #[arg(long, env = "PONDER_TENSORS", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub tensors: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Prints.
pub fn inspect(args: &InspectArgs) -> Result<()> {
    let options = args.model.options(16)?;
    let checkpoint = Checkpoint::open(&options.model)?;
    let sizing = size(&options, &checkpoint.config, checkpoint.weight_bytes(), main_memory());
    if args.output.json {
        super::print_json(&as_json(&checkpoint, &sizing)?);
    } else {
        super::print_text(&as_text(&checkpoint, &sizing, args.tensors)?);
    }
    Ok(())
}

/// The numbers of the model, as (name, value).
fn numbers(checkpoint: &Checkpoint) -> Vec<(&'static str, Value)> {
    let c = &checkpoint.config;
    vec![
        ("family", json!(c.family.name)),
        ("name", json!(c.name)),
        ("layers", json!(c.layers)),
        ("hidden", json!(c.hidden)),
        ("heads", json!(c.heads)),
        ("kv_heads", json!(c.kv_heads)),
        ("head_dim", json!(c.head_dim)),
        ("ffn", json!(c.ffn)),
        ("vocab", json!(c.vocab)),
        ("context", json!(c.context)),
        ("tied", json!(c.tied)),
        ("rope_theta", json!(c.rope.theta)),
        ("rope_scaling", json!(format!("{:?}", c.rope.scaling))),
        ("sliding_window", c.local.as_ref().map_or(Value::Null, |l| json!(l.window))),
        ("eos", json!(checkpoint.generation.eos)),
        ("bos", json!(checkpoint.generation.bos)),
        ("add_bos", json!(checkpoint.generation.add_bos)),
    ]
}

fn as_json(checkpoint: &Checkpoint, sizing: &ponder_engine::Result<Sizing>) -> Result<Value> {
    let tensors = checkpoint.weights().map(|id| {
        let t = checkpoint.tensor(id)?;
        Ok(json!({ "name": t.name, "format": t.format.name(), "shape": [t.rows, t.cols], "bytes": t.stored_bytes() }))
    });
    let tensors = tensors.collect::<Result<Vec<Value>>>()?;
    let metadata: serde_json::Map<String, Value> =
        checkpoint.metadata().into_iter().map(|(k, v)| (k, Value::String(v))).collect();
    Ok(json!({
        "path": checkpoint.path.display().to_string(),
        "file_bytes": checkpoint.file_bytes(),
        "config": numbers(checkpoint).into_iter().map(|(k, v)| (k.to_string(), v)).collect::<serde_json::Map<_, _>>(),
        "memory": match sizing {
            Ok(s) => plan_json(s),
            Err(e) => json!({ "error": e.to_string() }),
        },
        "metadata": metadata,
        "tensors": tensors,
    }))
}

fn plan_json(s: &Sizing) -> Value {
    json!({
        "weights_bytes": s.plan.weights,
        "activations_bytes": s.plan.scratch,
        "kv_bytes_per_token": s.plan.kv.per_token(),
        "kv_scale_bytes_per_token": s.plan.kv.scales_per_token(),
        "kv_cache_dtype": s.plan.kv.format,
        "block_size": s.plan.block_size,
        "kv_pool_bytes": s.pool_bytes(),
        "kv_scale_bytes": s.scale_bytes(),
        "kv_pool_tokens": s.pool_tokens(),
        "max_model_len": s.runner.max_model_len,
        "usable_bytes": s.known.then_some(s.plan.budget),
        "tokens_that_fit": s.known.then(|| s.plan.tokens()),
    })
}

fn as_text(checkpoint: &Checkpoint, sizing: &ponder_engine::Result<Sizing>, every_tensor: bool) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "{} ({})\n", checkpoint.path.display(), bytes_in_words(checkpoint.file_bytes()))?;
    for (name, value) in numbers(checkpoint) {
        writeln!(out, "{name:<16} {}", value.as_str().map_or_else(|| value.to_string(), str::to_string))?;
    }
    writeln!(out, "\nMemory on the CPU, as `ponder run` would plan it for 16 sequences")?;
    match sizing {
        Ok(sizing) => write!(out, "{sizing}")?,
        Err(e) => writeln!(out, "{e}")?,
    }
    writeln!(out, "\nWeights")?;
    let mut formats: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for id in checkpoint.weights() {
        let t = checkpoint.tensor(id)?;
        let entry = formats.entry(t.format.name()).or_default();
        (entry.0, entry.1) = (entry.0 + 1, entry.1 + t.stored_bytes() as u64);
        if every_tensor {
            writeln!(out, "{:<48} {:<6} [{}, {}]", t.name, t.format.name(), t.rows, t.cols)?;
        }
    }
    for (format, (count, bytes)) in formats {
        writeln!(out, "{format:<16} {count:>4} tensors {:>10}", bytes_in_words(bytes))?;
    }
    writeln!(out, "\nMetadata")?;
    for (key, value) in checkpoint.metadata() {
        let one_line = value.replace('\n', "\\n");
        let shown: String = one_line.chars().take(100).collect();
        writeln!(out, "{key:<40} {shown}{}", if shown.len() < one_line.len() { "…" } else { "" })?;
    }
    Ok(out)
}
