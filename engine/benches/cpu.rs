//! Where the CPU backend stands: a model of SmolLM2-135M's shape with made-up weights, beside the limits
//! that this machine sets, measured in the same run.
//!
//! `cargo bench -p ponder-engine --bench cpu [-- FORMAT [THREADS] [kernels | profile]]`

use std::collections::HashMap;
use std::time::Instant;

use ponder_engine::backend::cpu::panel::Panels;
use ponder_engine::backend::cpu::simd::Level;
use ponder_engine::backend::cpu::tile::{Form, TileArgs, max_tile, tile_kernel};
use ponder_engine::backend::cpu::{Buffer, CpuBackend, Plan};
use ponder_engine::backend::{Backend, Bound};
use ponder_engine::format::{Format, KvFormat};
use ponder_engine::model::{Activation, Pairing};
use ponder_engine::op::{
    AddRmsNorm, Attention, Embed, GatedMlp, GatherRows, Linear, QkvRopeStore, RmsNorm, Sample, SampleRow,
};
use ponder_engine::program::{Elem, Program, Role, RowSpace, Slot};

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const FFN: usize = 1536;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;
const VOCAB: usize = 49152;
const BLOCK: usize = 16;
const BLOCKS: usize = 1024;
const ROWS: usize = 512;
/// Bytes of weights, at eight bits each, that no second-level cache holds.
const FAR: usize = 64 << 20;
/// Time for one figure, after three repeats.
const SECONDS: f64 = 1.5;

fn weight(p: &mut Program, name: String, format: Format, shape: &[usize]) -> Slot {
    p.slot(name, Role::Weight, Elem::Weight(format), shape)
}

/// Storage of keys and values: `PONDER_KV_CACHE_DTYPE`, else f16.
fn kv_format() -> KvFormat {
    std::env::var("PONDER_KV_CACHE_DTYPE").map_or(KvFormat::F16, |name| name.parse().expect("a cache format"))
}

