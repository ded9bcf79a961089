//! Text against llama.cpp, on the real vocabularies: the ids of the oracle's prompts, and, where Gemma's file
//! is, its SentencePiece vocabulary. Absent files are skipped by name.

use std::path::PathBuf;

use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::text::{Message, RenderOptions};
use serde_json::Value;

/// A fetched model file: as the variable names it, or in `$PONDER_MODELS`, or in `.models`.
fn model(variable: &str, file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("PONDER_MODELS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.models")));
    let path = std::env::var_os(variable).map_or(folder.join(file), PathBuf::from);
    if !path.is_file() {
        println!("SKIP: {} is not there; tests/fetch-models.sh fetches it", path.display());
        return None;
    }
    Some(path)
}

/// llama.cpp's own rendering and ids of the oracle's prompts.
#[test]
fn prompts_have_the_ids_that_llama_cpp_gives() {
    let Some(path) = model("PONDER_SMOLLM2", "smollm2-135m-instruct-q4_1.gguf") else { return };
    let oracle = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/peers/oracle/greedy.json");
    let Ok(oracle) = std::fs::read_to_string(oracle) else {
        println!("SKIP: {oracle} is not there");
        return;
    };
    let oracle: Value = serde_json::from_str(&oracle).expect("JSON");
    let model = Checkpoint::open(&path).expect("opens");
    let tokenizer = model.tokenizer().expect("has a tokenizer");
    let template = model.chat_template().expect("parses").expect("has a template");
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let ids_of = |v: &Value| -> Vec<u64> { v.as_array().into_iter().flatten().filter_map(Value::as_u64).collect() };
    let prompts = oracle["prompts"].as_array().expect("a list");
    assert!(prompts.len() >= 20);
    for p in prompts {
        let chat = [Message::new("user", p["prompt"].as_str().expect("a prompt"))];
        let pieces = template.render(&chat, &options).expect("renders");
        let rendered: String = pieces.iter().map(|p| p.text()).collect();
        assert_eq!(rendered, p["templated"].as_str().expect("a rendered prompt"));
        let ids: Vec<u64> = tokenizer.encode_pieces(&pieces).expect("encodes").into_iter().map(u64::from).collect();
        assert_eq!(ids, ids_of(&p["prompt_ids"]), "{rendered:?}");
        let answer: Vec<u32> = ids_of(&p["ids"]).iter().map(|id| *id as u32).collect();
        assert_eq!(tokenizer.decode(&answer), p["text"].as_str().expect("an answer"));
    }
}

/// Texts of every kind, with the ids that llama.cpp gives them as plain text and with special tokens read.
/// The file was recorded from llama-server's `/tokenize` (`add_special` false).
fn golden(variable: &str, file: &str, golden: &str) {
    let Some(path) = model(variable, file) else { return };
    let rows: Vec<Value> = serde_json::from_str(golden).expect("JSON");
    let tokenizer = Checkpoint::open(&path).expect("opens").tokenizer().expect("has a tokenizer");
    let mut wrong = Vec::new();
    for row in &rows {
        let text = row["text"].as_str().expect("a text");
        let plain = tokenizer.encode(text).expect("encodes");
        let special = tokenizer.encode_with_special(text).expect("encodes");
        for (kind, ids) in [("plain", &plain), ("special", &special)] {
            if serde_json::json!(ids) != row[kind] {
                wrong.push(format!("{kind} {text:?}: {ids:?}, llama.cpp {}", row[kind]));
            }
        }
        // SentencePiece writes a space as `▁`, so there the two cannot be told apart.
        let back = tokenizer.decode_with_special(&plain);
        assert!(back == text || back == text.replace('▁', " "), "{text:?} came back as {back:?}");
    }
    assert!(rows.len() > 60 && wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn smollm2_vocabulary() {
    golden("PONDER_SMOLLM2", "smollm2-135m-instruct-q4_1.gguf", include_str!("golden/smollm2.json"));
}

#[test]
fn gemma3_vocabulary() {
    golden("PONDER_GEMMA3", "gemma3-270m-q4_k_m.gguf", include_str!("golden/gemma3.json"));
}
