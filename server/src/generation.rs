//! A request in flight, as the caller sees it: text as it comes, then what it was and what it cost.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ponder_engine::reason::{Decision, ThinkingReport};
use ponder_engine::request::{Finish, RequestId};
use ponder_engine::schedule::Finished;
use ponder_engine::spec::SpecReport;
use ponder_engine::{DeviceFault, Error, Result};

use crate::warm::AfterTurn;

/// Something new.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// More of the thinking.
    Thinking(String),
    /// More of the answer.
    Answer(String),
    /// More of a tool call, where the request has tools.
    ToolCall(String),
    /// The end, once.
    Done(Box<Completion>),
}

/// A finished answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The answer.
    pub text: String,
    /// The tool calls as the model wrote them; empty where there were none.
    pub tool_calls: String,
    /// The thinking before it; empty where there was none.
    pub reasoning: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the cache already, and not computed.
    pub cached_tokens: usize,
    /// Tokens generated: thinking, answer, and the end token.
    pub completion_tokens: usize,
    /// Those of the thinking, its marks included.
    pub reasoning_tokens: usize,
    /// Tokens computed more than once, after a preemption or a lost device.
    pub recomputed_tokens: usize,
    /// Tokens that were guessed, and those of them that were right.
    pub drafted_tokens: usize,
    /// See `drafted_tokens`.
    pub accepted_tokens: usize,
    /// The same by phase, drafter and position, and the time it took.
    pub speculation: Box<SpecReport>,
    /// Every generated token, the end token included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// What became of the thinking; `None` if the model does not think.
    pub thinking: Option<ThinkingReport>,
    /// How deep it was to think, and why, where that was decided.
    pub decision: Option<Decision>,
    /// How long it took.
    pub timings: Timings,
}

impl Completion {
    /// OpenAI's word for why it ended: `stop`, `length`, `cancelled` or `error`.
    pub fn finish_reason(&self) -> &'static str {
        self.finish.reason()
    }
}

/// Times of one request, as its caller saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// From the call until the engine had the request: its prompt was rendered and became tokens.
    pub prepared_ms: f64,
    /// From then until it ran first.
    pub queue_ms: f64,
    /// From the call to the first token.
    pub ttft_ms: f64,
    /// From the call to the first text of the answer, if there was any.
    pub first_answer_ms: Option<f64>,
    /// From the call to the end.
    pub total_ms: f64,
    /// Prompt tokens by the time to the first token.
    pub prefill_tokens_per_second: f64,
    /// Tokens after the first by the time after the first; 0 if there was one only.
    pub decode_tokens_per_second: f64,
}

impl Timings {
    fn new(prompt: usize, generated: usize, first: Option<Duration>, total: Duration) -> Self {
        let first = first.unwrap_or(total);
        let rate = |tokens: usize, time: Duration| match time.as_secs_f64() {
            seconds if seconds > 0.0 => tokens as f64 / seconds,
            _ => 0.0,
        };
        Self {
            prepared_ms: 0.0,
            queue_ms: 0.0,
            ttft_ms: first.as_secs_f64() * 1e3,
            first_answer_ms: None,
            total_ms: total.as_secs_f64() * 1e3,
            prefill_tokens_per_second: rate(prompt, first),
            decode_tokens_per_second: rate(generated.saturating_sub(1), total - first),
        }
    }
}

/// All answers of a request in flight, `n` of them. Dropping it cancels those that have not ended.
pub struct Choices {
    inner: ponder_actors::Generation,
    after: Option<AfterTurn>,
    started: Instant,
    prepared: Duration,
    answers: Vec<Answer>,
    ready: VecDeque<(usize, Update)>,
}

/// One answer so far.
#[derive(Default)]
struct Answer {
    first: Option<Duration>,
    first_answer: Option<Duration>,
    text: String,
    tool_calls: String,
    reasoning: String,
    token_ids: Vec<u32>,
}

impl Choices {
    pub(crate) fn new(inner: ponder_actors::Generation, started: Instant, n: usize, after: Option<AfterTurn>) -> Self {
        let answers = (0..n).map(|_| Answer::default()).collect();
        Self { inner, after, started, prepared: started.elapsed(), answers, ready: VecDeque::new() }
    }

    /// The engine's id of the request.
    pub fn id(&self) -> RequestId {
        self.inner.id
    }

    /// Tokens generated so far of an answer that has not ended, those of marks and of text held back included.
    pub fn generated(&self, choice: usize) -> usize {
        self.answers.get(choice).map_or(0, |a| a.token_ids.len())
    }

