//! Times kernels and whole decode steps against the copy bandwidth measured in the same run.
//!
//! Written for any [`Device`], so that it is exercised on the CPU with tiny shapes and means something on
//! a GPU only. Data are random (zeros flatter a GPU's clock), weights of a case add up to more than any
//! cache holds.

use std::collections::HashMap;

use ponder_engine::backend::{Backend, Bound};
use ponder_engine::error::Result;
use ponder_engine::format::{Format, KvFormat};
use ponder_engine::model::family::Family;
use ponder_engine::model::record::{Capacity, KvShape, names, record};
use ponder_engine::model::{ModelConfig, Pairing, Rope, RopeScaling};
use ponder_engine::op::problem::noise;
use ponder_engine::op::{
    AddRmsNorm, Attention, CopyBlocks, GatedMlp, LatentAttention, Linear, Sample, SampleRow, StepShape,
};
use ponder_engine::program::{Elem, LatentShape, Program, Role, RowSpace, Slot, SlotDecl};
use serde::Serialize;

use crate::backend::{Buffer, Cuda};
use crate::device::Device;

/// How large the cases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Llama-8B and Llama-70B shapes, and DeepSeek-V3's attention.
    Full,
    /// The same cases in the smallest shapes that run, to test this file.
    Tiny,
}

/// One timed case.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What ran.
    pub case: String,
    /// Token rows.
    pub rows: usize,
    /// Tokens of context, 0 where it plays no part.
    pub context: usize,
    /// Median time of one launch.
    pub us: f64,
    /// Bytes that must move, each once ([`ponder_engine::op::Op::cost`]).
    pub bytes: f64,
    /// Bytes over time.
    pub gb_per_s: f64,
    /// That over the copy bandwidth of this run.
    pub of_copy: f64,
    /// Operations over time.
    pub tflop_per_s: f64,
}

/// Everything that one run measured.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The device's name.
    pub device: String,
    /// Driver and capability.
    pub features: Vec<String>,
    /// Bytes read and written per second by a copy.
    pub copy_gb_per_s: f64,
    /// The cases.
    pub rows: Vec<Row>,
    /// Cases left out, and why.
    pub skipped: Vec<String>,
}

/// Runs every case. `say` gets a line per case as it is done.
///
/// # Errors
/// Of the device; a case that does not fit its memory is skipped, not an error.
pub fn run<D: Device>(backend: &mut Cuda<D>, scale: Scale, say: &mut dyn FnMut(&str)) -> Result<Table> {
    let info = backend.info().clone();
    let mut bench =
        Bench { backend, scale, weights: HashMap::new(), copy: 0.0, rows: Vec::new(), skipped: Vec::new(), say };
    bench.copy_bandwidth()?;
    bench.products()?;
    bench.attention()?;
    bench.latent()?;
    bench.norms()?;
    bench.sampling()?;
    bench.decode()?;
    let Bench { copy, rows, skipped, .. } = bench;
    Ok(Table { device: info.name, features: info.features, copy_gb_per_s: copy / 1e9, rows, skipped })
}

struct Bench<'a, D: Device> {
    backend: &'a mut Cuda<D>,
    scale: Scale,
    /// Weights of the present group of cases, by slot name.
    weights: HashMap<String, Buffer<D>>,
    copy: f64,
    rows: Vec<Row>,
    skipped: Vec<String>,
    say: &'a mut dyn FnMut(&str),
}

