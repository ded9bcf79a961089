//! Whatever is wrong with a model, a flag or a prompt: exit code 1, one line that names what to mend,
//! in under a second, without a panic.

use std::path::Path;

use crate::common::{ponder, ponder_with};
use ponder_engine::checkpoint::gguf_write::{Meta, Writer};
use ponder_engine::format::Format;
use ponder_tests::tiny_model::{TinyModel, gguf_writer, hugging_face};
use safetensors::Dtype;
use serde_json::{Value, json};

/// A file that is spoiled, and what the message must name beside the file.
fn refuse_gguf(case: &str, bytes: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spoiled.gguf");
    std::fs::write(&path, bytes).unwrap();
    let path = path.display().to_string();
    let ran = ponder(&["run", "--model", &path, "--quiet", "Hello"]);
    ran.refused(case, &[&["spoiled.gguf"], parts].concat());
}

fn spoiled(spoil: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = gguf_writer(Format::F32);
    spoil(&mut writer);
    writer.bytes()
}

fn set(writer: &mut Writer, key: &str, value: Meta) {
    writer.meta.retain(|(k, _)| k != key);
    writer.set(key, value);
}

/// The bytes with the first occurrence of `from` replaced.
fn patched(mut bytes: Vec<u8>, after: &str, skip: usize, with: &[u8]) -> Vec<u8> {
    let at = bytes.windows(after.len()).position(|w| w == after.as_bytes()).unwrap() + after.len() + skip;
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

#[test]
fn gguf_files_that_lie() {
    let whole = gguf_writer(Format::F32).bytes();
    refuse_gguf("no GGUF at all", b"PK\x03\x04 something else entirely", &["magic"]);
    refuse_gguf("empty", b"", &["magic"]);
    refuse_gguf("version 1", &[b"GGUF\x01\0\0\0".as_slice(), &[0; 32]].concat(), &["version"]);
    refuse_gguf("only a magic", &whole[..5], &["version", "ends at byte 5"]);
    refuse_gguf("half a header", &whole[..20], &["tensor_count"]);
    refuse_gguf("half the keys", &whole[..3000], &["ends at byte 3000"]);
    refuse_gguf("truncated weights", &whole[..whole.len() - 1000], &["weight", "truncated?"]);
    refuse_gguf("a tensor count that overflows", &patched(whole.clone(), "GGUF", 4, &[255; 8]), &["tensor_count"]);
    refuse_gguf("a key count that overflows", &patched(whole.clone(), "GGUF", 12, &[255; 8]), &["metadata_kv_count"]);
    let dims = patched(whole.clone(), "token_embd.weight", 4, &[255; 8]);
    refuse_gguf("a dimension that overflows", &dims, &["token_embd.weight"]);
    let kind = patched(whole.clone(), "token_embd.weight", 4 + 16, &99u32.to_le_bytes());
    refuse_gguf("an unknown tensor type", &kind, &["token_embd.weight", "type 99"]);
    let offset = patched(whole, "output_norm.weight", 4 + 8 + 4, &7u64.to_le_bytes());
    refuse_gguf("an offset that is not aligned", &offset, &["output_norm.weight", "alignment"]);
}

#[test]
fn gguf_files_that_contradict_themselves() {
    let alignment = spoiled(|w| set(w, "general.alignment", Meta::U32(0)));
    refuse_gguf("alignment 0", &alignment, &["general.alignment"]);
    let twice = spoiled(|w| w.tensors.push(w.tensors[0].clone()));
    refuse_gguf("a tensor that appears twice", &twice, &["token_embd.weight", "twice"]);
    refuse_gguf("a key that appears twice", &spoiled(|w| w.meta.push(w.meta[1].clone())), &["general.name"]);
    let missing = spoiled(|w| w.tensors.retain(|t| t.name != "blk.1.ffn_up.weight"));
    refuse_gguf("a missing tensor", &missing, &["blk.1.ffn_up.weight"]);
    let family = spoiled(|w| set(w, "general.architecture", "mamba".into()));
    refuse_gguf("an unknown family", &family, &["general.architecture", "mamba"]);
    let heads = spoiled(|w| set(w, "llama.attention.head_count_kv", Meta::U32(3)));
    refuse_gguf("heads that do not divide", &heads, &["head_count_kv"]);
    let layers = spoiled(|w| set(w, "llama.block_count", Meta::U32(u32::MAX)));
    refuse_gguf("four billion layers", &layers, &["llama.block_count"]);
    let short = spoiled(|w| {
        let embed = w.tensors.iter_mut().find(|t| t.name == "token_embd.weight").unwrap();
        embed.dims[1] -= 100;
        embed.bytes.truncate(embed.dims.iter().product::<u64>() as usize * 4);
    });
    refuse_gguf("an embedding that does not match the vocabulary", &short, &["token_embd.weight", "[172, 64]"]);
    let long = spoiled(|w| {
        let tokens = (0..300).map(|i| format!("token{i}")).collect();
        set(w, "tokenizer.ggml.tokens", Meta::Strs(tokens));
        set(w, "tokenizer.ggml.token_type", Meta::I32s(vec![1; 300]));
    });
    refuse_gguf("a vocabulary that does not match the embedding", &long, &["300", "272"]);
    let nan = spoiled(|w| {
        let weight = w.tensors.iter_mut().find(|t| t.name == "blk.0.attn_k.weight").unwrap();
        weight.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    refuse_gguf("NaN weights", &nan, &["blk.0.attn_k.weight", "NaN"]);
    let tokenizer = spoiled(|w| w.meta.retain(|(k, _)| k != "tokenizer.ggml.tokens"));
    refuse_gguf("no vocabulary", &tokenizer, &["tokenizer.ggml.tokens"]);
}

/// Bits flipped anywhere in the header: an error or an answer, never a panic.
#[test]
fn flipped_bits_never_panic() {
    let whole = gguf_writer(Format::Q4_1).bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flipped.gguf");
    let header = whole.len().min(12_000);
    for i in 0..60 {
        let mut bytes = whole.clone();
        // Spread over the header by a step that is prime.
        let at = (i * 7919) % header;
        bytes[at] ^= 1 << (i % 8);
        std::fs::write(&path, &bytes).unwrap();
        let ran = ponder(&["inspect", "--model", &path.display().to_string(), "--json"]);
        let (code, stderr) = (ran.code, &ran.stderr);
        assert!(matches!(code, Some(0 | 1)) && !stderr.contains("panicked"), "byte {at}: {code:?} {stderr}");
        assert!(code == Some(0) || stderr.lines().count() == 1, "byte {at}: {stderr}");
    }
}

/// A folder whose file `file` is changed by `spoil`.
fn refuse_folder(case: &str, file: &str, spoil: impl FnOnce(&mut Value), parts: &[&str]) {
    let model = hugging_face("llama", Dtype::F32);
    let path = model.path().join(file);
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap_or("{}".into())).unwrap();
    spoil(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
    refuse(case, &model, parts);
}

fn refuse(case: &str, model: &TinyModel, parts: &[&str]) {
    ponder(&["run", "--model", &model.arg(), "--quiet", "Hello"]).refused(case, parts);
}

#[test]
fn folders_that_are_incomplete_or_lie() {
    let wider = |j: &mut Value| j["hidden_size"] = json!(128);
    refuse_folder("another width", "config.json", wider, &["model.embed_tokens.weight", "[272, 64]"]);
    refuse_folder("no width", "config.json", |j| j["hidden_size"] = Value::Null, &["config.json", "hidden_size"]);
    let family = |j: &mut Value| j["architectures"] = json!(["GPT2LMHeadModel"]);
    refuse_folder("another family", "config.json", family, &["config.json", "architectures", "GPT2LMHeadModel"]);
    let tokens = |j: &mut Value| j["added_tokens"][0]["id"] = json!(5000);
    refuse_folder("a vocabulary beyond the embedding", "tokenizer.json", tokens, &["tokenizer.json", "5001", "272"]);
    let template = |j: &mut Value| j["chat_template"] = json!("{% for %}");
    refuse_folder("a broken template", "tokenizer_config.json", template, &["template"]);
    let removed = |file: &str| {
        let model = hugging_face("llama", Dtype::F32);
        std::fs::remove_file(model.path().join(file)).unwrap();
        model
    };
    refuse("no weights", &removed("model.safetensors"), &["model.safetensors", "missing"]);
    refuse("no config", &removed("config.json"), &["config.json", "missing"]);
    refuse("no tokenizer", &removed("tokenizer.json"), &["tokenizer.json"]);
    let cut = hugging_face("llama", Dtype::F32);
    let weights = cut.path().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    refuse("truncated weights", &cut, &["model.safetensors"]);
}

#[test]
fn shards_that_are_missing_or_climb_out() {
    let sharded = |shard: &str| {
        let model = hugging_face("llama", Dtype::F32);
        std::fs::rename(model.path().join("model.safetensors"), model.path().join("model-1.safetensors")).unwrap();
        let index = json!({ "weight_map": { "model.norm.weight": shard } });
        std::fs::write(model.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        model
    };
    refuse("a missing shard", &sharded("model-2.safetensors"), &["weight_map", "model-2.safetensors"]);
    for climbing in ["../model-1.safetensors", "/etc/model.safetensors", "a/b.safetensors", "..\\x.safetensors"] {
        refuse("a shard outside", &sharded(climbing), &["index.json", "weight_map"]);
    }
    refuse("tensors in the wrong shard", &sharded("model-1.safetensors"), &["model-1.safetensors"]);
}

#[test]
fn prompts_and_flags_out_of_range() {
    let model = hugging_face("llama", Dtype::F32);
    let path = model.arg();
    let run = |extra: &[&str]| ponder(&[&["run", "--model", &path, "--quiet"], extra].concat());
    run(&[""]).refused("an empty prompt", &["prompt", "is empty"]);
    ponder_with(&["run", "--model", &path, "-"], "", &[]).refused("an empty stdin", &["prompt", "is empty"]);
    run(&["--raw", ""]).refused("an empty raw prompt", &["prompt", "is empty"]);
    run(&[&"word ".repeat(200)]).refused("a prompt longer than the context", &["prompt", "512"]);
    run(&["--max-model-len", "16", &"word ".repeat(20)]).refused("longer than asked for", &["prompt", "16"]);
    for (flag, value, field) in [
        ("--temperature", "-1", "temperature"),
        ("--temperature", "nan", "temperature"),
        ("--top-p", "0", "top_p"),
        ("--min-p", "2", "min_p"),
        ("--repetition-penalty", "0", "repetition_penalty"),
        ("--max-tokens", "0", "max_tokens"),
        ("--max-tokens", "-1", "max-tokens"),
        ("--max-model-len", "100000", "max_model_len"),
        ("--max-model-len", "1", "max_model_len"),
        ("--block-size", "0", "block_size"),
        ("--stop", "", "stop"),
        ("--kv-memory", "1", "kv_memory"),
        ("--kv-cache-dtype", "f8", "kv-cache-dtype"),
        ("--block-size", "2000", "block_size"),
        ("--block-size", "-16", "block-size"),
        ("--gpu-memory-utilization", "0", "gpu_memory_utilization"),
        ("--gpu-memory-utilization", "90", "gpu_memory_utilization"),
        ("--gpu-memory-utilization", "nan", "gpu_memory_utilization"),
        ("--backend", "tpu", "backend"),
        ("--threads", "many", "threads"),
        ("--threads", "100000", "threads"),
        ("--no-such-flag", "1", "no-such-flag"),
        ("--thinking-token-budget", "-2", "thinking_token_budget"),
        ("--reasoning-effort", "extreme", "reasoning-effort"),
        ("--think-start", "<a>", "think_start"),
        ("--think-end", "", "think_start"),
        ("--tool-call-end", "<a>", "tool_call_end"),
        ("--reasoning-policy", "/no/such/policy", "/no/such/policy"),
        ("--depth-classifier", "/no/such/weights", "/no/such/weights"),
    ] {
        run(&[flag, value, "Hello"]).refused(&format!("{flag} {value}"), &[field]);
    }
    run(&["--answer-reserve", "10", "--max-tokens", "10", "Hello"])
        .refused("a reserve that leaves no room to think", &["answer_reserve", "max_tokens 10"]);
    run(&["--reasoning-effort", "none", "--thinking-token-budget", "5", "Hello"])
        .refused("a budget for no thinking", &["thinking_token_budget", "contradicts"]);
    ponder(&["run", "--model", "/no/such/model", "Hello"]).refused("no such model", &["/no/such/model"]);
    ponder(&["run", "--model", "/dev/null", "Hello"]).refused("no regular file", &["/dev/null"]);
    ponder(&["perplexity", "--model", &path, "--file", "/no/such/text"]).refused("no such text", &["/no/such/text"]);
    let short = Path::new(&path).join("config.json").display().to_string();
    let flags = ["perplexity", "--model", &path, "--file", &short, "--context", "512"];
    ponder(&flags).refused("a text shorter than a window", &["config.json", "512"]);
    let nowhere = [("PONDER_MODELS_DIR", "/no/such/folder")];
    ponder_with(&["run", "Hello"], "", &nowhere).refused("no bundled model", &["--model", "PONDER_MODELS_DIR"]);
}

#[test]
fn broken_problem_sets_and_configurations() {
    let model = hugging_face("llama", Dtype::F32);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.jsonl");
    let path_text = path.display().to_string();
    let good = r#"{"question": "What is 2 + 2?", "answer": "4"}"#;
    let eval = |more: &[&str]| ponder(&[&["eval", "--model", &model.arg(), "--data", &path_text], more].concat());
    for (case, line, what) in [
        ("a broken line", "{\"question\": ", "EOF"),
        ("a missing answer", r#"{"question": "Why?"}"#, "answer"),
        ("an unknown matcher", r#"{"question": "Why?", "answer": "so", "matcher": "about"}"#, "about"),
    ] {
        std::fs::write(&path, format!("{good}\n{line}\n")).unwrap();
        eval(&[]).refused(case, &["set.jsonl", "line 2", what]);
    }
    std::fs::write(&path, good).unwrap();
    eval(&["--with", "free"]).refused("no colon", &["with", "free"]);
    eval(&["--with", "x: --no-such-flag 1"]).refused("an unknown flag", &["with", "x", "no-such-flag"]);
    eval(&["--reasoning-effort", "none", "--thinking-token-budget", "5"])
        .refused("a contradiction", &["thinking_token_budget", "contradicts"]);
    ponder(&["fit", "--data", &path_text, "--out", "/dev/null"]).refused("no label", &["set.jsonl", "line 1"]);
}

#[test]
fn speculation_that_cannot_be() {
    let model = hugging_face("llama", Dtype::F32);
    let path = model.arg();
    let refuse = |case: &str, more: &[&str], parts: &[&str]| {
        let args = [&["run", "--model", &path, "--backend", "cpu", "--quiet"], more, &["Hello"]].concat();
        ponder(&args).refused(case, parts);
    };
    refuse("K of -1", &["--num-speculative-tokens", "-1"], &["num-speculative-tokens", "from 0 to 32"]);
    refuse("K of 33", &["--num-speculative-tokens", "33"], &["num-speculative-tokens", "from 0 to 32"]);
    refuse("no such draft", &["--draft-model", "no/such"], &["draft_model", "no/such"]);
    refuse("another tokenizer", &["--draft-model", "bundled"], &["draft_model", "another tokenizer", "token"]);
    refuse("an unknown lookup", &["--draft-lookup", "eagle"], &["draft-lookup", "none, ngram, suffix"]);
    refuse("a method of others", &["--speculative-config", r#"{"method":"medusa","model":"x"}"#], &["medusa"]);
    for k in ["0", "1", "32"] {
        let args = ["run", "--model", &path, "--backend", "cpu", "--quiet", "--draft-model", &path, "-n", "8"];
        let more = ["--temperature", "0", "--ignore-eos", "--num-speculative-tokens", k, "--json", "Hello"];
        let ran = ponder(&[&args[..], &more].concat());
        // The draft is as large as its target: a warning, and a correct answer.
        assert!(ran.code == Some(0) && ran.stderr.contains("will not be faster"), "{}", ran.stderr);
        let json: Value = serde_json::from_str(&ran.stdout).unwrap();
        let drafted = json["speculation"]["drafted_tokens"].as_u64().unwrap_or(0);
        assert_eq!((json["completion_tokens"].as_u64(), drafted > 0), (Some(8), k != "0"), "{json}");
    }
}

#[test]
fn a_configuration_file_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("models.toml");
    let path = file.to_str().unwrap();
    let instance = "[[models]]\nnames = [\"a\"]\n[[models.instances]]\nname = \"x\"\n";
    for (case, text, parts) in [
        ("no TOML", "[[models", vec!["line 1"]),
        ("no models", "models = []", vec!["models"]),
        ("no names", "[[models]]\nmodel = \"bundled\"", vec!["names"]),
        ("another key", "[[models]]\nnames = [\"a\"]\nmodle = 3", vec!["models[0]", "modle"]),
        ("a flag of the server", "[[models]]\nnames = [\"a\"]\nport = 3", vec!["port"]),
        ("a wrong value", "[[models]]\nnames = [\"a\"]\nkv-cache-dtype = \"int3\"", vec!["kv-cache-dtype", "int3"]),
        ("no such model", "[[models]]\nnames = [\"a\"]\nmodel = \"none.gguf\"", vec!["none.gguf"]),
        ("a name twice", &format!("{instance}[[models.instances]]\nname = \"x\"\n"), vec!["instances[1]", "\"x\""]),
        ("no number", &format!("{instance}up-to = \"many\"\n"), vec!["up-to"]),
    ] {
        std::fs::write(&file, text).unwrap();
        ponder(&["serve", "--port", "0", "--config", path]).refused(case, &[&[path][..], &parts].concat());
    }
    std::fs::remove_file(&file).unwrap();
    ponder(&["serve", "--port", "0", "--config", path]).refused("no file", &[path, "No such file"]);
}
