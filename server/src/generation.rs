//! A request in flight, as the caller sees it: text as it comes, then what it was and what it cost.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ponder_engine::request::Finish;
use ponder_engine::schedule::Finished;
use ponder_engine::{DeviceFault, Error, Result};

use crate::warm::AfterTurn;

/// Something new.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// More of the thinking.
    Thinking(String),
    /// More of the answer.
    Answer(String),
    /// The end, once.
    Done(Completion),
}

/// A finished answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The answer.
    pub text: String,
    /// The thinking before it; empty where there was none.
    pub reasoning: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were in the cache already, and not computed.
    pub cached_tokens: usize,
    /// Tokens computed more than once, after a preemption or a lost device.
    pub recomputed_tokens: usize,
    /// Tokens generated: thinking, answer, and the end token.
    pub completion_tokens: usize,
    /// Those of the thinking, its marks included.
    pub reasoning_tokens: usize,
    /// Every generated token, the end token included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
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
    /// From the call to the first token.
    pub ttft_ms: f64,
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
            ttft_ms: first.as_secs_f64() * 1e3,
            total_ms: total.as_secs_f64() * 1e3,
            prefill_tokens_per_second: rate(prompt, first),
            decode_tokens_per_second: rate(generated.saturating_sub(1), total - first),
        }
    }
}

/// A request in flight. It is a blocking iterator; async callers use [`next_update`](Self::next_update).
/// Dropping it cancels the request.
pub struct Generation {
    inner: ponder_actors::Generation,
    after: Option<AfterTurn>,
    started: Instant,
    first: Option<Duration>,
    ready: VecDeque<Update>,
    text: String,
    reasoning: String,
    token_ids: Vec<u32>,
}

impl Generation {
    pub(crate) fn new(inner: ponder_actors::Generation, started: Instant, after: Option<AfterTurn>) -> Self {
        Self {
            inner,
            after,
            started,
            first: None,
            ready: VecDeque::new(),
            text: String::new(),
            reasoning: String::new(),
            token_ids: Vec::new(),
        }
    }

    /// What is new; `None` after [`Update::Done`].
    pub async fn next_update(&mut self) -> Option<Update> {
        while self.ready.is_empty() {
            let update = self.inner.next().await?;
            self.take(update);
        }
        self.ready.pop_front()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If the request failed.
    pub fn complete(mut self) -> Result<Completion> {
        let done = self.find_map(|update| match update {
            Update::Done(completion) => Some(completion),
            Update::Thinking(_) | Update::Answer(_) => None,
        });
        let failed = |reason: &str| Error::Device { device: "engine".into(), what: DeviceFault::Lost(reason.into()) };
        match done {
            Some(Completion { finish: Finish::Failed { reason }, .. }) => Err(Error::invalid("request", reason)),
            Some(completion) => Ok(completion),
            None => Err(failed("it stopped before the answer ended")),
        }
    }

    fn take(&mut self, update: ponder_actors::Update) {
        if !update.tokens.is_empty() || update.finish.is_some() {
            self.first.get_or_insert_with(|| self.started.elapsed());
        }
        self.token_ids.extend(&update.tokens);
        if !update.reasoning.is_empty() {
            self.reasoning.push_str(&update.reasoning);
            self.ready.push_back(Update::Thinking(update.reasoning));
        }
        if !update.text.is_empty() {
            self.text.push_str(&update.text);
            self.ready.push_back(Update::Answer(update.text));
        }
        if let Some(finished) = update.finish {
            self.done(finished);
        }
    }

    fn done(&mut self, finished: Finished) {
        if let Finish::Stop { token } = finished.why {
            self.token_ids.push(token);
        }
        // Only thinking is stripped; an answer that was cut off is seldom gone on from.
        if finished.reasoning_tokens > 0
            && matches!(finished.why, Finish::Stop { .. } | Finish::StopString { .. })
            && let Some(after) = self.after.take()
        {
            after.ended(&self.token_ids, &self.text);
        }
        let (prompt, generated) = (finished.prompt_tokens, finished.completion_tokens);
        self.ready.push_back(Update::Done(Completion {
            text: std::mem::take(&mut self.text),
            reasoning: std::mem::take(&mut self.reasoning),
            prompt_tokens: prompt,
            cached_tokens: finished.cached_tokens,
            recomputed_tokens: finished.recomputed_tokens,
            completion_tokens: generated,
            reasoning_tokens: finished.reasoning_tokens,
            token_ids: std::mem::take(&mut self.token_ids),
            finish: finished.why,
            timings: Timings::new(prompt, generated, self.first, self.started.elapsed()),
        }));
    }
}

impl Iterator for Generation {
    type Item = Update;
    /// Waits for what is new. Not for use inside an async runtime.
    fn next(&mut self) -> Option<Update> {
        while self.ready.is_empty() {
            let update = self.inner.next_blocking()?;
            self.take(update);
        }
        self.ready.pop_front()
    }
}
