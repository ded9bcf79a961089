//! `ponder run`: one prompt, one answer.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::FalseyValueParser;
use ponder::score::{likeliest, log_probability, score};
use ponder::{Completion, Engine, EngineOptions, Opened, Prompt, Update, WithBackend, backends};
use ponder_engine::Error;
use ponder_engine::backend::{Backend, DeviceInfo};
use ponder_engine::request::{Finish, SamplingParams};
use ponder_engine::text::Message;
use serde_json::{Value, json};

use super::args::{ModelArgs, OutputArgs, SamplingArgs};
use super::config;
use super::pick::pick;
use super::progress::Loading;
use super::speculation::speculation_json;

/// Flags of `ponder run`.
#[derive(Args)]
#[command(after_help = "Thinking is shown dimmed on a terminal, and not at all where stdout is a file or a pipe;
--json has it as `reasoning`.

Examples:
  ponder run \"What is 15% of 80?\"
  ponder run --model qwen3.gguf --temperature 0.6 --top-p 0.95 \"Prove that 2 is irrational.\"
  git diff | ponder run --system \"Review this patch.\" -
  ponder run --raw --max-tokens 32 \"Once upon a time\"        continue a text, no chat template
  ponder run --config models.toml --model gpt-4o \"Hello\"
  ponder run --json \"Hello\" | jq .timings")]
