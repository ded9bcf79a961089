//! Problems around the cache: projections that store into it, attention over it, block copies.

use super::maker::Maker;
use super::{Problem, noise};
use crate::format::{Format, KvFormat};
use crate::model::Pairing;
use crate::op::{Attention, CopyBlocks, KvStore, QkvRopeStore};
use crate::program::{Elem, KvCache, Role, Slot};

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
pub(super) fn qkv(
    rows: usize,
    live: usize,
    pairing: Pairing,
    format: Format,
    with_bias: bool,
    with_norm: bool,
    (rope_dim, head_dim): (usize, usize),
    kv: KvFormat,
) -> Problem {
    let name =
        format!("qkv {pairing:?} {format} bias {with_bias} norm {with_norm} rope {rope_dim} of {head_dim} {kv:?}");
    let mut m = Maker::new(name, rows, live);
    let (hidden, heads, kv_heads, block_size) = (256, 6, 2, 16);
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
    let [k_cache, v_cache] = m.program().kv_caches(["k_cache", "v_cache"], kv, shape);
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
        hadamard: kv.has_scales(),
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
    // What was stored shows in the attention; a narrow cache may round a neighbour of a tie the other way.
    let tolerance = match kv {
        KvFormat::F32 => 3e-5,
        KvFormat::F16 | KvFormat::BF16 => 6e-3,
        KvFormat::E2M5 => 6e-2,
    };
    let out = m.output("out", heads * head_dim, tolerance);
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

/// Tokens of the sequences of a cache.
pub(super) const LENGTHS: &[usize] = &[1, 17, 300, 33, 700];

/// Sequences with permuted blocks, filled by a store; every other slot of the cache holds NaN.
pub(super) struct Cache {
    lengths: Vec<usize>,
    tables: Vec<Vec<u32>>,
    pub(super) blocks: usize,
    pub(super) block_size: usize,
}

/// The inputs that say which tokens the rows of attention see.
pub(super) struct Seen {
    pub(super) positions: Slot,
    pub(super) row_seq: Slot,
    pub(super) block_tables: Slot,
}

impl Cache {
    pub(super) fn new(lengths: &[usize], block_size: usize) -> Self {
        let lengths = lengths.to_vec();
        let blocks = lengths.iter().map(|l| l.div_ceil(block_size)).sum::<usize>() + 3;
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
    /// The input `name` of a row per slot of the cache, `[slots, width]`, whose values are up to `size(seq, token,
    /// column)`; NaN where there is no token.
    pub(super) fn contents(
        &self,
        m: &mut Maker,
        name: &str,
        width: usize,
        size: &dyn Fn(usize, usize, usize) -> f32,
    ) -> Slot {
        let rows = self.blocks * self.block_size;
        let mut owner = vec![None; rows];
        for (seq, length) in self.lengths.iter().enumerate() {
            (0..*length).for_each(|t| owner[self.slot(seq, t) as usize] = Some((seq, t)));
        }
        let value = |i: usize| {
            let column = i % width;
            let noise = |(seq, t)| size(seq, t, column) * noise(1, name, seq * 10_000 + t, column);
            owner[i / width].map_or(f32::NAN, noise)
        };
        m.set(name, (0..rows * width).map(value).collect());
        m.program().slot(name, Role::Input, Elem::F32, &[rows, width])
    }
    /// The input that gives every row of [`Cache::contents`] the slot of its number.
    pub(super) fn slot_mapping(&self, m: &mut Maker) -> Slot {
        let rows = self.blocks * self.block_size;
        m.set("slot_mapping", (0..rows as i32).collect());
        m.program().slot("slot_mapping", Role::Input, Elem::I32, &[rows])
    }
    /// Stores keys and values for all tokens, NaN everywhere else, as the maker's present program.
    fn fill(&self, m: &mut Maker, kv: KvFormat, kv_heads: usize, head_dim: usize) {
        // Scaled formats see magnitudes that vary from token to token, tiny first tokens, one far above all others, and
        // one of zeros.
        let size = |seq: usize, t: usize, _: usize| match (kv.has_scales(), seq, t) {
            (false, ..) => 1.0,
            (true, 3, 0) => 0.0,
            (true, 2, 18) => 1500.0,
            (true, 2, 33) | (true, 4, 0) => 1.0 / 512.0,
            (true, ..) => 2f32.powi((t * 5 + seq) as i32 % 7 - 4),
        };
        let slot_mapping = self.slot_mapping(m);
        for (name, cache) in ["new_k", "new_v"].into_iter().zip(self.declare(m, kv, kv_heads, head_dim)) {
            let x = self.contents(m, name, kv_heads * head_dim, &size);
            m.program().push(KvStore { x, cache, slot_mapping });
        }
    }
    fn declare(&self, m: &mut Maker, kv: KvFormat, kv_heads: usize, head_dim: usize) -> [KvCache; 2] {
        let shape = [self.blocks, self.block_size, kv_heads, head_dim];
        m.program().kv_caches(["k_cache", "v_cache"], kv, shape)
    }
    /// Rows over all sequences: the last positions of each in turn.
    pub(super) fn seen(&self, m: &mut Maker) -> Seen {
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
        Seen { positions, row_seq, block_tables }
    }
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
        let Seen { positions, row_seq, block_tables } = self.seen(m);
        let q = m.input("q", heads * head_dim);
        let [k_cache, v_cache] = self.declare(m, kv, kv_heads, head_dim);
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
pub(super) fn attention(
    rows: usize,
    live: usize,
    kv: KvFormat,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    window: Option<usize>,
) -> Problem {
    let cache = Cache::new(LENGTHS, block_size);
    let name = format!("attention {heads}/{kv_heads}x{head_dim} block {block_size} window {window:?} {kv:?}");
    let slots = cache.blocks * cache.block_size;
    let mut m = Maker::new(name, slots, slots);
    cache.fill(&mut m, kv, kv_heads, head_dim);
    m.next_program(rows, live);
    cache.attend(&mut m, kv, heads, kv_heads, head_dim, window);
    m.finish()
}

/// The 300-token sequence moves to other blocks, its old blocks are overwritten, and it still attends right.
pub(super) fn copy_blocks(rows: usize, live: usize, kv: KvFormat) -> Problem {
    let (heads, kv_heads, head_dim) = (4, 2, 64);
    let mut cache = Cache::new(LENGTHS, 32);
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
    for cache in cache.declare(&mut m, kv, kv_heads, head_dim).into_iter().flat_map(KvCache::slots) {
        m.program().push(CopyBlocks { pairs, cache });
    }
    m.next_program(rows, live);
    cache.attend(&mut m, kv, heads, kv_heads, head_dim, None);
    m.finish()
}
