//! A request at work: its answers come out, and its end is noted however it ends.

use std::sync::Arc;
use std::time::Instant;

use futures::stream::{BoxStream, SelectAll, StreamExt, select_all, unfold};
use ponder_engine::request::{Finish, SamplingParams};

use super::admission::{Load, Permit};
use super::auth::KeyId;
use super::error::ApiError;
use super::fleet::Seat;
use super::guard::Trace;
use super::state::{Running, Served, State};
use super::wire;
use super::wire::usage::Usage;
use crate::prompt::Rendered;
use crate::{Completion, Update};

/// What a request asks of the engine.
pub struct Order {
    /// The model.
    pub model: Arc<Served>,
    /// The model's name, as it was asked for.
    pub name: String,
    /// Its prompts.
    pub prompts: Vec<Rendered>,
    /// How to go on, for all of them.
    pub params: SamplingParams,
    /// Who asks.
    pub key: KeyId,
    /// Its place among the requests of several instances.
    pub seat: Option<Seat>,
    /// When it arrived.
    pub arrived: Instant,
    /// Begins its id.
    pub prefix: &'static str,
    /// Its id in logs.
    pub request_id: String,
    /// The trace that it belongs to.
    pub trace: Option<Trace>,
}

/// What a span of a request says of it.
pub struct Asked<'a> {
    /// Its id on the wire.
    pub id: &'a str,
    /// The model's name, as it was asked for.
    pub model: &'a str,
    /// How it was to go on.
    pub params: &'a SamplingParams,
    /// The trace that it belongs to; `None` begins one.
    pub trace: Option<Trace>,
    /// When it arrived.
    pub arrived: Instant,
}

/// A request at work. Dropping it cancels what has not ended.
pub struct Job {
    state: Arc<State>,
    model: Arc<Served>,
    updates: SelectAll<BoxStream<'static, (usize, Update)>>,
    _permit: Permit,
    _seat: Option<Seat>,
    /// Its id on the wire.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name, as it was asked for.
    pub name: String,
    /// Tokens of its prompts.
    pub prompt_tokens: usize,
    /// What ended answers cost.
    pub usage: Usage,
    params: SamplingParams,
    request_id: String,
    trace: Option<Trace>,
    arrived: Instant,
    answers: usize,
    per_prompt: usize,
    ended: usize,
    last_token: Vec<Option<Instant>>,
}

impl Job {
    /// Starts a request.
    ///
    /// # Errors
    /// If it is refused, for what it asks or for what else is in flight.
    pub async fn start(state: Arc<State>, order: Order) -> Result<Self, ApiError> {
        if state.is_draining() {
            return Err(ApiError::unavailable("shutting_down", "the server is shutting down", 5));
        }
        let Order { model, name, prompts, params, key, seat, arrived, prefix, request_id, trace } = order;
        let (n, longest) = (usize::from(params.n), model.engine.max_model_len());
        let answers = n * prompts.len();
        let most = |p: &Rendered| longest.min(p.tokens.len().saturating_add(params.max_tokens.unwrap_or(longest)));
        let tokens = prompts.iter().map(|p| n * most(p)).sum();
        let permit = model.admission.take(Load { answers, tokens }, key).inspect_err(|_| model.metrics.refused())?;
        let prompt_tokens = prompts.iter().map(|p| p.tokens.len()).sum();
        let mut updates = Vec::new();
        let mut requests = Vec::new();
        for (i, prompt) in prompts.into_iter().enumerate() {
            let choices = model.engine.submit(prompt, params.clone(), arrived).await?;
            requests.push(choices.id());
            let stream = unfold(choices, |mut choices| async move { Some((choices.next_update().await?, choices)) });
            updates.push(stream.map(move |(choice, update)| (i * n + choice, update)).boxed());
        }
        let id = wire::fresh_id(prefix);
        state.enter(&id, Running { model: model.clone(), requests });
        Ok(Self {
            updates: select_all(updates),
            _permit: permit,
            _seat: seat,
            id,
            created: wire::now(),
            name,
            prompt_tokens,
            usage: Usage::default(),
            params,
            request_id,
            trace,
            arrived,
            answers,
            per_prompt: n,
            ended: 0,
            last_token: vec![None; answers],
            state,
            model,
        })
    }

