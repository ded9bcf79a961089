//! GGUF files that lie: each ends in one message that names the file and the field, at once, without a panic.

mod tiny;

use std::time::Instant;

use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::checkpoint::gguf::Gguf;
use ponder_engine::checkpoint::gguf_write::{Meta, Writer};
use ponder_engine::error::Error;
use ponder_engine::format::Format;
use tiny::with;

/// Opens the bytes as a file and builds its tokenizer.
fn open(dir: &tempfile::TempDir, bytes: &[u8]) -> Result<(), Error> {
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("a temporary file");
    let model = Checkpoint::open(&path)?;
    model.tokenizer().map(drop)
}

/// The position after the first `needle`.
fn after(bytes: &[u8], needle: &str) -> usize {
    let found = bytes.windows(needle.len()).position(|w| w == needle.as_bytes());
    found.expect("the needle is there") + needle.len()
}

/// A good file with `patch` written `offset` bytes after the first `needle` (an empty one: the start).
fn patched(needle: &str, offset: usize, patch: &[u8]) -> Vec<u8> {
    let mut bytes = tiny::gguf().bytes();
    let at = if needle.is_empty() { 0 } else { after(&bytes, needle) } + offset;
    bytes[at..at + patch.len()].copy_from_slice(patch);
    bytes
}

fn changed(change: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = tiny::gguf();
    change(&mut w);
    w.bytes()
}

const MAX: [u8; 8] = [0xff; 8];
const Q: &str = "blk.0.attn_q.weight";
const ARCH: &str = "general.architecture";

/// (what is wrong, the file, the field that the message must name).
fn header_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = tiny::gguf().bytes();
    vec![
        ("empty", vec![], "magic"),
        ("three bytes", good[..3].to_vec(), "magic"),
        ("another format", b"PK\x03\x04 and so on".to_vec(), "magic"),
        ("no version", good[..6].to_vec(), "version"),
        ("version 0", patched("", 4, &[0]), "version"),
        ("version 1", patched("", 4, &[1]), "version"),
        ("version 4", patched("", 4, &[4]), "version"),
        ("big-endian", patched("", 4, &[0, 0, 0, 3]), "big-endian"),
        ("2^64-1 tensors", patched("", 8, &MAX), "tensor_count"),
        ("more tensors than bytes", patched("", 8, &60_000u64.to_le_bytes()), "tensor_count"),
        ("2^64-1 keys", patched("", 16, &MAX), "metadata_kv_count"),
        ("2^61 keys", patched("", 16, &(1u64 << 61).to_le_bytes()), "metadata_kv_count"),
        ("one key too many", patched("", 16, &(tiny::gguf().meta.len() as u64 + 1).to_le_bytes()), "tensor"),
        ("only the header", good[..24].to_vec(), "tensor_count"),
        ("ends in a key", good[..40].to_vec(), "tensor_count"),
        ("key of 2^64-1 bytes", patched("", 24, &MAX), "metadata key 0"),
        ("key of 0 bytes", patched("", 24, &[0; 8]), "metadata key 0"),
        ("key of 5000 bytes", patched("", 24, &5000u64.to_le_bytes()), "metadata key 0"),
        ("key that is not UTF-8", patched("", 32, &[0xff]), "metadata key 0"),
        ("duplicate key", changed(|w| w.meta.push((ARCH.into(), "llama".into()))), ARCH),
        ("value type 13", patched(ARCH, 0, &[13]), ARCH),
        ("value type 2^32-1", patched(ARCH, 0, &MAX[..4]), ARCH),
        ("string of 2^64-1 bytes", patched(ARCH, 4, &MAX), ARCH),
        ("string beyond the file", patched(ARCH, 4, &(1u64 << 40).to_le_bytes()), ARCH),
        ("string that is not UTF-8", patched(ARCH, 12, &[0xc0]), ARCH),
        ("array of type 77", patched("tokenizer.ggml.tokens", 4, &[77]), "tokenizer.ggml.tokens"),
        ("array of arrays", patched("tokenizer.ggml.tokens", 4, &[9]), "tokenizer.ggml.tokens"),
        ("array of 2^64-1", patched("tokenizer.ggml.tokens", 8, &MAX), "tokenizer.ggml.tokens"),
        ("array of 2^62", patched("token_type", 8, &(1u64 << 62).to_le_bytes()), "tokenizer.ggml.token_type"),
        ("alignment 0", with("general.alignment", Some(Meta::U32(0))), "general.alignment"),
        ("alignment 3", with("general.alignment", Some(Meta::U32(3))), "general.alignment"),
        ("alignment 2^31", with("general.alignment", Some(Meta::U32(1 << 31))), "general.alignment"),
        ("alignment below 0", with("general.alignment", Some(Meta::I32(-32))), "general.alignment"),
        ("alignment as text", with("general.alignment", Some("32".into())), "general.alignment"),
    ]
}

