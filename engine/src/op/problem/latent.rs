//! Problems of multi-head latent attention: over caches that a store filled, and within a chunk that stores.

use super::attention::{Cache, LENGTHS, Seen};
use super::maker::Maker;
use super::{Problem, noise};
use crate::format::KvFormat;
use crate::op::{LatentAttention, LatentStore};
use crate::program::{Elem, LatentShape, Role};

/// Two parts of a vector.
#[derive(Clone, Copy)]
pub(super) struct Widths {
    latent: usize,
    rope: usize,
}

/// DeepSeek's.
const WIDE: Widths = Widths { latent: 512, rope: 64 };
const NARROW: Widths = Widths { latent: 64, rope: 16 };
/// Neither part fills a whole number of the widest vectors.
const ODD: Widths = Widths { latent: 96, rope: 24 };
/// What wide vectors and many heads leave time for: a token alone, three blocks, two splits.
const SHORT: &[usize] = &[1, 33, 290];

impl Widths {
    fn all(self) -> usize {
        self.latent + self.rope
    }
    /// So that scores are not all alike, and not all but one nothing.
    fn scale(self) -> f32 {
        2.0 / (self.all() as f32).sqrt()
    }
    fn shape(self, blocks: usize, block_size: usize) -> LatentShape {
        LatentShape { blocks, block_size, latent: self.latent, rope: self.rope }
    }
    /// The largest value of a column: the rotated key has a size of its own.
    fn size(self, column: usize) -> f32 {
        if column < self.latent { 1.0 } else { 4.0 }
    }
}

/// Every problem at a row capacity, with `live` of the rows alive.
pub(super) fn latents(rows: usize, live: usize) -> Vec<Problem> {
    let mut all = Vec::new();
    for kv in KvFormat::ALL {
        all.push(latent(rows, live, kv, 1, NARROW, LENGTHS, 16));
        all.push(latent(rows, live, kv, 16, NARROW, LENGTHS, 32));
        all.push(latent(rows, live, kv, 128, NARROW, SHORT, 16));
        all.push(chunk(rows, live, kv));
    }
    for kv in [KvFormat::F16, KvFormat::E2M5] {
        all.push(latent(rows, live, kv, 20, ODD, SHORT, 16));
        all.push(latent(rows, live, kv, 16, WIDE, SHORT, 16));
    }
    all
}

fn latent(
    rows: usize,
    live: usize,
    kv: KvFormat,
    heads: usize,
    widths: Widths,
    lengths: &[usize],
    block_size: usize,
) -> Problem {
    let Widths { latent, rope } = widths;
    let cache = Cache::new(lengths, block_size);
    let slots = cache.blocks * cache.block_size;
    let mut m = Maker::new(format!("latent attention {heads}x{latent}+{rope} block {block_size} {kv:?}"), slots, slots);
    // Scaled formats see magnitudes that vary from token to token, tiny tokens, one far above all others, and one of
    // zeros.
    let size = |seq: usize, t: usize, column: usize| {
        let of_token = match (kv.has_scales(), seq, t) {
            (false, ..) => 1.0,
            (true, 1, 0) => 0.0,
            (true, 2, 0 | 33) => 1.0 / 4096.0,
            (true, 2, 18) => 100.0,
            (true, ..) => 2f32.powi((t * 5 + seq) as i32 % 5 - 3),
        };
        of_token * widths.size(column)
    };
    let slot_mapping = cache.slot_mapping(&mut m);
    let x = cache.contents(&mut m, "new", latent + rope, &size);
    let shape = widths.shape(cache.blocks, block_size);
    let stored = m.program().latent_cache("cache", kv, shape);
    m.program().push(LatentStore { x, cache: stored, slot_mapping, latent, rope });
    m.next_program(rows, live);
    let Seen { positions, row_seq, block_tables } = cache.seen(&mut m);
    let q = m.input("q", heads * (latent + rope));
    let cache = m.program().latent_cache("cache", kv, shape);
    let out = m.output("out", heads * latent, 2e-5);
    let scale = widths.scale();
    m.program().push(LatentAttention { q, cache, positions, row_seq, block_tables, out, heads, latent, rope, scale });
    m.finish()
}

/// One sequence, stored and attended to in the same launch, its blocks in descending order.
fn chunk(rows: usize, live: usize, kv: KvFormat) -> Problem {
    let (heads, block_size, Widths { latent, rope }) = (4, 16, NARROW);
    let mut m = Maker::new(format!("latent chunk {heads}x{latent}+{rope} {kv:?}"), rows, live);
    let width = latent + rope;
    let value = |i: usize| {
        let (row, column) = (i / width, i % width);
        // The first token of the sequence, and one more, are tiny.
        let of_token = if [0, 17].contains(&row) { 1.0 / 512.0 } else { 2f32.powi(row as i32 * 5 % 7 - 4) };
        let size = of_token * NARROW.size(column);
        if row < live { size * noise(1, "x", row, column) } else { f32::NAN }
    };
    m.set("x", (0..rows * width).map(value).collect());
    let x = m.program().slot("x", Role::Input, Elem::F32, &[rows, width]);
    let blocks = rows.div_ceil(block_size) + 1;
    let slot_of = |r: usize| ((blocks - 1 - r / block_size) * block_size + r % block_size) as i32;
    m.set("slot_mapping", (0..rows).map(|r| if r < live { slot_of(r) } else { -1 }).collect());
    let slot_mapping = m.program().slot("slot_mapping", Role::Input, Elem::I32, &[rows]);
    let cache = m.program().latent_cache("cache", kv, NARROW.shape(blocks, block_size));
    m.program().push(LatentStore { x, cache, slot_mapping, latent, rope });
    let q = m.input("q", heads * width);
    let positions = m.u32s("positions", &[rows], (0..rows as u32).collect());
    let row_seq = m.u32s("row_seq", &[rows], vec![0; rows]);
    let block_tables = m.u32s("block_tables", &[1, blocks], (0..blocks as u32).rev().collect());
    let out = m.output("out", heads * latent, 2e-5);
    let scale = NARROW.scale();
    m.program().push(LatentAttention { q, cache, positions, row_seq, block_tables, out, heads, latent, rope, scale });
    m.finish()
}
