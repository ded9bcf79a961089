//! Real models end to end on a device, held against the CPU backend: greedy tokens of twenty prompts, how far the
//! logits are apart where the tokens part, and the same bits alone and in batches.

use std::path::Path;

use ponder_engine::backend::Backend;
use ponder_engine::backend::cpu::CpuBackend;
use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::error::Result;
use ponder_engine::format::KvFormat;
use ponder_engine::model::batch::{Batch, LogitRow, Row};
use ponder_engine::model::record::KvShape;
use ponder_engine::model::runner::{ModelRunner, RunnerOptions};
use ponder_engine::op::SampleRow;
use ponder_engine::text::{Message, RenderOptions};
use serde::Serialize;

use crate::backend::Cuda;
use crate::device::Device;

/// What the models are asked: problems that the bundled pair was trained on, and what a small chat model can say.
const PROMPTS: [&str; 20] = [
    "What is 15% of 80?",
    "What is 347 + 586?",
    "Calculate 23 * 17.",
    "What is the greatest common divisor of 84 and 36?",
    "Sort these numbers: 41, 7, 19, 3.",
    "How many times does the letter r occur in strawberry?",
    "Solve for x: 3x + 7 = 25.",
    "A shop sells pens at 4 each. Tom buys 6 and pays with 50. How much does he get back?",
    "Convert 45 to binary.",
    "It is 9:40. What time is it 85 minutes later?",
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name five animals that live in Africa.",
    "Write a short poem about the sea.",
    "List three uses for a paperclip.",
    "What is the difference between a virus and a bacterium?",
    "Tell me a joke about programmers.",
    "Continue this list: Monday, Tuesday, Wednesday,",
    "Write a Python function that reverses a string.",
    "Give one reason to learn the piano.",
];

/// How much is asked.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Prompts, of twenty.
    pub prompts: usize,
    /// Tokens of each answer, at most.
    pub tokens: usize,
    /// Rows of a step, at most.
    pub rows: usize,
}

/// All prompts, answers of some length, prompts in chunks of many rows.
pub const FULL: Extent = Extent { prompts: PROMPTS.len(), tokens: 48, rows: 256 };
/// A rehearsal.
pub const TINY: Extent = Extent { prompts: 4, tokens: 3, rows: 96 };

/// Where the tokens of one prompt part.
#[derive(Clone, Debug, Serialize)]
pub struct Parting {
    /// The prompt.
    pub prompt: &'static str,
    /// Tokens that were equal before.
    pub after: usize,
    /// Largest difference of a logit there.
    pub distance: f32,
    /// How far the CPU's choice lies above the device's, in the CPU's logits.
    pub margin: f32,
}

/// What one model showed.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Its file or folder.
    pub model: String,
    /// Prompts asked.
    pub prompts: usize,
    /// Prompts that had the CPU's tokens.
    pub equal: usize,
    /// The others.
    pub parted: Vec<Parting>,
    /// Largest difference of a logit while the tokens were equal.
    pub distance: f32,
    /// Sizes of batches in which every logit of every prompt had the bits that it has alone.
    pub batches: Vec<usize>,
    /// Batches in which one had not, in words.
    pub broken: Vec<String>,
}

impl Report {
    /// Whether it is as it should be: the same bits in every batch, and equal tokens on all prompts if `exact`, or on
    /// nine of ten.
    pub fn passes(&self, exact: bool) -> bool {
        let needed = if exact { self.prompts } else { (self.prompts * 9).div_ceil(10) };
        self.broken.is_empty() && self.equal >= needed
    }
    /// In a few lines.
    pub fn text(&self) -> String {
        let Self { model, prompts, equal, distance, batches, .. } = self;
        let mut lines = vec![
            format!(
                "{model}: {equal} of {prompts} prompts have the CPU's tokens; logits differ by {distance:.1e} at most"
            ),
            format!("{model}: the bits of a prompt alone in batches of {batches:?}"),
        ];
        lines.extend(self.parted.iter().map(|p| {
            let Parting { prompt, after, distance, margin } = p;
            format!("{model}: {prompt:?} parts after {after} tokens: logits {distance:.1e} apart, margin {margin:.1e}")
        }));
        lines.extend(self.broken.iter().map(|words| format!("{model}: BROKEN: {words}")));
        lines.join("\n")
    }
}

