//! Single ops, each alone in a program.

use ponder_engine::error::Result;
use ponder_engine::format::{Format, KvFormat};
use ponder_engine::model::Activation;
use ponder_engine::op::problem::noise;
use ponder_engine::op::{
    AddRmsNorm, Attention, CopyBlocks, GatedMlp, LatentAttention, Linear, Sample, SampleRow, StepShape,
};
use ponder_engine::program::{Elem, LatentShape, Program, Role, RowSpace, Slot};

use super::Bench;
use super::peers::Shape;
use crate::device::Device;

/// Tokens of a block in the cases of attention.
const BLOCK_SIZE: usize = 16;

/// The inputs that say which tokens rows of attention see, each row those of a sequence of its own.
fn seen(p: &mut Program, rows: usize, context: usize) -> [Slot; 3] {
    let positions = p.slot("positions", Role::Input, Elem::U32, &[rows]);
    let row_seq = p.slot("row_seq", Role::Input, Elem::U32, &[rows]);
    let tables = [rows, context.div_ceil(BLOCK_SIZE)];
    [positions, row_seq, p.slot("block_tables", Role::Input, Elem::U32, &tables)]
}

/// What those inputs hold: rows at the end of their context, blocks far apart in memory.
fn all_seen(rows: usize, context: usize) -> [(&'static str, Vec<u32>); 4] {
    let blocks = (rows * context.div_ceil(BLOCK_SIZE)) as u32;
    // A step coprime to the number of blocks: neighbours in a sequence are far apart in memory.
    let step_of = (1..).map(|i| i * 2 + 7919).find(|s| !blocks.is_multiple_of(*s)).unwrap_or(1);
    let block = |i: u32| (u64::from(i) * u64::from(step_of) % u64::from(blocks)) as u32;
    [
        ("live", vec![rows as u32; 2]),
        ("positions", vec![context as u32 - 1; rows]),
        ("row_seq", (0..rows as u32).collect()),
        ("block_tables", (0..blocks).map(block).collect()),
    ]
}

impl<D: Device> Bench<'_, D> {
    pub(super) fn copy_bandwidth(&mut self) -> Result<()> {
        let elements = self.pick(256 << 20, 4096); // F16: half a GiB each
        let mut p = Program::new("copy", 1, 1);
        let pairs = p.slot("pairs", Role::Input, Elem::U32, &[1, 2]);
        let cache = p.slot("cache", Role::Kv, Elem::Kv(KvFormat::F16), &[2, elements / 128, 1, 128]);
        p.push(CopyBlocks { pairs, cache });
        let step = StepShape { rows: 1, logit_rows: 1, context: 0 };
        self.case("copy".into(), &p, step, &[("live", vec![1, 1]), ("pairs", vec![0, 1])])?;
        self.copy = self.rows.last().map_or(0.0, |r| r.gb_per_s * 1e9);
        Ok(())
    }

    /// Products and gated MLPs of 8B and 70B shapes, enough copies of the weight to leave no cache warm.
    pub(super) fn products(&mut self) -> Result<()> {
        let formats = [
            Format::BF16,
            Format::F16,
            Format::F8,
            Format::I4G128,
            Format::Q8_0,
            Format::Q4_0,
            Format::Q4K,
            Format::Q6K,
        ];
        let shapes = self
            .pick(vec![(4096, 4096), (6144, 4096), (128_256, 4096), (10_240, 8192), (8192, 28_672)], vec![(48, 256)]);
        for format in formats {
            for (n, k) in &shapes {
                self.forget_weights();
                let copies = self.pick((256 << 20) / format.bytes_for(n * k).unwrap_or(1).max(1) + 1, 2);
                for rows in self.pick(vec![1, 4, 8, 16, 64, 128, 512], vec![2, 64]) {
                    self.product(format, *n, *k, copies, rows)?;
                }
            }
            self.forget_weights();
            let (hidden, ffn) = self.pick((4096, 14_336), (256, 256));
            for rows in self.pick(vec![1, 4, 16, 64, 512], vec![1, 64]) {
                self.mlp(format, hidden, ffn, rows)?;
            }
        }
        self.forget_weights();
        Ok(())
    }
    fn product(&mut self, format: Format, n: usize, k: usize, copies: usize, rows: usize) -> Result<()> {
        let mut p = Program::new("linear", rows, rows);
        let x = p.slot("x", Role::Input, Elem::F32, &[rows, k]);
        let out = p.slot("out", Role::Output, Elem::F32, &[rows, n]);
        for i in 0..copies {
            let w = p.slot(format!("w{i}"), Role::Weight, Elem::Weight(format), &[n, k]);
            p.push(Linear { x, w, bias: None, out, space: RowSpace::Batch });
        }
        let step = StepShape { rows, logit_rows: rows, context: 0 };
        let case = format!("linear {format} {n}x{k} ({copies} weights)");
        if let Some(row) = self.case(case, &p, step, &[("live", vec![rows as u32; 2])])? {
            row.shape = Some(Shape::Linear { format: format.to_string(), n, k, rows });
        }
        Ok(())
    }
    fn mlp(&mut self, format: Format, hidden: usize, ffn: usize, rows: usize) -> Result<()> {
        let mut p = Program::new("mlp", rows, rows);
        let x = p.slot("x", Role::Input, Elem::F32, &[rows, hidden]);
        let weight =
            |p: &mut Program, name: &str, n: usize, k: usize| p.slot(name, Role::Weight, Elem::Weight(format), &[n, k]);
        let (gate, up) = (weight(&mut p, "gate", ffn, hidden), weight(&mut p, "up", ffn, hidden));
        let down = weight(&mut p, "down", hidden, ffn);
        let gated = p.scratch("gated", &[rows, ffn]);
        let out = p.slot("out", Role::Output, Elem::F32, &[rows, hidden]);
        p.push(GatedMlp { x, gate, up, down, gated, out, activation: Activation::Silu });
        let step = StepShape { rows, logit_rows: rows, context: 0 };
        let case = format!("gated mlp {format} {hidden}/{ffn}");
        self.case(case, &p, step, &[("live", vec![rows as u32; 2])]).map(|_| ())
    }

    pub(super) fn attention(&mut self) -> Result<()> {
        for (format, heads, kv_heads) in
            [(KvFormat::BF16, 32, 8), (KvFormat::F16, 32, 8), (KvFormat::E2M5, 32, 8), (KvFormat::BF16, 64, 8)]
        {
            for context in self.pick(vec![1024, 16_384, 65_536], vec![300]) {
                for rows in self.pick(vec![1, 4, 16, 64], vec![2]) {
                    self.attend(format, heads, kv_heads, rows, context)?;
                }
            }
        }
        Ok(())
    }
    fn attend(&mut self, format: KvFormat, heads: usize, kv_heads: usize, rows: usize, context: usize) -> Result<()> {
        let head_dim = 128;
        let mut p = Program::new("attention", rows, rows);
        let q = p.slot("q", Role::Input, Elem::F32, &[rows, heads * head_dim]);
        let shape = [rows * context.div_ceil(BLOCK_SIZE), BLOCK_SIZE, kv_heads, head_dim];
        let [k_cache, v_cache] = p.kv_caches(["k_cache", "v_cache"], format, shape);
        let [positions, row_seq, block_tables] = seen(&mut p, rows, context);
        let out = p.slot("out", Role::Output, Elem::F32, &[rows, heads * head_dim]);
        let scale = 1.0 / (head_dim as f32).sqrt();
        p.push(Attention {
            q,
            k_cache,
            v_cache,
            positions,
            row_seq,
            block_tables,
            out,
            heads,
            kv_heads,
            head_dim,
            scale,
            window: None,
        });
        let step = StepShape { rows, logit_rows: rows, context };
        let case = format!("attention {format:?} {heads}/{kv_heads}");
        if let Some(row) = self.case(case, &p, step, &all_seen(rows, context))? {
            let format = format!("{format:?}");
            row.shape = Some(Shape::Attention { format, heads, kv_heads, head_dim, rows, context });
        }
        Ok(())
    }

    /// DeepSeek-V3's attention, on one device and shared among eight.
    pub(super) fn latent(&mut self) -> Result<()> {
        for (format, heads) in [(KvFormat::F16, 128), (KvFormat::E2M5, 128), (KvFormat::E2M5, 16)] {
            for context in self.pick(vec![1024, 16_384, 65_536], vec![48]) {
                for rows in self.pick(vec![1, 4, 16, 64], vec![2]) {
                    self.attend_latent(format, heads, rows, context)?;
                }
            }
        }
        Ok(())
    }
    fn attend_latent(&mut self, format: KvFormat, heads: usize, rows: usize, context: usize) -> Result<()> {
        let (latent, rope) = (512, 64);
        let mut p = Program::new("latent attention", rows, rows);
        let q = p.slot("q", Role::Input, Elem::F32, &[rows, heads * (latent + rope)]);
        let blocks = rows * context.div_ceil(BLOCK_SIZE);
        let cache = p.latent_cache("cache", format, LatentShape { blocks, block_size: BLOCK_SIZE, latent, rope });
        let [positions, row_seq, block_tables] = seen(&mut p, rows, context);
        let out = p.slot("out", Role::Output, Elem::F32, &[rows, heads * latent]);
        // Heads of 128 + 64 elements before absorption.
        let scale = 1.0 / 192f32.sqrt();
        p.push(LatentAttention { q, cache, positions, row_seq, block_tables, out, heads, latent, rope, scale });
        let step = StepShape { rows, logit_rows: rows, context };
        let case = format!("latent attention {format:?} {heads}x{latent}+{rope}");
        self.case(case, &p, step, &all_seen(rows, context)).map(|_| ())
    }

    pub(super) fn norms(&mut self) -> Result<()> {
        for rows in self.pick(vec![1, 64, 512], vec![2]) {
            let n = self.pick(4096, 256);
            let mut p = Program::new("norm", rows, rows);
            let residual = p.slot("residual", Role::Input, Elem::F32, &[rows, n]);
            let delta = p.slot("delta", Role::Input, Elem::F32, &[rows, n]);
            let weight = p.slot("norm", Role::Weight, Elem::Weight(Format::F32), &[n]);
            let out = p.slot("out", Role::Output, Elem::F32, &[rows, n]);
            p.push(AddRmsNorm { residual, delta, weight, out, eps: 1e-5 });
            let step = StepShape { rows, logit_rows: rows, context: 0 };
            self.case(format!("add rms norm {n}"), &p, step, &[("live", vec![rows as u32; 2])])?;
        }
        self.forget_weights();
        Ok(())
    }

    pub(super) fn sampling(&mut self) -> Result<()> {
        let vocab = self.pick(151_936, 5000);
        let random = SampleRow { temperature: 0.8, ..SampleRow::default() };
        for (what, row) in [
            ("greedy", SampleRow::default()),
            ("temperature", random),
            ("top-p", SampleRow { top_p: 0.95, ..random }),
            ("top-k and top-p", SampleRow { top_p: 0.95, top_k: 20, ..random }),
        ] {
            for rows in self.pick(vec![1, 8, 64], vec![2]) {
                let mut p = Program::new("sample", rows, rows);
                let logits = p.slot("logits", Role::Input, Elem::F32, &[rows, vocab]);
                let params = p.slot("params", Role::Input, Elem::U32, &[rows, 12]);
                let offsets = p.slot("offsets", Role::Input, Elem::U32, &[rows + 1]);
                let adjust = p.slot("adjust", Role::Input, Elem::U32, &[1, 3]);
                let masks = p.slot("masks", Role::Input, Elem::U32, &[rows, vocab.div_ceil(32)]);
                let out = p.slot("sampled", Role::Output, Elem::U32, &[rows]);
                p.push(Sample { logits, params, offsets, adjust, masks, out });
                // A few tokens far above the rest, as a model has it.
                let logit = |i: usize| (noise(3, "logits", i / vocab, i % vocab).powi(7) * 20.0).to_bits();
                let inputs = [
                    ("live", vec![rows as u32; 2]),
                    ("logits", (0..rows * vocab).map(logit).collect()),
                    ("params", vec![bytemuck::cast::<SampleRow, [u32; 12]>(row); rows].concat()),
                ];
                let step = StepShape { rows, logit_rows: rows, context: 0 };
                self.case(format!("sample {vocab}, {what}"), &p, step, &inputs)?;
            }
        }
        Ok(())
    }
}
