//! `--config FILE` of `ponder serve` and `ponder run`: several models, and several instances of one.
//!
//! ```toml
//! [[models]]
//! names = ["qwen3", "gpt-4o"]     # what requests call it
//! model = "qwen3-8b.gguf"         # flags of `ponder serve`, for all of its instances
//!
//! [[models.instances]]
//! name = "short"                  # requests of up to 1,024 tokens, prompt and expected answer
//! up-to = 1024
//! max-model-len = 4096
//! max-num-seqs = 48
//!
//! [[models.instances]]
//! name = "long"
//! max-num-seqs = 8
//! ```
//!
//! A key is a flag without its dashes. The command line and the environment say what the file does not.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use ponder::EngineOptions;
use serde::Deserialize;
use toml::{Table, Value};

use super::args::ModelArgs;

/// The flags that an instance may have.
#[derive(Args, Clone, Debug)]
pub struct InstanceArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Most sequences at once; others wait
    #[arg(long, env = "PONDER_MAX_NUM_SEQS", default_value_t = 16, value_name = "N")]
    pub max_num_seqs: usize,
}

impl InstanceArgs {
    /// The engine's options.
    pub fn options(&self) -> ponder_engine::Result<EngineOptions> {
        self.model.options(self.max_num_seqs)
    }
}

/// A model of the file.
pub struct ModelPlan {
    /// What requests call it.
    pub names: Vec<String>,
    /// Its instances, at least one.
    pub instances: Vec<InstancePlan>,
}

/// An instance of the file.
pub struct InstancePlan {
    /// Its own name.
    pub name: String,
    /// It is meant for requests of so many tokens at most.
    pub up_to: Option<usize>,
    /// How it is loaded.
    pub options: EngineOptions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    models: Vec<ModelTable>,
}

#[derive(Deserialize)]
struct ModelTable {
    names: Vec<String>,
    #[serde(default)]
    instances: Vec<InstanceTable>,
    #[serde(flatten)]
    flags: Table,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct InstanceTable {
    name: String,
    up_to: Option<usize>,
    #[serde(flatten)]
    flags: Table,
}

/// A command line that consists of an instance's flags.
#[derive(Parser)]
#[command(name = "instance", args_override_self = true)]
struct Line {
    #[command(flatten)]
    args: InstanceArgs,
}

/// Reads a file; `given` are the flags of the command line, which hold where the file is silent.
///
/// # Errors
/// If it cannot be read, is no TOML of this shape, or says what no flag can be; with the file and the place.
pub fn read(path: &Path, given: &[OsString]) -> Result<Vec<ModelPlan>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let file: File = toml::from_str(&text).map_err(|e| anyhow!("{}: {}", path.display(), one_line(&e.to_string())))?;
    if file.models.is_empty() {
        bail!("{}: models: there is none", path.display());
    }
    let plan = |(i, model): (usize, ModelTable)| {
        model_plan(model, given).with_context(|| format!("{}: models[{i}]", path.display()))
    };
    file.models.into_iter().enumerate().map(plan).collect()
}

/// Whether a flag of `command` was set, on its command line or in the environment.
pub fn is_set(command: &str, id: &str) -> bool {
    let matches = super::Cli::command().get_matches();
    let source = matches.subcommand_matches(command).and_then(|flags| flags.value_source(id));
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// The flags of an instance that stand on this program's own command line, after `command` and but for `without`.
pub fn given(command: &str, without: &[&str]) -> Vec<OsString> {
    let matches = super::Cli::command().get_matches();
    let Some(flags) = matches.subcommand_matches(command) else { return Vec::new() };
    let line = Line::command();
    let mut words = Vec::new();
    for arg in line.get_arguments().filter(|a| a.get_long().is_some_and(|long| long != "help")) {
        let (id, long) = (arg.get_id().as_str(), arg.get_long().unwrap_or_default());
        // A command need not have all flags of an instance.
        let has = flags.try_contains_id(id).is_ok() && !without.contains(&long);
        if !has || flags.value_source(id) != Some(ValueSource::CommandLine) {
            continue;
        }
        if !arg.get_action().takes_values() {
            words.push(format!("--{long}").into());
            continue;
        }
        for value in flags.get_raw(id).into_iter().flatten() {
            let mut word = OsString::from(format!("--{long}="));
            word.push(value);
            words.push(word);
        }
    }
    words
}

fn model_plan(model: ModelTable, given: &[OsString]) -> Result<ModelPlan> {
    if model.names.is_empty() || model.names.iter().any(String::is_empty) {
        bail!("names: needs at least one, none of them empty");
    }
    let shared = flags(&model.flags)?;
    let alone = || InstanceTable { name: String::new(), up_to: None, flags: Table::new() };
    let tables = if model.instances.is_empty() { vec![alone()] } else { model.instances };
    let mut instances: Vec<InstancePlan> = Vec::new();
    for (i, table) in tables.into_iter().enumerate() {
        let place = || format!("instances[{i}]");
        if instances.iter().any(|other| other.name == table.name) {
            bail!("{}: name: two have the name {:?}", place(), table.name);
        }
        let own = flags(&table.flags).with_context(place)?;
        let words = given.iter().cloned().chain(shared.iter().chain(&own).map(OsString::from));
        let options = parse(words).and_then(|args| Ok(args.options()?)).with_context(place)?;
        instances.push(InstancePlan { name: table.name, up_to: table.up_to, options });
    }
    Ok(ModelPlan { names: model.names, instances })
}

fn parse(words: impl Iterator<Item = OsString>) -> Result<InstanceArgs> {
    let words = std::iter::once("instance".into()).chain(words);
    let matches = Line::command().try_get_matches_from(words).map_err(|e| anyhow!(one_line(&e.to_string())))?;
    Ok(Line::from_arg_matches(&matches)?.args)
}

/// A table as words of a command line.
fn flags(table: &Table) -> Result<Vec<String>> {
    let known = Line::command();
    let mut words = Vec::new();
    for (key, value) in table {
        let is_flag =
            known.get_arguments().any(|a| a.get_long() == Some(key)) && !["help", "version"].contains(&&**key);
        if !is_flag {
            bail!("{key}: no flag of an instance");
        }
        let many = match value {
            Value::Array(values) => values.clone(),
            one => vec![one.clone()],
        };
        for value in many {
            match value {
                Value::Boolean(true) => words.push(format!("--{key}")),
                Value::Boolean(false) => {}
                Value::String(text) => words.push(format!("--{key}={text}")),
                Value::Integer(number) => words.push(format!("--{key}={number}")),
                Value::Float(number) => words.push(format!("--{key}={number}")),
                _ => bail!("{key}: neither a text nor a number nor true or false"),
            }
        }
    }
    Ok(words)
}

/// What a parser says in several lines, with a picture of the place, in one.
fn one_line(text: &str) -> String {
    let quoted = |line: &str| {
        let Some((number, source)) = line.split_once('|') else { return Some(line.to_string()) };
        // The marks under the place have no number.
        (!number.trim().is_empty()).then(|| format!("`{}`:", source.trim()))
    };
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("For more information"));
    lines.filter_map(quoted).collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_string()
}
