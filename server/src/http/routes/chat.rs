//! `/v1/chat/completions`.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::Value;

use super::{reply, shared, with_ignored};
use crate::http::body;
use crate::http::error::ApiError;
use crate::http::guard::Caller;
use crate::http::job::Job;
use crate::http::options::ReasoningField;
use crate::http::prompt::{ChatPrompt, messages, start};
use crate::http::sse::{self, Frames, Gone, Sender};
use crate::http::state::State;
use crate::http::wire::FINGERPRINT;
use crate::http::wire::chat::{AnswerMessage, ChatChoice, ChatChunk, ChatCompletion, ChatRequest, ChunkChoice, Delta};
use crate::http::wire::usage::{Timings, Usage, stop_reason};
use crate::{Completion, Update};

/// Under which names thinking is sent, if it is.
#[derive(Clone, Copy)]
struct Reasoning {
    field: ReasoningField,
    shown: bool,
}

impl Reasoning {
    fn content<T>(self, value: T) -> Option<T> {
        (self.shown && self.field.content()).then_some(value)
    }
    fn plain<T>(self, value: T) -> Option<T> {
        (self.shown && self.field.plain()).then_some(value)
    }
}

/// Answers a chat.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "inference", request_body = ChatRequest,
    responses(
        (status = 200, description = "The answers, or server-sent events with ChatChunk objects", content(
            (ChatCompletion = "application/json"), (serde_json::Value = "text/event-stream"))),
        crate::http::openapi::Errors,
    )
)]
pub async fn chat(request: HttpRequest, state: Data<State>, payload: Payload) -> Result<HttpResponse, ApiError> {
    let caller = Caller::of(&request);
    let asked: ChatRequest = body::read(&request, payload, &state.options.limits).await?;
    let (stream, with_usage) = asked.streaming()?;
    if asked.separate_reasoning == Some(false) {
        return Err(ApiError::invalid("separate_reasoning", "thinking and answer are always apart here"));
    }
    let reasoning = Reasoning { field: state.options.reasoning_field, shown: asked.include_reasoning.unwrap_or(true) };
    let ignored = asked.ignored();
    let prompt = ChatPrompt {
        messages: messages(&asked.messages)?,
        effort: asked.reasoning_effort.clone(),
        budget: asked.budget()?,
        kwargs: asked.chat_template_kwargs.clone().unwrap_or_default(),
        tools: None,
    };
    let job = start(shared(&state), asked.model.as_deref(), prompt, &asked.sampling()?, caller, "chatcmpl").await?;
    if !stream {
        return whole(job, reasoning, &ignored).await;
    }
    let patience = state.options.limits.slow_client;
    let response = sse::respond(patience, |sender| async move {
        let mut writer = Writer { job, reasoning, with_usage, frames: Frames::default() };
        if writer.run(sender).await == Err(Gone::Slow) {
            tracing::warn!(target: "ponder::request", id = writer.job.id, "the client reads nothing: cut off");
        }
    });
    Ok(with_ignored(response, &ignored))
}

async fn whole(mut job: Job, reasoning: Reasoning, ignored: &[&str]) -> Result<HttpResponse, ApiError> {
    let done = job.complete().await?;
    let timings = done.last().map(Timings::of);
    let eos = job.model().engine.generation_defaults().eos.clone();
    let choices = done.into_iter().enumerate().map(|(index, done)| choice(index, done, reasoning, &eos)).collect();
    let reply_body = ChatCompletion {
        id: job.id.clone(),
        object: "chat.completion",
        created: job.created,
        model: job.name.clone(),
        choices,
        usage: job.usage.clone(),
        system_fingerprint: FINGERPRINT,
        timings,
    };
    Ok(reply(&reply_body, ignored))
}

fn choice(index: usize, done: Completion, reasoning: Reasoning, eos: &[u32]) -> ChatChoice {
    let (finish_reason, stop_reason) = (done.finish_reason(), stop_reason(&done, eos));
    let thought = (!done.reasoning.is_empty()).then_some(done.reasoning);
    let message = AnswerMessage {
        role: "assistant",
        content: Some(done.text),
        reasoning_content: reasoning.content(thought.clone()).flatten(),
        reasoning: reasoning.plain(thought).flatten(),
        refusal: None,
    };
    ChatChoice { index, message, logprobs: None, finish_reason, stop_reason }
}

/// Writes a stream.
struct Writer {
    job: Job,
    reasoning: Reasoning,
    with_usage: bool,
    frames: Frames,
}

impl Writer {
    async fn run(&mut self, mut sender: Sender) -> Result<(), Gone> {
        for index in 0..self.job.answers() {
            let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
            self.chunk(index, delta, None);
        }
        sender.send(&mut self.frames).await?;
        loop {
            match sender.during(self.job.next()).await? {
                Ok(Some((index, Update::Thinking(text)))) => {
                    if self.reasoning.shown {
                        let (content, plain) = (self.reasoning.content(&*text), self.reasoning.plain(&*text));
                        self.chunk(
                            index,
                            Delta { reasoning_content: content, reasoning: plain, ..Delta::default() },
                            None,
                        );
                    }
                }
                Ok(Some((index, Update::Answer(text)))) => {
                    self.chunk(index, Delta { content: Some(&text), ..Delta::default() }, None);
                }
                Ok(Some((index, Update::Done(done)))) => self.chunk(index, Delta::default(), Some(&done)),
                Ok(None) => break,
                Err(error) => {
                    // No [DONE] after it: the stream is broken, not over.
                    self.frames.data(&error.body());
                    return sender.send(&mut self.frames).await;
                }
            }
            sender.send(&mut self.frames).await?;
        }
        if self.with_usage {
            let usage = Some(Some(self.job.usage.clone()));
            self.push(Vec::new(), usage, None);
        }
        self.frames.raw("[DONE]");
        sender.send(&mut self.frames).await
    }

    /// A chunk about one answer: what is new, or its end.
    fn chunk(&mut self, index: usize, delta: Delta<'_>, done: Option<&Completion>) {
        let eos = &self.job.model().engine.generation_defaults().eos;
        let choice = ChunkChoice {
            index,
            delta,
            logprobs: None,
            finish_reason: done.map(Completion::finish_reason),
            stop_reason: done.map(|d| stop_reason(d, eos)).filter(|r| *r != Value::Null),
        };
        self.push(vec![choice], self.with_usage.then_some(None), done.map(Timings::of));
    }

    fn push(&mut self, choices: Vec<ChunkChoice<'_>>, usage: Option<Option<Usage>>, timings: Option<Timings>) {
        self.frames.data(&ChatChunk {
            id: &self.job.id,
            object: "chat.completion.chunk",
            created: self.job.created,
            model: &self.job.name,
            choices,
            system_fingerprint: FINGERPRINT,
            usage,
            timings,
        });
    }
}
