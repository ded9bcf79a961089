//! Times kernels and whole steps against the copy bandwidth and the matrix rate measured in the same run.
//!
//! Written for any [`Device`], so that it is exercised on the CPU with tiny shapes and means something on
//! a GPU only. Data are random (zeros flatter a GPU's clock), weights of a case add up to more than any
//! cache holds.

mod ops;
pub mod peers;
mod steps;

use std::collections::HashMap;
use std::time::Instant;

use ponder_engine::backend::{Backend, Bound, DeviceInfo};
use ponder_engine::error::{DeviceFault, Error, Result};
use ponder_engine::format::{Format, KvFormat};
use ponder_engine::kv::Copies;
use ponder_engine::model::mover::BlockMover;
use ponder_engine::op::problem::noise;
use ponder_engine::op::{Op, StepShape};
use ponder_engine::program::{Elem, Program, Role, SlotDecl};
use serde::Serialize;

use crate::backend::{Buffer, Cuda};
use crate::device::{Device, Dispatch, Module};
use crate::weight::pack;
use peers::{PeerTime, Shape};

/// How large the cases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Llama-8B and Llama-70B shapes, and DeepSeek-V3's attention.
    Full,
    /// The same cases in the smallest shapes that run, to test this code.
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
    /// Of whole steps: the median time that this thread spends on one, writing its inputs, launching it and reading the
    /// sampled tokens, without the wait for the device.
    pub host_us: Option<f64>,
    /// The same in the terms of other software, where that has it too.
    pub shape: Option<Shape>,
    /// What other software took, in the same run.
    pub peers: Vec<PeerTime>,
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
    /// Rate of bf16 `mma.sync` from registers, by all warps at once: what these kernels could reach at most.
    pub mma_tflop_per_s: f64,
    /// The cases.
    pub rows: Vec<Row>,
    /// Cases left out, and why.
    pub skipped: Vec<String>,
    /// What ran beside, or why nothing did.
    pub beside: String,
}

/// Runs every case. `say` gets a line per case as it is done.
///
/// # Errors
/// Of the device; a case that does not fit its memory is skipped, not an error.
pub fn run<D: Device>(backend: &mut Cuda<D>, scale: Scale, say: &mut dyn FnMut(&str)) -> Result<Table> {
    let info = backend.info().clone();
    let mut bench = Bench {
        backend,
        scale,
        weights: HashMap::new(),
        packed: HashMap::new(),
        copy: 0.0,
        rows: Vec::new(),
        skipped: Vec::new(),
        say,
    };
    bench.copy_bandwidth()?;
    let mma_tflop_per_s = bench.matrix_rate()?;
    bench.products()?;
    bench.attention()?;
    bench.latent()?;
    bench.norms()?;
    bench.sampling()?;
    bench.steps()?;
    let Bench { copy, rows, skipped, .. } = bench;
    let DeviceInfo { name: device, features, .. } = info;
    let beside = "nothing else was asked to run beside".into();
    Ok(Table { device, features, copy_gb_per_s: copy / 1e9, mma_tflop_per_s, rows, skipped, beside })
}

struct Bench<'a, D: Device> {
    backend: &'a mut Cuda<D>,
    scale: Scale,
    /// Weights of the present group of cases, by slot name.
    weights: HashMap<String, Buffer<D>>,
    /// Random weights as they lie on the device, by format and shape: weights of one shape hold the same bytes in
    /// memory of their own.
    packed: HashMap<(Format, usize, usize), Vec<u8>>,
    copy: f64,
    rows: Vec<Row>,
    skipped: Vec<String>,
    say: &'a mut dyn FnMut(&str),
}

/// What is to be timed.
struct Case<'a> {
    name: String,
    program: &'a Program,
    step: StepShape,
    /// What input slots hold; random floats and zeros where none is given.
    inputs: &'a [(&'a str, Vec<u32>)],
    /// Sequences that the rows belong to: each one's cache is read once.
    sequences: usize,
    /// The slot that a whole step's caller reads.
    read: Option<&'a str>,
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

/// Random elements of a cache's block, `bytes` of them; scales are one number.
fn random_block(elem: Elem, bytes: usize) -> Vec<u8> {
    let value = |i: usize| noise(4, "cache", 0, i);
    match elem {
        Elem::Kv(KvFormat::F32) => (0..bytes / 4).flat_map(|i| value(i).to_le_bytes()).collect(),
        Elem::Kv(KvFormat::F16) => (0..bytes / 2).flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes()).collect(),
        Elem::Kv(KvFormat::BF16) => (0..bytes / 2).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect(),
        // Any code but the two that are no number.
        Elem::Kv(_) => (0..bytes).map(|i| (value(i) * 126.0) as i8 as u8 & 0xF7).collect(),
        _ => (0..bytes / 4).flat_map(|_| 0.0625f32.to_le_bytes()).collect(),
    }
}