/// Random stored bytes of `[n, k]`: up to 32 rows are made, then repeated.
fn random_weight(format: Format, n: usize, k: usize) -> Vec<u8> {
    let (mut bytes, made) = (Vec::new(), n.min(32));
    let scale = 1.0 / (k as f32).sqrt();
    for row in 0..made {
        let x: Vec<f32> = (0..k).map(|c| noise(1, "weight", row, c) * scale).collect();
        format.encode(&x, &mut bytes);
    }
    let row_bytes = bytes.len() / made;
    (made..n).for_each(|row| bytes.extend_from_within(row % made * row_bytes..(row % made + 1) * row_bytes));
    bytes
}

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
    fn pick<T>(&self, full: T, tiny: T) -> T {
        if self.scale == Scale::Full { full } else { tiny }
    }

    /// Compiles and times a program whose inputs are `inputs`, random floats where none is given.
    fn time(&mut self, program: &Program, inputs: &[(&str, Vec<u32>)]) -> Result<f64> {
        let mut bound: Bound<Buffer<D>> = HashMap::new();
        for decl in program.slots.iter().filter(|d| d.role != Role::Scratch) {
            let buffer = match (decl.role, self.weights.get(&decl.name)) {
                (_, Some(buffer)) => buffer.clone(),
                (Role::Weight, None) => self.load(decl)?,
                _ => self.backend.alloc(decl)?,
            };
            if matches!(decl.role, Role::Input) {
                let given = inputs.iter().find(|i| i.0 == decl.name).map(|i| i.1.clone());
                let words = given.unwrap_or_else(|| match decl.elem {
                    Elem::F32 => (0..decl.len()).map(|i| noise(2, &decl.name, 0, i).to_bits()).collect(),
                    _ => vec![0; decl.len()],
                });
                self.backend.write(&buffer, bytemuck::cast_slice(&words))?;
            }
            bound.insert(decl.name.clone(), buffer);
        }
        let plan = self.backend.compile(program, &bound)?;
        let warm = self.backend.launch(&plan)?;
        self.backend.wait(warm)?;
        let times = self.pick(5, 1);
        let mut samples = Vec::new();
        for _ in 0..self.pick(7, 1) {
            samples.push(f64::from(self.backend.time_ms(&plan, times)?) / times as f64 * 1e-3);
        }
        samples.sort_by(f64::total_cmp);
        Ok(samples[samples.len() / 2])
    }
    /// A random weight, kept for the cases that follow.
    fn load(&mut self, decl: &SlotDecl) -> Result<Buffer<D>> {
        let Elem::Weight(format) = decl.elem else { unreachable!("only weights are loaded") };
        let k = *decl.shape.last().expect("a weight has a shape");
        let buffer = self.backend.load(decl, &random_weight(format, decl.len() / k, k))?;
        self.weights.insert(decl.name.clone(), buffer.clone());
        Ok(buffer)
    }
    /// Times a case and keeps its row; out of memory skips it.
    fn case(&mut self, case: String, program: &Program, step: StepShape, inputs: &[(&str, Vec<u32>)]) -> Result<()> {
        let seconds = match self.time(program, inputs) {
            Ok(seconds) => seconds,
            Err(ponder_engine::Error::Device {
                what: what @ ponder_engine::DeviceFault::OutOfMemory { .. }, ..
            }) => {
                self.skipped.push(format!("{case}, {} rows, context {}: {what}", step.rows, step.context));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let (bytes, flops) = program.ops.iter().fold((0.0, 0.0), |(bytes, flops), op| {
            let cost = op.cost(program, &step);
            (bytes + cost.bytes, flops + cost.flops)
        });
        let rate = bytes / seconds;
        let row = Row {
            case,
            rows: step.rows,
            context: step.context,
            us: seconds * 1e6,
            bytes,
            gb_per_s: rate / 1e9,
            of_copy: if self.copy > 0.0 { rate / self.copy } else { 1.0 },
            tflop_per_s: flops / seconds / 1e12,
        };
        (self.say)(&line(&row));
        self.rows.push(row);
        Ok(())
    }

    fn copy_bandwidth(&mut self) -> Result<()> {
        let elements = self.pick(256 << 20, 4096); // F16: half a GiB each
        let mut p = Program::new("copy", 1, 1);
        let pairs = p.slot("pairs", Role::Input, Elem::U32, &[1, 2]);
        let cache = p.kv_cache("cache", KvFormat::F16, [2, elements / 128, 1, 128]);
        p.push(CopyBlocks { pairs, cache: cache.elements() });
        let step = StepShape { rows: 1, logit_rows: 1, context: 0 };
        self.case("copy".into(), &p, step, &[("live", vec![1, 1]), ("pairs", vec![0, 1])])?;
        self.copy = self.rows.last().map_or(0.0, |r| r.gb_per_s * 1e9);
        Ok(())
    }

    /// Products and gated MLPs of 8B and 70B shapes, enough copies of the weight to leave no cache warm.
    fn products(&mut self) -> Result<()> {
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
                self.weights.clear();
                let copies = self.pick((256 << 20) / format.bytes_for(n * k).unwrap_or(1).max(1) + 1, 2);
                for rows in self.pick(vec![1, 4, 8, 16, 64], vec![2]) {
                    self.product(format, *n, *k, copies, rows)?;
                }
            }
            self.weights.clear();
            let (hidden, ffn) = self.pick((4096, 14_336), (256, 256));
            for rows in self.pick(vec![1, 4, 16, 64], vec![1]) {
                self.mlp(format, hidden, ffn, rows)?;
            }
        }
        self.weights.clear();
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
        self.case(case, &p, step, &[("live", vec![rows as u32; 2])])
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
        p.push(GatedMlp { x, gate, up, down, gated, out, activation: ponder_engine::model::Activation::Silu });
        let step = StepShape { rows, logit_rows: rows, context: 0 };
        self.case(format!("gated mlp {format} {hidden}/{ffn}"), &p, step, &[("live", vec![rows as u32; 2])])
    }

    fn attention(&mut self) -> Result<()> {
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
        let [k_cache, v_cache] = ["k_cache", "v_cache"].map(|name| p.kv_cache(name, format, shape));
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
        self.case(format!("attention {format:?} {heads}/{kv_heads}"), &p, step, &all_seen(rows, context))
    }

    /// DeepSeek-V3's attention, on one device and shared among eight.
    fn latent(&mut self) -> Result<()> {
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
        self.case(case, &p, step, &all_seen(rows, context))
    }

    fn norms(&mut self) -> Result<()> {
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
        self.weights.clear();
        Ok(())
    }

    fn sampling(&mut self) -> Result<()> {
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

    /// Whole decode steps of an 8B model, sampling included.
    fn decode(&mut self) -> Result<()> {
        let config = decode_config(self.scale);
        for format in self.pick(vec![Format::BF16, Format::F8, Format::I4G128, Format::Q4K], vec![Format::Q4K]) {
            self.weights.clear();
            for context in self.pick(vec![1024, 16_384, 65_536], vec![48]) {
                for rows in self.pick(vec![1, 4, 16, 64], vec![2]) {
                    self.step(&config, format, rows, context)?;
                }
            }
        }
        self.weights.clear();
        Ok(())
    }
    fn step(&mut self, config: &ModelConfig, format: Format, rows: usize, context: usize) -> Result<()> {
        let max_blocks = context.div_ceil(16);
        let capacity = Capacity { rows, logit_rows: rows, seqs: rows, max_blocks, adjust: 1 };
        let kv = KvShape { blocks: rows * max_blocks, block_size: 16, format: KvFormat::BF16 };
        let p = record(config, capacity, kv, &|_| format);
        let sampling = SampleRow { temperature: 0.8, top_p: 0.95, top_k: 20, ..SampleRow::default() };
        let inputs = [
            (names::LIVE, vec![rows as u32; 2]),
            (names::TOKENS, (0..rows as u32).collect()),
            (names::POSITIONS, vec![context as u32 - 1; rows]),
            (names::ROW_SEQ, (0..rows as u32).collect()),
            (names::SLOT_MAPPING, (1..=rows).map(|r| (r * max_blocks * 16 - 1) as u32).collect()),
            (names::BLOCK_TABLES, (0..(rows * max_blocks) as u32).collect()),
            (names::LOGIT_ROWS, (0..rows as u32).collect()),
            (names::SAMPLE_PARAMS, vec![bytemuck::cast::<SampleRow, [u32; 12]>(sampling); rows].concat()),
        ];
        let step = StepShape { rows, logit_rows: rows, context };
        self.case(format!("decode step, {} layers, {format}", config.layers), &p, step, &inputs)
    }
}

