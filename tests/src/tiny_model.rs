//! Models with random weights, small enough for the slowest backend, in every file layout that is read.
//!
//! They say nonsense, but definite nonsense: the logits have spread, so that a wrong number anywhere
//! changes the tokens that follow. Weights depend on the seed and the name of the weight alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ponder_engine::checkpoint::gguf_write::{Meta, Writer};
use ponder_engine::format::Format;
use ponder_engine::model::{Family, LayerWeight, ModelConfig, Pairing, Rope, RopeScaling, WeightId};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

/// ChatML, as SmolLM2 and Qwen have it.
pub const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}\
<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Special tokens; their ids follow those of the 256 bytes.
pub const SPECIALS: [&str; 5] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"];

/// Rows of the embedding: the 256 bytes, the special tokens, and some that no token has.
pub const VOCAB: usize = 272;

/// Longest context.
pub const CONTEXT: usize = 512;

/// Tensors of a Hugging Face file by name: dtype, shape, bytes.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A model in a temporary folder, removed with this value.
pub struct TinyModel {
    folder: TempDir,
    name: &'static str,
}

impl TinyModel {
    /// What to pass as `--model`.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }
    /// The same, as text.
    pub fn arg(&self) -> String {
        self.path().display().to_string()
    }
}

/// A Hugging Face folder with this `config.json` and these tensors.
pub(crate) fn folder(config: Value, tensors: &Tensors) -> TinyModel {
    let model = TinyModel { folder: TempDir::new().expect("a temporary folder"), name: "model" };
    std::fs::create_dir(model.path()).expect("an empty folder");
    write_folder(&model.path(), config, tensors);
    model
}

/// A Hugging Face folder of `family` (`llama`, `qwen2` or `qwen3`), weights in `dtype`.
pub fn hugging_face(family: &str, dtype: Dtype) -> TinyModel {
    let model = TinyModel { folder: TempDir::new().expect("a temporary folder"), name: "model" };
    std::fs::create_dir(model.path()).expect("an empty folder");
    write_hugging_face(&model.path(), &config(family), dtype);
    model
}

/// The same with a longer context, in F32: for answers that last.
pub fn hugging_face_of_context(family: &str, context: usize) -> TinyModel {
    let model = TinyModel { folder: TempDir::new().expect("a temporary folder"), name: "model" };
    std::fs::create_dir(model.path()).expect("an empty folder");
    write_hugging_face(&model.path(), &ModelConfig { context, ..config(family) }, Dtype::F32);
    model
}

/// A GGUF file of the Llama family, matrices in `format`.
pub fn gguf(format: Format) -> TinyModel {
    let model = TinyModel { folder: TempDir::new().expect("a temporary folder"), name: "tiny.gguf" };
    std::fs::write(model.path(), gguf_writer(format).bytes()).expect("writable");
    model
}

/// The numbers of the tiny model of a family.
pub fn config(family: &str) -> ModelConfig {
    let family = Family::by_gguf(family).expect("a family of ours");
    // Not hidden / heads, where a family allows it.
    let head_dim = if family.name == "qwen3" { 32 } else { 16 };
    ModelConfig {
        family,
        name: format!("tiny {}", family.name),
        layers: 2,
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        head_dim,
        ffn: 96,
        vocab: VOCAB,
        context: CONTEXT,
        norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, dim: head_dim, pairing: Pairing::Halves, scaling: RopeScaling::None },
        local: None,
        tied: false,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
    }
}

/// Values of a weight: about normal; variance 1/K for matrices, near 1 for norms, small for biases.
pub(crate) fn values(config: &ModelConfig, id: WeightId) -> Vec<f32> {
    let (rows, cols) = id.shape(config);
    let name = id.gguf_name();
    let mut state =
        name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    let (mean, spread) = match id {
        _ if id.is_norm() => (1.0, 0.1),
        WeightId::Embed => (0.0, 1.0),
        // Sharp enough that greedy decoding does not hang on rounding.
        WeightId::Output => (0.0, 0.5),
        WeightId::Layer(_, LayerWeight::QBias | LayerWeight::KBias | LayerWeight::VBias) => (0.0, 0.2),
        _ => (0.0, 1.5 / (cols as f32).sqrt()),
    };
    (0..rows * cols).map(|_| mean + spread * normal(&mut state)).collect()
}

/// Sum of four uniform numbers, scaled to variance 1; the generator is SplitMix64 (Steele et al. 2014).
fn normal(state: &mut u64) -> f32 {
    let mut sum = 0.0;
    for _ in 0..4 {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        sum += ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    }
    sum * 3f32.sqrt()
}