pub struct RunArgs {
    /// What to ask; - reads it from stdin
    pub prompt: String,
    /// Continue the text as it stands: no chat template
    #[arg(long, env = "PONDER_RAW", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub raw: bool,
    /// A system message before the prompt
    #[arg(long, env = "PONDER_SYSTEM", value_name = "TEXT", conflicts_with = "raw")]
    pub system: Option<String>,
    /// With --json: the N likeliest tokens of every step and the logarithms of their probabilities
    #[arg(long, env = "PONDER_TOP_LOGPROBS", allow_negative_numbers = true, value_name = "N", requires = "json")]
    pub top_logprobs: Option<usize>,
    /// Models and instances from this file, as for `ponder serve`: the one that suits the prompt's length answers;
    /// --model is then a name in it
    #[arg(long, env = "PONDER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Answers.
pub fn run(args: RunArgs) -> Result<()> {
    let text = prompt_text(&args.prompt)?;
    let prompt = if args.raw { Prompt::Raw(text) } else { chat_prompt(args.system.as_deref(), text) };
    let (name, mut opened) = match &args.config {
        None => (args.model.model.clone(), Opened::open(args.model.options(1)?)?),
        Some(file) => {
            let named = config::is_set("run", "model").then_some(args.model.model.as_str());
            let params = |opened: &Opened| args.sampling.params(&opened.checkpoint.generation);
            let picked = pick(file, named, &prompt, params)?;
            (picked.name, picked.opened)
        }
    };
    opened.options.trace.clone_from(&args.output.trace);
    let options = EngineOptions { trace: None, ..opened.options.clone() };
    let params = args.sampling.params(&opened.checkpoint.generation);
    params.validate(opened.checkpoint.config.vocab)?;
    // A prompt that can never run is refused before anything is loaded.
    let prompt_ids = opened.prompter.prepare(&prompt, &params)?.tokens;
    opened.check_prompt(&prompt_ids)?;
    let mut loading = Loading::new(&args.output);
    let engine = opened.load(|p| loading.show(p))?;
    loading.done();
    let completion = answer(&engine, prompt, params, !args.output.json)?;
    engine.write_trace()?;
    if args.output.json {
        let mut json = as_json(&engine, &prompt_ids, &completion, &name);
        drop(engine);
        if let Some(n) = args.top_logprobs {
            json["logprobs"] = logprobs(options, &prompt_ids, &completion.token_ids, n)?;
        }
        super::print_json(&json);
    } else if completion.finish == Finish::Length && !args.output.quiet {
        let while_thinking = if completion.text.is_empty() { ", while it still thought" } else { "" };
        eprintln!("[cut off after {} tokens{while_thinking}]", completion.completion_tokens);
    }
    Ok(())
}

/// What the model thought of every token that it chose: the finished text is scored once more. The logits are
/// the very ones that sampling saw, because they do not depend on how a text is cut into steps.
fn logprobs(options: EngineOptions, prompt: &[u32], answer: &[u32], n: usize) -> Result<Value> {
    let opened = Opened::open(options)?;
    let tokens = [prompt, answer].concat();
    let steps = backends::open(&opened.options.clone(), Logprobs { opened, tokens, from: prompt.len() - 1, n })?;
    Ok(Value::Array(steps))
}

struct Logprobs {
    opened: Opened,
    tokens: Vec<u32>,
    from: usize,
    n: usize,
}

impl WithBackend for Logprobs {
    type Out = Vec<Value>;
    fn with<B: Backend>(
        self,
        info: DeviceInfo,
        make: impl Fn() -> ponder_engine::Result<B> + Send + Sync + 'static,
    ) -> ponder_engine::Result<Vec<Value>> {
        let mut runner = self.opened.runner(&info, make, |_| {})?;
        let mut steps = Vec::new();
        score(&mut runner, &self.tokens[..self.tokens.len() - 1], self.from, |position, logits| {
            let id = self.tokens[position + 1];
            let top =
                likeliest(logits, self.n).into_iter().map(|(id, logprob)| json!({ "id": id, "logprob": logprob }));
            steps.push(json!({ "id": id, "logprob": log_probability(logits, id), "top": top.collect::<Vec<_>>() }));
        })?;
        Ok(steps)
    }
}

fn prompt_text(argument: &str) -> Result<String> {
    if argument != "-" {
        return Ok(argument.to_string());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("prompt from stdin")?;
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_string())
}

fn chat_prompt(system: Option<&str>, text: String) -> Prompt {
    let system = system.map(|s| Message::new("system", s));
    Prompt::chat(system.into_iter().chain([Message::new("user", text)]).collect())
}

/// Runs one request, with its text on stdout if `show`.
fn answer(engine: &Engine, prompt: Prompt, params: SamplingParams, show: bool) -> Result<Completion> {
    let mut screen = Screen::new(show);
    for update in engine.generate(prompt, params)? {
        match update {
            Update::Thinking(text) => screen.thinking(&text),
            Update::Answer(text) | Update::ToolCall(text) => screen.answer(&text),
            Update::Done(completion) => {
                screen.end();
                return match &completion.finish {
                    Finish::Failed { reason } => Err(Error::invalid("request", reason).into()),
                    _ => Ok(*completion),
                };
            }
        }
    }
    Err(Error::invalid("engine", "stopped before the answer ended").into())
}

/// Streams text to stdout. Thinking is for eyes only: dimmed on a terminal, left out of files and pipes.
pub struct Screen {
    show: bool,
    terminal: bool,
    dim: bool,
    any: bool,
}

impl Screen {
    /// Shows nothing unless `show`.
    pub fn new(show: bool) -> Self {
        Self { show, terminal: std::io::stdout().is_terminal(), dim: false, any: false }
    }
    /// More of the thinking.
    pub fn thinking(&mut self, text: &str) {
        if self.show && self.terminal {
            let dim = if self.dim { "" } else { "\x1b[2m" };
            super::print_text(&format!("{dim}{text}"));
            self.dim = true;
        }
    }
    /// More of the answer.
    pub fn answer(&mut self, text: &str) {
        if self.show {
            self.bright("\n\n");
            super::print_text(text);
            self.any = true;
        }
    }
    /// The answer is over.
    pub fn end(&mut self) {
        if self.show {
            self.bright("");
            super::print_text("\n");
        }
    }
    fn bright(&mut self, between: &str) {
        if std::mem::take(&mut self.dim) {
            super::print_text(&format!("\x1b[0m{between}"));
        }
    }
}

fn as_json(engine: &Engine, prompt_ids: &[u32], c: &Completion, model: &str) -> Value {
    let mut json = completion_json(c);
    json["prompt_token_ids"] = json!(prompt_ids);
    json["model"] = json!(model);
    json["device"] = json!({ "backend": engine.device().backend, "name": engine.device().name });
    json
}

/// A finished answer as an object.
pub fn completion_json(c: &Completion) -> Value {
    json!({
        "text": c.text,
        "reasoning": c.reasoning,
        "prompt_tokens": c.prompt_tokens,
        "cached_tokens": c.cached_tokens,
        "recomputed_tokens": c.recomputed_tokens,
        "completion_tokens": c.completion_tokens,
        "reasoning_tokens": c.reasoning_tokens,
        "token_ids": c.token_ids,
        "finish_reason": c.finish_reason(),
        "thinking": c.thinking,
        "depth_decision": c.decision,
        "speculation": speculation_json(&c.speculation),
        "timings": {
            "ttft_ms": c.timings.ttft_ms,
            "time_to_first_answer_token_ms": c.timings.first_answer_ms,
            "total_ms": c.timings.total_ms,
            "prefill_tokens_per_second": c.timings.prefill_tokens_per_second,
            "decode_tokens_per_second": c.timings.decode_tokens_per_second,
        },
    })
}
