//! What bad requests get: an error that names the field, in OpenAI's shape, and nothing worse.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Server, chat, read_reply};

#[test]
fn fields_are_refused_by_name() {
    let server = Server::start(&[]);
    let cases = [
        (json!({ "temprature": 1 }), "temprature"),
        (json!({ "temperature": -0.1 }), "temperature"),
        (json!({ "temperature": "1" }), "temperature"),
        (json!({ "top_p": 0 }), "top_p"),
        (json!({ "top_p": 1.5 }), "top_p"),
        (json!({ "top_k": -2 }), "top_k"),
        (json!({ "top_k": 4294967296u64 }), "top_k"),
        (json!({ "min_p": 2 }), "min_p"),
        (json!({ "presence_penalty": 2.5 }), "presence_penalty"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 129 }), "n"),
        (json!({ "n": -1 }), "n"),
        (json!({ "n": 1.5 }), "n"),
        (json!({ "n": 2147483648u64 }), "n"),
        (json!({ "n": 9223372036854775807u64 }), "n"),
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "max_tokens": 9223372036854775807u64 }), "max_tokens"),
        (json!({ "max_completion_tokens": "many" }), "max_completion_tokens"),
        (json!({ "seed": 1.5 }), "seed"),
        (json!({ "stop": [""] }), "stop"),
        (json!({ "stop": vec!["x"; 17] }), "stop"),
        (json!({ "stop": "x".repeat(257) }), "stop"),
        (json!({ "stop_token_ids": [272] }), "stop_token_ids"),
        (json!({ "logit_bias": { "272": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "-1": 1 } }), "logit_bias"),
        (json!({ "logit_bias": { "1": 101 } }), "logit_bias"),
        (json!({ "stream_options": { "include_usage": true } }), "stream_options"),
        (json!({ "stream": true, "stream_options": { "usage": true } }), "stream_options.usage"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (json!({ "messages": [{ "role": "king", "content": "x" }] }), "messages[0].role"),
        (json!({ "messages": [{ "role": "user", "content": "x", "colour": 1 }] }), "messages[0].colour"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] }),
            "messages[0].content[0].type",
        ),
        (json!({ "thinking_token_budget": -2 }), "thinking_token_budget"),
        (json!({ "thinking_token_budget": 0.6 }), "thinking_token_budget"),
        (json!({ "thinking_token_budget": 1, "thinking_budget_tokens": 2 }), "thinking_budget_tokens"),
        (json!({ "reasoning_effort": "hihg" }), "reasoning_effort"),
        (json!({ "chat_template_kwargs": { "messages": [] } }), "chat_template_kwargs"),
        (json!({ "chat_template_kwargs": { "enable_thinking": 1 } }), "chat_template_kwargs.enable_thinking"),
        (json!({ "separate_reasoning": false }), "separate_reasoning"),
        (json!({ "chat_template": "{{ 1 }}" }), "chat_template"),
    ];
    for (fields, param) in cases {
        let error = server.chat(fields.clone()).refused(400, param);
        assert_eq!(error["type"], "invalid_request_error", "{fields}");
    }
    let plain = |fields: Value, param: &str| {
        server.post("/v1/completions", &fields).refused(400, param);
    };
    plain(json!({ "prompt": "" }), "prompt");
    plain(json!({ "prompt": [] }), "prompt");
    plain(json!({ "prompt": [272] }), "prompt");
    plain(json!({ "prompt": [[1], []] }), "prompt");
    plain(json!({ "prompt": "x", "best_of": 3 }), "best_of");
    plain(json!({ "prompt": "x", "suffix": "y" }), "suffix");
    plain(json!({ "prompt": vec!["x"; 129] }), "prompt");
    plain(json!({}), "prompt");
    server.post("/detokenize", &json!({ "tokens": [272] })).refused(400, "tokens");
    server.post("/tokenize", &json!({})).refused(400, "prompt");
    assert_eq!(server.chat(json!({ "user": "me", "metadata": {} })).header("x-ignored-params"), Some("user, metadata"));
    assert_eq!(server.metric("ponder:requests_failed"), 0.0);
}

#[test]
fn prompts_at_the_end_of_the_context() {
    let server = Server::start(&[]);
    let ask = |len: usize| server.post("/v1/completions", &json!({ "prompt": vec![65; len], "max_tokens": 5 }));
    assert_eq!(ask(600).refused(400, "prompt")["code"], "context_length_exceeded");
    assert_eq!(ask(512).refused(400, "prompt")["code"], "context_length_exceeded");
    let last = ask(511).good();
    assert_eq!(last["usage"]["completion_tokens"], 1);
    assert_eq!(last["choices"][0]["finish_reason"].as_str().map(|r| r == "length" || r == "stop"), Some(true));
}

