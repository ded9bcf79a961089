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
        assert_eq!(reasoning > 0, seed % 2 == 1, "thinking is free: {reply}");
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
