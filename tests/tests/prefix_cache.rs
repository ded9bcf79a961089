//! The prefix cache through the facade: what a next turn, another tenant and an idle engine find.

use std::time::Duration;

use ponder::{BackendChoice, Completion, Engine, EngineOptions, Opened, Prompt};
use ponder_engine::format::KvFormat;
use ponder_engine::kv::Preemption;
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

fn options(model: &TinyModel) -> EngineOptions {
    EngineOptions { backend: BackendChoice::Cpu, threads: 1, ..EngineOptions::new(model.path()) }
}

fn engine(model: &TinyModel, prefix_caching: bool) -> Engine {
    Engine::load(EngineOptions { prefix_caching, ..options(model) }, |_| {}).unwrap()
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

/// Holds a conversation of two turns, and asserts that the second computes its new tokens only and says what `plain`,
/// an engine without a cache, says. The engine needs a moment of idle time between the turns: how long depends on
/// the machine.
fn second_turn_is_found(engine: &Engine, plain: &Engine) {
    let mut found = Vec::new();
    for attempt in 0..8u32 {
        let mut messages = vec![Message::new("user", format!("{attempt}, what is 15% of 80? Think well."))];
        let first = ask(engine, &messages, "");
        assert!(first.reasoning_tokens > 0 && !first.text.is_empty(), "{first:?}");
        messages.extend([Message::new("assistant", &first.text), Message::new("user", "And of 90?")]);
        std::thread::sleep(Duration::from_millis(50 << attempt));
        let second = ask(engine, &messages, "");
        let known = known(engine, &messages);
        assert!(known > first.prompt_tokens, "the answer is part of what is known");
        found.push((second.cached_tokens, known));
        if second.cached_tokens == known {
            let plain = ask(plain, &messages, "");
            assert_eq!((plain.cached_tokens, plain.token_ids), (0, second.token_ids));
            return;
        }
    }
    panic!("never found what was known: {found:?}");
}

#[test]
fn a_second_turn_with_stripped_thinking_computes_its_new_tokens_only() {
    let model = thinker();
    second_turn_is_found(&engine(&model, true), &engine(&model, false));
}

/// Codes with scales per block, and blocks that have been to host memory and back, are cached again like any others.
#[test]
fn a_second_turn_is_found_in_fp8_and_after_swapping() {
    const LEN: usize = 256;
    let model = thinker();
    let fp8 = EngineOptions { kv_cache_dtype: KvFormat::E2M5, max_model_len: Some(LEN), ..options(&model) };
    let token = Opened::open(fp8.clone()).unwrap().checkpoint.config.kv_bytes(KvFormat::E2M5).per_token();
    // Room for one of the longest sequences, and requests that are let in without a look ahead.
    let short = EngineOptions {
        kv_memory: Some(token * LEN as u64),
        preemption: Preemption::Swap,
        swap_space: 64 << 20,
        growth_quantile: 0.0,
        ..fp8.clone()
    };
    let engine = Engine::load(short, |_| {}).unwrap();
    let plain = Engine::load(EngineOptions { prefix_caching: false, ..fp8 }, |_| {}).unwrap();
    let params = SamplingParams { max_tokens: Some(100), ignore_eos: true, ..SamplingParams::default() };
    let prompts: Vec<Prompt> = (0..6).map(|i| Prompt::user(format!("Number {i} asks."))).collect();
    // A fast engine may end some before the last have come, and then the pool is never short.
    let preempted = (0..20).any(|_| {
        let together: Vec<_> = prompts.iter().map(|p| engine.generate(p.clone(), params.clone()).unwrap()).collect();
        for (prompt, running) in prompts.iter().zip(together) {
            let alone = plain.generate(prompt.clone(), params.clone()).unwrap().complete().unwrap();
            assert_eq!(running.complete().unwrap().token_ids, alone.token_ids);
        }
        futures::executor::block_on(engine.handle().view()).unwrap().totals.preemptions > 0
    });
    assert!(preempted, "the pool was never short");
    second_turn_is_found(&engine, &plain);
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
