//! Whole steps of Llama-8B and Llama-70B shapes with random weights, sampling included: decoding, and a chunk of a
//! prompt at the end of its context.

use ponder_engine::error::Result;
use ponder_engine::format::{Format, KvFormat};
use ponder_engine::model::family::Family;
use ponder_engine::model::record::{Capacity, KvShape, names, record};
use ponder_engine::model::{ModelConfig, Pairing, Rope, RopeScaling};
use ponder_engine::op::{SampleRow, StepShape};

use super::{Bench, Case, Scale};
use crate::device::Device;

const BLOCK_SIZE: usize = 16;
/// Rows of a chunk of a prompt.
const CHUNK: usize = 512;

/// What varies between the steps of one model.
#[derive(Clone, Copy)]
struct Kind {
    weights: Format,
    kv: KvFormat,
    rows: usize,
    context: usize,
    /// Whether the rows are one sequence's, else each is a sequence of its own.
    prefill: bool,
}

impl<D: Device> Bench<'_, D> {
    pub(super) fn steps(&mut self) -> Result<()> {
        let formats = self.pick(vec![Format::BF16, Format::F8, Format::I4G128], vec![Format::F8]);
        let contexts = self.pick(vec![1024, 16_384, 65_536], vec![80]);
        let batches = self.pick(vec![1, 4, 16, 64], vec![2]);
        for config in models(self.scale) {
            for weights in &formats {
                self.forget_weights();
                for kv in [KvFormat::BF16, KvFormat::E2M5] {
                    for context in &contexts {
                        let kind = |rows, prefill| Kind { weights: *weights, kv, rows, context: *context, prefill };
                        for rows in &batches {
                            self.step(&config, kind(*rows, false))?;
                        }
                        self.step(&config, kind(self.pick(CHUNK, 64), true))?;
                    }
                }
            }
        }
        self.forget_weights();
        Ok(())
    }

    fn step(&mut self, config: &ModelConfig, kind: Kind) -> Result<()> {
        let Kind { weights, kv, rows, context, prefill } = kind;
        let seqs = if prefill { 1 } else { rows };
        let max_blocks = context.div_ceil(BLOCK_SIZE);
        let logit_rows = seqs;
        let capacity = Capacity { rows, logit_rows, seqs, max_blocks, adjust: 1 };
        let shape = KvShape { blocks: seqs * max_blocks, block_size: BLOCK_SIZE, format: kv };
        let program = record(config, capacity, shape, &|_| weights);
        let sampling = SampleRow { temperature: 0.8, top_p: 0.95, top_k: 20, ..SampleRow::default() };
        // The last rows of each sequence.
        let (per_seq, width) = (rows / seqs, max_blocks * BLOCK_SIZE);
        let position = |row: usize| context - per_seq + row % per_seq;
        let each = |of: &dyn Fn(usize) -> usize| (0..rows).map(|row| of(row) as u32).collect::<Vec<u32>>();
        let inputs = [
            (names::LIVE, vec![rows as u32, logit_rows as u32]),
            (names::TOKENS, each(&|row| row)),
            (names::POSITIONS, each(&position)),
            (names::ROW_SEQ, each(&|row| row / per_seq)),
            (names::SLOT_MAPPING, each(&|row| row / per_seq * width + position(row))),
            (names::BLOCK_TABLES, (0..(seqs * max_blocks) as u32).collect()),
            (names::LOGIT_ROWS, (1..=seqs).map(|seq| (seq * per_seq - 1) as u32).collect()),
            (names::SAMPLE_PARAMS, vec![bytemuck::cast::<SampleRow, [u32; 12]>(sampling); seqs].concat()),
        ];
        let step = StepShape { rows, logit_rows, context };
        let what = if prefill { "prefill" } else { "decode" };
        let name = format!("{what} step, {}, {weights}, {kv:?} cache", config.name);
        let (program, inputs) = (&program, &inputs[..]);
        self.measure(Case { name, program, step, inputs, sequences: seqs, read: Some(names::SAMPLED) })?;
        Ok(())
    }
}

/// The numbers of Llama 3's 8B and 70B.
fn models(scale: Scale) -> Vec<ModelConfig> {
    let rope = Rope { theta: 500_000.0, dim: 128, pairing: Pairing::Halves, scaling: RopeScaling::None };
    let model = |name: &str, layers, hidden, heads, kv_heads, ffn, vocab| ModelConfig {
        family: Family::by_gguf("llama").expect("the table has it"),
        name: name.into(),
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim: 128,
        ffn,
        vocab,
        context: 131_072,
        norm_eps: 1e-5,
        rope: rope.clone(),
        local: None,
        tied: false,
        attention_scale: 128f32.sqrt().recip(),
    };
    match scale {
        Scale::Full => vec![
            model("Llama 8B", 32, 4096, 32, 8, 14_336, 128_256),
            model("Llama 70B", 80, 8192, 64, 8, 28_672, 128_256),
        ],
        Scale::Tiny => vec![model("tiny", 1, 256, 2, 1, 256, 512)],
    }
}