impl<D: Device> Bench<'_, D> {
    fn pick<T>(&self, full: T, tiny: T) -> T {
        if self.scale == Scale::Full { full } else { tiny }
    }

    /// Compiles a case's program and times it: seconds of the device, and of the host where a whole step is asked for.
    fn time(&mut self, case: &Case<'_>) -> Result<(f64, Option<f64>)> {
        let (bound, inputs) = self.bind(case)?;
        let plan = self.backend.compile(case.program, &bound)?;
        let warm = self.backend.launch(&plan)?;
        self.backend.wait(warm)?;
        let times = self.pick(5, 1);
        let mut samples = Vec::new();
        for _ in 0..self.pick(7, 1) {
            samples.push(f64::from(self.backend.time_ms(&plan, times)?) / times as f64 * 1e-3);
        }
        let device = median(samples);
        let Some(read) = case.read else { return Ok((device, None)) };
        let mut host = Vec::new();
        let slot = case.program.find(read).expect("a step has what it is read by");
        let mut out = vec![0u8; case.program.decl(slot).bytes()];
        for _ in 0..self.pick(21, 1) {
            let start = Instant::now();
            inputs
                .iter()
                .try_for_each(|(name, words)| self.backend.write(&bound[name], bytemuck::cast_slice(words)))?;
            let pending = self.backend.launch(&plan)?;
            let launched = start.elapsed();
            self.backend.wait(pending)?;
            let start = Instant::now();
            self.backend.read(&bound[read], &mut out)?;
            host.push((launched + start.elapsed()).as_secs_f64());
        }
        Ok((device, Some(median(host))))
    }

    /// Buffers for a case's slots, and what its inputs hold.
    #[allow(clippy::type_complexity)]
    fn bind(&mut self, case: &Case<'_>) -> Result<(Bound<Buffer<D>>, Vec<(String, Vec<u32>)>)> {
        let mut bound: Bound<Buffer<D>> = Bound::default();
        let mut inputs = Vec::new();
        for decl in case.program.slots.iter().filter(|d| d.role != Role::Scratch) {
            let buffer = match (decl.role, self.weights.get(&decl.name)) {
                (_, Some(buffer)) => buffer.clone(),
                (Role::Weight, None) => self.load(decl)?,
                _ => self.backend.alloc(decl)?,
            };
            if decl.role == Role::Input {
                let given = case.inputs.iter().find(|i| i.0 == decl.name).map(|i| i.1.clone());
                let words = given.unwrap_or_else(|| match decl.elem {
                    Elem::F32 => (0..decl.len()).map(|i| noise(2, &decl.name, 0, i).to_bits()).collect(),
                    _ => vec![0; decl.len()],
                });
                inputs.push((decl.name.clone(), words));
            }
            bound.insert(decl.name.clone(), buffer);
        }
        self.fill_caches(case.program, &mut bound)?;
        for (name, words) in &inputs {
            self.backend.write(&bound[name], bytemuck::cast_slice(words))?;
        }
        Ok((bound, inputs))
    }
    /// Random blocks: one is written, the device copies it.
    fn fill_caches(&mut self, program: &Program, bound: &mut Bound<Buffer<D>>) -> Result<()> {
        for decl in program.slots.iter().filter(|d| d.role == Role::Kv) {
            let block = random_block(decl.elem, self.backend.block_bytes(decl));
            self.backend.load_blocks(&bound[&decl.name], decl, &[0], &block)?;
            let mut mover = BlockMover::default();
            mover.know(decl.clone());
            let copy = (1..decl.shape[0] as u32).map(|to| (0, to)).collect();
            mover.run(self.backend, bound, &Copies { copy, ..Copies::default() })?;
        }
        Ok(())
    }
    /// A random weight, kept for the cases that follow.
    fn load(&mut self, decl: &SlotDecl) -> Result<Buffer<D>> {
        let Elem::Weight(format) = decl.elem else { unreachable!("only weights are loaded") };
        let buffer = match decl.shape[..] {
            [n, k] => {
                let make = || pack(format, n, k, &random_weight(format, n, k));
                self.backend.load_packed(decl, self.packed.entry((format, n, k)).or_insert_with(make))?
            }
            _ => self.backend.load(decl, &random_weight(format, 1, decl.len()))?,
        };
        self.weights.insert(decl.name.clone(), buffer.clone());
        Ok(buffer)
    }
    fn forget_weights(&mut self) {
        self.weights.clear();
        self.packed.clear();
    }

    /// Times a case of rows that are sequences of their own.
    fn case(
        &mut self,
        name: String,
        program: &Program,
        step: StepShape,
        inputs: &[(&str, Vec<u32>)],
    ) -> Result<Option<&mut Row>> {
        let sequences = step.rows;
        self.measure(Case { name, program, step, inputs, sequences, read: None })
    }
    /// Times a case and keeps its row; what does not fit the device's memory is skipped.
    fn measure(&mut self, case: Case<'_>) -> Result<Option<&mut Row>> {
        let (step, outcome) = (case.step, self.fits(case.program).and_then(|()| self.time(&case)));
        let (seconds, host) = match outcome {
            Ok(times) => times,
            Err(Error::Device { what: what @ DeviceFault::OutOfMemory { .. }, .. }) => {
                self.skipped.push(format!("{}, {} rows, context {}: {what}", case.name, step.rows, step.context));
                (self.say)(&self.skipped[self.skipped.len() - 1]);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (bytes, flops) = case.program.ops.iter().fold((0.0, 0.0), |(bytes, flops), op| {
            let cost = op.cost(case.program, &step);
            let share = if matches!(op, Op::Attention(_)) { case.sequences as f64 / step.rows as f64 } else { 1.0 };
            (bytes + cost.bytes * share, flops + cost.flops)
        });
        let rate = bytes / seconds;
        let row = Row {
            case: case.name,
            rows: step.rows,
            context: step.context,
            us: seconds * 1e6,
            bytes,
            gb_per_s: rate / 1e9,
            of_copy: if self.copy > 0.0 { rate / self.copy } else { 1.0 },
            tflop_per_s: flops / seconds / 1e12,
            host_us: host.map(|s| s * 1e6),
            shape: None,
            peers: Vec::new(),
        };
        (self.say)(&line(&row));
        self.rows.push(row);
        Ok(self.rows.last_mut())
    }
    /// Refuses what cannot fit before anything of it is loaded.
    fn fits(&self, program: &Program) -> Result<()> {
        let Some(memory) = self.backend.info().memory else { return Ok(()) };
        let wanted: u64 = program.slots.iter().map(|d| d.bytes() as u64).sum();
        if wanted <= memory.total / 100 * 97 {
            return Ok(());
        }
        let what = format!("{} on a device of {} GB", program.name, memory.total / 1_000_000_000);
        let device = self.backend.info().name.clone();
        Err(Error::Device { device, what: DeviceFault::OutOfMemory { wanted, what } })
    }

    /// Operations per second of `mma.sync` from registers.
    fn matrix_rate(&mut self) -> Result<f64> {
        let (blocks, rounds) = self.pick((4096, 512), (1, 2));
        let device = self.backend.device();
        let out = device.alloc(16, "the matrix rate's result")?;
        let module = Module { stem: "selftest", variant: "" };
        let args = vec![D::address(&out), rounds];
        let dispatch = Dispatch { module, kernel: "matrix_rate".into(), grid: [blocks, 1, 1], threads: 256, args };
        let work = device.prepare("matrix rate", vec![dispatch])?;
        let mut samples = Vec::new();
        for _ in 0..self.pick(7, 1) {
            samples.push(f64::from(self.backend.device().time_ms(&work, 1)?) * 1e-3);
        }
        // 8 warps, 8 products a round, each of 16 x 8 x 16.
        let flops = f64::from(blocks) * rounds as f64 * 64.0 * 4096.0;
        let rate = flops / median(samples) / 1e12;
        (self.say)(&format!("bf16 mma.sync from registers: {rate:.1} TFLOP/s"));
        Ok(rate)
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// A row as the table prints it.
pub fn line(row: &Row) -> String {
    let host = row.host_us.map_or(String::new(), |us| format!(" {us:>7.1} us of the host"));
    format!(
        "{:<52} {:>4} rows {:>6} ctx {:>10.1} us {:>8.1} GB/s {:>5.1} % of copy {:>7.1} TFLOP/s{host}",
        row.case,
        row.rows,
        row.context,
        row.us,
        row.gb_per_s,
        row.of_copy * 100.0,
        row.tflop_per_s
    )
}
