//! `/v1/responses`: reasoning and text as items. Nothing is kept: there is no `previous_response_id`.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Map, Value, json};

use super::{reply, shared, with_ignored};
use crate::http::body;
use crate::http::error::ApiError;
use crate::http::guard::Caller;
use crate::http::job::Job;
use crate::http::prompt::{ChatPrompt, start};
use crate::http::sse::{self, Frames, Gone, Sender};
use crate::http::state::State;
use crate::http::wire::fresh_id;
use crate::http::wire::responses::{
    ResponseObject, ResponseSchema, ResponsesRequest, message_item, output_text, reasoning_item, status,
};
use crate::http::wire::sampling::Sampling;
use crate::{Completion, Update};

/// Answers an input.
#[utoipa::path(
    post, path = "/v1/responses", tag = "inference", request_body = ResponsesRequest,
    responses(
        (status = 200, description = "The response, or its events", content(
            (ResponseSchema = "application/json"), (serde_json::Value = "text/event-stream"))),
        crate::http::openapi::Errors,
    )
)]
pub async fn responses(request: HttpRequest, state: Data<State>, payload: Payload) -> Result<HttpResponse, ApiError> {
    let caller = Caller::of(&request);
    let asked: ResponsesRequest = body::read(&request, payload, &state.options.limits).await?;
    asked.check()?;
    let ignored = asked.ignored();
    let effort = asked.reasoning.as_ref().and_then(|r| r.effort.clone());
    let prompt = ChatPrompt { messages: asked.messages()?, effort: effort.clone(), ..ChatPrompt::default() };
    let sampling = Sampling {
        temperature: asked.temperature,
        top_p: asked.top_p,
        max_tokens: asked.max_output_tokens,
        ..Sampling::default()
    };
    let mut job = start(shared(&state), asked.model.as_deref(), prompt, &sampling, caller, "resp").await?;
    let echo = [
        ("instructions", json!(asked.instructions)),
        ("max_output_tokens", json!(asked.max_output_tokens)),
        ("metadata", asked.metadata.clone().unwrap_or_else(|| json!({}))),
        ("reasoning", json!({ "effort": effort, "summary": null })),
        ("temperature", json!(asked.temperature.unwrap_or(1.0))),
        ("top_p", json!(asked.top_p.unwrap_or(1.0))),
    ];
    let echo: Map<String, Value> = echo.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    let object = ResponseObject { id: job.id.clone(), created_at: job.created, model: job.name.clone(), echo };
    if !asked.stream.unwrap_or(false) {
        let done = job.complete().await?.remove(0);
        let whole = object.json(status(&done), items(&done, &fresh_id("rs"), &fresh_id("msg")), Some(&job.usage), None);
        return Ok(reply(&whole, &ignored));
    }
    let patience = state.options.limits.slow_client;
    let response = sse::respond(patience, |sender| async move {
        let mut writer = Writer::new(job, object);
        if writer.run(sender).await == Err(Gone::Slow) {
            tracing::warn!(target: "ponder::request", id = writer.job.id, "the client reads nothing: cut off");
        }
    });
    Ok(with_ignored(response, &ignored))
}

/// The items of a finished answer; no reasoning item where nothing was thought.
fn items(done: &Completion, reasoning: &str, message: &str) -> Vec<Value> {
    let thought = (!done.reasoning.is_empty()).then(|| reasoning_item(reasoning, Some(&done.reasoning), "completed"));
    thought.into_iter().chain([message_item(message, Some(&done.text), status(done))]).collect()
}

/// The two items that a response can have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Item {
    Reasoning,
    Message,
}

/// Writes the events.
struct Writer {
    job: Job,
    object: ResponseObject,
    frames: Frames,
    sequence: usize,
    /// The item that is being written, with its index.
    open: Option<(Item, usize)>,
    ids: [String; 2],
    text: String,
    output: Vec<Value>,
}