/// The forward pass of a Llama of these dimensions.
fn record(format: Format) -> Program {
    let mut p = Program::new("bench", ROWS, 16);
    let input = |p: &mut Program, name: &str, elem, shape: &[usize]| p.slot(name, Role::Input, elem, shape);
    let tokens = input(&mut p, "tokens", Elem::U32, &[ROWS]);
    let positions = input(&mut p, "positions", Elem::U32, &[ROWS]);
    let row_seq = input(&mut p, "row_seq", Elem::U32, &[ROWS]);
    let slot_mapping = input(&mut p, "slot_mapping", Elem::I32, &[ROWS]);
    let block_tables = input(&mut p, "block_tables", Elem::U32, &[8, BLOCKS / 8]);
    let rope = input(&mut p, "rope", Elem::F32, &[ROWS, DIM / 2, 2]);
    let index = input(&mut p, "index", Elem::U32, &[16]);
    let params = input(&mut p, "params", Elem::U32, &[16, size_of::<SampleRow>() / 4]);
    let offsets = input(&mut p, "offsets", Elem::U32, &[17]);
    let adjust = input(&mut p, "adjust", Elem::U32, &[1, 3]);
    let [residual, x, delta] = ["residual", "x", "delta"].map(|n| p.scratch(n, &[ROWS, HIDDEN]));
    let q = p.scratch("q", &[ROWS, HEADS * DIM]);
    let [k, v] = ["k", "v"].map(|n| p.scratch(n, &[ROWS, KV_HEADS * DIM]));
    let attended = p.scratch("attended", &[ROWS, HEADS * DIM]);
    let gated = p.scratch("gated", &[ROWS, FFN]);
    let table = weight(&mut p, "embedding".into(), Format::Q8_0, &[VOCAB, HIDDEN]);
    p.push(Embed { tokens, table, out: residual, scale: 1.0 });
    for layer in 0..LAYERS {
        let mut w = |name: &str, shape: &[usize]| weight(&mut p, format!("{name}.{layer}"), format, shape);
        let (wq, wk, wv) =
            (w("wq", &[HEADS * DIM, HIDDEN]), w("wk", &[KV_HEADS * DIM, HIDDEN]), w("wv", &[KV_HEADS * DIM, HIDDEN]));
        let (wo, gate, up, down) = (
            w("wo", &[HIDDEN, HEADS * DIM]),
            w("gate", &[FFN, HIDDEN]),
            w("up", &[FFN, HIDDEN]),
            w("down", &[HIDDEN, FFN]),
        );
        let [n1, n2] = ["n1", "n2"].map(|n| weight(&mut p, format!("{n}.{layer}"), Format::F32, &[HIDDEN]));
        let kv = [BLOCKS, BLOCK, KV_HEADS, DIM];
        let names = ["kc", "vc"].map(|n| format!("{n}.{layer}"));
        let [k_cache, v_cache] = p.kv_caches(names.each_ref().map(String::as_str), kv_format(), kv);
        match layer {
            0 => p.push(RmsNorm { x: residual, weight: n1, out: x, eps: 1e-5 }),
            _ => p.push(AddRmsNorm { residual, delta, weight: n1, out: x, eps: 1e-5 }),
        }
        p.push(QkvRopeStore {
            x,
            wq,
            wk,
            wv,
            bias: None,
            norm: None,
            eps: 1e-5,
            rope,
            rope_dim: DIM,
            pairing: Pairing::Interleaved,
            hadamard: kv_format().has_scales(),
            slot_mapping,
            k_cache,
            v_cache,
            q,
            k,
            v,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: DIM,
        });
        p.push(Attention {
            q,
            k_cache,
            v_cache,
            positions,
            row_seq,
            block_tables,
            out: attended,
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: DIM,
            scale: 0.125,
            window: None,
        });
        p.push(Linear { x: attended, w: wo, bias: None, out: delta, space: RowSpace::Batch });
        p.push(AddRmsNorm { residual, delta, weight: n2, out: x, eps: 1e-5 });
        p.push(GatedMlp { x, gate, up, down, gated, out: delta, activation: Activation::Silu });
    }
    let norm = weight(&mut p, "norm".into(), Format::F32, &[HIDDEN]);
    let last = p.scratch("last", &[16, HIDDEN]);
    let logits = p.scratch("logits", &[16, VOCAB]);
    p.push(AddRmsNorm { residual, delta, weight: norm, out: x, eps: 1e-5 });
    p.push(GatherRows { x, index, out: last });
    p.push(Linear { x: last, w: table, bias: None, out: logits, space: RowSpace::Logits });
    let masks = p.slot("masks", Role::Input, Elem::U32, &[16, VOCAB.div_ceil(32)]);
    let out = p.slot("sampled", Role::Output, Elem::U32, &[16]);
    p.push(Sample { logits, params, offsets, adjust, masks, out });
    p
}

struct Bench {
    backend: CpuBackend,
    bound: Bound<Buffer>,
    plan: Plan,
}

