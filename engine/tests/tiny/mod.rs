//! A decoder of a few kilobytes, for tests of the readers: two layers, hidden 32, a byte-level vocabulary.
#![allow(dead_code, unreachable_pub)] // each test takes what it needs

use ponder_engine::checkpoint::gguf_write::{Meta, Writer};
use ponder_engine::format::Format;

pub const HIDDEN: usize = 32;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 8;
pub const FFN: usize = 64;
pub const LAYERS: usize = 2;

/// The 256 bytes in GPT-2's alphabet.
pub fn byte_tokens() -> Vec<String> {
    let mut next = 0x100;
    let char_of = |b: u32| match b {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from_u32(b),
        _ => {
            next += 1;
            char::from_u32(next - 1)
        }
    };
    (0..256).map(char_of).map(|c| c.map(String::from).unwrap_or_default()).collect()
}

/// Bytes, two merged tokens, and the special ones: 256 `he`, 257 `Ġhe`, 258 end, 259 start, 260 `<think>`, 261 `</think>`.
pub fn vocabulary() -> (Vec<String>, Vec<i32>, Vec<String>) {
    let mut tokens = byte_tokens();
    let mut types = vec![1; 256];
    for (token, kind) in
        [("he", 1), ("Ġhe", 1), ("<|im_end|>", 3), ("<|im_start|>", 3), ("<think>", 4), ("</think>", 4)]
    {
        tokens.push(token.into());
        types.push(kind);
    }
    (tokens, types, vec!["h e".into(), "Ġ he".into()])
}

/// Values that are never all alike.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + 11) % 101) as f32 / 101.0 - 0.5).collect()
}

/// The name and shape `[rows, cols]` of every tensor, GGUF names; vectors have one row.
pub fn tensors() -> Vec<(String, usize, usize)> {
    let vocab = vocabulary().0.len();
    let mut all = vec![("token_embd.weight".to_string(), vocab, HIDDEN)];
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    for n in 0..LAYERS {
        for (name, rows, cols) in [
            ("attn_norm", 1, HIDDEN),
            ("attn_q", q, HIDDEN),
            ("attn_k", kv, HIDDEN),
            ("attn_v", kv, HIDDEN),
            ("attn_output", HIDDEN, q),
            ("ffn_norm", 1, HIDDEN),
            ("ffn_gate", FFN, HIDDEN),
            ("ffn_up", FFN, HIDDEN),
            ("ffn_down", HIDDEN, FFN),
        ] {
            all.push((format!("blk.{n}.{name}.weight"), rows, cols));
        }
    }
    all.push(("output_norm.weight".to_string(), 1, HIDDEN));
    all
}

/// The file, ready to be spoiled.
pub fn gguf() -> Writer {
    let mut w = Writer::default();
    w.set("general.architecture", "llama".into()).set("general.name", "tiny".into());
    for (key, value) in [
        ("block_count", LAYERS),
        ("context_length", 128),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", FFN),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("rope.dimension_count", HEAD_DIM),
        ("vocab_size", vocabulary().0.len()),
    ] {
        w.set(format!("llama.{key}"), Meta::U32(value as u32));
    }
    w.set("llama.rope.freq_base", Meta::F32(10_000.0));
    w.set("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5));
    let (tokens, types, merges) = vocabulary();
    w.set("tokenizer.ggml.model", "gpt2".into()).set("tokenizer.ggml.pre", "smollm".into());
    w.set("tokenizer.ggml.tokens", Meta::Strs(tokens)).set("tokenizer.ggml.token_type", Meta::I32s(types));
    w.set("tokenizer.ggml.merges", Meta::Strs(merges));
    w.set("tokenizer.ggml.eos_token_id", Meta::U32(258));
    for (name, rows, cols) in tensors() {
        let dims = if rows == 1 { vec![cols] } else { vec![cols, rows] };
        let format = if rows == 1 { Format::F32 } else { Format::Q8_0 };
        w.tensor(name, &dims, format, &values(rows * cols));
    }
    w
}

/// Sets a metadata value, or removes the key.
pub fn with(key: &str, value: Option<Meta>) -> Vec<u8> {
    let mut w = gguf();
    match value {
        None => w.meta.retain(|(k, _)| k != key),
        Some(value) => match w.meta.iter_mut().find(|(k, _)| k == key) {
            Some(entry) => entry.1 = value,
            None => w.meta.push((key.into(), value)),
        },
    }
    w.bytes()
}
