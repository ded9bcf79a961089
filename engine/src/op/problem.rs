//! Problems for backends: small programs with seeded data, one list for every backend and the oracle.
//!
//! Data are a hash of (seed, slot, row, column), so a row holds the same numbers whatever the
//! capacity of the program around it: what [`crate::backend::check`] needs to compare row buckets.
//! Unwritten cache slots and padding rows hold NaN: whoever reads them shows it.

use std::collections::HashMap;

use half::{bf16, f16};

use super::*;
use crate::format::{Format, KvFormat};
use crate::model::{Activation, Pairing};
use crate::program::{Elem, Role, RowSpace};

/// One problem: launches in order, then outputs to compare.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What it tests, unique.
    pub name: String,
    /// Programs by index.
    pub programs: Vec<Program>,
    /// Stored bytes of weights by slot name.
    pub weights: HashMap<String, Vec<u8>>,
    /// Launches in order: program index, and bytes by input slot name.
    pub launches: Vec<(usize, HashMap<String, Vec<u8>>)>,
    /// Outputs of the last launch.
    pub outputs: Vec<Expected>,
}

/// An output to compare.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Slot name.
    pub slot: String,
    /// Live elements to compare, from the front.
    pub len: usize,
    /// Elements per row.
    pub width: usize,
    /// Allowed difference over the largest absolute reference value; `None` for ids, which are equal.
    pub tolerance: Option<f64>,
}