    /// Its model.
    pub fn model(&self) -> &Served {
        &self.model
    }
    /// How many answers it gives.
    pub fn answers(&self) -> usize {
        self.answers
    }

    /// What is new, and in which answer; `None` after all have ended. It may be dropped while it waits.
    ///
    /// # Errors
    /// If an answer failed, or if the request takes too long: nothing more comes then.
    pub async fn next(&mut self) -> Result<Option<(usize, Update)>, ApiError> {
        if self.ended == self.answers {
            return Ok(None);
        }
        let limit = self.state.options.limits.request;
        let next = self.updates.next();
        let next = if limit.is_zero() {
            next.await
        } else {
            let deadline = tokio::time::Instant::from_std(self.arrived + limit);
            let timeout = tokio::time::timeout_at(deadline, next);
            timeout.await.map_err(|_| self.fail(ApiError::timeout(limit.as_secs()), "timeout"))?
        };
        let Some((index, update)) = next else {
            return Err(self.fail(ApiError::unavailable("shutting_down", "the engine has stopped", 5), "stopped"));
        };
        if let Update::Done(done) = &update {
            self.done(index, done)?;
        } else {
            let now = Instant::now();
            let before = self.last_token[index].replace(now);
            let metrics = &self.model.metrics;
            match before {
                Some(before) => metrics.inter_token.observe((now - before).as_secs_f64()),
                None => metrics.first_token.observe((now - self.arrived).as_secs_f64()),
            }
        }
        Ok(Some((index, update)))
    }

    fn done(&mut self, index: usize, done: &Completion) -> Result<(), ApiError> {
        self.ended += 1;
        match &done.finish {
            Finish::Failed { reason } => return Err(self.fail(ApiError::failed(reason), "failed")),
            Finish::Cancelled => {
                return Err(self.fail(ApiError::unavailable("cancelled", "the request was cancelled", 5), "cancelled"));
            }
            Finish::Stop { .. } | Finish::StopString { .. } | Finish::Length => {}
        }
        let with_prompt = index.is_multiple_of(self.per_prompt);
        self.usage.add(done, with_prompt);
        self.model.metrics.finished(done, with_prompt);
        if let Some(spans) = &self.state.spans {
            spans.answered(&self.asked(), index, done);
        }
        tracing::info!(
            target: "ponder::request",
            request_id = self.request_id, trace_id = self.trace.map(display), id = self.id, model = self.name, choice = index,
            finish = done.finish_reason(), prompt_tokens = done.prompt_tokens, cached_tokens = done.cached_tokens,
            completion_tokens = done.completion_tokens, reasoning_tokens = done.reasoning_tokens,
            ttft_ms = done.timings.ttft_ms as u64, total_ms = done.timings.total_ms as u64, "done"
        );
        Ok(())
    }

    fn asked(&self) -> Asked<'_> {
        let (trace, arrived) = (self.trace, self.arrived);
        Asked { id: &self.id, model: &self.name, params: &self.params, trace, arrived }
    }
    fn broken(&self, how: &'static str) {
        if let Some(spans) = &self.state.spans {
            spans.broken(&self.asked(), how);
        }
    }

    /// Nothing more comes.
    fn fail(&mut self, error: ApiError, how: &'static str) -> ApiError {
        self.updates = SelectAll::new();
        self.ended = self.answers;
        self.model.metrics.failed(how);
        self.broken(how);
        tracing::warn!(target: "ponder::request", request_id = self.request_id, trace_id = self.trace.map(display), id = self.id, how, error = %error, "failed");
        error
    }

    /// Waits for all answers.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn complete(&mut self) -> Result<Vec<Completion>, ApiError> {
        let mut done: Vec<Option<Completion>> = (0..self.answers).map(|_| None).collect();
        while let Some((index, update)) = self.next().await? {
            if let Update::Done(completion) = update {
                done[index] = Some(*completion);
            }
        }
        Ok(done.into_iter().flatten().collect())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.state.leave(&self.id);
        if self.ended < self.answers {
            self.model.metrics.cancelled();
            self.broken("client_left");
            tracing::info!(
                target: "ponder::request", request_id = self.request_id, trace_id = self.trace.map(display), id = self.id, model = self.name,
                after_ms = self.arrived.elapsed().as_millis() as u64, "the client left"
            );
        }
    }
}