fn config_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let u32 = |key: &str, v: u32| with(key, Some(Meta::U32(v)));
    let f32 = |key: &str, v: f32| with(key, Some(Meta::F32(v)));
    vec![
        ("no architecture", with(ARCH, None), ARCH),
        ("unknown architecture", with(ARCH, Some("mamba".into())), "mamba"),
        ("architecture as a number", u32(ARCH, 1), ARCH),
        ("no layers", with("llama.block_count", None), "llama.block_count"),
        ("0 layers", u32("llama.block_count", 0), "llama.block_count"),
        ("2^32-1 layers", u32("llama.block_count", u32::MAX), "llama.block_count"),
        ("a layer too many", u32("llama.block_count", 3), "blk.2.attn_norm.weight"),
        ("a layer too few", u32("llama.block_count", 1), "blk.1."),
        ("layers as text", with("llama.block_count", Some("2".into())), "llama.block_count"),
        ("hidden 0", u32("llama.embedding_length", 0), "llama.embedding_length"),
        ("hidden 64", u32("llama.embedding_length", 64), "token_embd.weight"),
        ("0 heads", u32("llama.attention.head_count", 0), "llama.attention.head_count"),
        ("5 heads", u32("llama.attention.head_count", 5), "llama.attention.head_count_kv"),
        ("0 KV heads", u32("llama.attention.head_count_kv", 0), "llama.attention.head_count_kv"),
        ("3 KV heads", u32("llama.attention.head_count_kv", 3), "llama.attention.head_count_kv"),
        ("unequal KV heads", with("llama.attention.head_count_kv", Some(Meta::I32s(vec![2, 4]))), "head_count_kv"),
        ("context 0", u32("llama.context_length", 0), "llama.context_length"),
        ("no epsilon", with("llama.attention.layer_norm_rms_epsilon", None), "layer_norm_rms_epsilon"),
        ("epsilon NaN", f32("llama.attention.layer_norm_rms_epsilon", f32::NAN), "layer_norm_rms_epsilon"),
        ("epsilon 0", f32("llama.attention.layer_norm_rms_epsilon", 0.0), "layer_norm_rms_epsilon"),
        ("rope base infinite", f32("llama.rope.freq_base", f32::INFINITY), "llama.rope.freq_base"),
        ("rope base below 0", f32("llama.rope.freq_base", -1.0), "llama.rope.freq_base"),
        ("odd rope dimension", u32("llama.rope.dimension_count", 7), "llama.rope.dimension_count"),
        ("rope wider than a head", u32("llama.rope.dimension_count", 16), "llama.rope.dimension_count"),
        ("unknown scaling", with("llama.rope.scaling.type", Some("longrope".into())), "llama.rope.scaling.type"),
        ("yarn without factor", with("llama.rope.scaling.type", Some("yarn".into())), "llama.rope.scaling.factor"),
        ("experts", u32("llama.expert_count", 8), "llama.expert_count"),
        ("part of a split file", u32("split.count", 2), "split.count"),
        ("vocabulary size", u32("llama.vocab_size", 263), "llama.vocab_size"),
        ("no tokens", with("tokenizer.ggml.tokens", None), "tokenizer.ggml.tokens"),
        ("end token out of range", u32("tokenizer.ggml.eos_token_id", 262), "tokenizer.ggml.eos_token_id"),
    ]
}

fn tensor_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = tiny::gguf().bytes();
    // After a tensor's name: dimensions u32, extents u64 each, type u32, offset u64.
    vec![
        ("duplicate tensor", changed(|w| w.tensors.push(w.tensors[2].clone())), Q),
        (
            "missing tensor",
            changed(|w| {
                w.tensors.remove(2);
            }),
            Q,
        ),
        (
            "unused tensor",
            changed(|w| {
                w.tensor("blk.0.attn_q.bias", &[32], Format::F32, &[0.0; 32]);
            }),
            "blk.0.attn_q.bias",
        ),
        ("nameless tensor", changed(|w| w.tensors[2].name.clear()), "tensor 2"),
        ("0 dimensions", patched(Q, 0, &[0]), Q),
        ("5 dimensions", patched(Q, 0, &[5]), Q),
        ("2^32-1 dimensions", patched(Q, 0, &MAX[..4]), Q),
        ("an extent of 0", patched(Q, 4, &[0; 8]), Q),
        ("extents that overflow", patched(Q, 4, &[[0, 0, 0, 0, 0, 0, 0, 0x10], [0xff; 8]].concat()), Q),
        ("bytes that overflow", patched(Q, 4, &(1u64 << 58).to_le_bytes()), Q),
        ("a row of 33", patched(Q, 4, &33u64.to_le_bytes()), Q),
        ("transposed", changed(|w| w.tensors[3].dims.reverse()), "blk.0.attn_k.weight"),
        ("tensor type 99", patched(Q, 20, &[99]), Q),
        ("Q2_K", patched(Q, 20, &[10]), "Q2_K"),
        ("misaligned offset", patched(Q, 24, &[1]), Q),
        ("offset beyond the file", patched(Q, 24, &(1u64 << 40).to_le_bytes()), Q),
        ("offset that overflows", patched(Q, 24, &(u64::MAX - 31).to_le_bytes()), Q),
        ("one byte short", good[..good.len() - 1].to_vec(), "output_norm.weight"),
        ("no data", good[..good.len() / 2].to_vec(), "truncated"),
        (
            "rope factors of another length",
            changed(|w| {
                w.tensor("rope_freqs.weight", &[3], Format::F32, &[1.0; 3]);
            }),
            "rope_freqs.weight",
        ),
        (
            "a rope factor of 0",
            changed(|w| {
                w.tensor("rope_freqs.weight", &[4], Format::F32, &[1.0, 1.0, 0.0, 1.0]);
            }),
            "rope_freqs.weight",
        ),
    ]
}