/// Uniform in [-1, 1) from a hash (splitmix64).
pub fn noise(seed: u64, slot: &str, row: usize, column: usize) -> f32 {
    let mut z = slot.bytes().fold(seed ^ 0x9E37_79B9_7F4A_7C15, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01B3));
    z = z.wrapping_add((row as u64) << 32 | column as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Builds a problem around one or two programs.
struct Maker {
    seed: u64,
    live: usize,
    problem: Problem,
    inputs: HashMap<String, Vec<u8>>,
}

impl Maker {
    fn new(name: impl Into<String>, rows: usize, live: usize) -> Self {
        assert!(live <= rows);
        let program = Program::new("problem", rows, rows);
        let problem = Problem {
            name: name.into(),
            programs: vec![program],
            weights: HashMap::new(),
            launches: Vec::new(),
            outputs: Vec::new(),
        };
        let mut maker = Self { seed: 1, live, problem, inputs: HashMap::new() };
        maker.set("live", vec![live as u32, live as u32]);
        maker
    }
    fn program(&mut self) -> &mut Program {
        self.problem.programs.last_mut().expect("a maker has a program")
    }
    fn rows(&mut self) -> usize {
        self.program().rows
    }
    fn set<T: bytemuck::NoUninit>(&mut self, name: &str, values: Vec<T>) {
        self.inputs.insert(name.into(), bytemuck::cast_slice(&values).to_vec());
    }
    fn u32s(&mut self, name: &str, shape: &[usize], values: Vec<u32>) -> Slot {
        self.set(name, values);
        self.program().slot(name, Role::Input, Elem::U32, shape)
    }
    /// An f32 input `[rows, width]`; padding rows are NaN.
    fn input(&mut self, name: &str, width: usize) -> Slot {
        let (seed, live, rows) = (self.seed, self.live, self.rows());
        let at = |i: usize| if i / width < live { noise(seed, name, i / width, i % width) } else { f32::NAN };
        self.set(name, (0..rows * width).map(at).collect());
        self.program().slot(name, Role::Input, Elem::F32, &[rows, width])
    }
    fn weight(&mut self, name: &str, format: Format, shape: &[usize]) -> Slot {
        let k = *shape.last().expect("a weight has a shape");
        let mut bytes = Vec::new();
        for row in 0..shape.iter().product::<usize>() / k {
            let x: Vec<f32> = (0..k).map(|c| noise(self.seed, name, row, c) * (1.0 + row as f32 * 0.01)).collect();
            format.encode(&x, &mut bytes);
        }
        self.problem.weights.insert(name.into(), bytes);
        self.program().slot(name, Role::Weight, Elem::Weight(format), shape)
    }
    fn output(&mut self, name: &str, width: usize, tolerance: f64) -> Slot {
        let rows = self.rows();
        let len = self.live * width;
        self.problem.outputs.push(Expected { slot: name.into(), len, width, tolerance: Some(tolerance) });
        self.program().slot(name, Role::Output, Elem::F32, &[rows, width])
    }
    /// Ends the present program and starts the next, which shares slots by name.
    fn next_program(&mut self, rows: usize, live: usize) {
        let inputs = std::mem::take(&mut self.inputs);
        self.problem.launches.push((self.problem.programs.len() - 1, inputs));
        self.problem.programs.push(Program::new("problem", rows, rows));
        self.live = live;
        self.set("live", vec![live as u32, live as u32]);
    }
    fn finish(mut self) -> Problem {
        self.problem.launches.push((self.problem.programs.len() - 1, self.inputs));
        self.problem
    }
}

/// Every problem at a row capacity, with `live` of the rows alive.
pub fn problems(rows: usize, live: usize) -> Vec<Problem> {
    let mut all = Vec::new();
    for format in Format::ALL {
        let k = if format.block_len() == 256 { 768 } else { 576 };
        all.push(embed(rows, live, format, k));
        all.push(linear(rows, live, format, 200, k, false));
        all.push(gated_mlp(rows, live, format, k, Activation::Silu));
    }
    all.push(linear(rows, live, Format::Q4_1, 48, 1536, false));
    all.push(linear(rows, live, Format::BF16, 37, 100, true));
    all.push(linear(rows, live, Format::F32, 5, 20, false));
    all.push(linear(rows, live, Format::Q8_0, 1100, 64, true));
    all.push(gated_mlp(rows, live, Format::F16, 64, Activation::GeluTanh));
    all.extend([64, 576, 1000].map(|n| add_rms_norm(rows, live, n)));
    all.push(head_norm(rows, live));
    for (pairing, format, bias, norm, rope_dim) in [
        (Pairing::Interleaved, Format::Q4_1, false, false, 64),
        (Pairing::Halves, Format::BF16, true, false, 64),
        (Pairing::Halves, Format::Q4K, false, true, 64),
        (Pairing::Halves, Format::F32, true, true, 32),
        (Pairing::Interleaved, Format::F16, true, true, 32),
    ] {
        for kv in [KvFormat::F32, KvFormat::F16, KvFormat::BF16] {
            all.push(qkv(rows, live, pairing, format, bias, norm, rope_dim, kv));
        }
    }
    for kv in [KvFormat::F32, KvFormat::F16, KvFormat::BF16] {
        all.push(attention(rows, live, kv, 3, 3, 64, 16, None));
        all.push(attention(rows, live, kv, 9, 3, 64, 16, None));
        all.push(attention(rows, live, kv, 8, 1, 128, 32, None));
        all.push(attention(rows, live, kv, 4, 2, 32, 16, Some(40)));
        all.push(copy_blocks(rows, live, kv));
    }
    all.push(attention(rows, live, KvFormat::F16, 4, 1, 256, 16, Some(300)));
    all.push(gather(rows, live));
    all.extend(sampling(rows, live));
    all
}

fn embed(rows: usize, live: usize, format: Format, hidden: usize) -> Problem {
    let mut m = Maker::new(format!("embed {format} {hidden}"), rows, live);
    let ids = (0..rows).map(|r| if r < live { (r * 37 % 96) as u32 } else { u32::MAX }).collect();
    let tokens = m.u32s("tokens", &[rows], ids);
    let table = m.weight("table", format, &[96, hidden]);
    let out = m.output("out", hidden, 1e-6);
    m.program().push(Embed { tokens, table, out, scale: 1.5 });
    m.finish()
}

fn linear(rows: usize, live: usize, format: Format, n: usize, k: usize, bias: bool) -> Problem {
    let mut m = Maker::new(format!("linear {format} {n}x{k} bias {bias}"), rows, live);
    let x = m.input("x", k);
    let w = m.weight("w", format, &[n, k]);
    let bias = bias.then(|| m.weight("bias", Format::F32, &[n]));
    let out = m.output("out", n, 1e-5);
    m.program().push(Linear { x, w, bias, out, space: RowSpace::Batch });
    m.finish()
}

fn gated_mlp(rows: usize, live: usize, format: Format, hidden: usize, activation: Activation) -> Problem {
    let mut m = Maker::new(format!("gated mlp {format} {activation:?}"), rows, live);
    let ffn = 512;
    let x = m.input("x", hidden);
    let gate = m.weight("gate", format, &[ffn, hidden]);
    let up = m.weight("up", format, &[ffn, hidden]);
    let down = m.weight("down", format, &[hidden, ffn]);
    let gated = m.program().scratch("gated", &[rows, ffn]);
    let out = m.output("out", hidden, 2e-5);
    m.program().push(GatedMlp { x, gate, up, down, gated, out, activation });
    m.finish()
}

fn add_rms_norm(rows: usize, live: usize, n: usize) -> Problem {
    let mut m = Maker::new(format!("add rms norm {n}"), rows, live);
    let (x, delta) = (m.input("x", n), m.input("delta", n));
    let weight = m.weight("weight", Format::F32, &[n]);
    // `x` is copied into the residual by an add to zeros, so that the input survives.
    let residual = m.output("residual", n, 1e-6);
    let out = m.output("out", n, 1e-5);
    let index = m.u32s("index", &[rows], (0..rows as u32).collect());
    m.program().push(GatherRows { x, index, out: residual });
    m.program().push(AddRmsNorm { residual, delta, weight, out, eps: 1e-5 });
    m.finish()
}

fn head_norm(rows: usize, live: usize) -> Problem {
    let mut m = Maker::new("rms norm of heads", rows, live);
    let x = m.input("x", 4 * 64);
    let weight = m.weight("weight", Format::F32, &[64]);
    let out = m.output("out", 4 * 64, 1e-5);
    m.program().push(RmsNorm { x, weight, out, eps: 1e-6 });
    m.finish()
}

fn gather(rows: usize, live: usize) -> Problem {
    let mut m = Maker::new("gather rows", rows, live);
    let x = m.input("x", 96);
    let index = m.u32s("index", &[rows], (0..rows).map(|r| (live - 1 - r.min(live - 1)) as u32).collect());
    let out = m.output("out", 96, 0.0);
    m.program().push(GatherRows { x, index, out });
    m.finish()
}

/// cos and sin of some angles, as an input `[rows, dim / 2, 2]`.
fn rope_input(m: &mut Maker, dim: usize) -> Slot {
    let rows = m.rows();
    let angle = |row: usize, pair: usize| (row * 11 + 3) as f32 * 0.37f32.powi(pair as i32 % 7);
    let values = (0..rows * dim).map(|i| {
        let a = angle(i / dim, i % dim / 2);
        if i % 2 == 0 { a.cos() } else { a.sin() }
    });
    let values = values.collect();
    m.set::<f32>("rope", values);
    m.program().slot("rope", Role::Input, Elem::F32, &[rows, dim / 2, 2])
}

#[allow(clippy::too_many_arguments)]
fn qkv(
    rows: usize,
    live: usize,
    pairing: Pairing,
    format: Format,
    with_bias: bool,
    with_norm: bool,
    rope_dim: usize,
    kv: KvFormat,
) -> Problem {
    let name = format!("qkv {pairing:?} {format} bias {with_bias} norm {with_norm} rope {rope_dim} {kv:?}");
    let mut m = Maker::new(name, rows, live);
    let (hidden, heads, kv_heads, head_dim, block_size) = (256, 6, 2, 64, 16);
    let x = m.input("x", hidden);
    let wq = m.weight("wq", format, &[heads * head_dim, hidden]);
    let wk = m.weight("wk", format, &[kv_heads * head_dim, hidden]);
    let wv = m.weight("wv", format, &[kv_heads * head_dim, hidden]);
    let bias = with_bias.then(|| {
        [("bq", heads), ("bk", kv_heads), ("bv", kv_heads)].map(|(n, h)| m.weight(n, Format::F32, &[h * head_dim]))
    });
    let norm = with_norm.then(|| ["nq", "nk"].map(|n| m.weight(n, Format::F32, &[head_dim])));
    let rope = rope_input(&mut m, rope_dim);
    let blocks = rows.div_ceil(block_size) + 1;
    // One sequence, its blocks in descending order; padding rows are -1.
    let slot_of = |r: usize| ((blocks - 1 - r / block_size) * block_size + r % block_size) as i32;
    m.set("slot_mapping", (0..rows).map(|r| if r < live { slot_of(r) } else { -1 }).collect());
    let slot_mapping = m.program().slot("slot_mapping", Role::Input, Elem::I32, &[rows]);
    let shape = [blocks, block_size, kv_heads, head_dim];
    let k_cache = m.program().slot("k_cache", Role::Kv, Elem::Kv(kv), &shape);
    let v_cache = m.program().slot("v_cache", Role::Kv, Elem::Kv(kv), &shape);
    let q = m.output("q", heads * head_dim, 2e-5);
    let k = m.program().scratch("k", &[rows, kv_heads * head_dim]);
    let v = m.program().scratch("v", &[rows, kv_heads * head_dim]);
    m.program().push(QkvRopeStore {
        x,
        wq,
        wk,
        wv,
        bias,
        norm,
        eps: 1e-6,
        rope,
        rope_dim,
        pairing,
        slot_mapping,
        k_cache,
        v_cache,
        q,
        k,
        v,
        heads,
        kv_heads,
        head_dim,
    });
    let positions = m.u32s("positions", &[rows], (0..rows as u32).collect());
    let row_seq = m.u32s("row_seq", &[rows], vec![0; rows]);
    let block_tables = m.u32s("block_tables", &[1, blocks], (0..blocks as u32).rev().collect());
    // What was stored shows in the attention; a 16-bit cache may round a neighbour of a tie the other way.
    let out = m.output("out", heads * head_dim, if kv == KvFormat::F32 { 3e-5 } else { 6e-3 });
    m.program().push(Attention {
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
        scale: 0.125,
        window: None,
    });
    m.finish()
}

/// Sequences with permuted blocks, filled by `KvStore`; every other slot of the cache holds NaN.
struct Cache {
    lengths: Vec<usize>,
    tables: Vec<Vec<u32>>,
    blocks: usize,
    block_size: usize,
}

impl Cache {
    fn new(block_size: usize) -> Self {
        let lengths = vec![1, 17, 300, 33, 700];
        let blocks = lengths.iter().map(|l: &usize| l.div_ceil(block_size)).sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        free.sort_by_key(|b| (*b as u64 + 11) * 2_654_435_761 % 1_000_003);
        let tables = lengths.iter().map(|l| free.split_off(free.len() - l.div_ceil(block_size))).collect();
        Self { lengths, tables, blocks, block_size }
    }
    fn slot(&self, seq: usize, token: usize) -> i32 {
        (self.tables[seq][token / self.block_size] as usize * self.block_size + token % self.block_size) as i32
    }
    fn max_blocks(&self) -> usize {
        self.tables.iter().map(Vec::len).max().unwrap_or(0)
    }
    /// Stores keys and values for all tokens, NaN everywhere else, as the maker's present program.
    fn fill(&self, m: &mut Maker, kv: KvFormat, kv_heads: usize, head_dim: usize) {
        let width = kv_heads * head_dim;
        let rows = self.blocks * self.block_size;
        let mut owner = vec![None; rows];
        for (seq, length) in self.lengths.iter().enumerate() {
            (0..*length).for_each(|t| owner[self.slot(seq, t) as usize] = Some((seq, t)));
        }
        let value = |name: &str, i: usize| {
            owner[i / width].map_or(f32::NAN, |(seq, t)| noise(1, name, seq * 10_000 + t, i % width))
        };
        m.set("slot_mapping", (0..rows as i32).collect());
        let slot_mapping = m.program().slot("slot_mapping", Role::Input, Elem::I32, &[rows]);
        for (name, cache_name) in [("new_k", "k_cache"), ("new_v", "v_cache")] {
            m.set(name, (0..rows * width).map(|i| value(name, i)).collect());
            let x = m.program().slot(name, Role::Input, Elem::F32, &[rows, width]);
            let cache = self.declare(m, cache_name, kv, kv_heads, head_dim);
            m.program().push(KvStore { x, cache, slot_mapping });
        }
    }
    fn declare(&self, m: &mut Maker, name: &str, kv: KvFormat, kv_heads: usize, head_dim: usize) -> Slot {
        m.program().slot(name, Role::Kv, Elem::Kv(kv), &[self.blocks, self.block_size, kv_heads, head_dim])
    }
    /// Attention rows over all sequences: the last positions of each in turn.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        m: &mut Maker,
        kv: KvFormat,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        window: Option<usize>,
    ) {
        let (rows, live) = (m.rows(), m.live);
        let seqs = self.lengths.len();
        let seq_of = |r: usize| (seqs - 1 - r % seqs) as u32;
        let position = |r: usize| self.lengths[seq_of(r) as usize].saturating_sub(1 + r / seqs * 3) as u32;
        let live_or = |r: usize, v: u32| if r < live { v } else { u32::MAX };
        let positions = m.u32s("positions", &[rows], (0..rows).map(|r| live_or(r, position(r))).collect());
        let row_seq = m.u32s("row_seq", &[rows], (0..rows).map(|r| live_or(r, seq_of(r))).collect());
        let max_blocks = self.max_blocks();
        let mut tables = vec![u32::MAX; seqs * max_blocks];
        for (seq, table) in self.tables.iter().enumerate() {
            tables[seq * max_blocks..][..table.len()].copy_from_slice(table);
        }
        let block_tables = m.u32s("block_tables", &[seqs, max_blocks], tables);
        let q = m.input("q", heads * head_dim);
        let k_cache = self.declare(m, "k_cache", kv, kv_heads, head_dim);
        let v_cache = self.declare(m, "v_cache", kv, kv_heads, head_dim);
        let out = m.output("out", heads * head_dim, 2e-5);
        let scale = 2.0 / (head_dim as f32).sqrt();
        m.program().push(Attention {
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
            window,
        });
    }
}

