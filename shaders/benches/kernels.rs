//! The forward pass of a SmolLM2-135M shape with random weights: decode and prefill, tokens per second.
//!
//! `cargo bench -p ponder-shaders`, with arguments `decode` or `prefill`, a context length, a profile, `ops`.
//! Wall time is the best of several runs. CPU time (of all threads, over two) is what a software
//! adapter would take on two idle cores: on a busy machine compare that.

use std::time::{Duration, Instant};

use ponder_engine::backend::{Backend, Bound};
use ponder_engine::format::{Format, KvFormat, int4};
use ponder_engine::model::{Activation, Pairing};
use ponder_engine::op::{self, Op, SampleRow};
use ponder_engine::program::{Elem, Program, Role, RowSpace, Slot};
use ponder_shaders::variants::Profile;
use ponder_shaders::{WgpuBackend, WgpuOptions};

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const FFN: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const VOCAB: usize = 49152;
const BLOCK: usize = 16;
const BLOCKS: usize = 128;

fn matrix(p: &mut Program, name: &str, format: Format, n: usize, k: usize) -> Slot {
    let known = p.find(name);
    known.unwrap_or_else(|| p.slot(name, Role::Weight, Elem::Weight(format), &[n, k]))
}

fn model(rows: usize, logit_rows: usize, kv: KvFormat) -> Program {
    let mut p = Program::new("bench", rows, logit_rows);
    let input = |p: &mut Program, name: &str, shape: &[usize]| p.slot(name, Role::Input, Elem::U32, shape);
    let tokens = input(&mut p, "tokens", &[rows]);
    let positions = input(&mut p, "positions", &[rows]);
    let row_seq = input(&mut p, "row_seq", &[rows]);
    let block_tables = input(&mut p, "block_tables", &[1, BLOCKS]);
    let index = input(&mut p, "index", &[logit_rows]);
    let params = input(&mut p, "params", &[logit_rows, 12]);
    let offsets = input(&mut p, "offsets", &[logit_rows + 1]);
    let adjust = input(&mut p, "adjust", &[1, 3]);
    let slot_mapping = p.slot("slot_mapping", Role::Input, Elem::I32, &[rows]);
    let rope = p.slot("rope", Role::Input, Elem::F32, &[rows, HEAD_DIM / 2, 2]);
    let (width, kv_width) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let residual = p.scratch("residual", &[rows, HIDDEN]);
    let normed = p.scratch("normed", &[rows, HIDDEN]);
    let delta = p.scratch("delta", &[rows, HIDDEN]);
    let q = p.scratch("q", &[rows, width]);
    let k = p.scratch("k", &[rows, kv_width]);
    let v = p.scratch("v", &[rows, kv_width]);
    let attended = p.scratch("attended", &[rows, width]);
    let gated = p.scratch("gated", &[rows, FFN]);
    let picked = p.scratch("picked", &[logit_rows, HIDDEN]);
    let logits = p.scratch("logits", &[logit_rows, VOCAB]);
    let out = p.slot("sampled", Role::Output, Elem::U32, &[logit_rows]);
    let table = matrix(&mut p, "embedding", Format::Q8_0, VOCAB, HIDDEN);
    let weight = p.slot("norm", Role::Weight, Elem::Weight(Format::F32), &[HIDDEN]);
    p.push(op::Embed { tokens, table, out: residual, scale: 1.0 });
    let eps = 1e-5;
    for layer in 0..LAYERS {
        let w = |p: &mut Program, name: &str, n, k| matrix(p, &format!("{name}.{layer}"), Format::Q4_1, n, k);
        match layer {
            0 => p.push(op::RmsNorm { x: residual, weight, out: normed, eps }),
            _ => p.push(op::AddRmsNorm { residual, delta, weight, out: normed, eps }),
        }
        let cache = [BLOCKS, BLOCK, KV_HEADS, HEAD_DIM];
        let names = ["k", "v"].map(|x| format!("{x}_cache.{layer}"));
        let [k_cache, v_cache] = p.kv_caches(names.each_ref().map(String::as_str), kv, cache);
        let (wq, wk, wv) =
            (w(&mut p, "q", width, HIDDEN), w(&mut p, "k", kv_width, HIDDEN), w(&mut p, "v", kv_width, HIDDEN));
        p.push(op::QkvRopeStore {
            x: normed,
            wq,
            wk,
            wv,
            bias: None,
            norm: None,
            eps,
            rope,
            rope_dim: HEAD_DIM,
            pairing: Pairing::Interleaved,
            hadamard: kv.has_scales(),
            slot_mapping,
            k_cache,
            v_cache,
            q,
            k,
            v,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
        });
        p.push(op::Attention {
            q,
            k_cache,
            v_cache,
            positions,
            row_seq,
            block_tables,
            out: attended,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            scale: 0.125,
            window: None,
        });
        let wo = w(&mut p, "o", HIDDEN, width);
        p.push(op::Linear { x: attended, w: wo, bias: None, out: delta, space: RowSpace::Batch });
        p.push(op::AddRmsNorm { residual, delta, weight, out: normed, eps });
        let (gate, up, down) =
            (w(&mut p, "gate", FFN, HIDDEN), w(&mut p, "up", FFN, HIDDEN), w(&mut p, "down", HIDDEN, FFN));
        p.push(op::GatedMlp { x: normed, gate, up, down, gated, out: delta, activation: Activation::Silu });
    }
    p.push(op::AddRmsNorm { residual, delta, weight, out: normed, eps });
    p.push(op::GatherRows { x: normed, index, out: picked });
    p.push(op::Linear { x: picked, w: table, bias: None, out: logits, space: RowSpace::Logits });
    let masks = p.slot("masks", Role::Input, Elem::U32, &[logit_rows, VOCAB.div_ceil(32)]);
    p.push(op::Sample { logits, params, offsets, adjust, masks, out });
    p
}

