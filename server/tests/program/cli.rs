//! The contract of the command line, on tiny models with random weights.

use crate::common::{ponder, ponder_with};
use ponder_engine::format::Format;
use ponder_tests::tiny_model::{gguf, hugging_face};
use safetensors::Dtype;

#[test]
fn run_answers_in_text_and_in_json() {
    let model = hugging_face("llama", Dtype::F32);
    let path = model.arg();
    let flags = ["run", "--model", &path, "--backend", "cpu", "--max-tokens", "12", "--ignore-eos"];
    let text = ponder(&[&flags[..], &["Hello"]].concat());
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    for shown in ["device", "weights", "KV pool", "may be used"] {
        assert!(text.stderr.contains(shown), "the memory plan shows {shown}: {}", text.stderr);
    }
    let ran = ponder(&[&flags[..], &["--json", "Hello"]].concat());
    let json = ran.json();
    assert_eq!(ran.stderr, "", "--json is quiet");
    assert_eq!(text.stdout, format!("{}\n", json["text"].as_str().unwrap()));
    assert_eq!(json["completion_tokens"], 12);
    assert_eq!(json["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(json["finish_reason"], "length");
    assert_eq!(json["reasoning_tokens"], 0);
    assert_eq!(json["prompt_tokens"], json["prompt_token_ids"].as_array().unwrap().len());
    // <|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n
    assert_eq!(json["prompt_token_ids"][0], 257);
    assert_eq!(json["prompt_tokens"], 1 + 10 + 1 + 1 + 1 + 10);
    for timing in ["ttft_ms", "prefill_tokens_per_second", "decode_tokens_per_second"] {
        assert!(json["timings"][timing].as_f64().unwrap() > 0.0, "{timing}");
    }
}

#[test]
fn a_prompt_comes_from_stdin_and_flags_from_the_environment() {
    let model = gguf(Format::Q8_0);
    let path = model.arg();
    let said = ponder(&["run", "--model", &path, "--raw", "--max-tokens", "5", "--json", "Once upon"]).json();
    assert_eq!(said["prompt_tokens"], 9);
    let variables =
        [("PONDER_MODEL", path.as_str()), ("PONDER_RAW", "1"), ("PONDER_MAX_TOKENS", "5"), ("PONDER_JSON", "true")];
    let again = ponder_with(&["run", "-"], "Once upon\n", &variables).json();
    assert_eq!(said["token_ids"], again["token_ids"]);
}

#[test]
fn a_seed_repeats_an_answer_and_another_seed_does_not() {
    let model = hugging_face("qwen2", Dtype::BF16);
    let path = model.arg();
    let ids = |seed: &str| {
        let flags = ["run", "--model", &path, "--temperature", "1.5", "--max-tokens", "16", "--json", "--ignore-eos"];
        ponder(&[&flags[..], &["--seed", seed, "Hello"]].concat()).json()["token_ids"].clone()
    };
    assert_eq!(ids("7"), ids("7"));
    assert_ne!(ids("7"), ids("8"));
}

#[test]
fn logprobs_are_of_the_tokens_that_were_chosen() {
    let model = hugging_face("qwen3", Dtype::F16);
    let path = model.arg();
    let flags = ["run", "--model", &path, "--kv-cache-dtype", "f32", "--max-tokens", "8", "--ignore-eos", "--json"];
    let json = ponder(&[&flags[..], &["--top-logprobs", "3", "Hello"]].concat()).json();
    let steps = json["logprobs"].as_array().unwrap();
    assert_eq!(steps.len(), 8);
    for (step, id) in steps.iter().zip(json["token_ids"].as_array().unwrap()) {
        let top = step["top"].as_array().unwrap();
        assert_eq!((&step["id"], &top[0]["id"], top.len()), (id, id, 3), "greedy takes the likeliest");
        assert!(step["logprob"].as_f64().unwrap() <= 0.0);
    }
}

#[test]
fn chat_keeps_the_conversation() {
    let model = hugging_face("llama", Dtype::F32);
    let path = model.arg();
    let flags = ["chat", "--model", &path, "--max-tokens", "4", "--ignore-eos", "--json"];
    let ran = ponder_with(&flags, "One\nTwo\n/reset\nOne\n", &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let turns: Vec<serde_json::Value> = ran.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(turns.len(), 3);
    assert!(turns[1]["prompt_tokens"].as_u64() > turns[0]["prompt_tokens"].as_u64());
    assert_eq!(turns[0]["token_ids"], turns[2]["token_ids"], "/reset forgets");
}

#[test]
fn bench_perplexity_inspect_and_devices_print_what_scripts_need() {
    let model = hugging_face("llama", Dtype::F32);
    let path = model.arg();
    let flags = ["--prompt-tokens", "20", "--decode-tokens", "6", "--batch", "2", "--repeats", "2", "--json"];
    let bench = ponder(&[&["bench", "--model", &path], &flags[..]].concat()).json();
    for figure in ["prefill_tokens_per_second", "decode_tokens_per_second", "host_us_per_step"] {
        assert!(bench[figure].as_f64().unwrap() > 0.0, "{figure}: {bench}");
    }
    let file = model.path().join("text.txt");
    std::fs::write(&file, "All human beings are born free and equal in dignity and rights.\n".repeat(4)).unwrap();
    let file = file.display().to_string();
    let flags = ["perplexity", "--model", &path, "--file", &file, "--context", "64", "--json"];
    let perplexity = ponder(&flags).json();
    // 255 bytes without the last newline: 3 windows, of each the tokens 33 to 63.
    assert_eq!(perplexity["tokens"], 3 * 31);
    assert!(perplexity["perplexity"].as_f64().unwrap() > 1.0);
    let inspect = ponder(&["inspect", "--model", &path, "--json"]).json();
    assert_eq!(inspect["config"]["family"], "llama");
    assert_eq!(inspect["tensors"].as_array().unwrap().len(), 2 * 9 + 3);
    assert!(inspect["memory"]["kv_bytes_per_token"].as_u64() == Some(2 * 2 * 2 * 16 * 2));
    assert!(ponder(&["inspect", "--model", &path]).stdout.contains("tokens would fit"));
    let devices = ponder(&["devices", "--json"]).json();
    let auto = devices["devices"].as_array().unwrap().iter().filter(|d| d["auto"] == true).count();
    assert_eq!(auto, 1, "{devices}");
}

#[test]
fn help_teaches() {
    for command in ["run", "chat", "serve", "bench", "devices", "inspect", "perplexity"] {
        let ran = ponder(&[command, "--help"]);
        assert_eq!(ran.code, Some(0));
        assert!(ran.stdout.contains("Examples:\n  "), "{command}: {}", ran.stdout);
        // Every flag is a variable too.
        let flags = ran.stdout.lines().filter(|l| l.trim_start().starts_with('-') && l.contains("--"));
        for flag in flags.filter(|l| !l.contains("--help") && !l.contains("--version")) {
            let name = flag.split("--").nth(1).unwrap().split([' ', ',']).next().unwrap();
            let variable = format!("[env: PONDER_{}=", name.to_uppercase().replace('-', "_"));
            assert!(ran.stdout.contains(&variable), "{command} --{name} has no {variable}");
        }
    }
    assert!(ponder(&["--help"]).stdout.contains("ponder run"));
}

#[test]
fn a_trace_is_written() {
    let model = hugging_face("llama", Dtype::F32);
    let (path, trace) = (model.arg(), model.path().join("trace.json"));
    let file = trace.display().to_string();
    let ran = ponder(&["run", "--model", &path, "--max-tokens", "3", "--trace", &file, "--json", "Hello"]);
    ran.json();
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&trace).unwrap()).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|e| e["name"] == "Verify") && events.iter().any(|e| e["name"] == "decode"), "{json}");
}
