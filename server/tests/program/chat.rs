//! `ponder chat` through a pipe, as scripts use it, and on a terminal, as people do.

use crate::common::ponder_with;
use crate::terminal::Terminal;
use ponder_tests::tiny_model::{SPECIALS, TEMPLATE, TinyModel, VOCAB, hugging_face, hugging_face_of_context};
use safetensors::Dtype;
use serde_json::{Value, json};

/// A model that always thinks: its template opens the thinking, and left alone it would do so for ever.
fn thinker() -> TinyModel {
    let model = hugging_face_of_context("llama", 1 << 15);
    let path = model.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["chat_template"] = json!(TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"));
    std::fs::write(&path, config.to_string()).unwrap();
    // It never ends its thinking by itself: its logit for that is 0, and one of 271 others is larger.
    let weights = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let place = |i: usize| 8 + header + json["lm_head.weight"]["data_offsets"][i].as_u64().unwrap() as usize;
    let row = (place(1) - place(0)) / VOCAB;
    let close = 256 + SPECIALS.iter().position(|s| *s == "</think>").unwrap();
    bytes[place(0) + close * row..place(0) + (close + 1) * row].fill(0);
    std::fs::write(&weights, bytes).unwrap();
    model
}

const CTRL_C: &str = "\x03";
const UP: &str = "\x1b[A";

#[test]
fn commands_in_a_pipe() {
    let model = hugging_face("llama", Dtype::F32);
    let (path, file) = (model.arg(), model.path().join("talk.json"));
    let flags = ["chat", "--model", &path, "--backend", "cpu", "--max-tokens", "4", "--ignore-eos", "-q"];
    let talk = format!("One\n/regenerate\n\n/usage\n/save {}\n//slash\n/quit\nnever\n", file.display());
    let ran = ponder_with(&flags, &talk, &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(!ran.stdout.contains('\x1b') && ran.stdout.ends_with('\n'), "{:?}", ran.stdout);
    assert!(ran.stderr.contains("2 answers") && ran.stderr.contains("tokens/s"), "{}", ran.stderr);
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(saved["messages"].as_array().unwrap().len(), 2, "regenerated, not asked twice: {saved}");
    for (line, parts) in [
        ("/nonsense\nOne\n", &["/nonsense", "/help"][..]),
        ("/budget few\nOne\n", &["/budget", "few"]),
        ("/effort huge\nOne\n", &["/effort", "huge", "medium"]),
        ("/regenerate\n", &["/regenerate"]),
    ] {
        let ran = ponder_with(&flags, line, &[]);
        assert_eq!((ran.code, ran.stderr.lines().count(), ran.stdout.as_str()), (Some(1), 1, ""), "{}", ran.stderr);
        assert!(parts.iter().all(|p| ran.stderr.contains(p)), "{line}: {}", ran.stderr);
    }
}

#[test]
fn budgets_and_thinking_in_a_pipe() {
    let model = thinker();
    let path = model.arg();
    let flags = ["chat", "--model", &path, "--backend", "cpu", "--max-tokens", "40", "--ignore-eos", "-q"];
    let json = ponder_with(&[&flags[..], &["--json"]].concat(), "/budget 7\nOne\n/budget default\nOne\n", &[]);
    let turns: Vec<Value> = json.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(turns[0]["thinking"]["counts"]["reasoning"], 7, "{turns:?}");
    assert!(turns[1]["thinking"]["counts"]["reasoning"].as_u64() > Some(7), "{turns:?}");
    let folded = ponder_with(&flags, "/budget 7\nOne\n", &[]).stdout;
    let shown = ponder_with(&[&flags[..], &["--show-thinking"]].concat(), "/budget 7\nOne\n", &[]).stdout;
    let (thinking, answer) = shown.strip_prefix("[thinking]\n").unwrap().split_once("\n[answer]\n").unwrap();
    assert_eq!(answer, folded, "without thinking it is the answer alone");
    assert_eq!(thinking, turns[0]["reasoning"].as_str().unwrap());
}

#[test]
fn a_conversation_on_a_terminal() {
    let model = thinker();
    let path = model.arg();
    let flags = ["chat", "--model", &path, "--backend", "cpu", "--threads", "1", "--max-model-len", "32768"];
    let flags = [&flags[..], &["--ignore-eos", "--max-tokens", "32000"]].concat();
    let Some(mut terminal) = Terminal::ponder(&flags, &[]) else { return };
    terminal.until("> ");
    terminal.press("Hello\r");
    // Thinking is one line that is written over; the first Ctrl-C makes it answer, the second stops it.
    terminal.until("thinking · ");
    terminal.until("\r\x1b[K\x1b[2mthinking · ");
    terminal.press(CTRL_C);
    terminal.until("answering now · ");
    terminal.until("thought · ");
    terminal.until("\n");
    terminal.press(CTRL_C);
    terminal.until("[stopped]");
    terminal.until("> ");
    // Stopped while it thinks, all at once: nothing was answered.
    terminal.press("/budget 1000000\r");
    terminal.until("> ");
    // What was stopped anywhere would be part of the question: the same one is asked, which is known to think long.
    terminal.press("/clear\r");
    terminal.until("> ");
    terminal.press("Hello\r");
    terminal.until(" of ");
    terminal.press(CTRL_C);
    terminal.until("answering now · ");
    terminal.press(CTRL_C);
    terminal.until("[stopped]");
    terminal.until("> ");
    // What is wrong is said and does not end the conversation.
    terminal.press("/budget few\r");
    terminal.until("error: /budget: \"few\"");
    terminal.until("> ");
    // The history has it all; Ctrl-C takes back what is typed, and leaves where nothing is.
    terminal.press(UP);
    terminal.until("/budget few");
    terminal.press(CTRL_C);
    terminal.press("/effort\r");
    terminal.until("effort default");
    terminal.until("> ");
    terminal.press(CTRL_C);
    terminal.until("code 0");
    terminal.until(" icanon");
}

#[test]
fn a_terminal_without_colour() {
    let model = thinker();
    let path = model.arg();
    let flags = ["chat", "--model", &path, "--backend", "cpu", "--max-tokens", "40", "--ignore-eos", "-q"];
    let Some(mut terminal) = Terminal::ponder(&flags, &[("NO_COLOR", "1")]) else { return };
    terminal.until("> ");
    terminal.press("Hello\r");
    let reply = terminal.until("[cut off after 40 tokens]");
    assert!(reply.contains("thought · ") && !reply.contains("\x1b[2m") && !reply.contains("\x1b[0m"), "{reply:?}");
    terminal.until("> ");
    terminal.press("\x04");
    terminal.until("code 0");
}