/// Random bytes whose scales are small numbers.
fn stored(format: Format, len: usize) -> Vec<u8> {
    let mut seed = 1u32;
    let mut byte = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    };
    if format == Format::F32 {
        return (0..len).flat_map(|_| 1f32.to_le_bytes()).collect();
    }
    let mut out = Vec::with_capacity(format.bytes_for(len).unwrap_or(0));
    for _ in 0..len / format.block_len() {
        let start = out.len();
        out.extend((0..format.block_bytes()).map(|_| byte()));
        if format == Format::F8 {
            out[start..start + 4].copy_from_slice(&0.002f32.to_le_bytes());
            out[start + 4..].iter_mut().for_each(|code| *code &= 0xbf); // no NaN
            continue;
        }
        if matches!(format, Format::I4G32 | Format::I4G128) {
            out[start..start + 4].copy_from_slice(&int4::word(2f32.powi(-9), 7).to_le_bytes());
            continue;
        }
        out[start..start + 2].copy_from_slice(&[0, 0x18]); // about 0.002
        if format == Format::Q4_1 {
            out[start + 2..start + 4].copy_from_slice(&[0, 0xa4]); // about -0.016
        }
    }
    out
}

fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<i64> = stat.rsplit(") ").next().unwrap_or("").split(' ').filter_map(|f| f.parse().ok()).collect();
    // utime and stime, in hundredths of a second, follow ten numbers.
    let ticks = fields.get(10).unwrap_or(&0) + fields.get(11).unwrap_or(&0);
    Duration::from_millis(10 * ticks as u64)
}

struct Bench {
    backend: WgpuBackend,
    bound: Bound<<WgpuBackend as Backend>::Buffer>,
}

