//! Text as it comes, thinking apart from the answer. Leaving the loop early would cancel the request.

use std::io::Write;

use ponder::{Engine, EngineOptions, LoadProgress, Prompt, Update};
use ponder_engine::request::SamplingParams;

fn main() -> anyhow::Result<()> {
    let engine = Engine::load(EngineOptions::new(ponder_examples::model()?), |progress| match progress {
        LoadProgress::Planned { device, sizing } => eprint!("{device}\n{sizing}"),
        LoadProgress::Weights { done, total } if done == total => eprintln!("loaded"),
        LoadProgress::Weights { .. } => {}
    })?;
    let params = SamplingParams { temperature: 0.7, seed: 42, max_tokens: Some(100), ..SamplingParams::default() };
    for update in engine.generate(Prompt::user("Why is the sky blue?"), params)? {
        match update {
            Update::Thinking(text) => eprint!("{text}"),
            Update::Answer(text) => print!("{text}"),
            Update::ToolCall(_) => {} // none without tools in the request
            Update::Done(end) => println!("\n[{}, {} tokens]", end.finish_reason(), end.completion_tokens),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