fn write_hugging_face(folder: &Path, config: &ModelConfig, dtype: Dtype) {
    let format = match dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::BF16 => Format::BF16,
        other => panic!("{other:?} is not for weights"),
    };
    let mut tensors = Tensors::new();
    for id in WeightId::required(config) {
        let (rows, cols) = id.shape(config);
        let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
        let mut bytes = Vec::new();
        format.encode(&values(config, id), &mut bytes);
        tensors.insert(id.hf_name(config.family).expect("a weight of both layouts"), (dtype, shape, bytes));
    }
    write_folder(folder, config_json(config), &tensors);
}

/// A folder of these tensors, with a tokenizer.
pub(crate) fn write_folder(folder: &Path, config: Value, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("bytes of the shape"))
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("writable");
    let json = |file: &str, value: Value| std::fs::write(folder.join(file), value.to_string()).expect("writable");
    json("config.json", config);
    json("generation_config.json", json!({ "bos_token_id": 257, "eos_token_id": [256, 258] }));
    json("tokenizer.json", tokenizer_json());
    json(
        "tokenizer_config.json",
        json!({ "add_bos_token": false, "chat_template": TEMPLATE, "eos_token": "<|im_end|>" }),
    );
}

pub(crate) fn config_json(c: &ModelConfig) -> Value {
    json!({
        "architectures": [c.family.hf[0]],
        "hidden_size": c.hidden,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope.theta,
        "tie_word_embeddings": c.tied,
        "hidden_act": "silu",
    })
}

/// GPT-2's alphabet: printable bytes are themselves, the others the characters from U+0100 on.
fn alphabet() -> Vec<String> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 0x100;
    let mut spell = |b: u8| {
        if printable(b) {
            return char::from(b).to_string();
        }
        next += 1;
        char::from_u32(next - 1).expect("far below the surrogates").to_string()
    };
    (0..=255).map(&mut spell).collect()
}

fn tokenizer_json() -> Value {
    let vocab: serde_json::Map<String, Value> = alphabet().into_iter().zip(0..).map(|(t, id)| (t, json!(id))).collect();
    let added = SPECIALS.iter().zip(256..).map(|(content, id)| {
        json!({ "id": id, "content": content, "special": !content.contains("think"), "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false })
    });
    json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

/// The GGUF file before it is written, so that a test can spoil any part of it.
pub fn gguf_writer(format: Format) -> Writer {
    let c = config("llama");
    let mut w = Writer::default();
    w.set("general.architecture", "llama".into());
    w.set("general.name", c.name.as_str().into());
    let number = |v: usize| Meta::U32(v as u32);
    w.set("llama.block_count", number(c.layers));
    w.set("llama.context_length", number(c.context));
    w.set("llama.embedding_length", number(c.hidden));
    w.set("llama.feed_forward_length", number(c.ffn));
    w.set("llama.attention.head_count", number(c.heads));
    w.set("llama.attention.head_count_kv", number(c.kv_heads));
    w.set("llama.attention.layer_norm_rms_epsilon", Meta::F32(c.norm_eps));
    w.set("llama.rope.freq_base", Meta::F32(c.rope.theta));
    w.set("llama.vocab_size", number(c.vocab));
    let unused = (256 + SPECIALS.len()..VOCAB).map(|i| format!("<unused {i}>"));
    let tokens = alphabet().into_iter().chain(SPECIALS.map(String::from)).chain(unused).collect();
    // ggml's token types: 1 normal, 3 control, 4 user-defined, 5 unused.
    let types = (0..VOCAB as i32).map(|id| match id {
        0..256 => 1,
        256..259 => 3,
        259..261 => 4,
        _ => 5,
    });
    w.set("tokenizer.ggml.model", "gpt2".into());
    w.set("tokenizer.ggml.pre", "gpt-2".into());
    w.set("tokenizer.ggml.tokens", Meta::Strs(tokens));
    w.set("tokenizer.ggml.token_type", Meta::I32s(types.collect()));
    w.set("tokenizer.ggml.merges", Meta::Strs(Vec::new()));
    w.set("tokenizer.ggml.bos_token_id", Meta::U32(257));
    w.set("tokenizer.ggml.eos_token_id", Meta::U32(258));
    w.set("tokenizer.chat_template", TEMPLATE.into());
    for id in WeightId::required(&c) {
        let (rows, cols) = id.shape(&c);
        let dims: &[usize] = if rows == 1 { &[cols] } else { &[cols, rows] };
        let format = if rows == 1 { Format::F32 } else { format };
        w.tensor(id.gguf_name(), dims, format, &values(&c, id));
    }
    w
}