#[allow(clippy::too_many_arguments)]
fn attention(
    rows: usize,
    live: usize,
    kv: KvFormat,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    window: Option<usize>,
) -> Problem {
    let cache = Cache::new(block_size);
    let name = format!("attention {heads}/{kv_heads}x{head_dim} block {block_size} window {window:?} {kv:?}");
    let slots = cache.blocks * cache.block_size;
    let mut m = Maker::new(name, slots, slots);
    cache.fill(&mut m, kv, kv_heads, head_dim);
    m.next_program(rows, live);
    cache.attend(&mut m, kv, heads, kv_heads, head_dim, window);
    m.finish()
}

/// The 300-token sequence moves to other blocks, its old blocks are overwritten, and it still attends right.
fn copy_blocks(rows: usize, live: usize, kv: KvFormat) -> Problem {
    let (heads, kv_heads, head_dim) = (4, 2, 64);
    let mut cache = Cache::new(32);
    let slots = cache.blocks * cache.block_size;
    let mut m = Maker::new(format!("copy blocks {kv:?}"), slots, slots);
    cache.fill(&mut m, kv, kv_heads, head_dim);
    let used: Vec<u32> = cache.tables.concat();
    let spare: Vec<u32> = (0..cache.blocks as u32).filter(|b| !used.contains(b)).collect();
    m.next_program(4, spare.len());
    let mut pairs = vec![0u32; 8];
    for (i, to) in spare.iter().enumerate() {
        pairs[2 * i] = cache.tables[2][i];
        pairs[2 * i + 1] = *to;
        cache.tables[2][i] = *to;
    }
    let pairs = m.u32s("pairs", &[4, 2], pairs);
    for name in ["k_cache", "v_cache"] {
        let cache = cache.declare(&mut m, name, kv, kv_heads, head_dim);
        m.program().push(CopyBlocks { pairs, cache });
    }
    m.next_program(rows, live);
    cache.attend(&mut m, kv, heads, kv_heads, head_dim, None);
    m.finish()
}

