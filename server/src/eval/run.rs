//! Asks the engine all problems, many at a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ponder_engine::Result;
use ponder_engine::reason::CloseReason;
use ponder_engine::request::{Finish, SamplingParams};
use ponder_engine::text::Message;

use super::problem::Problem;
use crate::engine::Engine;
use crate::generation::Completion;
use crate::prompt::Prompt;

/// What became of one problem.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its index in the set.
    pub index: usize,
    /// Whether the answer was right.
    pub right: bool,
    /// The answer with all that it cost.
    pub completion: Completion,
}

impl Outcome {
    /// Thinking went in a circle, or the answer did until its last token.
    pub fn looped(&self) -> bool {
        let thinking = self.completion.thinking.is_some_and(|t| t.looped.is_some());
        thinking || self.completion.finish == Finish::Length
    }
    /// Thinking was closed by its cap, or by the reserve for the answer.
    pub fn hit_cap(&self) -> bool {
        let by = self.completion.thinking.and_then(|t| t.closed_by);
        matches!(by, Some(CloseReason::Budget | CloseReason::Reserve))
    }
    /// Tokens after the thinking.
    pub fn answer_tokens(&self) -> usize {
        self.completion.completion_tokens - self.completion.reasoning_tokens
    }
}

/// Asks every problem, at most `batch` at once; `done` hears of each. The outcomes are in the problems' order.
///
/// # Errors
/// The first request that was refused or failed; the others are cancelled then.
pub fn run(
    engine: &Engine,
    problems: &[Problem],
    system: Option<&str>,
    params: &SamplingParams,
    batch: usize,
    done: &(dyn Fn(&Outcome) + Sync),
) -> Result<Vec<Outcome>> {
    let (next, outcomes, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Mutex::new(None));
    let lock = |e: std::sync::PoisonError<_>| e.into_inner();
    std::thread::scope(|scope| {
        for _ in 0..batch.min(problems.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(problem) = problems.get(index) else { return };
                    match ask(engine, problem, index, system, params) {
                        Ok(outcome) => {
                            done(&outcome);
                            outcomes.lock().unwrap_or_else(lock).push(outcome);
                        }
                        Err(error) => {
                            next.store(problems.len(), Ordering::Relaxed);
                            failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(error);
    }
    let mut outcomes = outcomes.into_inner().unwrap_or_else(|e| e.into_inner());
    outcomes.sort_by_key(|o| o.index);
    Ok(outcomes)
}

fn ask(
    engine: &Engine,
    problem: &Problem,
    index: usize,
    system: Option<&str>,
    params: &SamplingParams,
) -> Result<Outcome> {
    let system = system.map(|s| Message::new("system", s));
    let messages = system.into_iter().chain([Message::new("user", &problem.question)]).collect();
    let completion = engine.generate(Prompt::chat(messages), params.clone())?.complete()?;
    Ok(Outcome { index, right: problem.matcher.matches(&completion.text, &problem.answer), completion })
}
