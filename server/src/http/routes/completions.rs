//! `/v1/completions`.

use std::sync::Arc;

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use ponder_engine::request::SamplingParams;
use serde_json::Value;

use super::{blocking, reply, shared, with_ignored};
use crate::http::body;
use crate::http::error::ApiError;
use crate::http::fleet;
use crate::http::guard::Caller;
use crate::http::job::{Job, Order};
use crate::http::sse::{self, Frames, Gone, Sender};
use crate::http::state::{Served, State};
use crate::http::wire::FINGERPRINT;
use crate::http::wire::completion::{CompletionRequest, MAX_PROMPTS, TextChoice, TextCompletion};
use crate::http::wire::usage::{Timings, Usage, stop_reason};
use crate::prompt::Rendered;
use crate::{Completion, Update};

/// Continues texts.
#[utoipa::path(
    post, path = "/v1/completions", tag = "inference", request_body = CompletionRequest,
    responses(
        (status = 200, description = "The answers, or server-sent events of the same shape", content(
            (TextCompletion = "application/json"), (serde_json::Value = "text/event-stream"))),
        crate::http::openapi::Errors,
    )
)]
pub async fn completions(request: HttpRequest, state: Data<State>, payload: Payload) -> Result<HttpResponse, ApiError> {
    let caller = Caller::of(&request);
    let asked: CompletionRequest = body::read(&request, payload, &state.options.limits).await?;
    let (stream, with_usage) = asked.streaming()?;
    let ignored = asked.ignored();
    let (job, echo) = start(&state, &asked, caller).await?;
    if !stream {
        return whole(job, &echo, &ignored).await;
    }
    let patience = state.options.limits.slow_client;
    let response = sse::respond(patience, |sender| async move {
        let mut writer = Writer { job, echo, with_usage, frames: Frames::default() };
        if writer.run(sender).await == Err(Gone::Slow) {
            tracing::warn!(target: "ponder::request", id = writer.job.id, "the client reads nothing: cut off");
        }
    });
    Ok(with_ignored(response, &ignored))
}

/// Starts the request; with it, for each prompt, the text that comes before its answers.
async fn start(state: &Data<State>, asked: &CompletionRequest, caller: Caller) -> Result<(Job, Vec<String>), ApiError> {
    let (usual, name) = state.model(asked.model.as_deref())?;
    let (sampling, vocab) = (asked.sampling()?, usual.engine.config().vocab);
    let params: SamplingParams = sampling.params(usual.engine.generation_defaults(), vocab)?;
    let group = state.group(asked.model.as_deref());
    let members = group.map_or_else(|| vec![usual.clone()], |group| group.members.clone());
    let prompts = asked.prompt.prompts();
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        let why = format!("{} prompts; between 1 and {MAX_PROMPTS} are taken", prompts.len());
        return Err(ApiError::invalid("prompt", why));
    }
    if state.options.log_prompts {
        tracing::info!(target: "ponder::prompt", request_id = caller.request_id, prompt = ?asked.prompt, "prompt");
    }
    let (readers, with_echo) = (members.clone(), asked.echo.unwrap_or(false));
    let read = move |reader: &Arc<Served>| {
        let (prompter, vocab) = (reader.engine.prompter(), reader.engine.config().vocab);
        let one = |p| -> Result<_, ApiError> {
            let rendered = prompter.render(p)?;
            if let Some(token) = rendered.tokens.iter().find(|t| **t as usize >= vocab) {
                return Err(ApiError::invalid(
                    "prompt",
                    format!("token {token} is not below the vocabulary's {vocab}"),
                ));
            }
            let echo = if with_echo { prompter.tokenizer().decode(&rendered.tokens) } else { String::new() };
            Ok((rendered, echo))
        };
        prompts.iter().map(one).collect::<Result<Vec<_>, ApiError>>()
    };
    let mut rendered = blocking(move || readers.iter().map(read).collect::<Result<Vec<_>, _>>()).await?;
    // They go together: the longest decides.
    let read: Vec<&Rendered> =
        rendered.iter().filter_map(|r| r.iter().map(|(r, _)| r).max_by_key(|r| r.tokens.len())).collect();
    let (model, seat, index) = fleet::place(group, &members, &read, &params).await?;
    let params = sampling.params(model.engine.generation_defaults(), model.engine.config().vocab)?;
    let (prompts, echo): (Vec<_>, Vec<_>) = rendered.swap_remove(index).into_iter().unzip();
    let echo = echo.into_iter().flat_map(|e| std::iter::repeat_n(e, usize::from(params.n))).collect();
    let Caller { request_id, trace, key, arrived } = caller;
    let order = Order { model, name, prompts, params, key, seat, arrived, prefix: "cmpl", request_id, trace };
    Ok((Job::start(shared(state), order).await?, echo))
}

async fn whole(mut job: Job, echo: &[String], ignored: &[&str]) -> Result<HttpResponse, ApiError> {
    let done = job.complete().await?;
    let timings = done.last().map(Timings::of);
    let eos = job.model().engine.generation_defaults().eos.clone();
    let choices = done.iter().enumerate().map(|(index, done)| TextChoice {
        index,
        text: format!("{}{}", echo[index], done.text),
        logprobs: None,
        finish_reason: Some(done.finish_reason()),
        stop_reason: Some(stop_reason(done, &eos)),
    });
    Ok(reply(&frame(&job, choices.collect(), Some(Some(job.usage.clone())), timings), ignored))
}

fn frame(
    job: &Job,
    choices: Vec<TextChoice>,
    usage: Option<Option<Usage>>,
    timings: Option<Timings>,
) -> TextCompletion<'_> {
    TextCompletion {
        id: &job.id,
        object: "text_completion",
        created: job.created,
        model: &job.name,
        choices,
        system_fingerprint: FINGERPRINT,
        usage,
        timings,
    }
}

/// Writes a stream.
struct Writer {
    job: Job,
    echo: Vec<String>,
    with_usage: bool,
    frames: Frames,
}

impl Writer {
    async fn run(&mut self, mut sender: Sender) -> Result<(), Gone> {
        for (index, echo) in std::mem::take(&mut self.echo).into_iter().enumerate() {
            if !echo.is_empty() {
                self.chunk(index, echo, None);
            }
        }
        loop {
            sender.send(&mut self.frames).await?;
            match sender.during(self.job.next()).await? {
                // Plain text has no thinking that is told apart.
                Ok(Some((index, Update::Thinking(text) | Update::Answer(text) | Update::ToolCall(text)))) => {
                    self.chunk(index, text, None)
                }
                Ok(Some((index, Update::Done(done)))) => self.chunk(index, String::new(), Some(&done)),
                Ok(None) => break,
                Err(error) => {
                    self.frames.data(&error.body());
                    return sender.send(&mut self.frames).await;
                }
            }
        }
        if self.with_usage {
            let usage = Some(Some(self.job.usage.clone()));
            self.frames.data(&frame(&self.job, Vec::new(), usage, None));
        }
        self.frames.raw("[DONE]");
        sender.send(&mut self.frames).await
    }

    fn chunk(&mut self, index: usize, text: String, done: Option<&Completion>) {
        let eos = &self.job.model().engine.generation_defaults().eos;
        let choice = TextChoice {
            index,
            text,
            logprobs: None,
            finish_reason: done.map(Completion::finish_reason),
            stop_reason: done.map(|d| stop_reason(d, eos)).filter(|r| *r != Value::Null),
        };
        let usage = self.with_usage.then_some(None);
        self.frames.data(&frame(&self.job, vec![choice], usage, done.map(Timings::of)));
    }
}