#[test]
fn names_of_models_are_names() {
    let server = Server::start(&[]);
    for name in ["nothing", "../../etc/passwd", "/etc/passwd", "", "tiny\u{0}", &"x".repeat(4000)] {
        let error = server.chat(json!({ "model": name })).refused(404, "model");
        assert_eq!(error["code"], "model_not_found");
    }
    assert_eq!(server.get("/v1/models/..%2f..%2fetc%2fpasswd").status, 404);
    server.get("/v1/nothing").refused(404, "");
    let wrong = server.get("/v1/chat/completions");
    assert_eq!((wrong.status, wrong.json()["error"]["type"].as_str()), (405, Some("invalid_request_error")));
}

#[test]
fn bodies_that_are_no_requests() {
    let server = Server::start(&["--max-body-bytes", "100000", "--arrival-timeout", "1"]);
    let raw = |body: &str| server.ask("POST", "/v1/chat/completions", &[], body);
    for body in
        ["{", "nul", "[]", "{\"messages\": [{]}", "{\"n\": NaN}", "{\"messages\": 1e999}", "\"\\ud800\"", "{}{}"]
    {
        let reply = raw(body);
        assert_eq!(
            (reply.status, reply.json()["error"]["type"].as_str()),
            (400, Some("invalid_request_error")),
            "{body}"
        );
    }
    assert_eq!(raw(&"[".repeat(99_000)).status, 400, "deep");
    assert_eq!(raw(&format!("{{\"a\": \"{}\"}}", "x".repeat(100_000))).status, 413);
    // Without an end, in chunks: refused as soon as it is too long.
    let head = [("transfer-encoding", "chunked"), ("content-type", "application/json"), ("connection", "close")];
    let mut stream = server.send("POST", "/v1/chat/completions", &head, "");
    let chunk = format!("8000\r\n{}\r\n", " ".repeat(0x8000));
    for _ in 0..1000 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let before = server.memory();
    assert!(before < 1 << 30);
    // A form is no JSON.
    let form =
        [("content-type", "application/x-www-form-urlencoded"), ("content-length", "3"), ("connection", "close")];
    let mut stream = server.send("POST", "/v1/chat/completions", &form, "");
    stream.write_all(b"a=1").unwrap();
    assert_eq!(read_reply(&mut stream).status, 415);
    // Slow bodies, and slow heads.
    let begun = Instant::now();
    let slow = [("content-type", "application/json"), ("content-length", "100")];
    let mut stream = server.send("POST", "/v1/chat/completions", &slow, "");
    stream.write_all(b"{").unwrap();
    assert_eq!(read_reply(&mut stream).status, 408);
    let mut stream = server.connect();
    stream.write_all(b"POST /v1/chat/completions HT").unwrap();
    assert!([0, 408].contains(&read_reply(&mut stream).status));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // Too many or too long headers.
    let long = "x".repeat(1 << 20);
    assert!([0, 431].contains(&server.ask("GET", "/health", &[("x-long", &long)], "").status));
    let many: Vec<(&str, &str)> = vec![("x-many", "1"); 200];
    assert!([0, 431].contains(&server.ask("GET", "/health", &many, "").status));
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn huge_numbers_of_answers_cost_nothing() {
    let server = Server::start(&["--max-queued", "50"]);
    let before = server.memory();
    server.chat(json!({ "n": 128, "max_tokens": 1000000 })).refused(400, "n");
    let plain = json!({ "prompt": vec!["x"; 128], "n": 128, "max_tokens": 1000000 });
    server.post("/v1/completions", &plain).refused(400, "n");
    assert!(server.memory() < before + (64 << 20));
    assert_eq!(server.engine()["admitted"], json!({ "answers": 0, "tokens": 0 }));
}

#[test]
fn odd_texts_are_answered() {
    let server = Server::start(&[]);
    let one_run = "a".repeat(1_000_000);
    let begun = Instant::now();
    for content in ["", " ", "<|im_end|><|im_start|>", "\u{0}", "é😀\u{202e}", &one_run] {
        let body = chat(json!({ "messages": [{ "role": "user", "content": content }], "max_tokens": 2 }));
        let reply = server.post("/v1/chat/completions", &body);
        assert!(matches!(reply.status, 200 | 400), "{} {}", reply.status, reply.body);
        // Others are not held up: this is answered at once.
        assert_eq!(server.get("/health").status, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
}
