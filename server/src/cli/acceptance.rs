//! `ponder bench --workload FILE --acceptance`: shared noise against rejection sampling, on one model's own texts.
//!
//! The target answers the prompts; then both models score every token of the answers, and from the two
//! distributions at each place follow the chances of both ways to accept a guess there.

use std::path::Path;

use anyhow::Result;
use ponder::score::score;
use ponder::{EngineOptions, Opened, WithBackend, backends};
use ponder_engine::Error;
use ponder_engine::backend::{Backend, DeviceInfo};
use ponder_engine::request::SamplingParams;
use ponder_engine::schedule::DraftPolicy;
use ponder_engine::spec::coupling::{probabilities, rejection, shared_noise, tokens_per_pass};
use serde_json::{Value, json};

use super::bench::BenchArgs;
use super::progress::Loading;

/// Logits kept at once, of each model: 256 MB.
const MOST_LOGITS: usize = 64 << 20;

/// A prompt with its answer; the answer begins at the index.
type Text = (Vec<u32>, usize);
/// Per text and place: the logits of the token that stands there.
type Scores = Vec<Vec<Vec<f32>>>;

/// Prints the table.
pub fn compare(args: &BenchArgs, file: &Path) -> Result<()> {
    let mut options = args.model.options(args.batch)?;
    let Some(draft) = options.draft.take() else {
        return Err(Error::invalid("draft_model", "is no model; only a model has probabilities to compare").into());
    };
    options.drafts = DraftPolicy::Off;
    let draft = EngineOptions { model: draft.model, ..options.clone() };
    let mut rows = Vec::new();
    for temperature in [0.0f32, 0.6, 1.0] {
        let texts = answers(args, &options, file, temperature)?;
        let [ours, theirs] = [&options, &draft].map(|o| scores(o, &texts));
        rows.push(row(temperature, &ours?, &theirs?));
    }
    if args.output.json {
        super::print_json(&json!({ "acceptance": rows }));
        return Ok(());
    }
    let mut out = String::from(
        "temperature  tokens  accepted: shared  rejection  tokens/pass, K=4: shared  rejection  K=8: shared  rejection\n",
    );
    for r in &rows {
        let n = |name: &str| r[name].as_f64().unwrap_or(0.0);
        out += &format!(
            "{:>11} {:>7} {:>17.3} {:>10.3} {:>24.2} {:>10.2} {:>12.2} {:>10.2}\n",
            n("temperature"),
            n("tokens"),
            n("shared"),
            n("rejection"),
            n("shared_k4"),
            n("rejection_k4"),
            n("shared_k8"),
            n("rejection_k8"),
        );
    }
    super::print_text(&out);
    Ok(())
}

fn answers(args: &BenchArgs, options: &EngineOptions, file: &Path, temperature: f32) -> Result<Vec<Text>> {
    let opened = Opened::open(options.clone())?;
    let mut loading = Loading::new(&args.output);
    let engine = opened.load(|p| loading.show(p))?;
    loading.done();
    let (mut texts, mut logits) = (Vec::new(), 0);
    for (i, prompt) in super::workload::read(file)?.into_iter().enumerate() {
        let params = SamplingParams {
            temperature,
            max_tokens: Some(args.workload_tokens),
            seed: i as u64,
            ..SamplingParams::default()
        };
        let mut tokens = engine.prompter().render(&prompt)?.tokens;
        let from = tokens.len();
        tokens.extend(engine.generate(prompt, params)?.complete()?.token_ids);
        logits += (tokens.len() - from) * engine.config().vocab;
        texts.push((tokens, from));
        if logits > MOST_LOGITS {
            break;
        }
    }
    Ok(texts)
}

fn scores(options: &EngineOptions, texts: &[Text]) -> ponder_engine::Result<Scores> {
    let opened = Opened::open(options.clone())?;
    backends::open(options, Scorer { opened, texts })
}

struct Scorer<'a> {
    opened: Opened,
    texts: &'a [Text],
}

impl WithBackend for Scorer<'_> {
    type Out = Scores;
    fn with<B: Backend>(
        self,
        info: DeviceInfo,
        make: impl Fn() -> ponder_engine::Result<B> + Send + Sync + 'static,
    ) -> ponder_engine::Result<Scores> {
        let mut runner = self.opened.runner(&info, make, |_| {})?;
        let mut all = Vec::new();
        for (tokens, from) in self.texts {
            let mut rows = Vec::new();
            score(&mut runner, &tokens[..tokens.len() - 1], from - 1, |_, logits| rows.push(logits.to_vec()))?;
            all.push(rows);
        }
        Ok(all)
    }
}

fn row(temperature: f32, ours: &Scores, theirs: &Scores) -> Value {
    let (mut shared, mut rejected) = (Vec::new(), Vec::new());
    for (target, draft) in ours.iter().flatten().zip(theirs.iter().flatten()) {
        let both = target.len().min(draft.len());
        let [p, q] = [target, draft].map(|logits| probabilities(&logits[..both], temperature));
        shared.push(shared_noise(&p, &q));
        rejected.push(rejection(&p, &q));
    }
    let mean = |chances: &[f64]| chances.iter().sum::<f64>() / chances.len().max(1) as f64;
    json!({
        "temperature": (f64::from(temperature) * 10.0).round() / 10.0,
        "tokens": shared.len(),
        "shared": mean(&shared),
        "rejection": mean(&rejected),
        "shared_k4": tokens_per_pass(&shared, 4),
        "rejection_k4": tokens_per_pass(&rejected, 4),
        "shared_k8": tokens_per_pass(&shared, 8),
        "rejection_k8": tokens_per_pass(&rejected, 8),
    })
}