/// Runs the model at `path` on the CPU and on the device that `make` gives.
///
/// # Errors
/// A model that cannot be read, and those of the devices.
pub fn check<D: Device>(make: impl FnOnce() -> Result<Cuda<D>>, path: &Path, extent: Extent) -> Result<Report> {
    let checkpoint = Checkpoint::open(path)?;
    let prompts = prompts(&checkpoint, extent.prompts)?;
    let eos = &checkpoint.generation.eos;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + extent.tokens;
    let (block_size, seqs) = (16, prompts.len());
    let kv = KvShape { blocks: seqs * longest.div_ceil(block_size), block_size, format: KvFormat::F16 };
    let rows = extent.rows.max(seqs);
    let options = RunnerOptions { max_rows: rows, max_logit_rows: seqs, max_seqs: seqs, max_model_len: longest, kv };
    let mut cpu = ModelRunner::load(CpuBackend::new(0)?, &checkpoint, options, &mut |_, _| {})?;
    let mut device = ModelRunner::load(make()?, &checkpoint, options, &mut |_, _| {})?;

    let model = path.display().to_string();
    let mut report = Report {
        model,
        prompts: seqs,
        equal: 0,
        parted: Vec::new(),
        distance: 0.0,
        batches: Vec::new(),
        broken: Vec::new(),
    };
    let mut alone = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let [want, got] = [
            answers(&mut cpu, std::slice::from_ref(prompt), extent.tokens, eos)?,
            answers(&mut device, std::slice::from_ref(prompt), extent.tokens, eos)?,
        ]
        .map(|mut all| all.remove(0));
        report.compare(PROMPTS[i], &want, &got);
        alone.push(got.digests());
    }
    for size in [3, seqs] {
        report.compare_batches(&mut device, &prompts, size, extent.tokens, eos, &alone)?;
    }
    Ok(report)
}

impl Report {
    fn compare(&mut self, prompt: &'static str, want: &Answer, got: &Answer) {
        let parts = want.tokens.iter().zip(&got.tokens).position(|(w, g)| w != g);
        let same = parts.unwrap_or(want.tokens.len().min(got.tokens.len()));
        let apart = |step: usize| {
            let differences = want.logits[step].iter().zip(&got.logits[step]).map(|(w, g)| (w - g).abs());
            differences.fold(0f32, |most, d| if d > most || d.is_nan() { d } else { most })
        };
        self.distance = (0..same).map(apart).fold(self.distance, f32::max);
        let Some(step) = parts else {
            self.equal += 1;
            return;
        };
        let logit = |token: u32| want.logits[step][token as usize];
        let margin = logit(want.tokens[step]) - logit(got.tokens[step]);
        self.parted.push(Parting { prompt, after: step, distance: apart(step), margin });
    }

    fn compare_batches<B: Backend>(
        &mut self,
        device: &mut ModelRunner<B>,
        prompts: &[Vec<u32>],
        size: usize,
        tokens: usize,
        eos: &[u32],
        alone: &[Vec<u64>],
    ) -> Result<()> {
        let before = self.broken.len();
        for (i, group) in prompts.chunks(size).enumerate() {
            for (j, answer) in answers(device, group, tokens, eos)?.iter().enumerate() {
                let (prompt, digests) = (i * size + j, answer.digests());
                if let Some(step) = (0..digests.len()).find(|s| alone[prompt].get(*s) != Some(&digests[*s])) {
                    let prompt = PROMPTS[prompt];
                    self.broken
                        .push(format!("{prompt:?} in a batch of {}, token {step}, is not as alone", group.len()));
                }
            }
        }
        if self.broken.len() == before {
            self.batches.push(size);
        }
        Ok(())
    }
}

/// The first prompts as the model's chat template puts them.
fn prompts(checkpoint: &Checkpoint, count: usize) -> Result<Vec<Vec<u32>>> {
    let (tokenizer, template) = (checkpoint.tokenizer()?, checkpoint.chat_template()?);
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let encode = |text: &&str| match &template {
        Some(template) => tokenizer.encode_pieces(&template.render(&[Message::new("user", *text)], &options)?),
        None => tokenizer.encode(text),
    };
    PROMPTS.iter().take(count).map(encode).collect()
}

