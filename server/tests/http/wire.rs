//! What good requests get: shapes, streams, reasoning apart, counts that add up.

use ponder_tests::tiny_model;
use serde_json::{Value, json};

use crate::client::{Server, chat};

/// `<think>` of the tiny model.
const THINK: &str = "259";

/// Joined deltas of one choice of a stream.
fn joined(events: &[Value], index: u64, field: &str) -> String {
    let choices = events.iter().filter_map(|e| e["choices"].get(0)).filter(|c| c["index"] == index);
    choices.filter_map(|c| c["delta"][field].as_str()).collect()
}

/// Usage without what depends on who asked before.
fn but_cached(usage: &Value) -> Value {
    let mut usage = usage.clone();
    for details in ["prompt_tokens_details", "input_tokens_details"] {
        if let Some(details) = usage[details].as_object_mut() {
            assert!(details.remove("cached_tokens").is_some(), "{details:?}");
        }
    }
    usage
}

#[test]
fn a_cache_salt_keeps_tenants_apart() {
    let server = Server::start(&[]);
    let cached = |salt: Option<&str>| {
        let mut body = json!({"model": "tiny", "max_tokens": 4, "temperature": 0,
            "messages": [{"role": "user", "content": "What is 12 + 30, and what is 30 + 12?"}]});
        if let Some(salt) = salt {
            body["cache_salt"] = json!(salt);
        }
        let usage = server.post("/v1/chat/completions", &body).good()["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!([cached(None), cached(Some("a")), cached(Some("b"))], [0, 0, 0]);
    let hits = [cached(None), cached(Some("a")), cached(Some("b"))];
    assert!(hits[0] > 0 && hits.iter().all(|h| *h == hits[0]), "{hits:?}");
    // An order of importance that nobody keeps would be a promise broken in silence.
    server.chat(json!({ "priority": -3 })).refused(400, "priority");
    let orderly = Server::start(&["--scheduling-policy", "priority"]);
    orderly.chat(json!({ "priority": -3, "max_tokens": 2 })).good();
}

#[test]
fn a_stream_says_what_the_whole_reply_says() {
    let server = Server::start(&[]);
    let asked = json!({ "n": 3, "seed": 7, "temperature": 1.1, "max_tokens": 40 });
    let whole = server.chat(asked.clone()).good();
    assert_eq!((whole["object"].as_str(), whole["model"].as_str()), (Some("chat.completion"), Some("tiny")));
    let mut streamed = asked.clone();
    (streamed["stream"], streamed["stream_options"]) = (json!(true), json!({ "include_usage": true }));
    let (events, done) = server.chat(streamed).events();
    assert!(done);
    let texts: Vec<&str> = (0..3).map(|i| whole["choices"][i]["message"]["content"].as_str().unwrap()).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "the answers of one request differ: {texts:?}");
    for (index, text) in texts.iter().enumerate() {
        let of = |e: &&Value| e["choices"].get(0).is_some_and(|c| c["index"] == index);
        let chunks: Vec<&Value> = events.iter().filter(of).collect();
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(joined(&events, index as u64, "content"), *text);
        let ends = chunks.iter().filter(|c| !c["choices"][0]["finish_reason"].is_null()).count();
        assert_eq!(ends, 1);
        let last = &chunks.last().unwrap()["choices"][0];
        assert_eq!(last["finish_reason"], whole["choices"][index]["finish_reason"]);
    }
    let usage = events.last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(but_cached(&usage["usage"]), but_cached(&whole["usage"]));
    // The whole of the prompt but its last token lay in the cache by then.
    assert_eq!(usage["usage"]["prompt_tokens_details"]["cached_tokens"], 29);
    assert!(events[..events.len() - 1].iter().all(|e| e.get("usage") == Some(&Value::Null)));
    let counts = &whole["usage"];
    let sum = counts["prompt_tokens"].as_u64().unwrap() + counts["completion_tokens"].as_u64().unwrap();
    assert_eq!(counts["total_tokens"], sum);
    assert!(events.iter().all(|e| e["id"] == events[0]["id"] && e["object"] == "chat.completion.chunk"));
    // Without the option there is no usage in a stream.
    let (events, _) = server.chat(json!({ "stream": true, "max_tokens": 2 })).events();
    assert!(events.iter().all(|e| e.get("usage").is_none()));
}

#[test]
fn thinking_is_apart_and_counted() {
    let server = Server::start(&[]);
    let asked = json!({
        "logit_bias": { THINK: 100 }, "seed": 3, "temperature": 1, "max_tokens": 60, "thinking_token_budget": 9,
    });
    let whole = server.chat(asked.clone()).good();
    let message = &whole["choices"][0]["message"];
    let (thought, answer) = (message["reasoning_content"].as_str().unwrap(), message["content"].as_str().unwrap());
    assert!(!thought.is_empty() && !answer.is_empty() && message["reasoning"] == thought, "{message}");
    assert!(!answer.contains("think>"), "{message}");
    assert_eq!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"], 9, "the budget is exact");
    assert_eq!(whole["timings"]["thinking"]["closed_by"], "budget");
    assert!(whole["timings"]["ttfa_ms"].as_f64() > whole["timings"]["ttft_ms"].as_f64());

    let mut streamed = asked.clone();
    streamed["stream"] = json!(true);
    let (events, _) = server.chat(streamed).events();
    assert_eq!(joined(&events, 0, "reasoning_content"), thought);
    assert_eq!(joined(&events, 0, "reasoning"), thought);
    assert_eq!(joined(&events, 0, "content"), answer);

    let mut hidden = asked.clone();
    hidden["include_reasoning"] = json!(false);
    let reply = server.chat(hidden).good();
    assert_eq!(reply["choices"][0]["message"]["content"], answer);
    assert!(reply["choices"][0]["message"].get("reasoning_content").is_none());
    // llama.cpp's name is the same budget; 0 is not 1, and neither is no budget.
    let tokens = |field: &str, budget: i64| {
        let mut asked = asked.clone();
        asked.as_object_mut().unwrap().remove("thinking_token_budget");
        asked[field] = json!(budget);
        server.chat(asked).good()["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens("thinking_budget_tokens", 9), 9);
    assert_eq!((tokens("thinking_token_budget", 0), tokens("thinking_token_budget", 1)), (0, 1));
    assert!(tokens("thinking_token_budget", -1) > 9);
    assert!(server.metric("ponder:reasoning_tokens_total") > 30.0);
    assert!(server.metric("ponder:thinking_closed_total{model_name=\"tiny\",kind=\"budget\"}") >= 5.0);
}

#[test]
fn no_answer_ends_inside_its_thinking() {
    let server = Server::start(&[]);
    let mut thought = 0;
    for most in 1..=12 {
        let whole = server.chat(json!({ "logit_bias": { THINK: 100 }, "max_tokens": most, "temperature": 0 })).good();
        let (choice, usage) = (&whole["choices"][0], &whole["usage"]);
        let content = choice["message"]["content"].as_str().unwrap();
        assert!(!content.is_empty() && !content.contains("think>"), "{most}: {choice}");
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("length"), &Value::Null));
        let tokens = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
        assert!(tokens <= most / 2, "{most}: {usage}");
        let by = &whole["timings"]["thinking"]["closed_by"];
        assert!(tokens == 0 || *by == "reserve" || *by == "end_token", "{most}: {}", whole["timings"]);
        thought += tokens;
    }
    assert!(thought > 10, "it does think where there is room: {thought}");
}

#[test]
fn markers_that_nobody_knows_are_named_or_budgets_are_refused() {
    let model = || {
        let model = tiny_model::hugging_face("llama", safetensors::Dtype::F32);
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            let file = model.path().join(file);
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(&file, text.replace("think>", "muse>")).unwrap();
        }
        model
    };
    // It begins to think at once, and does not stop of its own accord.
    let bias = json!({ THINK: 100, (THINK.parse::<u32>().unwrap() + 1).to_string(): -100 });
    let budget = |tokens: i64| json!({ "logit_bias": bias, "max_tokens": 60, "thinking_token_budget": tokens });
    let silent = Server::over(model(), &[]);
    silent.chat(budget(9)).refused(400, "thinking_token_budget");
    silent.chat(budget(0)).refused(400, "thinking_token_budget");
    silent.chat(budget(-1)).good();
    let told = Server::over(model(), &["--think-start", "<muse>", "--think-end", "</muse>"]);
    let whole = told.chat(budget(9)).good();
    assert_eq!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"], 9);
    assert!(!whole["choices"][0]["message"]["content"].as_str().unwrap().contains("muse>"), "{whole}");
    // Plain text is not parted into thinking and answer, so nobody would keep the budget.
    let plain = json!({ "model": "tiny", "prompt": "Once", "max_tokens": 9, "thinking_token_budget": 3 });
    told.post("/v1/completions", &plain).refused(400, "thinking_token_budget");
}

