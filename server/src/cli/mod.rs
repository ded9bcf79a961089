//! The command line: one file per command, and what they share.

pub mod acceptance;
pub mod args;
pub mod bench;
pub mod chat;
pub mod config;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod devices;
pub mod eval;
pub mod fit;
pub mod inspect;
pub mod perplexity;
pub mod pick;
pub mod progress;
pub mod run;
pub mod serve;
pub mod simulate;
pub mod speculation;
pub mod top;
pub mod workload;

use clap::{Parser, Subcommand};

/// Ponder runs reasoning models: models that think before they answer.
#[derive(Parser)]
#[command(
    name = "ponder",
    version,
    max_term_width = 100,
    after_help = "Examples:
  ponder run \"What is 15% of 80?\"             ask the bundled model
  ponder run --model qwen3.gguf \"Why is the sky blue?\"
  ponder chat --model ./QwQ-32B               talk, over several turns
  ponder serve --model qwen3.gguf             an OpenAI-compatible server on this machine
  ponder top                                  what that server is doing
  ponder inspect --model qwen3.gguf           what is in a file, and how much memory it takes
  ponder devices                              what it could run on here

Every flag is also an environment variable: --kv-cache-dtype is PONDER_KV_CACHE_DTYPE.
`ponder COMMAND --help` says more about a command."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Answer one prompt
    Run(run::RunArgs),
    /// Talk with a model, over several turns
    Chat(chat::ChatArgs),
    /// Serve models over HTTP, as OpenAI does
    Serve(Box<serve::ServeArgs>),
    /// Watch a running server
    Top(top::TopArgs),
    /// Measure speed
    Bench(bench::BenchArgs),
    /// Ask problems with known answers: accuracy, thinking, waiting
    Eval(eval::EvalArgs),
    /// Learn how deep questions are, for --reasoning-effort auto
    Fit(fit::FitArgs),
    /// List the devices that could run a model
    Devices(devices::DevicesArgs),
    /// Show what a model file says, and the memory it would take
    Inspect(inspect::InspectArgs),
    /// Say which draft model to use at which batch size on an H200, from published costs
    Simulate(simulate::SimulateArgs),
    /// Measure how well a model predicts a text
    Perplexity(perplexity::PerplexityArgs),
    /// Compile the CUDA kernels ahead of time
    #[cfg(feature = "cuda")]
    Cuda(cuda::CudaArgs),
}

impl Command {
    /// Does it.
    pub fn execute(self) -> anyhow::Result<()> {
        match self {
            Command::Run(args) => run::run(args),
            Command::Chat(args) => chat::chat(args),
            Command::Serve(args) => serve::serve(*args),
            Command::Top(args) => top::top(args),
            Command::Bench(args) => bench::bench(args),
            Command::Eval(args) => eval::eval(args),
            Command::Fit(args) => fit::fit(args),
            Command::Devices(args) => devices::devices(&args),
            Command::Simulate(args) => simulate::simulate(&args),
            Command::Inspect(args) => inspect::inspect(&args),
            Command::Perplexity(args) => perplexity::perplexity(args),
            #[cfg(feature = "cuda")]
            Command::Cuda(args) => cuda::cuda(args),
        }
    }
}

/// Prints one JSON object and a newline on stdout.
pub fn print_json(value: &serde_json::Value) {
    print_text(&format!("{value}\n"));
}

/// Prints on stdout and flushes; a reader that went away (`ponder inspect | head`) is no error of ours.
pub fn print_text(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
