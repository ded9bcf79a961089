//! What happens to heads between their projection and attention: norm, RoPE, the transform of those whose keys become
//! codes, the store into the cache.

use super::kv::Cache;
use super::memory::Ptr;
use super::norm::Group;
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use super::simd::{Isa, Kernel, Level};
use crate::format::hadamard;
use crate::model::Pairing;
use crate::op;
use crate::program::{KvCache, RowSpace, Slot};

/// The three products of a [`op::QkvRopeStore`]: weight, bias, out.
pub fn projections(o: &op::QkvRopeStore) -> [(Slot, Option<Slot>, Slot); 3] {
    let bias = |i: usize| o.bias.map(|b| b[i]);
    [(o.wq, bias(0), o.q), (o.wk, bias(1), o.k), (o.wv, bias(2), o.v)]
}

/// A kind of heads and what is done to them.
struct Kind {
    x: Ptr<f32>,
    heads: usize,
    norm: Option<Ptr<f32>>,
    rotate: bool,
    cache: Option<Cache>,
}

/// Norm, rotation and store of all heads of a step.
pub struct Heads {
    kinds: Vec<Kind>,
    head_dim: usize,
    rope: Ptr<f32>,
    rope_dim: usize,
    pairing: Pairing,
    /// Whether rotated heads are transformed too.
    hadamard: bool,
    /// `None` where nothing is stored.
    slot_mapping: Option<Ptr<i32>>,
    eps: f32,
    level: Level,
}

impl Heads {
    /// The second half of a [`op::QkvRopeStore`].
    pub fn qkv(b: &Builder<'_>, o: &op::QkvRopeStore) -> Self {
        let norm = |i: usize| o.norm.map(|n| b.ptr(n[i]));
        let kind = |x, heads, norm, rotate, cache: Option<KvCache>| Kind {
            x: b.ptr(x),
            heads,
            norm,
            rotate,
            cache: cache.map(|c| Cache::new(b, c)),
        };
        let kinds = vec![
            kind(o.q, o.heads, norm(0), true, None),
            kind(o.k, o.kv_heads, norm(1), true, Some(o.k_cache)),
            kind(o.v, o.kv_heads, None, false, Some(o.v_cache)),
        ];
        Self {
            kinds,
            head_dim: o.head_dim,
            rope: b.ptr(o.rope),
            rope_dim: o.rope_dim,
            pairing: o.pairing,
            hadamard: o.hadamard,
            slot_mapping: Some(b.ptr(o.slot_mapping)),
            eps: o.eps,
            level: b.level,
        }
    }
    /// [`op::ApplyRope`] on its own.
    pub fn rope(b: &Builder<'_>, o: &op::ApplyRope) -> Self {
        Self {
            kinds: vec![Kind { x: b.ptr(o.x), heads: o.heads, norm: None, rotate: true, cache: None }],
            head_dim: o.head_dim,
            rope: b.ptr(o.rope),
            rope_dim: o.dim,
            pairing: o.pairing,
            hadamard: o.hadamard,
            slot_mapping: None,
            eps: 0.0,
            level: b.level,
        }
    }
    /// Norm, rotation and store of one head of one row.
    ///
    /// # Safety
    /// A live row; the head is this item's own.
    unsafe fn finish(&self, row: usize, kind: &Kind, head: usize) {
        // SAFETY: the caller's promise; weights and tables are read only.
        unsafe {
            let x = kind.x.at((row * kind.heads + head) * self.head_dim);
            if let Some(norm) = kind.norm {
                let weight = norm.slice(0, self.head_dim);
                self.level.run(Group { x, delta: None, weight, out: x, eps: self.eps });
            }
            let x = std::slice::from_raw_parts_mut(x, self.head_dim);
            if kind.rotate {
                let table = self.rope.slice(row * self.rope_dim, self.rope_dim);
                self.level.run(Rotate { x, table, pairing: self.pairing });
                if self.hadamard {
                    self.level.run(Hadamard { x });
                }
            }
            if let Some((cache, slot)) = self.place(row, kind) {
                cache.put(self.level, slot, head, x);
            }
        }
    }
    /// Where a row's heads of a kind are cached.
    fn place<'a>(&self, row: usize, kind: &'a Kind) -> Option<(&'a Cache, usize)> {
        // SAFETY: a live row.
        let slot = unsafe { *self.slot_mapping?.at(row) };
        Some((kind.cache.as_ref()?, usize::try_from(slot).ok()?))
    }
}

impl Step for Heads {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let per_row: usize = self.kinds.iter().map(|k| k.heads).sum();
        let total = live.rows(RowSpace::Batch) * per_row;
        w.phase(total, w.chunk(total), |range| {
            for item in range {
                let (row, mut head) = (item / per_row, item % per_row);
                for kind in &self.kinds {
                    if head < kind.heads {
                        // SAFETY: items are disjoint heads of live rows.
                        unsafe { self.finish(row, kind, head) };
                        break;
                    }
                    head -= kind.heads;
                }
            }
        });
    }
}

/// Rotates the leading `table.len()` values of a head.
struct Rotate<'a> {
    x: &'a mut [f32],
    /// cos and sin per pair.
    table: &'a [f32],
    pairing: Pairing,
}

impl Kernel for Rotate<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, _: S) {
        let dim = self.table.len();
        let rotate = |a: f32, b: f32, cos: f32, sin: f32| (a.mul_add(cos, -(b * sin)), a.mul_add(sin, b * cos));
        match self.pairing {
            Pairing::Interleaved => {
                for (pair, angle) in self.x[..dim].chunks_exact_mut(2).zip(self.table.chunks_exact(2)) {
                    (pair[0], pair[1]) = rotate(pair[0], pair[1], angle[0], angle[1]);
                }
            }
            Pairing::Halves => {
                let (first, second) = self.x[..dim].split_at_mut(dim / 2);
                for ((a, b), angle) in first.iter_mut().zip(second).zip(self.table.chunks_exact(2)) {
                    (*a, *b) = rotate(*a, *b, angle[0], angle[1]);
                }
            }
        }
    }
}

/// [`hadamard::transform`] of a head.
struct Hadamard<'a> {
    x: &'a mut [f32],
}

impl Kernel for Hadamard<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, _: S) {
        hadamard::transform(self.x, hadamard::factor(self.x.len()) as f32);
    }
}