fn vocabulary_cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let merges = |m: &[&str]| Meta::Strs(m.iter().map(|s| s.to_string()).collect());
    vec![
        ("a type too few", with("tokenizer.ggml.token_type", Some(Meta::I32s(vec![1; 261]))), "token_type"),
        ("a type of 7", with("tokenizer.ggml.token_type", Some(Meta::I32s(vec![7; 262]))), "token_type"),
        ("tokens that are numbers", with("tokenizer.ggml.tokens", Some(Meta::I32s(vec![0; 262]))), "ggml.tokens"),
        ("unknown model", with("tokenizer.ggml.model", Some("rwkv".into())), "rwkv"),
        ("no model", with("tokenizer.ggml.model", None), "tokenizer.ggml.model"),
        ("unknown pre-tokeniser", with("tokenizer.ggml.pre", Some("klingon".into())), "klingon"),
        ("no merges", with("tokenizer.ggml.merges", None), "tokenizer.ggml.merges"),
        ("half a merge", with("tokenizer.ggml.merges", Some(merges(&["he"]))), "tokenizer.ggml.merges"),
        ("a merge of unknown tokens", with("tokenizer.ggml.merges", Some(merges(&["xyz q"]))), "tokenizer.ggml.merges"),
        ("no scores", with("tokenizer.ggml.model", Some("llama".into())), "tokenizer.ggml.scores"),
    ]
}

#[test]
fn every_lie_has_a_message() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    assert!(open(&dir, &tiny::gguf().bytes()).is_ok(), "the file that the cases spoil is good");
    let cases = [header_cases(), config_cases(), tensor_cases(), vocabulary_cases()].concat();
    let start = Instant::now();
    for (what, bytes, field) in &cases {
        let message = match open(&dir, bytes) {
            Ok(()) => panic!("{what}: opened"),
            Err(e) => e.to_string(),
        };
        assert!(message.contains("model.gguf") && message.contains(field), "{what}: {message:?} should name {field}");
        assert!(!message.contains("gave up"), "{what}: a panic: {message}");
    }
    println!("{} files in {:?}", cases.len(), start.elapsed());
    assert!(start.elapsed().as_secs_f32() < 5.0);
}

/// A small generator of numbers, so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn truncated_anywhere() {
    let good = tiny::gguf().bytes();
    for len in (0..good.len()).step_by(13) {
        assert!(Gguf::read(&good[..len]).is_err(), "{len} of {} bytes", good.len());
    }
}

#[test]
fn flipped_anywhere() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let good = tiny::gguf().bytes();
    let header = after(&good, "output_norm.weight") + 24;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut opened = 0;
    for round in 0..4000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(header);
            bytes[at] = match random.below(3) {
                0 => bytes[at] ^ (1 << random.below(8)),
                1 => 0xff,
                _ => random.below(256) as u8,
            };
        }
        // A panic fails the test; an error or a file that is still good does not.
        if Gguf::read(&bytes).is_ok() && round % 8 == 0 {
            opened += usize::from(open(&dir, &bytes).is_ok());
        }
    }
    println!("{opened} flipped files still opened");
}

#[test]
fn non_finite_weights_are_found() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let mut w = tiny::gguf();
    std::fs::write(&path, w.bytes()).expect("a temporary file");
    Checkpoint::open(&path).expect("opens").check_finite(2).expect("all finite");
    w.tensors[5].bytes[34..36].copy_from_slice(&[0, 0x7e]);
    std::fs::write(&path, w.bytes()).expect("a temporary file");
    let message = Checkpoint::open(&path).expect("opens").check_finite(2).expect_err("a NaN").to_string();
    assert!(message.contains("blk.0.attn_output.weight") && message.contains("NaN"), "{message}");
}
