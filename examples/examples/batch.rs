//! Many requests at once: they share steps, so that all together take little longer than one.

use std::time::Instant;

use ponder::{Engine, EngineOptions, Generation, Prompt};
use ponder_engine::request::SamplingParams;

fn main() -> anyhow::Result<()> {
    let options = EngineOptions { max_num_seqs: 8, ..EngineOptions::new(ponder_examples::model()?) };
    let engine = Engine::load(options, |_| {})?;
    let started = Instant::now();
    let ask = |n: usize| {
        let params = SamplingParams { max_tokens: Some(32), ..SamplingParams::default() };
        engine.generate(Prompt::user(format!("What is {n} times 7?")), params)
    };
    let running: Vec<Generation> = (1..=8).map(ask).collect::<Result<_, _>>()?;
    let mut tokens = 0;
    for (n, generation) in (1..).zip(running) {
        let answer = generation.complete()?;
        tokens += answer.completion_tokens;
        println!("{n}: {}", answer.text.replace('\n', " "));
    }
    println!("{tokens} tokens in {:.2} s", started.elapsed().as_secs_f64());
    Ok(())
}
