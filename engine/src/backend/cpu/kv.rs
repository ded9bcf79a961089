//! The paged cache: `[blocks, kv_heads, block_size, head_dim]`, so that the tokens of a block that a
//! head attends to lie together.

use super::memory::{Buffer, Ptr};
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use super::simd::{Isa, Kernel, Level};
use crate::format::KvFormat;
use crate::op;
use crate::program::{Elem, RowSpace, Slot};

/// A cache of keys or of values.
#[derive(Clone, Copy)]
pub struct Cache {
    start: Ptr<u8>,
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
}

impl Cache {
    /// The cache in `slot`.
    pub fn new(b: &Builder<'_>, slot: Slot) -> Self {
        let Elem::Kv(format) = b.program.decl(slot).elem else { panic!("a cache slot holds KV") };
        let [blocks, block_size, kv_heads, head_dim] = b.shape(slot)[..] else { panic!("a cache has four dimensions") };
        Self { start: b.ptr(slot), format, blocks, block_size, kv_heads, head_dim }
    }
    /// The vector of one token (a slot: `block * block_size + offset`) and head.
    #[inline(always)]
    pub fn at(&self, slot: usize, head: usize) -> *mut u8 {
        let (block, offset) = (slot / self.block_size, slot % self.block_size);
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        let index = (block * self.kv_heads + head) * self.block_size + offset;
        // SAFETY: the block exists, and head and offset are within it.
        unsafe { self.start.at(index * self.head_dim * self.format.bytes()) }
    }
}

/// Rounds one head's vector into the cache.
pub struct Put<'a> {
    /// The vector.
    pub x: &'a [f32],
    /// Its place, of `x.len()` elements.
    pub to: *mut u8,
    /// The cache's format.
    pub format: KvFormat,
}

impl Kernel for Put<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let whole = self.x.len() / 16 * 16;
        // SAFETY: `x.len()` elements behind both pointers.
        unsafe {
            for i in (0..whole).step_by(16) {
                let x = s.load(self.x.as_ptr().add(i));
                match self.format {
                    KvFormat::F32 => s.store(self.to.cast::<f32>().add(i), x),
                    KvFormat::F16 => s.store_f16(self.to.cast::<u16>().add(i), x),
                    KvFormat::BF16 => s.store_bf16(self.to.cast::<u16>().add(i), x),
                }
            }
            for i in whole..self.x.len() {
                let x = self.x[i];
                match self.format {
                    KvFormat::F32 => *self.to.cast::<f32>().add(i) = x,
                    KvFormat::F16 => *self.to.cast::<u16>().add(i) = half::f16::from_f32(x).to_bits(),
                    KvFormat::BF16 => *self.to.cast::<u16>().add(i) = half::bf16::from_f32(x).to_bits(),
                }
            }
        }
    }
}

/// Widens `to.len()` cached elements.
///
/// # Safety
/// So many elements behind `from`.
#[inline(always)]
pub unsafe fn get<S: Isa>(s: S, format: KvFormat, from: *const u8, to: &mut [f32]) {
    let whole = to.len() / 16 * 16;
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..whole).step_by(16) {
            let x = match format {
                KvFormat::F32 => s.load(from.cast::<f32>().add(i)),
                KvFormat::F16 => s.load_f16(from.cast::<u16>().add(i)),
                KvFormat::BF16 => s.load_bf16(from.cast::<u16>().add(i)),
            };
            s.store(to.as_mut_ptr().add(i), x);
        }
        for (i, to) in to.iter_mut().enumerate().skip(whole) {
            *to = match format {
                KvFormat::F32 => *from.cast::<f32>().add(i),
                KvFormat::F16 => half::f16::from_bits(*from.cast::<u16>().add(i)).to_f32(),
                KvFormat::BF16 => half::bf16::from_bits(*from.cast::<u16>().add(i)).to_f32(),
            };
        }
    }
}

/// [`op::KvStore`].
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
}

impl Step for Store {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let Cache { kv_heads, head_dim, format, .. } = self.cache;
        let rows = live.rows(RowSpace::Batch);
        w.phase(rows, w.chunk(rows), |range| {
            for row in range {
                // SAFETY: a live row; rows of one launch have slots of their own.
                let slot = unsafe { *self.slot_mapping.at(row) };
                for head in 0..if slot < 0 { 0 } else { kv_heads } {
                    // SAFETY: as above.
                    let x = unsafe { self.x.slice((row * kv_heads + head) * head_dim, head_dim) };
                    self.level.run(Put { x, to: self.cache.at(slot as usize, head), format });
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
