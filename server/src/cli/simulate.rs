//! `ponder simulate`: what guessing would bring to a 70B model on an H200.

use anyhow::Result;
use clap::Args;
use clap::builder::FalseyValueParser;
use ponder_engine::Error;
use ponder_engine::spec::simulate::{H200, LLAMA_1B, LLAMA_3B, LLAMA_8B, LLAMA_70B, SimDraft, advise};
use serde_json::{Value, json};

/// Flags of `ponder simulate`.
#[derive(Args)]
#[command(
    after_help = "Llama 3.3 70B as target and three smaller ones as drafts, all in FP8 on one H200. Times come from a
roofline fitted to published tables, acceptance rates from the flags: chances that a guess is right
if all before it are. Their defaults are what NVIDIA's published speed-ups imply.

Examples:
  ponder simulate
  ponder simulate --context 16384 --acceptance-1b 0.7 --acceptance-8b 0.8"
)]
pub struct SimulateArgs {
    /// Cached tokens of each sequence
    #[arg(long, env = "PONDER_CONTEXT", default_value_t = 4096, value_name = "N")]
    pub context: usize,
    /// Most guesses per step
    #[arg(long, env = "PONDER_MAX_SPECULATIVE_TOKENS", default_value_t = 16, value_name = "K")]
    pub max_speculative_tokens: usize,
    /// Acceptance of the 1B draft
    #[arg(long, env = "PONDER_ACCEPTANCE_1B", default_value_t = 0.84, value_name = "A")]
    pub acceptance_1b: f64,
    /// Acceptance of the 3B draft
    #[arg(long, env = "PONDER_ACCEPTANCE_3B", default_value_t = 0.87, value_name = "A")]
    pub acceptance_3b: f64,
    /// Acceptance of the 8B draft
    #[arg(long, env = "PONDER_ACCEPTANCE_8B", default_value_t = 0.90, value_name = "A")]
    pub acceptance_8b: f64,
    /// Print one JSON object on stdout
    #[arg(long, env = "PONDER_JSON", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub json: bool,
}

/// Prints the table.
pub fn simulate(args: &SimulateArgs) -> Result<()> {
    let models = [
        (LLAMA_1B, args.acceptance_1b, "acceptance_1b"),
        (LLAMA_3B, args.acceptance_3b, "acceptance_3b"),
        (LLAMA_8B, args.acceptance_8b, "acceptance_8b"),
    ];
    let mut drafts = Vec::new();
    for (model, acceptance, field) in models {
        if !(0.0..1.0).contains(&acceptance) {
            return Err(Error::invalid(field, format!("{acceptance} is not between 0 and 1")).into());
        }
        drafts.push(SimDraft { model, acceptance });
    }
    let batches = [1, 2, 4, 8, 16, 32, 64];
    let advice = advise(H200, LLAMA_70B, &drafts, args.max_speculative_tokens, &batches, args.context);
    if args.json {
        let rows: Vec<Value> = advice
            .iter()
            .map(|a| json!({ "batch": a.batch, "draft": a.draft.map(|d| d.model.name), "k": a.k, "speed_up": a.speed_up }))
            .collect();
        super::print_json(
            &json!({ "gpu": H200.name, "target": LLAMA_70B.name, "context": args.context, "advice": rows }),
        );
        return Ok(());
    }
    let mut out = format!("{} on {}, {} tokens of context\n", LLAMA_70B.name, H200.name, args.context);
    out += "batch  draft   K  speed-up\n";
    for a in advice {
        let draft = a.draft.map_or("none", |d| d.model.name);
        out += &format!("{:>5}  {draft:<5} {:>3}  {:>8.2}\n", a.batch, a.k, a.speed_up);
    }
    super::print_text(&out);
    Ok(())
}
