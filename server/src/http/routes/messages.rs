//! `/v1/messages` and `/v1/messages/count_tokens`: Anthropic's protocol.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Value, json};

use super::{blocking, reply, shared, with_ignored};
use crate::http::body;
use crate::http::error::ApiError;
use crate::http::guard::Caller;
use crate::http::job::Job;
use crate::http::prompt::{ChatPrompt, render, start};
use crate::http::sse::{self, Frames, Gone, Sender};
use crate::http::state::State;
use crate::http::wire::messages::{
    CountRequest, CountResponse, MessageReply, MessageUsage, MessagesRequest, ThinkingOptions, messages as read, stop,
};
use crate::http::wire::sampling::{OneOrMany, Sampling};
use crate::http::wire::usage::Usage;
use crate::{Completion, Update};

/// Answers a chat.
#[utoipa::path(
    post, path = "/v1/messages", tag = "inference", request_body = MessagesRequest,
    responses(
        (status = 200, description = "The reply, or its events", content(
            (MessageReply = "application/json"), (serde_json::Value = "text/event-stream"))),
        crate::http::openapi::Errors,
    )
)]
pub async fn messages(request: HttpRequest, state: Data<State>, payload: Payload) -> Result<HttpResponse, ApiError> {
    let caller = Caller::of(&request);
    let asked: MessagesRequest = body::read(&request, payload, &state.options.limits).await?;
    let ignored = asked.ignored();
    let (budget, effort) = ThinkingOptions::read(asked.thinking.as_ref(), Some(asked.max_tokens))?;
    let messages = read(asked.system.as_ref(), &asked.messages)?;
    let prompt = ChatPrompt { messages, effort, budget, ..ChatPrompt::default() };
    let stops = asked.stop_sequences.clone().map(OneOrMany::Many);
    let sampling = Sampling {
        temperature: asked.temperature,
        top_p: asked.top_p,
        top_k: asked.top_k,
        max_tokens: Some(asked.max_tokens),
        stop: stops.as_ref(),
        thinking_token_budget: budget,
        ..Sampling::default()
    };
    let job = start(shared(&state), Some(&asked.model), prompt, &sampling, caller, "msg").await?;
    if !asked.stream.unwrap_or(false) {
        return whole(job, &ignored).await;
    }
    let patience = state.options.limits.slow_client;
    let response = sse::respond(patience, |sender| async move {
        let mut writer = Writer { job, frames: Frames::default(), open: None, blocks: 0 };
        if writer.run(sender).await == Err(Gone::Slow) {
            tracing::warn!(target: "ponder::request", id = writer.job.id, "the client reads nothing: cut off");
        }
    });
    Ok(with_ignored(response, &ignored))
}

async fn whole(mut job: Job, ignored: &[&str]) -> Result<HttpResponse, ApiError> {
    let done = job.complete().await?.remove(0);
    let thought = (!done.reasoning.is_empty())
        .then(|| json!({ "type": "thinking", "thinking": done.reasoning, "signature": "" }));
    let content =
        thought.into_iter().chain([json!({ "type": "text", "text": done.text, "citations": null })]).collect();
    let (stop_reason, stop_sequence) = stop(&done);
    let message = MessageReply { stop_reason: Some(stop_reason), stop_sequence, content, ..empty(&job) };
    Ok(reply(&MessageReply { usage: (&job.usage).into(), ..message }, ignored))
}

fn empty(job: &Job) -> MessageReply {
    let prompt = Usage { prompt_tokens: job.prompt_tokens, ..Usage::default() };
    MessageReply {
        id: job.id.clone(),
        r#type: "message",
        role: "assistant",
        model: job.name.clone(),
        content: Vec::new(),
        stop_reason: None,
        stop_sequence: None,
        stop_details: None,
        container: None,
        usage: (&prompt).into(),
    }
}

/// Counts the tokens of a chat.
#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "tokens", request_body = CountRequest,
    responses((status = 200, body = CountResponse), crate::http::openapi::Errors))]
pub async fn count(request: HttpRequest, state: Data<State>, payload: Payload) -> Result<HttpResponse, ApiError> {
    let asked: CountRequest = body::read(&request, payload, &state.options.limits).await?;
    let model = state.model(Some(&asked.model))?.0.clone();
    let (budget, effort) = ThinkingOptions::read(asked.thinking.as_ref(), None)?;
    let prompt =
        ChatPrompt { messages: read(asked.system.as_ref(), &asked.messages)?, effort, budget, ..ChatPrompt::default() };
    let rendered = blocking(move || render(&model, prompt, true)).await?;
    Ok(reply(&CountResponse { input_tokens: rendered.tokens.len() }, &[]))
}

/// The kinds of blocks that a reply has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
}

/// Writes the events.
struct Writer {
    job: Job,
    frames: Frames,
    open: Option<Block>,
    blocks: usize,
}

impl Writer {
    async fn run(&mut self, mut sender: Sender) -> Result<(), Gone> {
        let start = empty(&self.job);
        self.event("message_start", json!({ "message": start }));
        loop {
            sender.send(&mut self.frames).await?;
            match sender.during(self.job.next()).await? {
                Ok(Some((_, Update::Thinking(text)))) => {
                    self.delta(Block::Thinking, json!({ "type": "thinking_delta", "thinking": text }));
                }
                Ok(Some((_, Update::Answer(text)))) => {
                    self.delta(Block::Text, json!({ "type": "text_delta", "text": text }));
                }
                Ok(Some((_, Update::Done(done)))) => self.end(&done),
                Ok(None) => return sender.send(&mut self.frames).await,
                Err(error) => {
                    self.frames.event("error", &error.anthropic_body());
                    return sender.send(&mut self.frames).await;
                }
            }
        }
    }

    fn event(&mut self, kind: &str, mut fields: Value) {
        fields["type"] = kind.into();
        self.frames.event(kind, &fields);
    }

    fn delta(&mut self, block: Block, delta: Value) {
        self.begin(block);
        self.event("content_block_delta", json!({ "index": self.blocks, "delta": delta }));
    }

    fn begin(&mut self, block: Block) {
        if self.open == Some(block) {
            return;
        }
        self.close();
        let empty = match block {
            Block::Thinking => json!({ "type": "thinking", "thinking": "", "signature": "" }),
            Block::Text => json!({ "type": "text", "text": "", "citations": null }),
        };
        self.event("content_block_start", json!({ "index": self.blocks, "content_block": empty }));
        self.open = Some(block);
    }

    fn close(&mut self) {
        if let Some(block) = self.open.take() {
            if block == Block::Thinking {
                let delta = json!({ "type": "signature_delta", "signature": "" });
                self.event("content_block_delta", json!({ "index": self.blocks, "delta": delta }));
            }
            self.event("content_block_stop", json!({ "index": self.blocks }));
            self.blocks += 1;
        }
    }

    fn end(&mut self, done: &Completion) {
        // There always is a text block, empty if nothing was said.
        self.begin(Block::Text);
        self.close();
        let (stop_reason, stop_sequence) = stop(done);
        let usage = MessageUsage::from(&self.job.usage);
        let delta = json!({ "stop_reason": stop_reason, "stop_sequence": stop_sequence });
        self.event("message_delta", json!({ "delta": delta, "usage": usage }));
        self.event("message_stop", json!({}));
    }
}
