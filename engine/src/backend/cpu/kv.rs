//! The paged cache: `[blocks, kv_heads, block_size, head_dim]`, so that the tokens of a block that a
//! head attends to lie together. Scales of codes are `[blocks, kv_heads, block_size]`.
//!
//! Keys whose blocks hold whole vectors of tokens are `[blocks, kv_heads, block_size / 16, head_dim, 16]`: the same
//! element of sixteen tokens is a vector, and sixteen scores are sums of such vectors with nothing to sum across lanes.
//!
//! Latent vectors are one head of two parts, each with a scale of its own. What is said of heads below holds for
//! these parts: a token has [`Cache::parts`] of them.

use super::memory::{Buffer, Ptr};
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use super::simd::{Isa, Kernel, Level};
use super::stored::{Stored, in_format};
use crate::format::KvFormat;
use crate::format::f8;
use crate::op;
use crate::program::{Holds, KvCache, RowSpace};

/// Tokens side by side where keys lie by element.
pub const SIDE: usize = 16;

/// How the vectors of a block and head lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One token after the other.
    Tokens,
    /// [`SIDE`] tokens side by side, one element after the other.
    Elements,
}

/// A cache of keys or of values.
#[derive(Clone, Copy)]
pub struct Cache {
    start: Ptr<u8>,
    scales: Option<Ptr<f32>>,
    /// Storage format.
    pub format: KvFormat,
    /// Layout within a block and head.
    pub order: Order,
    /// Blocks.
    pub blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the first part, where a head is a latent vector.
    pub latent: Option<usize>,
}

impl Cache {
    /// From an op's operand.
    pub fn new(b: &Builder<'_>, cache: KvCache) -> Self {
        let [blocks, block_size, kv_heads, head_dim] = b.program.kv_shape(cache);
        let format = b.program.kv_format(cache);
        let (start, scales) = (b.ptr(cache.elements()), cache.scales().map(|s| b.ptr(s)));
        let order = match cache.holds() {
            Holds::Keys if block_size.is_multiple_of(SIDE) => Order::Elements,
            _ => Order::Tokens,
        };
        Self { start, scales, format, order, blocks, block_size, kv_heads, head_dim, latent: None }
    }
    /// The same of latent vectors.
    pub fn of_latents(b: &Builder<'_>, cache: KvCache, latent: usize) -> Self {
        Self { latent: Some(latent), ..Self::new(b, cache) }
    }
    /// What a token has of things with a scale: heads, or parts of a latent vector.
    pub fn parts(&self) -> usize {
        if self.latent.is_some() { 2 } else { self.kv_heads }
    }
    /// The place of a part among the elements of a token.
    pub fn part(&self, part: usize) -> std::ops::Range<usize> {
        match self.latent {
            None => part * self.head_dim..(part + 1) * self.head_dim,
            Some(latent) => [0..latent, latent..self.head_dim][part].clone(),
        }
    }
    /// Whether it has scales.
    pub fn has_scales(&self) -> bool {
        self.scales.is_some()
    }
    /// The first element of one token (a slot: `block * block_size + offset`) and head.
    #[inline(always)]
    pub fn at(&self, slot: usize, head: usize) -> *mut u8 {
        let (block, offset) = (slot / self.block_size, slot % self.block_size);
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        let (head, within) = self.latent.map_or((head, 0), |latent| (0, head * latent));
        let start = (block * self.kv_heads + head) * self.block_size;
        let element = match self.order {
            Order::Tokens => (start + offset) * self.head_dim + within,
            Order::Elements => (start + offset - offset % SIDE) * self.head_dim + offset % SIDE,
        };
        // SAFETY: the block exists, and head and offset are within it.
        unsafe { self.start.at(element * self.format.bytes()) }
    }
    /// Elements from one of a token to its next.
    pub fn step(&self) -> usize {
        match self.order {
            Order::Tokens => 1,
            Order::Elements => SIDE,
        }
    }
    /// Where `count` tokens of one block from `slot` on lie, and in how many bytes: with their neighbours, where these
    /// lie between them.
    pub fn stretch(&self, slot: usize, count: usize, head: usize) -> (*const u8, usize) {
        let (slot, count) = match self.order {
            Order::Tokens => (slot, count),
            Order::Elements => (slot - slot % SIDE, (slot % SIDE + count).next_multiple_of(SIDE)),
        };
        (self.at(slot, head), count * self.head_dim * self.format.bytes())
    }
    /// Where the scale of a slot's head is, if there are scales.
    #[inline(always)]
    pub fn scale_at(&self, slot: usize, head: usize) -> Option<*mut f32> {
        let (block, offset) = (slot / self.block_size, slot % self.block_size);
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        // SAFETY: the block exists, and head and offset are within it.
        self.scales.map(|scales| unsafe { scales.at((block * self.parts() + head) * self.block_size + offset) })
    }
    /// What a slot's elements of one head are multiplied with; 1 where there are no scales.
    #[inline(always)]
    pub fn scale(&self, slot: usize, head: usize) -> f32 {
        // SAFETY: it is within the cache.
        self.scale_at(slot, head).map_or(1.0, |scale| unsafe { *scale })
    }
    /// Rounds one head's vector into its slot.
    pub fn put(&self, level: Level, slot: usize, head: usize, x: &[f32]) {
        let (to, scale, step) = (self.at(slot, head), self.scale_at(slot, head), self.step());
        level.run(Put { x, to, scale, step, format: self.format });
    }
}

