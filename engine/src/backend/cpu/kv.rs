//! The paged cache: `[blocks, kv_heads, block_size, head_dim]`, so that the tokens of a block that a
//! head attends to lie together. Scales of codes are `[blocks, kv_heads, block_size]`.
//!
//! Latent vectors are one head of two parts, each with a scale of its own. What is said of heads below holds for
//! these parts: a token has [`Cache::parts`] of them.

use super::memory::{Buffer, Ptr};
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use super::simd::{Isa, Kernel, Level};
use crate::format::KvFormat;
use crate::format::f8::{self, E2M5};
use crate::op;
use crate::program::{KvCache, RowSpace};

/// A cache of keys or of values.
#[derive(Clone, Copy)]
pub struct Cache {
    start: Ptr<u8>,
    scales: Option<Ptr<f32>>,
    /// Storage format.
    pub format: KvFormat,
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
        Self { start, scales, format, blocks, block_size, kv_heads, head_dim, latent: None }
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
    /// The vector of one token (a slot: `block * block_size + offset`) and head.
    #[inline(always)]
    pub fn at(&self, slot: usize, head: usize) -> *mut u8 {
        let (block, offset) = (slot / self.block_size, slot % self.block_size);
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        let (head, within) = self.latent.map_or((head, 0), |latent| (0, head * latent));
        let index = (block * self.kv_heads + head) * self.block_size + offset;
        // SAFETY: the block exists, and head and offset are within it.
        unsafe { self.start.at((index * self.head_dim + within) * self.format.bytes()) }
    }
    /// Where the scale of a slot's head is, if there are scales.
    #[inline(always)]
    fn scale_at(&self, slot: usize, head: usize) -> Option<*mut f32> {
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
        level.run(Put { x, to: self.at(slot, head), scale: self.scale_at(slot, head), format: self.format });
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
    format: KvFormat,
}

impl Kernel for Put<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let (whole, mut inverse) = (self.x.len() / 16 * 16, 1.0);
        if let Some(to) = self.scale {
            let scale = f8::scale(largest(s, self.x));
            // SAFETY: its place, this head's own.
            unsafe { *to = scale };
            // Exact; and codes under a scale that is not a number may be any.
            inverse = if scale.is_nan() { 0.0 } else { 1.0 / scale };
        }
        // SAFETY: `x.len()` elements behind both pointers.
        unsafe {
            for i in (0..whole).step_by(16) {
                let x = s.load(self.x.as_ptr().add(i));
                match self.format {
                    KvFormat::F32 => s.store(self.to.cast::<f32>().add(i), x),
                    KvFormat::F16 => s.store_f16(self.to.cast::<u16>().add(i), x),
                    KvFormat::BF16 => s.store_bf16(self.to.cast::<u16>().add(i), x),
                    KvFormat::E2M5 => s.store_e2m5(self.to.add(i), s.mul(x, s.splat(inverse))),
                }
            }
            for i in whole..self.x.len() {
                let x = self.x[i];
                match self.format {
                    KvFormat::F32 => *self.to.cast::<f32>().add(i) = x,
                    KvFormat::F16 => *self.to.cast::<u16>().add(i) = half::f16::from_f32(x).to_bits(),
                    KvFormat::BF16 => *self.to.cast::<u16>().add(i) = half::bf16::from_f32(x).to_bits(),
                    KvFormat::E2M5 => *self.to.add(i) = E2M5::encode(x * inverse),
                }
            }
        }
    }
}

/// Widens `to.len()` cached elements and multiplies codes with their scale.
///
/// # Safety
/// So many elements behind `from`.
#[inline(always)]
pub unsafe fn get<S: Isa>(s: S, format: KvFormat, scale: f32, from: *const u8, to: &mut [f32]) {
    // A loop for each format: a choice for every 16 elements would take longer than what is chosen.
    macro_rules! widen {
        ($from:expr, $p:ident => $many:expr, $x:ident => $one:expr) => {{
            let (whole, from) = (to.len() / 16 * 16, $from);
            for i in (0..whole).step_by(16) {
                let $p = from.add(i);
                s.store(to.as_mut_ptr().add(i), $many);
            }
            for (i, to) in to.iter_mut().enumerate().skip(whole) {
                let $x = *from.add(i);
                *to = $one;
            }
        }};
    }
    // SAFETY: the caller's promise.
    unsafe {
        match format {
            KvFormat::F32 => widen!(from.cast::<f32>(), p => s.load(p), x => x),
            KvFormat::F16 => widen!(from.cast::<u16>(), p => s.load_f16(p), x => half::f16::from_bits(x).to_f32()),
            KvFormat::BF16 => widen!(from.cast::<u16>(), p => s.load_bf16(p), x => half::bf16::from_bits(x).to_f32()),
            KvFormat::E2M5 => {
                widen!(from, p => s.load_f8::<{ E2M5::MANTISSA }>(p, scale), x => E2M5::decode(x) * scale)
            }
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