/// Rows of logits under parameters that differ from row to row.
fn sampling(rows: usize, live: usize) -> Vec<Problem> {
    let base = SampleRow { temperature: 0.8, seed_lo: 99, seed_hi: 5, position: 1000, ..SampleRow::default() };
    let cases = [
        ("greedy", SampleRow { temperature: 0.0, ..base }),
        ("temperature", base),
        ("top k", SampleRow { top_k: 5, temperature: 1.5, ..base }),
        ("top p", SampleRow { top_p: 0.7, ..base }),
        ("min p", SampleRow { min_p: 0.1, ..base }),
        ("all filters", SampleRow { top_k: 40, top_p: 0.9, min_p: 0.02, choice: 3, ..base }),
        ("penalties", SampleRow { repetition: 1.3, presence: 0.5, frequency: 0.2, ..base }),
        ("penalties, greedy", SampleRow { temperature: 0.0, repetition: 1.3, presence: 0.5, frequency: 0.2, ..base }),
    ];
    cases.iter().map(|(name, row)| sample_problem(rows, live, name, *row)).collect()
}

fn sample_problem(rows: usize, live: usize, name: &str, params: SampleRow) -> Problem {
    let vocab = 5003;
    let mut m = Maker::new(format!("sample, {name}"), rows, live);
    let mut lists: Vec<Adjust> = Vec::new();
    let (mut offsets, mut table, mut logits) = (vec![0u32], Vec::new(), Vec::new());
    for row in 0..rows {
        let list: Vec<Adjust> = (0..row as u32 % 7)
            .map(|i| Adjust { token: i * 331 + row as u32, count: SEEN | i, bias: if i == 3 { 4.0 } else { 0.0 } })
            .collect();
        let (row_params, row_logits) = stable_row(row, vocab, params, &list);
        table.extend_from_slice(bytemuck::cast_slice::<SampleRow, u32>(&[row_params]));
        logits.extend(if row < live { row_logits } else { vec![f32::NAN; vocab] });
        lists.extend(list);
        offsets.push(lists.len() as u32);
    }
    lists.resize(lists.len() + 1, Adjust { token: 0, count: 0, bias: 0.0 });
    m.set("logits", logits);
    let logits = m.program().slot("logits", Role::Input, Elem::F32, &[rows, vocab]);
    let width = size_of::<SampleRow>() / 4;
    let params = m.u32s("params", &[rows, width], table);
    let offsets = m.u32s("offsets", &[rows + 1], offsets);
    let adjust = m.u32s("adjust", &[lists.len(), 3], bytemuck::cast_slice(&lists).to_vec());
    m.problem.outputs.push(Expected { slot: "sampled".into(), len: live, width: 1, tolerance: None });
    let out = m.program().slot("sampled", Role::Output, Elem::U32, &[rows]);
    m.program().push(Sample { logits, params, offsets, adjust, out });
    m.finish()
}