impl Bench {
    fn new(format: Format, threads: usize) -> Self {
        let mut backend = CpuBackend::new(threads).expect("a backend");
        let program = record(format);
        let mut bound = Bound::default();
        let mut encoded: HashMap<(Format, Vec<usize>), Vec<u8>> = HashMap::new();
        for decl in program.slots.iter().filter(|d| d.role != Role::Scratch) {
            let buffer = match decl.elem {
                Elem::Weight(format) => {
                    let bytes =
                        encoded.entry((format, decl.shape.clone())).or_insert_with(|| noise(format, decl.len()));
                    backend.load(decl, bytes)
                }
                _ => backend.alloc(decl),
            };
            bound.insert(decl.name.clone(), buffer.expect("memory"));
        }
        let plan = backend.compile(&program, &bound).expect("a plan");
        Self { backend, bound, plan }
    }
    fn set<T: bytemuck::NoUninit>(&mut self, name: &str, values: &[T]) {
        self.backend.write(&self.bound[name], bytemuck::cast_slice(values)).expect("an input");
    }
    /// Seconds of one step: `seqs` sequences with `per` new tokens each, the first at `position`.
    fn step(&mut self, seqs: usize, per: usize, position: usize, sample: SampleRow) -> f64 {
        let rows = seqs * per;
        let at: Vec<usize> = (0..rows).map(|r| position + r % per).collect();
        let blocks = BLOCKS / 8;
        self.set("live", &[rows as u32, seqs as u32]);
        self.set("tokens", &(0..rows as u32).map(|r| r * 37 % 49000).collect::<Vec<_>>());
        self.set("positions", &at.iter().map(|p| *p as u32).collect::<Vec<_>>());
        self.set("row_seq", &(0..rows).map(|r| (r / per) as u32).collect::<Vec<_>>());
        self.set("block_tables", &(0..BLOCKS as u32).collect::<Vec<_>>());
        self.set("slot_mapping", &(0..rows).map(|r| ((r / per) * blocks * BLOCK + at[r]) as i32).collect::<Vec<_>>());
        let rope: Vec<f32> = (0..rows * DIM).map(|i| if i % 2 == 0 { 0.8 } else { 0.6 }).collect();
        self.set("rope", &rope);
        self.set("index", &(0..seqs as u32).map(|s| (s + 1) * per as u32 - 1).collect::<Vec<_>>());
        self.set("offsets", &[0u32; 17]);
        self.set("params", &vec![sample; seqs]);
        let begun = Instant::now();
        self.backend.launch(&self.plan).expect("a launch");
        begun.elapsed().as_secs_f64()
    }
    /// Prints the best time of each step of the last launch's inputs, summed by op.
    fn profile(&mut self, what: &str, repeats: usize) {
        let mut best: Vec<(&str, f64)> = Vec::new();
        for _ in 0..repeats {
            let steps = self.backend.profile(&self.plan).expect("a launch");
            best.resize(steps.len(), ("", f64::INFINITY));
            best.iter_mut().zip(steps).for_each(|(b, s)| *b = (s.0, s.1.min(b.1)));
        }
        let mut sums: Vec<(String, f64)> = Vec::new();
        for (i, (op, t)) in best.iter().enumerate() {
            let name = if i > 0 && best[i - 1].0 == *op { format!("{op} (second step)") } else { op.to_string() };
            match sums.iter_mut().find(|s| s.0 == name) {
                Some(sum) => sum.1 += t,
                None => sums.push((name, *t)),
            }
        }
        println!("{what}: {:.3} ms", best.iter().map(|b| b.1).sum::<f64>() * 1e3);
        sums.iter().for_each(|(name, t)| println!("  {name:28} {:9.1} us", t * 1e6));
    }
    /// Seconds of a step: the best of some, or on one thread the mean processor time, which other programs
    /// on the machine disturb less.
    fn best(&mut self, repeats: usize, seqs: usize, per: usize, position: usize, sample: SampleRow) -> f64 {
        let begun = Instant::now();
        let used = processor_time();
        let mut best = f64::INFINITY;
        let mut count = 0;
        while count < 3 || count < repeats && begun.elapsed().as_secs_f64() < SECONDS {
            best = best.min(self.step(seqs, per, position, sample));
            count += 1;
        }
        match (self.backend.threads(), used, processor_time()) {
            (1, Some(before), Some(after)) => (after - before) / count as f64,
            _ => best,
        }
    }
}

/// Seconds that this thread has run, where the system tells.
fn processor_time() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split_whitespace().next()?.parse::<f64>().ok()? / 1e9)
}

fn noise(format: Format, len: usize) -> Vec<u8> {
    let mut seed = 1u32;
    let mut x = Vec::with_capacity(len);
    x.extend((0..len).map(|_| {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        (seed >> 8) as f32 / (1 << 23) as f32 * 0.1 - 0.1
    }));
    let mut bytes = Vec::new();
    format.encode(&x, &mut bytes);
    bytes
}

