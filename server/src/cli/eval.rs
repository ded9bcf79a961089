//! `ponder eval`: how often a model is right on problems with known answers, and how long it thinks for that.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, Command, FromArgMatches};
use ponder::eval::report::side_by_side;
use ponder::eval::{Outcome, Problem, Report, read_problems, run};
use ponder::{Engine, Opened, Prompt};
use ponder_engine::Error;
use serde_json::json;

use super::args::{ModelArgs, OutputArgs, SamplingArgs};
use super::progress::Loading;

/// Flags of `ponder eval`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "A problem is a line of JSON: {\"question\": …, \"answer\": …}, and if known \"id\", \"kind\", \"depth\" and
\"matcher\": number (equal as numbers), exact (equal as text, without case and final full stop) or
choice (the answer's first word). The names that public sets use for these are read too. The given
answer is what stands in the last \\boxed{} or after the last `Answer:`, else the whole text.

A configuration is a name and flags that go after those of the command:

Examples:
  ponder eval --data examples/data/heldout.jsonl
  ponder eval --data gsm8k.jsonl --model qwen3.gguf --temperature 0.6 --json > result.json
  ponder eval --data examples/data/mixed.jsonl --config 'free:' \\
      --config 'auto: --reasoning-effort auto' --config 'cut: --thinking-token-budget 64'"
)]
pub struct EvalArgs {
    /// Problems, one JSON object a line
    #[arg(long, env = "PONDER_DATA", value_name = "FILE")]
    pub data: PathBuf,
    /// Only the first N problems
    #[arg(long, env = "PONDER_LIMIT", value_name = "N")]
    pub limit: Option<usize>,
    /// A system message before each question
    #[arg(long, env = "PONDER_SYSTEM", value_name = "TEXT")]
    pub system: Option<String>,
    /// Problems at once
    #[arg(long, env = "PONDER_BATCH", allow_negative_numbers = true, default_value_t = 32, value_name = "B")]
    pub batch: usize,
    /// A name, a colon, and more flags; may be given several times: the results stand side by side
    #[arg(long, value_name = "NAME: FLAGS")]
    pub config: Vec<String>,
    /// Write every question with its thinking, answer and cost to this file, one JSON object a line
    #[arg(long, env = "PONDER_TRANSCRIPTS", value_name = "FILE")]
    pub transcripts: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Measures and prints.
pub fn eval(args: EvalArgs) -> Result<()> {
    let mut problems = read_problems(&args.data)?;
    problems.truncate(args.limit.unwrap_or(usize::MAX));
    let configs = configurations(&args)?;
    let mut transcripts = args.transcripts.as_deref().map(create).transpose()?;
    let mut reports = Vec::new();
    let mut engine: Option<(ModelArgs, Engine)> = None;
    for (name, args) in &configs {
        // A model is loaded again only for flags that need it.
        let kept = engine.take().filter(|(model, _)| *model == args.model);
        let (model, loaded) = kept.map_or_else(|| Ok((args.model.clone(), load(args)?)), anyhow::Ok)?;
        let (report, outcomes) = measure(name, args, &loaded, &problems)?;
        if let Some(file) = &mut transcripts {
            write_transcripts(file, name, &problems, &outcomes).context("transcripts")?;
        }
        if !args.output.json {
            let title = if configs.len() > 1 { format!("{name}\n") } else { String::new() };
            super::print_text(&format!("{title}{}\n", report.table()));
        }
        reports.push(report);
        engine = Some((model, loaded));
    }
    if args.output.json {
        super::print_json(&match reports.as_slice() {
            [only] => json!(only),
            all => json!({ "configurations": all }),
        });
    } else if reports.len() > 1 {
        super::print_text(&side_by_side(&reports));
    }
    Ok(())
}

/// The command's own flags, or those of every configuration over them.
fn configurations(args: &EvalArgs) -> Result<Vec<(String, EvalArgs)>> {
    if args.config.is_empty() {
        return Ok(vec![("eval".into(), args.clone())]);
    }
    args.config.iter().map(|text| configuration(args, text)).collect()
}

fn configuration(args: &EvalArgs, text: &str) -> Result<(String, EvalArgs)> {
    let (name, flags) =
        text.split_once(':').ok_or_else(|| Error::invalid("config", format!("{text:?} has no colon")))?;
    let words = words(flags).map_err(|e| Error::invalid("config", format!("{text:?}: {e}")))?;
    let mut over = args.clone();
    let command = over_command();
    let matches = command.try_get_matches_from(words).map_err(|e| {
        let first = e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
        Error::invalid("config", format!("{name}: {first}"))
    })?;
    over.model.update_from_arg_matches(&matches)?;
    over.sampling.update_from_arg_matches(&matches)?;
    if let Some(system) = matches.get_one::<String>("system") {
        over.system = Some(system.clone());
    }
    Ok((name.trim().to_string(), over))
}

/// The flags that a configuration may have: those of model and sampling, without their defaults, so that only
/// what is said changes.
fn over_command() -> Command {
    let command = ModelArgs::augment_args_for_update(Command::new("config").no_binary_name(true));
    let command = SamplingArgs::augment_args_for_update(command);
    let command = command.arg(clap::Arg::new("system").long("system"));
    let named: Vec<_> = command.get_arguments().map(|a| a.get_id().clone()).collect();
    named.into_iter().fold(command, |c, id| c.mut_arg(id, |a| a.default_value(None::<&str>).env(None::<&str>)))
}

/// Words between spaces; quotes keep spaces.
fn words(text: &str) -> std::result::Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err("a quote is not closed".into()) } else { Ok(words) }
}