/// Parameters and logits whose choice does not hang on the last bits, so that f32 and f64 must agree.
/// Row 5 carries a NaN and row 6 an infinity: faults of one row only.
fn stable_row(row: usize, vocab: usize, params: SampleRow, list: &[Adjust]) -> (SampleRow, Vec<f32>) {
    let logits = |attempt: usize| -> Vec<f32> {
        let mut z: Vec<f32> = (0..vocab).map(|i| noise(3, "logits", row + 1000 * attempt, i).powi(3) * 9.0).collect();
        match row {
            5 => z[4000] = f32::NAN,
            6 => z[1] = f32::INFINITY,
            7 => z[..vocab - 1].fill(f32::NEG_INFINITY),
            _ => {}
        }
        z
    };
    let wide = |z: &[f32]| z.iter().map(|v| *v as f64).collect::<Vec<f64>>();
    for attempt in 0..200 {
        let params = SampleRow { position: params.position + row as u32, ..params };
        let z = logits(attempt);
        let choice = |p: SampleRow, jitter: f64| {
            let moved: Vec<f64> = wide(&z).iter().enumerate().map(|(i, v)| v + jitter * (i % 3) as f64).collect();
            super::sample::sample_row(&moved, &p, list)
        };
        let near = |f: f32| SampleRow { top_p: (params.top_p * f).min(1.0), min_p: params.min_p * f, ..params };
        let first = choice(params, 0.0);
        let variants =
            [choice(near(1.0003), 0.0), choice(near(0.9997), 0.0), choice(params, 2e-5), choice(params, -2e-5)];
        if variants.iter().all(|v| *v == first) {
            return (params, z);
        }
    }
    unreachable!("some attempt is stable")
}

/// Values of a 16-bit slice, for tests that look into stored bytes.
pub fn decode_16bit(format: KvFormat, bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(2)
        .map(|b| {
            let bits = u16::from_le_bytes([b[0], b[1]]);
            if format == KvFormat::BF16 { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() }
        })
        .collect()
}