/// [`f8::largest`].
#[inline(always)]
fn largest<S: Isa>(s: S, x: &[f32]) -> f32 {
    let (whole, rest) = x.split_at(x.len() / 16 * 16);
    let mut most = s.splat_i(0);
    for x in whole.chunks_exact(16) {
        // SAFETY: 16 floats.
        let bits = s.bits(unsafe { s.load(x.as_ptr()) });
        most = s.max_i(most, s.and(bits, s.splat_i(0x7fff_ffff)));
    }
    f32::from_bits((s.max_lane_i(most) as u32).max(f8::largest(rest).to_bits()))
}

/// Rounds one head's vector into the cache.
struct Put<'a> {
    x: &'a [f32],
    /// Its place, of `x.len()` elements.
    to: *mut u8,
    /// The place of its scale; none where the format has no scales.
    scale: Option<*mut f32>,
    /// Elements from one to the next.
    step: usize,
    format: KvFormat,
}

impl Kernel for Put<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let mut inverse = 1.0;
        if let Some(to) = self.scale {
            let scale = f8::scale(largest(s, self.x));
            // SAFETY: its place, this head's own.
            unsafe { *to = scale };
            // Exact; and codes under a scale that is not a number may be any.
            inverse = if scale.is_nan() { 0.0 } else { 1.0 / scale };
        }
        // SAFETY: `x.len()` elements behind both pointers.
        unsafe { in_format!(self.format, E => put::<S, E>(s, self.x, inverse, self.to.cast(), self.step)) }
    }
}

/// Rounds `x`, times `inverse` where there are scales, to every `step`th element behind `to`.
///
/// # Safety
/// So many elements behind `to`.
#[inline(always)]
unsafe fn put<S: Isa, E: Stored>(s: S, x: &[f32], inverse: f32, to: *mut E::Element, step: usize) {
    let whole = x.len() / 16 * 16;
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..whole).step_by(16) {
            let x = s.load(x.as_ptr().add(i));
            if step == 1 {
                E::store(s, to.add(i), x, inverse);
                continue;
            }
            let mut lanes = [E::Element::default(); 16];
            E::store(s, lanes.as_mut_ptr(), x, inverse);
            for (lane, x) in lanes.into_iter().enumerate() {
                *to.add((i + lane) * step) = x;
            }
        }
        for (i, x) in x.iter().enumerate().skip(whole) {
            *to.add(i * step) = E::encode(x * inverse);
        }
    }
}

/// [`op::KvStore`] and [`op::LatentStore`].
pub struct Store {
    x: Ptr<f32>,
    cache: Cache,
    slot_mapping: Ptr<i32>,
    level: Level,
}

impl Store {
    /// From the op.
    pub fn new(b: &Builder<'_>, o: &op::KvStore) -> Self {
        Self { x: b.ptr(o.x), cache: Cache::new(b, o.cache), slot_mapping: b.ptr(o.slot_mapping), level: b.level }
    }
    /// From the op for latent vectors.
    pub fn of_latents(b: &Builder<'_>, o: &op::LatentStore) -> Self {
        let cache = Cache::of_latents(b, o.cache, o.latent);
        Self { x: b.ptr(o.x), cache, slot_mapping: b.ptr(o.slot_mapping), level: b.level }
    }
}

impl Step for Store {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let (parts, width) = (self.cache.parts(), self.cache.kv_heads * self.cache.head_dim);
        let rows = live.rows(RowSpace::Batch);
        w.phase(rows, w.chunk(rows), |range| {
            for row in range {
                // SAFETY: a live row; rows of one launch have slots of their own.
                let slot = unsafe { *self.slot_mapping.at(row) };
                for part in 0..if slot < 0 { 0 } else { parts } {
                    let place = self.cache.part(part);
                    // SAFETY: as above.
                    let x = unsafe { self.x.slice(row * width + place.start, place.len()) };
                    self.cache.put(self.level, slot as usize, part, x);
                }
            }
        });
    }
}

/// Where a block of `bytes` begins in a buffer that is indexed by blocks.
pub fn block(buffer: &Buffer, block: u32, bytes: usize) -> *mut u8 {
    let contents = &*buffer.0;
    let at = block as usize * bytes;
    assert!(at + bytes <= contents.decl.bytes(), "block {block} of slot {:?}", contents.decl);
    contents.memory.start().wrapping_add(at)
}

/// [`op::CopyBlocks`].
pub struct CopyBlocks {
    pairs: Ptr<u32>,
    cache: Ptr<u8>,
    blocks: usize,
    /// Bytes of a block, whatever they are.
    bytes: usize,
}

impl CopyBlocks {
    /// From the op.
    pub fn new(b: &Builder<'_>, o: &op::CopyBlocks) -> Self {
        let decl = b.program.decl(o.cache);
        let blocks = decl.shape[0];
        Self { pairs: b.ptr(o.pairs), cache: b.ptr(o.cache), blocks, bytes: decl.bytes() / blocks.max(1) }
    }
}

impl Step for CopyBlocks {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let pairs = live.rows(RowSpace::Batch);
        w.phase(pairs, 1, |range| {
            for pair in range {
                // SAFETY: live pairs of blocks that exist; sources and targets of one launch are disjoint.
                unsafe {
                    let [from, to] = [0, 1].map(|i| *self.pairs.at(2 * pair + i) as usize);
                    assert!(from.max(to) < self.blocks, "blocks {from} and {to} of {}", self.blocks);
                    std::ptr::copy(self.cache.at(from * self.bytes), self.cache.at(to * self.bytes), self.bytes);
                }
            }
        });
    }
}