impl Writer {
    fn new(job: Job, object: ResponseObject) -> Self {
        let (frames, ids) = (Frames::default(), [fresh_id("rs"), fresh_id("msg")]);
        Self { job, object, frames, sequence: 0, open: None, ids, text: String::new(), output: Vec::new() }
    }

    async fn run(&mut self, mut sender: Sender) -> Result<(), Gone> {
        for kind in ["response.created", "response.in_progress"] {
            let response = self.object.json("in_progress", Vec::new(), None, None);
            self.event(kind, json!({ "response": response }));
        }
        loop {
            sender.send(&mut self.frames).await?;
            match sender.during(self.job.next()).await? {
                Ok(Some((_, Update::Thinking(text)))) => self.delta(Item::Reasoning, &text),
                Ok(Some((_, Update::Answer(text)))) => self.delta(Item::Message, &text),
                Ok(Some((_, Update::Done(done)))) => self.end(&done),
                Ok(None) => return sender.send(&mut self.frames).await,
                Err(error) => {
                    let told = json!({ "code": error.code.unwrap_or(error.kind), "message": error.message });
                    let output = std::mem::take(&mut self.output);
                    let response = self.object.json("failed", output, None, Some(told));
                    self.event("response.failed", json!({ "response": response }));
                    return sender.send(&mut self.frames).await;
                }
            }
        }
    }

    fn event(&mut self, kind: &str, mut fields: Value) {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        self.frames.event(kind, &fields);
    }

    fn delta(&mut self, item: Item, text: &str) {
        self.begin(item);
        self.text += text;
        let kind = match item {
            Item::Reasoning => "response.reasoning_text.delta",
            Item::Message => "response.output_text.delta",
        };
        let mut fields = self.place();
        fields["delta"] = text.into();
        if item == Item::Message {
            fields["logprobs"] = json!([]);
        }
        self.event(kind, fields);
    }

    /// Where the open item stands.
    fn place(&self) -> Value {
        let (item, index) = self.open.expect("an item is open");
        json!({ "item_id": self.ids[item as usize], "output_index": index, "content_index": 0 })
    }

    fn begin(&mut self, item: Item) {
        if self.open.is_some_and(|(open, _)| open == item) {
            return;
        }
        self.close("completed");
        let index = self.output.len();
        self.open = Some((item, index));
        let id = self.ids[item as usize].clone();
        let (value, part) = match item {
            Item::Reasoning => {
                (reasoning_item(&id, None, "in_progress"), json!({ "type": "reasoning_text", "text": "" }))
            }
            Item::Message => (message_item(&id, None, "in_progress"), output_text("")),
        };
        self.event("response.output_item.added", json!({ "output_index": index, "item": value }));
        let mut fields = self.place();
        fields["part"] = part;
        self.event("response.content_part.added", fields);
    }

    fn close(&mut self, status: &str) {
        let Some((item, index)) = self.open else { return };
        let text = std::mem::take(&mut self.text);
        let id = self.ids[item as usize].clone();
        let (kind, part, value) = match item {
            Item::Reasoning => (
                "response.reasoning_text.done",
                json!({ "type": "reasoning_text", "text": text }),
                reasoning_item(&id, Some(&text), status),
            ),
            Item::Message => ("response.output_text.done", output_text(&text), message_item(&id, Some(&text), status)),
        };
        let mut fields = self.place();
        fields["text"] = text.into();
        if item == Item::Message {
            fields["logprobs"] = json!([]);
        }
        self.event(kind, fields);
        let mut fields = self.place();
        fields["part"] = part;
        self.event("response.content_part.done", fields);
        self.event("response.output_item.done", json!({ "output_index": index, "item": value.clone() }));
        self.output.push(value);
        self.open = None;
    }

    fn end(&mut self, done: &Completion) {
        // There always is a message, empty if nothing was said.
        self.begin(Item::Message);
        self.close(status(done));
        let response = self.object.json(status(done), std::mem::take(&mut self.output), Some(&self.job.usage), None);
        self.event(&format!("response.{}", status(done)), json!({ "response": response }));
    }
}