/// Llama-3-8B's numbers.
fn decode_config(scale: Scale) -> ModelConfig {
    let full = scale == Scale::Full;
    let rope = Rope { theta: 500_000.0, dim: 128, pairing: Pairing::Halves, scaling: RopeScaling::None };
    ModelConfig {
        family: Family::by_gguf("llama").expect("the table has it"),
        name: "random".into(),
        layers: if full { 32 } else { 1 },
        hidden: if full { 4096 } else { 256 },
        heads: if full { 32 } else { 2 },
        kv_heads: if full { 8 } else { 1 },
        head_dim: 128,
        ffn: if full { 14_336 } else { 256 },
        vocab: if full { 128_256 } else { 512 },
        context: 131_072,
        norm_eps: 1e-5,
        rope,
        local: None,
        tied: false,
        attention_scale: 128f32.sqrt().recip(),
    }
}

/// A row as the table prints it.
pub fn line(row: &Row) -> String {
    format!(
        "{:<44} {:>4} rows {:>6} ctx {:>10.1} us {:>8.1} GB/s {:>5.1} % of copy {:>7.1} TFLOP/s",
        row.case,
        row.rows,
        row.context,
        row.us,
        row.gb_per_s,
        row.of_copy * 100.0,
        row.tflop_per_s
    )
}
