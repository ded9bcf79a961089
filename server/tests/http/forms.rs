//! Answers that keep to a form: JSON of a schema, after free thinking, with guesses and without.

use serde_json::{Value, json};

use crate::client::Server;

/// `<think>` of the tiny model, which says nonsense: whatever is well-formed is so because it must be.
const THINK: &str = "259";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 130 },
            "tags": { "type": "array", "items": { "enum": ["red", "green"] }, "minItems": 1, "maxItems": 3 },
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    })
}

fn asked(seed: u64, fields: Value) -> Value {
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "person", "schema": schema(), "strict": true } });
    let mut asked =
        json!({ "response_format": format, "seed": seed, "temperature": 1.2, "top_p": 0.95, "max_tokens": 300 });
    fields.as_object().unwrap().iter().for_each(|(k, v)| asked[k] = v.clone());
    asked
}

#[test]
fn schemas_are_kept_to_after_thinking_and_under_guesses() {
    let plain = Server::start(&[]);
    let guessing = Server::start(&["--draft-model", "suffix", "--num-speculative-tokens", "5"]);
    let mut thought = 0;
    let mut drafted = 0;
    for seed in 0..12 {
        let fields = if seed % 2 == 0 {
            json!({})
        } else {
            json!({ "logit_bias": { THINK: 100 }, "thinking_token_budget": 20 })
        };
        let reply = plain.chat(asked(seed, fields.clone())).good();
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{reply}");
        let text = choice["message"]["content"].as_str().unwrap();
        let person: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(person.as_object().unwrap().len(), 3, "{text}");
        assert!(person["name"].as_str().unwrap().chars().count() <= 12, "{text}");
        assert!((0..=130).contains(&person["age"].as_i64().unwrap()), "{text}");
        let tags = person["tags"].as_array().unwrap();
        assert!((1..=3).contains(&tags.len()) && tags.iter().all(|t| t == "red" || t == "green"), "{text}");
        let reasoning = reply["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
        assert!(reasoning > 0 || seed % 2 == 0, "thinking is free: {reply}");
        thought += reasoning;
        // One answer: guesses change nothing.
        let guessed = guessing.chat(asked(seed, fields)).good();
        assert_eq!(guessed["choices"], reply["choices"]);
        drafted += guessed["timings"]["draft_n"].as_u64().unwrap();
    }
    assert!(thought > 60 && drafted > 20, "vacuous: {thought} tokens of thinking, {drafted} guesses");
}

#[test]
fn any_object() {
    let server = Server::start(&[]);
    for seed in 0..4 {
        let fields = json!({ "response_format": { "type": "json_object" }, "seed": seed, "max_tokens": 300 });
        let reply = server.chat(fields).good();
        let choice = &reply["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap();
        assert!(text.starts_with('{'), "{text}");
        if choice["finish_reason"] == "stop" {
            assert!(serde_json::from_str::<Value>(text).unwrap().is_object(), "{text}");
        }
    }
}

#[test]
fn forms_that_cannot_be_kept_to_are_refused() {
    let server = Server::start(&[]);
    let with = |format: Value, param: &str| {
        server.chat(json!({ "response_format": format })).refused(400, param);
    };
    let of = |schema: Value| json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema } });
    with(json!({ "type": "xml" }), "response_format.type");
    with(json!({ "type": "json_schema" }), "response_format.json_schema");
    with(json!({ "type": "text", "json_schema": { "name": "x" } }), "response_format.json_schema");
    for bad in [json!({ "type": "king" }), json!([]), json!({ "type": "string", "pattern": "(" })] {
        with(of(bad), "response_format.json_schema.schema");
    }
    let mut deep = json!({});
    (0..200).for_each(|_| deep = json!({ "type": "array", "items": deep }));
    assert_eq!(server.chat(json!({ "response_format": of(deep) })).status, 400, "too deep to be read");
    let large = json!({ "enum": (0..20_000).map(|i| format!("value {i}")).collect::<Vec<_>>() });
    assert!(matches!(server.chat(json!({ "response_format": of(large), "max_tokens": 2 })).status, 200 | 400));
    let both = json!({ "response_format": { "type": "json_object" }, "ignore_eos": true });
    server.chat(both).refused(400, "ignore_eos");
    assert_eq!(server.get("/ready").status, 200);
}