    /// What is new, and in which answer; `None` after the [`Update::Done`] of the last one.
    pub async fn next_update(&mut self) -> Option<(usize, Update)> {
        while self.ready.is_empty() {
            let update = self.inner.next().await?;
            self.take(update);
        }
        self.ready.pop_front()
    }

    /// The same, for threads without an async runtime.
    pub fn next_blocking(&mut self) -> Option<(usize, Update)> {
        while self.ready.is_empty() {
            let update = self.inner.next_blocking()?;
            self.take(update);
        }
        self.ready.pop_front()
    }

    fn take(&mut self, update: ponder_actors::Update) {
        let choice = usize::from(update.choice);
        let now = self.started.elapsed();
        let answer = &mut self.answers[choice];
        if !update.tokens.is_empty() || update.finish.is_some() {
            answer.first.get_or_insert(now);
        }
        answer.token_ids.extend(&update.tokens);
        if !update.reasoning.is_empty() {
            answer.reasoning.push_str(&update.reasoning);
            self.ready.push_back((choice, Update::Thinking(update.reasoning)));
        }
        if !update.text.is_empty() {
            answer.first_answer.get_or_insert(now);
            answer.text.push_str(&update.text);
            self.ready.push_back((choice, Update::Answer(update.text)));
        }
        if !update.tool_call.is_empty() {
            answer.first_answer.get_or_insert(now);
            answer.tool_calls.push_str(&update.tool_call);
            self.ready.push_back((choice, Update::ToolCall(update.tool_call)));
        }
        if let Some(finished) = update.finish {
            let done = std::mem::take(answer).completion(*finished, self.prepared, now);
            // Only thinking is stripped from later turns; of several answers the conversation goes on from one.
            let goes_on = !matches!(done.finish, Finish::Cancelled | Finish::Failed { .. }) && !done.text.is_empty();
            if let Some(after) = self.after.take_if(|_| goes_on && done.reasoning_tokens > 0) {
                after.ended(&done.token_ids, &done.text);
            }
            self.ready.push_back((choice, Update::Done(Box::new(done))));
        }
    }
}

impl Answer {
    fn completion(mut self, finished: Finished, prepared: Duration, total: Duration) -> Completion {
        if let Finish::Stop { token } = finished.why {
            self.token_ids.push(token);
        }
        let (prompt, generated) = (finished.prompt_tokens, finished.completion_tokens);
        let mut timings = Timings::new(prompt, generated, self.first, total);
        timings.prepared_ms = prepared.as_secs_f64() * 1e3;
        timings.queue_ms = finished.cost.queue_time.as_secs_f64() * 1e3;
        timings.first_answer_ms = self.first_answer.map(|t| t.as_secs_f64() * 1e3);
        Completion {
            text: self.text,
            tool_calls: self.tool_calls,
            reasoning: self.reasoning,
            prompt_tokens: prompt,
            cached_tokens: finished.cached_tokens,
            completion_tokens: generated,
            reasoning_tokens: finished.reasoning_tokens,
            recomputed_tokens: finished.recomputed_tokens,
            drafted_tokens: finished.drafted_tokens,
            accepted_tokens: finished.accepted_tokens,
            speculation: finished.speculation,
            token_ids: self.token_ids,
            finish: finished.why,
            thinking: finished.thinking,
            decision: finished.decision,
            timings,
        }
    }
}

/// A request with one answer in flight. It is a blocking iterator; async callers use
/// [`next_update`](Self::next_update). Dropping it cancels the request.
pub struct Generation {
    choices: Choices,
}

impl Generation {
    pub(crate) fn new(choices: Choices) -> Self {
        Self { choices }
    }

    /// What is new; `None` after [`Update::Done`].
    pub async fn next_update(&mut self) -> Option<Update> {
        self.choices.next_update().await.map(|(_, update)| update)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If the request failed.
    pub fn complete(mut self) -> Result<Completion> {
        let done = self.find_map(|update| match update {
            Update::Done(completion) => Some(*completion),
            _ => None,
        });
        let failed = |reason: &str| Error::Device { device: "engine".into(), what: DeviceFault::Lost(reason.into()) };
        match done {
            Some(Completion { finish: Finish::Failed { reason }, .. }) => Err(Error::invalid("request", reason)),
            Some(completion) => Ok(completion),
            None => Err(failed("it stopped before the answer ended")),
        }
    }
}

impl Iterator for Generation {
    type Item = Update;
    /// Waits for what is new. Not for use inside an async runtime.
    fn next(&mut self) -> Option<Update> {
        self.choices.next_blocking().map(|(_, update)| update)
    }
}
