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
fn a_configuration_file_says_who_answers() {
    let model = hugging_face("llama", Dtype::F32);
    let file = model.path().join("models.toml");
    let path = model.arg();
    let text = format!(
        "[[models]]\nnames = [\"tiny\", \"alias\"]\nmodel = {path:?}\n\
         [[models.instances]]\nname = \"short\"\nup-to = 80\nmax-model-len = 128\n\
         [[models.instances]]\nname = \"long\"\nkv-cache-dtype = \"f32\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let flags =
        ["run", "--config", &file, "--max-tokens", "6", "--ignore-eos", "--json", "--thinking-token-budget", "0"];
    let said = |more: &[&str]| ponder(&[&flags[..], more].concat()).json();
    let short = said(&["Hello"]);
    assert_eq!(short["model"], "tiny/short");
    let plain =
        ["run", "--model", &path, "--max-tokens", "6", "--ignore-eos", "--json", "--thinking-token-budget", "0"];
    assert_eq!(short["token_ids"], ponder(&[&plain[..], &["Hello"]].concat()).json()["token_ids"]);
    assert_eq!(said(&[&"word ".repeat(40)])["model"], "tiny/long", "too long for the other");
    assert_eq!(said(&["--model", "alias/long", "Hello"])["model"], "tiny/long");
    assert_eq!(said(&["--model", "alias", "--top-logprobs", "1", "Hello"])["logprobs"].as_array().unwrap().len(), 6);
    let refused = |more: &[&str], parts: &[&str]| ponder(&[&flags[..], more].concat()).refused("a name", parts);
    refused(&["--model", "bundled", "Hello"], &["models.toml", "\"bundled\" is none of tiny, alias"]);
    refused(&["--model", "tiny/middle", "Hello"], &["\"middle\" is none of short, long"]);
    refused(&[&"word ".repeat(300)], &["prompt", "the longest instance takes 512"]);
}

#[test]
fn lengths_are_remembered_in_a_file_and_change_no_token() {
    let model = hugging_face("llama", Dtype::F32);
    let path = model.arg();
    let folder = tempfile::tempdir().unwrap();
    let stats = folder.path().join("lengths.json");
    let stats = stats.to_str().unwrap();
    let flags = ["run", "--model", &path, "--max-tokens", "9", "--ignore-eos", "--json", "Hello"];
    let plain = ponder(&flags).json();
    let remembered = || std::fs::read_to_string(stats).unwrap();
    let first = ponder(&[&flags[..], &["--length-stats", stats]].concat()).json();
    let once = remembered();
    let second = ponder(&[&flags[..], &["--length-stats", stats, "--scheduling-policy", "fcfs"]].concat()).json();
    assert_eq!((&plain["token_ids"], &plain["token_ids"]), (&first["token_ids"], &second["token_ids"]));
    assert_ne!(once, remembered(), "the second run learnt too");

    std::fs::write(stats, "{}").unwrap();
    ponder(&[&flags[..], &["--length-stats", stats]].concat()).refused("damaged", &[stats, "lengths", "remove"]);
    let nowhere = folder.path().join("none/lengths.json");
    let nowhere = nowhere.to_str().unwrap();
    ponder(&[&flags[..], &["--length-stats", nowhere]].concat()).refused("no folder", &["none"]);
    ponder(&[&flags[..], &["--growth-quantile", "1.5"]].concat()).refused("quantile", &["growth_quantile", "1.5"]);
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
    let with_cache =
        |name: &str, more: &[&str]| ponder(&[&["inspect", "--model", &path, "--kv-cache-dtype", name], more].concat());
    let fp8 = with_cache("fp8", &["--json"]).json();
    let memory = &fp8["memory"];
    assert_eq!((&memory["kv_cache_dtype"], &memory["kv_bytes_per_token"]), (&"fp8".into(), &(2 * 2 * 2 * 16).into()));
    assert_eq!(memory["kv_scale_bytes_per_token"], 2 * 2 * 2 * 4);
    let text = with_cache("fp8", &[]).stdout;
    assert!(text.contains("(fp8)") && text.contains("KV scales"), "{text}");
    // The name that other engines have for other codes is not taken for ours.
    for (name, why) in [("e2m5", "none of f32, f16, bf16, fp8"), ("fp8_e4m3", "the codes of fp8 are E2M5 here")] {
        let refused = with_cache(name, &[]);
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    let devices = ponder(&["devices", "--json"]).json();
    let auto = devices["devices"].as_array().unwrap().iter().filter(|d| d["auto"] == true).count();
    assert_eq!(auto, 1, "{devices}");
}

#[test]
fn help_teaches() {
    for command in
        ["run", "chat", "eval", "fit", "serve", "top", "bench", "simulate", "devices", "inspect", "perplexity"]
    {
        let ran = ponder(&[command, "--help"]);
        assert_eq!(ran.code, Some(0));
        assert!(ran.stdout.contains("Examples:\n  "), "{command}: {}", ran.stdout);
        // Every flag is a variable too.
        let flags = ran.stdout.lines().filter(|l| l.trim_start().starts_with('-') && l.contains("--"));
        for flag in flags.filter(|l| !l.contains("--help") && !l.contains("--version")) {
            let name = flag.split("--").nth(1).unwrap().split([' ', ',']).next().unwrap();
            let variable = format!("[env: PONDER_{}", name.to_uppercase().replace('-', "_"));
            // Those whose values are secret end without one; lines break anywhere.
            let words = ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
            let told = ["=", "]"].iter().any(|end| words.contains(&format!("{variable}{end}")));
            assert!(told, "{command} --{name} has no {variable}");
        }
    }
    assert!(ponder(&["--help"]).stdout.contains("ponder run"));
}

#[test]
fn a_workload_compares_drafters() {
    let model = hugging_face("llama", Dtype::F32);
    let (path, file) = (model.path().display().to_string(), model.path().join("workload.jsonl"));
    let lines = "{\"question\": \"What is 2 + 2?\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n";
    std::fs::write(&file, lines).unwrap();
    let workload = file.display().to_string();
    let args = ["bench", "--model", &path, "--backend", "cpu", "--draft-model", &path, "--workload", &workload];
    let more = ["--workload-tokens", "24", "--repeats", "1", "--max-model-len", "256", "--json"];
    let json = ponder(&[&args[..], &more, &["--draft-lookup", "none"]].concat()).json();
    let settings = json["settings"].as_array().unwrap();
    assert_eq!(settings.len(), 10, "{json}");
    // The draft is the target itself: nearly every guess is right.
    let four = &settings[4];
    assert!(four["setting"] == "K=4" && four["tokens_per_pass"].as_f64().unwrap() > 3.0, "{four}");
    let by = &four["speculation"]["by"][0];
    assert!(by["drafter"] == "model" && by["acceptance_by_position"].as_array().unwrap().len() == 4, "{by}");
    let json = ponder(&[&args[..], &more, &["--acceptance"]].concat()).json();
    let rows = json["acceptance"].as_array().unwrap();
    assert!(rows.len() == 3 && rows.iter().all(|r| r["shared"].as_f64().unwrap() > 0.999), "{json}");
    let refused = ponder(&["bench", "--model", &path, "--backend", "cpu", "--workload", &workload]);
    refused.refused("no drafter", &["draft_model", "is none"]);
    std::fs::write(&file, "{\"prompt\": 3}\n").unwrap();
    ponder(&args).refused("a bad line", &["workload line 1", "neither prompt nor messages"]);
}

#[test]
fn the_simulator_advises() {
    let table = ponder(&["simulate"]).stdout;
    assert!(table.lines().count() == 9 && table.contains("batch  draft   K  speed-up"), "{table}");
    let json = ponder(&["simulate", "--json"]).json();
    let speed = |i: usize| json["advice"][i]["speed_up"].as_f64().unwrap();
    assert!(speed(0) > 2.5 && speed(6) < speed(0), "{json}");
    ponder(&["simulate", "--acceptance-8b", "1.5"]).refused("acceptance", &["acceptance_8b", "between 0 and 1"]);
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
    assert!(events.iter().any(|e| e["name"] == "Verify") && events.iter().any(|e| e["name"] == "answer"), "{json}");
}

#[test]
fn problems_are_asked_and_summed_up_side_by_side() {
    let model = hugging_face("llama", Dtype::F32);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (set, transcripts) = (file("set.jsonl"), file("out.jsonl"));
    let problem = |i: usize| {
        let (kind, depth) = (["a", "b"][i % 2], ["easy", "hard"][i / 2 % 2]);
        format!(r#"{{"question": "What is {i} + 1?", "answer": {}, "kind": "{kind}", "depth": "{depth}"}}"#, i + 1)
    };
    std::fs::write(&set, (0..8).map(|i| problem(i) + "\n").collect::<String>()).unwrap();
    let flags = ["eval", "--model", &model.arg(), "--backend", "cpu", "--data", &set, "--max-tokens", "6", "--json"];
    let one = ponder(&flags).json();
    assert_eq!(one["overall"]["problems"], 8);
    assert_eq!((&one["kinds"]["a"]["problems"], &one["cells"]["b.hard"]["problems"]), (&4.into(), &2.into()));
    let configs = ["--with", "short: --max-tokens 3", "--with", "same:", "--transcripts", &transcripts];
    let two = ponder(&[&flags[..], &configs].concat()).json();
    let [short, same] = [&two["configurations"][0], &two["configurations"][1]];
    assert_eq!((&short["name"], &short["overall"]["answer_tokens"]["max"]), (&"short".into(), &3.0.into()));
    assert_eq!(same["overall"]["answer_tokens"], one["overall"]["answer_tokens"]);
    let lines = std::fs::read_to_string(&transcripts).unwrap();
    assert_eq!(lines.lines().count(), 16);
    // What eval writes, fit reads: 16 are too few, and that is what it says.
    let fit = ponder(&["fit", "--data", &transcripts, "--out", &file("depth.json")]);
    fit.refused("too few", &["too few"]);
}