/// Multiply-adds per second of one thread in the inner kernels: from cache, and with weights from memory.
fn kernels(level: Level, format: Format) {
    let (k, rows) = (HIDDEN / 256 * 256, 8);
    let bytes = Form::ALL.map(|form| form.bytes(k, rows)).into_iter().max();
    let x = vec![0u8; bytes.unwrap_or(0) + 64];
    let x = x.as_ptr().wrapping_add(x.as_ptr().align_offset(64));
    let packed = |n: usize| {
        let shape = Panels { format, n, k };
        let mut panels = vec![0; shape.bytes()];
        shape.pack(&noise(format, n * k), &mut panels);
        (shape, panels)
    };
    let (near, far) = (packed(256), packed(FAR / k / 256 * 256));
    let mut out = vec![0f32; rows * 256];
    for rows in 1..=max_tile(level) {
        let kernel = tile_kernel(level, format, rows).run;
        let mut measure = |(shape, panels): &(Panels, Vec<u8>)| {
            let used = processor_time();
            let begun = Instant::now();
            let (mut best, mut calls, mut at) = (f64::INFINITY, 0, 0);
            while begun.elapsed().as_secs_f64() < SECONDS / 4.0 {
                let begun = Instant::now();
                for _ in 0..4 {
                    let args = TileArgs {
                        panels: panels[at * shape.panel_bytes()..].as_ptr(),
                        panel_bytes: shape.panel_bytes(),
                        count: 16,
                        x,
                        k,
                        out: out.as_mut_ptr(),
                        stride: 256,
                    };
                    // SAFETY: the panels, the tile (zeros) and the outputs are as large as the arguments say.
                    unsafe { kernel(args) };
                    at = (at + 16) % shape.count();
                }
                calls += 4;
                best = best.min(begun.elapsed().as_secs_f64() / 4.0);
            }
            let mean = used.zip(processor_time()).map_or(best, |(a, b)| (b - a) / calls as f64);
            let macs = (rows * 256 * k) as f64;
            let weights = (16 * shape.panel_bytes()) as f64;
            format!(
                "{:.1} GMAC/s at best, {:.1} on average, {:.1} GB/s",
                macs / best / 1e9,
                macs / mean / 1e9,
                weights / best / 1e9
            )
        };
        println!("kernel {format}, {rows} rows: {}; from memory {}", measure(&near), measure(&far));
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let format = args.first().map_or(Format::Q4_1, |name| {
        Format::ALL.into_iter().find(|f| f.name() == name).unwrap_or_else(|| panic!("no format {name:?}"))
    });
    if args.iter().any(|a| a == "kernels") {
        return kernels(CpuBackend::new(1).expect("a backend").level(), format);
    }
    let threads = args.iter().find_map(|n| n.parse().ok()).unwrap_or(0);
    let mut bench = Bench::new(format, threads);
    let info = bench.backend.info().clone();
    println!("{} ({}), {format}", info.name, info.features.join(", "));
    bench.step(8, 64, 0, SampleRow::default()); // fills the caches
    bench.step(8, 64, 64, SampleRow::default());
    if args.iter().any(|a| a == "profile") {
        for (seqs, per, position, repeats) in
            [(1, 512, 0, 8), (1, 1, 10, 100), (1, 1, 100, 100), (1, 1, 500, 100), (8, 1, 100, 30)]
        {
            bench.step(seqs, per, position, SampleRow::default());
            bench.profile(&format!("{seqs} x {per} at {position}"), repeats);
        }
        return;
    }
    let bandwidth = bench.backend.measure_bandwidth().expect("a measurement");
    let body = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_HEADS * DIM + 3 * HIDDEN * FFN);
    let head = VOCAB * HIDDEN;
    let bytes = body / format.block_len() * format.block_bytes() + head / 32 * 34;
    println!(
        "memory {:.1} GB/s; weights {:.1} MB: at best {:.0} tokens/s",
        bandwidth / 1e9,
        bytes as f64 / 1e6,
        bandwidth / bytes as f64
    );
    let greedy = SampleRow::default();
    bench.step(1, 512, 0, greedy);
    for position in [16, 500, 2000] {
        let t = bench.best(400, 1, 1, position, greedy);
        println!(
            "decode at {position}: {:.0} tokens/s, {:.0}% of memory",
            1.0 / t,
            100.0 * bytes as f64 / t / bandwidth
        );
    }
    let one = bench.best(400, 1, 1, 100, greedy);
    for seqs in [2, 4, 8] {
        let t = bench.best(200, seqs, 1, 100, greedy);
        println!("decode {seqs} at once: {:.0} tokens/s, {:.2} times one", seqs as f64 / t, seqs as f64 * one / t);
    }
    for (seqs, per) in [(1, 7), (1, 64), (1, 512)] {
        let t = bench.best(10, seqs, per, 0, greedy);
        let macs = (seqs * per * body + seqs * head) as f64;
        println!("prefill {per}: {:.0} tokens/s, {:.1} GMAC/s", (seqs * per) as f64 / t, macs / t / 1e9);
    }
    let sampling = SampleRow { temperature: 0.8, position: 7, ..greedy };
    for (name, row) in [
        ("temperature", sampling),
        ("top p", SampleRow { top_p: 0.95, ..sampling }),
        ("top k", SampleRow { top_k: 40, ..sampling }),
    ] {
        let t = bench.best(400, 1, 1, 100, row);
        println!("sampling with {name}: {:+.0} us a step", (t - one) * 1e6);
    }
}