/// Loads the model with room for the whole batch, where that is not much.
fn load(args: &EvalArgs) -> Result<Engine> {
    let mut options = args.model.options(args.batch)?;
    options.trace.clone_from(&args.output.trace);
    let mut opened = Opened::open(options)?;
    let params = args.sampling.params(&opened.checkpoint.generation);
    params.validate(opened.checkpoint.config.vocab)?;
    // What can never be asked is refused before anything is loaded.
    opened.prompter.prepare(&Prompt::user("?"), &params)?;
    let (o, config) = (&mut opened.options, &opened.checkpoint.config);
    let len = o.max_model_len.unwrap_or(ponder::DEFAULT_MODEL_LEN).min(config.context);
    let whole = (len * args.batch) as u64 * config.kv_bytes(o.kv_cache_dtype).per_token();
    const SMALL: u64 = 1 << 30;
    o.kv_memory = o.kv_memory.or((whole <= SMALL).then_some(whole));
    let mut loading = Loading::new(&args.output);
    let engine = opened.load(|p| loading.show(p))?;
    loading.done();
    Ok(engine)
}

fn measure(name: &str, args: &EvalArgs, engine: &Engine, problems: &[Problem]) -> Result<(Report, Vec<Outcome>)> {
    if args.batch == 0 {
        return Err(Error::invalid("batch", "must be at least 1").into());
    }
    let params = args.sampling.params(engine.generation_defaults());
    let bar = Loading::new(&args.output).bar(problems.len() as u64, "problems");
    let begun = Instant::now();
    let outcomes = run(engine, problems, args.system.as_deref(), &params, args.batch, &|_| bar.inc(1))?;
    let took = begun.elapsed();
    bar.finish_and_clear();
    engine.write_trace()?;
    Ok((Report::new(name, problems, &outcomes, took), outcomes))
}

fn create(path: &Path) -> ponder_engine::Result<std::io::BufWriter<std::fs::File>> {
    std::fs::File::create(path).map(std::io::BufWriter::new).map_err(|e| Error::io(path, e))
}

fn write_transcripts(
    file: &mut impl Write,
    config: &str,
    problems: &[Problem],
    outcomes: &[Outcome],
) -> std::io::Result<()> {
    for outcome in outcomes {
        let (p, c) = (&problems[outcome.index], &outcome.completion);
        let line = json!({
            "config": config, "id": p.id, "kind": p.kind, "depth": p.depth, "question": p.question,
            "known": p.answer, "right": outcome.right, "reasoning": c.reasoning, "answer": c.text,
            "thinking_tokens": c.reasoning_tokens, "answer_tokens": outcome.answer_tokens(),
            "finish_reason": c.finish_reason(), "thinking": c.thinking, "depth_decision": c.decision,
        });
        writeln!(file, "{line}")?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_quotes() {
        assert_eq!(words(" --a 1  --b 'two words' \"\"").unwrap(), ["--a", "1", "--b", "two words", ""]);
        assert!(words("'open").is_err());
    }
}
