//! The shortest useful program: load a model, ask it one thing, print the answer and its cost.

use ponder::{Engine, EngineOptions, Prompt};
use ponder_engine::request::SamplingParams;

fn main() -> anyhow::Result<()> {
    let engine = Engine::load(EngineOptions::new(ponder_examples::model()?), |_| {})?;
    let params = SamplingParams { max_tokens: Some(64), ..SamplingParams::default() };
    let answer = engine.generate(Prompt::user("What is 15% of 80?"), params)?.complete()?;
    println!("{}", answer.text);
    println!("{} tokens at {:.0}/s", answer.completion_tokens, answer.timings.decode_tokens_per_second);
    Ok(())
}