#[test]
fn efforts_become_decisions() {
    let server = Server::start(&[]);
    let effort = |effort: &str| {
        let bias = json!({ THINK: 100 });
        server.chat(json!({ "reasoning_effort": effort, "logit_bias": bias, "max_tokens": 300, "seed": 1 })).good()
    };
    let none = effort("none");
    assert_eq!(none["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
    let minimal = effort("minimal");
    assert!(minimal["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() <= 128);
    assert_eq!(minimal["timings"]["decision"]["effort"], "minimal");
    assert!(minimal["usage"]["prompt_tokens"].as_u64() > none["usage"]["prompt_tokens"].as_u64(), "the hint is told");
    let contradiction = server.chat(json!({ "reasoning_effort": "none", "thinking_token_budget": 5 }));
    contradiction.refused(400, "thinking_token_budget");
}

#[test]
fn seeds_repeat_and_stops_stop() {
    let server = Server::start(&[]);
    let text = |fields: Value| {
        let reply = server.chat(fields).good();
        (reply["choices"][0]["message"]["content"].as_str().unwrap().to_string(), reply)
    };
    let asked = json!({ "seed": -5, "temperature": 1.5, "max_tokens": 60 });
    let (first, _) = text(asked.clone());
    assert_eq!(text(asked.clone()).0, first);
    assert_ne!(text(json!({ "seed": 6, "temperature": 1.5, "max_tokens": 60 })).0, first);
    let unseeded = json!({ "seed": null, "temperature": 1.5, "max_tokens": 60 });
    assert_ne!(text(unseeded.clone()).0, text(unseeded).0, "no seed: another one each time");
    // A piece of the answer, as a stop string.
    let stop: String = first.chars().skip(10).take(2).collect();
    let mut stopping = asked.clone();
    stopping["stop"] = json!(stop);
    let (cut, reply) = text(stopping.clone());
    assert!(
        first.starts_with(&cut) && !cut.contains(&stop) && cut.len() < first.len(),
        "{cut:?} of {first:?} by {stop:?}"
    );
    let choice = &reply["choices"][0];
    assert_eq!((choice["finish_reason"].as_str(), &choice["stop_reason"]), (Some("stop"), &json!(stop)));
    stopping["stop"] = json!(["nothing such", stop]);
    assert_eq!(text(stopping).0, cut);
}

#[test]
fn plain_completions() {
    let server = Server::start(&[]);
    let ask = |fields: Value| {
        let mut body = json!({ "model": "tiny", "prompt": "Once upon", "seed": 1, "temperature": 1 });
        fields.as_object().unwrap().iter().for_each(|(k, v)| body[k] = v.clone());
        server.post("/v1/completions", &body)
    };
    let one = ask(json!({})).good();
    assert_eq!(one["object"], "text_completion");
    assert_eq!(one["usage"]["completion_tokens"], 16, "OpenAI's default");
    let text = one["choices"][0]["text"].as_str().unwrap();
    let echo = ask(json!({ "echo": true })).good();
    assert_eq!(echo["choices"][0]["text"], format!("Once upon{text}"));
    let tokens = server.post("/tokenize", &json!({ "prompt": "Once upon" })).good();
    assert_eq!(tokens["count"], 9);
    let by_tokens = ask(json!({ "prompt": tokens["tokens"] })).good();
    assert_eq!(by_tokens["choices"][0]["text"], text);
    let several = ask(json!({ "prompt": ["Once upon", "And then"], "n": 2 })).good();
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(choices[0]["text"], text, "the first of several is the same");
    assert_eq!(several["usage"]["prompt_tokens"], 9 + 8, "each prompt counts once");
    let (events, done) = ask(json!({ "stream": true, "prompt": ["Once upon", "And then"] })).events();
    let said = |i: u64| {
        let of = events.iter().filter(|e| e["choices"][0]["index"] == i);
        of.map(|e| e["choices"][0]["text"].as_str().unwrap()).collect::<String>()
    };
    assert!(done && said(0) == text && said(1) == choices[2]["text"].as_str().unwrap());
}

#[test]
fn tokens_and_models() {
    let server = Server::start(&["--served-model-name", "alias"]);
    let models = server.get("/v1/models").good();
    let names: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny", "alias"]);
    assert_eq!(server.get("/v1/models/alias").good()["max_model_len"], 512);
    assert_eq!(server.chat(json!({ "model": "alias", "max_tokens": 1 })).good()["model"], "alias");
    let chat = server.post("/tokenize", &json!({ "messages": [{ "role": "user", "content": "<|im_end|>é" }] })).good();
    let ids = chat["tokens"].as_array().unwrap();
    assert_eq!(ids.iter().filter(|t| **t == 258).count(), 1, "typed text is text: {ids:?}");
    let text = server.post("/detokenize", &json!({ "tokens": ids })).good();
    assert_eq!(text["prompt"], "<|im_start|>user\n<|im_end|>é<|im_end|>\n<|im_start|>assistant\n");
    let strs = server.post("/tokenize", &json!({ "prompt": "ab", "return_token_strs": true })).good();
    assert_eq!(strs["token_strs"], json!(["a", "b"]));
}

#[test]
fn the_document_lists_every_route() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").good();
    let paths = document["paths"].as_object().unwrap();
    for path in
        ["/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/metrics", "/ready", "/openapi.json"]
    {
        assert!(paths.contains_key(path), "{path}");
    }
    for (path, routes) in paths {
        for (method, route) in routes.as_object().unwrap() {
            assert!(route["responses"]["200"].is_object() && route["responses"]["401"].is_object(), "{method} {path}");
        }
    }
    // Every reference leads somewhere.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(String::from));
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(list) => list.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}

#[test]
fn a_running_request_is_told_to_answer() {
    let server = Server::with_long_context(&["--max-model-len", "32768"]);
    let body = chat(
        json!({ "logit_bias": { THINK: 100 }, "stream": true, "temperature": 1, "ignore_eos": true, "max_tokens": 30000 }),
    );
    let running = server.send("POST", "/v1/chat/completions", &[("connection", "close")], &body.to_string());
    let state = server.until("it thinks", |s| s["lanes"][0]["lane"] == "thinking" && s["lanes"][0]["id"].is_string());
    let lane = &state["lanes"][0];
    assert!(lane["counts"]["reasoning"].as_u64().is_some() && !lane["blocks"].as_array().unwrap().is_empty(), "{lane}");
    let id = lane["id"].clone();
    let told = server.post("/v1/chat/completions/control", &json!({ "id": id, "action": "end_thinking" }));
    assert_eq!(told.good(), json!({ "id": id, "action": "end_thinking" }));
    server.until("it answers", |s| s["lanes"][0]["lane"] == "answer");
    server.post("/v1/chat/completions/control", &json!({ "id": "nobody", "action": "end_thinking" })).refused(404, "");
    drop(running);
}

#[test]
fn responses_are_items() {
    let server = Server::start(&[]);
    let asked = json!({ "model": "tiny", "input": "Hello", "max_output_tokens": 20, "temperature": 0 });
    let whole = server.post("/v1/responses", &asked).good();
    assert_eq!(whole["object"], "response");
    let text = whole["output"].as_array().unwrap().last().unwrap()["content"][0]["text"].as_str().unwrap();
    let mut streamed = asked.clone();
    streamed["stream"] = json!(true);
    let reply = server.post("/v1/responses", &streamed);
    let (events, done) = reply.events();
    assert!(!done, "no [DONE] here");
    let numbers: Vec<u64> = events.iter().map(|e| e["sequence_number"].as_u64().unwrap()).collect();
    assert!(numbers.iter().zip(0..).all(|(a, b)| *a == b));
    assert_eq!(events[0]["type"], "response.created");
    let deltas = events.iter().filter(|e| e["type"] == "response.output_text.delta");
    assert_eq!(deltas.map(|e| e["delta"].as_str().unwrap()).collect::<String>(), text);
    let last = &events.last().unwrap()["response"];
    assert_eq!(but_cached(&last["usage"]), but_cached(&whole["usage"]));
    assert_eq!(last["status"], whole["status"]);
    for (field, value) in [("previous_response_id", json!("x")), ("tools", json!([{}])), ("truncation", json!("auto"))]
    {
        let mut asked = asked.clone();
        asked[field] = value;
        server.post("/v1/responses", &asked).refused(400, field);
    }
}

#[test]
fn messages_are_blocks() {
    let server = Server::start(&[]);
    let turns = json!([{ "role": "user", "content": [{ "type": "text", "text": "Hello" }] }]);
    let asked =
        json!({ "model": "tiny", "max_tokens": 20, "temperature": 0, "messages": turns, "system": "Be brief." });
    let whole = server.post("/v1/messages", &asked).good();
    assert_eq!((whole["type"].as_str(), whole["role"].as_str()), (Some("message"), Some("assistant")));
    let text = whole["content"].as_array().unwrap().last().unwrap()["text"].as_str().unwrap();
    let counted =
        server.post("/v1/messages/count_tokens", &json!({ "model": "tiny", "messages": turns, "system": "Be brief." }));
    assert_eq!(counted.good()["input_tokens"], whole["usage"]["input_tokens"]);
    let mut streamed = asked.clone();
    streamed["stream"] = json!(true);
    let reply = server.post("/v1/messages", &streamed);
    let names: Vec<&str> = reply.body.lines().filter_map(|l| l.strip_prefix("event: ")).collect();
    let (events, _) = reply.events();
    assert!(names.iter().zip(&events).all(|(name, event)| event["type"] == *name));
    assert_eq!((names[0], *names.last().unwrap()), ("message_start", "message_stop"));
    let deltas = events.iter().filter(|e| e["delta"]["type"] == "text_delta");
    assert_eq!(deltas.map(|e| e["delta"]["text"].as_str().unwrap()).collect::<String>(), text);
    let error = server.post("/v1/messages", &json!({ "model": "tiny", "messages": turns }));
    assert_eq!((error.status, error.json()["type"].as_str()), (400, Some("error")));
    assert!(error.json()["error"]["message"].as_str().unwrap().starts_with("max_tokens"), "{}", error.body);
    let mut thinking = asked.clone();
    thinking["thinking"] = json!({ "type": "enabled", "budget_tokens": 20 });
    assert_eq!(server.post("/v1/messages", &thinking).status, 400, "no room for an answer");
}