/// Greedy tokens, and the logits that each was chosen from.
#[derive(Default)]
struct Answer {
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

impl Answer {
    /// A word for all bits of each token's logits.
    fn digests(&self) -> Vec<u64> {
        let word = |h: u64, x: &f32| (h ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01B3);
        self.logits.iter().map(|l| l.iter().fold(0xCBF2_9CE4_8422_2325, word)).collect()
    }
}

/// Answers of prompts that run together: as many prompt rows in a step as fit it, then a row of each.
fn answers<B: Backend>(
    runner: &mut ModelRunner<B>,
    prompts: &[Vec<u32>],
    tokens: usize,
    eos: &[u32],
) -> Result<Vec<Answer>> {
    let options = *runner.options();
    let per_seq = options.max_model_len.div_ceil(options.kv.block_size) as u32;
    let blocks = |seq: u32| (0..per_seq).rev().map(|b| seq * per_seq + b).collect::<Vec<u32>>();
    let block_tables: Vec<Vec<u32>> = (0..prompts.len() as u32).map(blocks).collect();
    let mut logs = prompts.to_vec();
    let mut done = vec![0; prompts.len()];
    let mut out: Vec<Answer> = prompts.iter().map(|_| Answer::default()).collect();
    loop {
        let (mut batch, mut asks) = (Batch { block_tables: block_tables.clone(), ..Batch::default() }, Vec::new());
        batch.want_logits = true;
        for (seq, log) in logs.iter().enumerate() {
            let ended = out[seq].tokens.len() == tokens || out[seq].tokens.last().is_some_and(|t| eos.contains(t));
            let end = if ended { done[seq] } else { log.len().min(done[seq] + options.max_rows - batch.rows.len()) };
            for position in done[seq]..end {
                batch.rows.push(Row { token: log[position], position: position as u32, seq: seq as u32 });
            }
            if end > done[seq] && end == log.len() {
                let row = batch.rows.len() as u32 - 1;
                batch.logit_rows.push(LogitRow { row, params: SampleRow::default(), adjust: Vec::new(), mask: None });
                asks.push(seq);
            }
            done[seq] = end;
        }
        if batch.rows.is_empty() {
            return Ok(out);
        }
        let step = runner.run(&batch)?;
        let vocab = step.logits.len() / asks.len().max(1);
        for (i, seq) in asks.into_iter().enumerate() {
            out[seq].tokens.push(step.tokens[i]);
            out[seq].logits.push(step.logits[i * vocab..(i + 1) * vocab].to_vec());
            logs[seq].push(step.tokens[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(prompts: usize) -> Report {
        let (model, parted, batches, broken) = ("m".into(), Vec::new(), Vec::new(), Vec::new());
        Report { model, prompts, equal: 0, parted, distance: 0.0, batches, broken }
    }
    fn answer(tokens: [u32; 2], logits: [[f32; 3]; 2]) -> Answer {
        Answer { tokens: tokens.into(), logits: logits.map(Vec::from).into() }
    }

    #[test]
    fn where_tokens_part_is_measured() {
        let mut report = report(2);
        let want = answer([1, 2], [[0.0, 3.0, 1.0], [0.0, 1.5, 2.0]]);
        report.compare("same", &want, &answer([1, 2], [[0.25, 3.0, 1.0], [0.0, 1.0, 2.0]]));
        assert_eq!((report.equal, report.distance), (1, 0.5));
        report.compare("other", &want, &answer([1, 1], [[0.0, 3.0, 1.0], [0.0, 3.5, 2.0]]));
        let [Parting { prompt: "other", after: 1, distance: 2.0, margin: 0.5 }] = report.parted[..] else {
            panic!("{:?}", report.parted)
        };
        assert!(!report.passes(true) && !report.passes(false) && report.text().contains("parts after 1 tokens"));
    }

    #[test]
    fn eighteen_of_twenty_do_unless_all_must_or_a_batch_differs() {
        let mut report = Report { equal: 18, ..report(20) };
        assert!(report.passes(false) && !report.passes(true));
        report.equal = 17;
        assert!(!report.passes(false));
        report.equal = 20;
        assert!(report.passes(true));
        report.broken.push("a batch".into());
        assert!(!report.passes(false) && report.text().contains("BROKEN"));
    }

    #[test]
    fn digests_see_every_bit() {
        let [a, b] = [[0.0, 1.0, 2.0], [-0.0, 1.0, 2.0]].map(|l| answer([0, 0], [l, l]).digests());
        assert!(a != b && a[0] == a[1]);
    }
}