fn tools() -> Value {
    let parameters = json!({
        "type": "object", "properties": { "city": { "enum": ["Rome", "Oslo"] }, "days": { "type": "integer", "minimum": 0, "maximum": 14 } },
        "required": ["city", "days"], "additionalProperties": false,
    });
    json!([
        { "type": "function", "function": { "name": "weather", "parameters": parameters, "strict": true } },
        { "type": "function", "function": { "name": "now", "description": "The time." } },
    ])
}

#[test]
fn demanded_calls_keep_to_their_schemas() {
    let server = Server::start(&[]);
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    for (seed, choice) in [(1, named.clone()), (2, json!("required")), (3, named)] {
        let asked = json!({
            "tools": tools(), "tool_choice": choice, "seed": seed, "temperature": 1.0, "max_tokens": 200,
            "logit_bias": { THINK: if seed == 3 { 100 } else { 0 } }, "thinking_token_budget": 10,
        });
        let reply = server.chat(asked.clone()).good();
        let choice = &reply["choices"][0];
        if choice["finish_reason"] == "length" {
            continue;
        }
        assert_eq!(choice["finish_reason"], "tool_calls", "{reply}");
        assert_eq!(choice["message"]["content"], Value::Null);
        let call = &choice["message"]["tool_calls"][0];
        assert!(call["type"] == "function" && call["id"].as_str().unwrap().starts_with("call-"), "{call}");
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        if call["function"]["name"] == "weather" {
            assert!(arguments["days"].is_i64() && ["Rome", "Oslo"].contains(&arguments["city"].as_str().unwrap()));
        }
        let mut streamed = asked;
        streamed["stream"] = json!(true);
        let (events, done) = server.chat(streamed).events();
        let calls: Vec<&Value> =
            events.iter().flat_map(|e| e["choices"][0]["delta"]["tool_calls"].as_array()).flatten().collect();
        assert!(done && calls.len() == 1, "{events:?}");
        assert_eq!((&calls[0]["index"], &calls[0]["function"]), (&json!(0), &call["function"]));
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        let said = |e: &Value| e["choices"][0]["delta"]["content"].as_str().is_some_and(|c| !c.is_empty());
        assert!(!events.iter().any(said), "a call is no answer");
    }
}

#[test]
fn offered_tools_bind_nobody() {
    let server = Server::with_long_context(&["--max-model-len", "2048"]);
    let asked = json!({ "tools": tools(), "seed": 1, "temperature": 1.0, "max_tokens": 20 });
    let reply = server.chat(asked.clone()).good();
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(reply["usage"]["prompt_tokens"].as_u64() > Some(200), "the model is told of them");
    let mut streamed = asked;
    streamed["stream"] = json!(true);
    let (events, _) = server.chat(streamed).events();
    let said: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, text);
    // What an earlier call answered goes back to the model.
    let messages = json!([
        { "role": "user", "content": "What time is it?" },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "call-1", "type": "function", "function": { "name": "now", "arguments": "{}" } }] },
        { "role": "tool", "tool_call_id": "call-1", "content": "noon" },
    ]);
    server.chat(json!({ "messages": messages, "tools": tools(), "max_tokens": 2 })).good();
    for (fields, param) in [
        (json!({ "tools": [] }), "tools"),
        (json!({ "tool_choice": "auto" }), "tool_choice"),
        (json!({ "tools": [{ "type": "web", "function": { "name": "x" } }] }), "tools[0].type"),
        (json!({ "tools": [{ "type": "function", "function": { "name": "a b" } }] }), "tools[0].function.name"),
        (
            json!({ "tools": tools(), "tool_choice": { "type": "function", "function": { "name": "rm" } } }),
            "tool_choice.function.name",
        ),
        (
            json!({ "tools": tools(), "tool_choice": "required", "response_format": { "type": "json_object" } }),
            "response_format",
        ),
    ] {
        server.chat(fields).refused(400, param);
    }
}
