//! The prefix cache through the facade: what a next turn, another tenant and an idle engine find.

use std::time::Duration;

use ponder::{BackendChoice, Completion, Engine, EngineOptions, Prompt};
use ponder_engine::request::SamplingParams;
use ponder_engine::text::Message;
use ponder_tests::tiny_model::{self, TinyModel};
use safetensors::Dtype;
use serde_json::json;

/// A template like those of R1 and its distills: the assistant's turn opens the thinking, history has none.
const STRIPS: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}\
<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";

fn thinker() -> TinyModel {
    let model = tiny_model::hugging_face("qwen2", Dtype::F32);
    let config = json!({ "add_bos_token": false, "chat_template": STRIPS, "eos_token": "<|im_end|>" });
    std::fs::write(model.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    model
}

fn engine(model: &TinyModel, prefix_caching: bool) -> Engine {
    let options = EngineOptions { backend: BackendChoice::Cpu, threads: 1, ..EngineOptions::new(model.path()) };
    Engine::load(EngineOptions { prefix_caching, ..options }, |_| {}).unwrap()
}

fn ask(engine: &Engine, messages: &[Message], salt: &str) -> Completion {
    let params = SamplingParams {
        max_tokens: Some(60),
        thinking_token_budget: Some(20),
        ignore_eos: true,
        cache_salt: salt.into(),
        ..SamplingParams::default()
    };
    engine.generate(Prompt::chat(messages.to_vec()), params).unwrap().complete().unwrap()
}

/// Tokens of a conversation that do not depend on its last question.
fn known(engine: &Engine, messages: &[Message]) -> usize {
    let tokens = |question: &str| {
        let mut messages = messages.to_vec();
        messages.last_mut().unwrap().content = question.into();
        engine.prompter().render(&Prompt::chat(messages)).unwrap().tokens
    };
    tokens("0").iter().zip(&tokens("A")).take_while(|(a, b)| a == b).count()
}

#[test]
fn a_second_turn_with_stripped_thinking_computes_its_new_tokens_only() {
    let model = thinker();
    let engine = engine(&model, true);
    let mut found = Vec::new();
    // The engine needs a moment of idle time between the turns: how long depends on the machine.
    for attempt in 0..8u32 {
        let mut messages = vec![Message::new("user", format!("{attempt}, what is 15% of 80? Think well."))];
        let first = ask(&engine, &messages, "");
        assert!(first.reasoning_tokens > 0 && !first.text.is_empty(), "{first:?}");
        messages.extend([Message::new("assistant", &first.text), Message::new("user", "And of 90?")]);
        std::thread::sleep(Duration::from_millis(50 << attempt));
        let second = ask(&engine, &messages, "");
        let known = known(&engine, &messages);
        assert!(known > first.prompt_tokens, "the answer is part of what is known");
        found.push((second.cached_tokens, known));
        if second.cached_tokens == known {
            // Without the cache it says the same.
            let plain = ask(&self::engine(&model, false), &messages, "");
            assert_eq!((plain.cached_tokens, plain.token_ids), (0, second.token_ids));
            return;
        }
    }
    panic!("never found what was known: {found:?}");
}

#[test]
fn tenants_share_nothing() {
    let model = thinker();
    let engine = engine(&model, true);
    let messages = [Message::new("user", "A question that is long enough to fill a block or two.")];
    let cached = |salt: &str| ask(&engine, &messages, salt).cached_tokens;
    assert_eq!((cached("a"), cached("b"), cached("")), (0, 0, 0));
    assert!(cached("a") > 30 && cached("b") > 30 && cached("") > 30);
}
