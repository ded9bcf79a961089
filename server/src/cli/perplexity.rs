//! `ponder perplexity`: how well a model predicts a text, comparable with llama.cpp's figures.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use ponder::score::{Surprise, score_window};
use ponder::{Opened, WithBackend};
use ponder_engine::Error;
use ponder_engine::backend::{Backend, DeviceInfo};
use ponder_engine::checkpoint::GenerationDefaults;
use serde_json::json;

use super::args::{ModelArgs, OutputArgs};
use super::progress::Loading;

/// Flags of `ponder perplexity`.
#[derive(Args)]
#[command(after_help = "The text is tokenised as a whole and cut into windows of --context tokens that do not
overlap. Of each, the second half is scored, every token given all that stand before it in its
window. Where the model begins texts with a BOS token, each window does. These are the rules of
llama.cpp's `llama-perplexity -c N`, so the figures can be compared.

Examples:
  ponder perplexity --model smollm2.gguf --file wiki.txt
  ponder perplexity --model smollm2.gguf --file wiki.txt --kv-cache-dtype f32 --json")]
pub struct PerplexityArgs {
    /// The text, in UTF-8
    #[arg(long, short, env = "PONDER_FILE", value_name = "TEXT")]
    pub file: PathBuf,
    /// Tokens of a window
    #[arg(long, short, env = "PONDER_CONTEXT", allow_negative_numbers = true, default_value_t = 512, value_name = "N")]
    pub context: usize,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Measures and prints.
pub fn perplexity(args: PerplexityArgs) -> Result<()> {
    let mut options = args.model.options(1)?;
    options.max_model_len = Some(args.context);
    if args.context < 4 {
        return Err(Error::invalid("context", format!("{} tokens; a window has at least 4", args.context)).into());
    }
    let bytes = std::fs::read(&args.file).map_err(|e| Error::io(&args.file, e))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::checkpoint(&args.file, "text", "is not UTF-8"))?;
    let opened = Opened::open(options)?;
    // As llama.cpp reads files: one newline at the end is not part of the text.
    let tokens = opened.prompter.text_tokens(text.strip_suffix('\n').unwrap_or(&text))?;
    if tokens.len() < args.context {
        let why = format!("{} tokens, less than one window of {}; lower --context", tokens.len(), args.context);
        return Err(Error::checkpoint(&args.file, "text", why).into());
    }
    let windows = windows(&tokens, args.context, &opened.checkpoint.generation);
    let measured = ponder::backends::open(&opened.options.clone(), Measure { opened, windows, output: &args.output })?;
    report(&measured, args.output.json);
    Ok(())
}

/// Disjoint windows; the first token of each is BOS where the model begins texts with one.
fn windows(tokens: &[u32], context: usize, defaults: &GenerationDefaults) -> Vec<Vec<u32>> {
    let mut windows: Vec<Vec<u32>> = tokens.chunks_exact(context).map(<[u32]>::to_vec).collect();
    if let Some(bos) = defaults.bos.filter(|_| defaults.add_bos) {
        windows.iter_mut().for_each(|w| w[0] = bos);
    }
    windows
}

struct Measured {
    surprise: Surprise,
    windows: usize,
    device: DeviceInfo,
    seconds: f64,
}

struct Measure<'a> {
    opened: Opened,
    windows: Vec<Vec<u32>>,
    output: &'a OutputArgs,
}

impl WithBackend for Measure<'_> {
    type Out = Measured;
    fn with<B: Backend>(
        self,
        info: DeviceInfo,
        make: impl Fn() -> ponder_engine::Result<B> + Send + Sync + 'static,
    ) -> ponder_engine::Result<Measured> {
        let mut loading = Loading::new(self.output);
        let mut runner = self.opened.runner(&info, make, |p| loading.show(p))?;
        loading.done();
        let bar = loading.bar(self.windows.len() as u64, "windows");
        let (started, mut surprise) = (std::time::Instant::now(), Surprise::default());
        for window in &self.windows {
            let one = score_window(&mut runner, window)?;
            surprise.nll += one.nll;
            surprise.tokens += one.tokens;
            bar.inc(1);
            bar.set_message(format!("perplexity {:.4}", surprise.perplexity()));
        }
        bar.finish_and_clear();
        let seconds = started.elapsed().as_secs_f64();
        Ok(Measured { surprise, windows: self.windows.len(), device: runner.device().clone(), seconds })
    }
}

fn report(m: &Measured, as_json: bool) {
    let (perplexity, tokens) = (m.surprise.perplexity(), m.surprise.tokens);
    if as_json {
        super::print_json(&json!({
            "perplexity": perplexity,
            "tokens": tokens,
            "windows": m.windows,
            "seconds": m.seconds,
            "device": { "backend": m.device.backend, "name": m.device.name },
        }));
    } else {
        super::print_text(&format!("perplexity {perplexity:.4} over {tokens} tokens in {} windows\n", m.windows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_begin_with_bos_where_texts_do() {
        let tokens: Vec<u32> = (10..21).collect();
        let mut defaults = GenerationDefaults { bos: Some(1), add_bos: false, ..Default::default() };
        assert_eq!(windows(&tokens, 5, &defaults), [[10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]);
        defaults.add_bos = true;
        assert_eq!(windows(&tokens, 5, &defaults)[1], [1, 16, 17, 18, 19]);
    }
}