impl Bench {
    fn bind(&mut self, program: &Program) {
        for decl in &program.slots {
            if decl.role == Role::Scratch || (self.bound.contains_key(&decl.name) && decl.role != Role::Input) {
                continue;
            }
            let buffer = match decl.elem {
                Elem::Weight(f) => self.backend.load(decl, &stored(f, decl.len())),
                _ => self.backend.alloc(decl),
            };
            self.bound.insert(decl.name.clone(), buffer.expect("memory"));
        }
    }
    fn write(&mut self, name: &str, words: &[u32]) {
        self.backend.write(&self.bound[name], bytemuck::cast_slice(words)).expect("write");
    }
    fn inputs(&mut self, rows: usize, live: usize, start: usize) {
        self.write("live", &[live as u32, 1]);
        let positions: Vec<u32> = (0..rows).map(|r| (start + r) as u32).collect();
        self.write("positions", &positions);
        self.write("slot_mapping", &positions);
        self.write("tokens", &(0..rows as u32).map(|r| r * 7 % VOCAB as u32).collect::<Vec<_>>());
        self.write("row_seq", &vec![0; rows]);
        self.write("block_tables", &(0..BLOCKS as u32).collect::<Vec<_>>());
        self.write("index", &[live as u32 - 1]);
        self.write("params", bytemuck::cast_slice(&[SampleRow::default()]));
        self.write("offsets", &[0, 0]);
        self.write("rope", bytemuck::cast_slice(&vec![0.7f32; rows * HEAD_DIM]));
    }
    /// Best wall time, mean CPU time over two, host time of writes and launch, per run.
    fn time(&mut self, program: &Program, start: usize, runs: usize) -> (f64, f64, f64) {
        self.bind(program);
        let plan = self.backend.compile(program, &self.bound).expect("compiles");
        let (mut wall, mut host) = (f64::MAX, f64::MAX);
        let mut before = Duration::ZERO;
        for run in 0..runs + 1 {
            if run == 1 {
                before = cpu_time();
            }
            let started = Instant::now();
            self.inputs(program.rows, program.rows, start);
            let pending = self.backend.launch(&plan).expect("launches");
            let launched = started.elapsed().as_secs_f64();
            self.backend.wait(pending).expect("ends");
            let mut token = [0u8; 4];
            if let Some(buffer) = self.bound.get("sampled") {
                self.backend.read(buffer, &mut token).expect("reads");
            }
            if run > 0 {
                (wall, host) = (wall.min(started.elapsed().as_secs_f64()), host.min(launched));
            }
        }
        (wall, (cpu_time() - before).as_secs_f64() / 2.0 / runs as f64, host)
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let has = |name: &str| args.iter().any(|a| a == name);
    let number = args.iter().find_map(|a| a.parse::<usize>().ok());
    let profile = Profile::ALL.into_iter().find(|p| has(p.name()));
    let options = WgpuOptions { profile, ..WgpuOptions::default() };
    let backend = match WgpuBackend::new(options) {
        Ok(backend) => backend,
        Err(e) => return println!("SKIP: {e}"),
    };
    println!("{} {:?}", backend.info().name, backend.info().features);
    let mut bench = Bench { backend, bound: Bound::default() };
    let kv = KvFormat::F16;
    for (name, rows, start, runs) in
        [("decode", 1, number.unwrap_or(128) - 1, 20), ("prefill", number.unwrap_or(512), 0, 3)]
    {
        if (has("decode") || has("prefill")) && !has(name) {
            continue;
        }
        let program = model(rows, 1, kv);
        let (wall, cpu, host) = bench.time(&program, start, runs);
        let rate = |seconds: f64| rows as f64 / seconds;
        println!(
            "{name} {rows} rows at {start}: {:.1} tok/s by wall, {:.1} by CPU time; host {:.0} us",
            rate(wall),
            rate(cpu),
            host * 1e6
        );
        if !has("ops") {
            continue;
        }
        // Each kind of op alone: all of its ops in one program.
        let mut kinds: Vec<&str> = program.ops.iter().map(Op::name).collect();
        kinds.sort();
        kinds.dedup();
        for kind in kinds {
            let mut only = program.clone();
            only.ops.retain(|o| o.name() == kind);
            let (wall, cpu, _) = bench.time(&only, start, runs);
            println!("  {kind:14} {:8.2} ms wall {:8.2} ms CPU", wall * 1e3, cpu * 1e3);
        }
    }
}
