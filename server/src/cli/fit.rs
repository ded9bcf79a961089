//! `ponder fit`: teaches the depth classifier from labelled questions.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use ponder_engine::Error;
use ponder_engine::reason::fit::{FitOptions, fit as fit_samples, read_samples};

/// Flags of `ponder fit`.
#[derive(Args)]
#[command(after_help = "A sample is a line of JSON with \"question\" and \"depth\" (trivial, easy, middle, hard), or
\"thinking_tokens\" (how many the model needs for it), or best both; what `ponder eval --transcripts`
writes will do. Every fifth sample is kept out of learning and tells how good the weights are. The
weights are a JSON file that one can read; put it into the model's folder as depth.json, or name it
with --depth-classifier.

Examples:
  ponder fit --data labelled.jsonl --out depth.json
  ponder eval --data questions.jsonl --transcripts labelled.jsonl")]
pub struct FitArgs {
    /// Labelled questions, one JSON object a line
    #[arg(long, env = "PONDER_DATA", value_name = "FILE")]
    pub data: PathBuf,
    /// Where the weights go
    #[arg(long, env = "PONDER_OUT", value_name = "FILE")]
    pub out: PathBuf,
    /// Longest thinking of trivial, easy and middle questions, for samples without a depth
    #[arg(long, env = "PONDER_BOUNDS", value_name = "T,E,M", value_delimiter = ',', num_args = 3)]
    pub bounds: Vec<u32>,
    /// Most words that get weights
    #[arg(long, env = "PONDER_WORDS", default_value_t = FitOptions::default().words, value_name = "N")]
    pub words: usize,
    /// Print the report as one JSON object
    #[arg(long, env = "PONDER_JSON", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub json: bool,
}

/// Learns, writes, and says how good it is.
pub fn fit(args: FitArgs) -> Result<()> {
    let text = std::fs::read_to_string(&args.data).map_err(|e| Error::io(&args.data, e))?;
    let samples = read_samples(&text).map_err(|e| Error::checkpoint(&args.data, "samples", e.to_string()))?;
    let bounds = args.bounds.try_into().unwrap_or(FitOptions::default().bounds);
    let (classifier, report) =
        fit_samples(&samples, &FitOptions { words: args.words, bounds, ..FitOptions::default() })
            .map_err(|e| Error::checkpoint(&args.data, "samples", e.to_string()))?;
    std::fs::write(&args.out, classifier.to_json()).map_err(|e| Error::io(&args.out, e))?;
    if args.json {
        super::print_json(&serde_json::to_value(&report)?);
        return Ok(());
    }
    let percent = |share: f32| 100.0 * share;
    let mut out = format!(
        "learnt from {}, tried on {}: depth right {:.1}%, right or next to it {:.1}%\n",
        report.learnt,
        report.held_out,
        percent(report.accuracy),
        percent(report.within_one),
    );
    if report.length_factor > 0.0 {
        out += &format!("the length is off by a factor of {:.2} on average\n", report.length_factor);
    }
    out += "true \\ said  trivial  easy  middle  hard\n";
    for (name, row) in ["trivial", "easy", "middle", "hard"].iter().zip(report.confusion) {
        out += &format!("{name:<11}  {:>7}  {:>4}  {:>6}  {:>4}\n", row[0], row[1], row[2], row[3]);
    }
    super::print_text(&out);
    Ok(())
}
