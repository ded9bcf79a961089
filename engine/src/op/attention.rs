//! Causal grouped-query attention over a paged KV cache, and the store into it.
//!
//! A cache of codes ([`crate::format::f8`]) has a scale for each token and head, stored with them.

use std::ops::Range;

use super::{Cost, StepShape};
use crate::backend::reference::Env;
use crate::format::f8;
use crate::program::{KvCache, Program, RowSpace, Slot};

/// `out[r, h] = softmax(scale * q[r, h] . K[0..=position]) V[0..=position]`, keys and values read
/// through the row's block table. Token `t` of a sequence lies in block `table[t / block_size]` at
/// offset `t % block_size`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// `f32 [rows, heads * head_dim]`.
    pub q: Slot,
    /// `[blocks, block_size, kv_heads, head_dim]`.
    pub k_cache: KvCache,
    /// As `k_cache`.
    pub v_cache: KvCache,
    /// `u32 [rows]`: position of the row's token; it attends to itself and all before.
    pub positions: Slot,
    /// `u32 [rows]`: which block table belongs to the row.
    pub row_seq: Slot,
    /// `u32 [seqs, max_blocks]`.
    pub block_tables: Slot,
    /// `f32 [rows, heads * head_dim]`.
    pub out: Slot,
    /// Query heads; `heads / kv_heads` of them share a key head.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Tokens visible, the row's own included; all where `None`.
    pub window: Option<usize>,
}

/// Rounds `x` to the cache's format and stores it at each row's slot; padding rows (-1) store nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct KvStore {
    /// `f32 [rows, kv_heads * head_dim]`.
    pub x: Slot,
    /// `[blocks, block_size, kv_heads, head_dim]`.
    pub cache: KvCache,
    /// `i32 [rows]`.
    pub slot_mapping: Slot,
}

impl Attention {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let block_size = env.shape(self.k_cache.elements())[1];
        let max_blocks = env.shape(self.block_tables)[1];
        let (dim, group) = (self.head_dim, self.heads / self.kv_heads);
        for row in 0..env.live(RowSpace::Batch) {
            let position = env.u32s(self.positions)[row] as usize;
            let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
            let table = env.u32s(self.block_tables)[env.u32s(self.row_seq)[row] as usize * max_blocks..].to_vec();
            for head in 0..self.heads {
                let cached = |cache: KvCache, t: usize| {
                    let (block, offset) = (table[t / block_size] as usize, t % block_size);
                    let at = ((block * block_size + offset) * self.kv_heads + head / group) * dim;
                    let scale = scale(env, cache, block * self.kv_heads + head / group, offset);
                    env.f64s(cache.elements())[at..][..dim].iter().map(move |x| x * scale)
                };
                let q = &env.f64s(self.q)[(row * self.heads + head) * dim..][..dim];
                let scores: Vec<f64> = (first..=position)
                    .map(|t| cached(self.k_cache, t).zip(q).map(|(k, q)| k * q).sum::<f64>() * self.scale as f64)
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut out = vec![0.0; dim];
                for (t, w) in (first..=position).zip(&weights) {
                    out.iter_mut().zip(cached(self.v_cache, t)).for_each(|(o, v)| *o += w / total * v);
                }
                env.f64s_mut(self.out)[(row * self.heads + head) * dim..][..dim].copy_from_slice(&out);
            }
        }
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let format = program.kv_format(self.k_cache);
        let tokens = (step.rows * self.window.map_or(step.context, |w| w.min(step.context))) as f64;
        Cost {
            bytes: tokens * (2 * self.kv_heads * self.head_dim * format.bytes()) as f64,
            flops: tokens * (4 * self.heads * self.head_dim) as f64,
        }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        let caches = self.k_cache.slots().chain(self.v_cache.slots());
        [self.q, self.positions, self.row_seq, self.block_tables].into_iter().chain(caches).collect()
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.out]
    }
}

impl KvStore {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let [_, heads, dim] = env.shape(self.cache.elements())[1..] else { unreachable!("a cache's shape") };
        let parts: Vec<_> = (0..heads).map(|head| head * dim..(head + 1) * dim).collect();
        store(env, self.x, self.cache, self.slot_mapping, &parts);
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let [_, _, heads, dim] = program.kv_shape(self.cache);
        let n = step.rows * heads * dim;
        Cost { bytes: (n * (4 + program.kv_format(self.cache).bytes())) as f64, flops: 0.0 }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        [self.x, self.slot_mapping].into_iter().chain(self.cache.scales()).collect()
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        self.cache.slots().collect()
    }
}

/// What the elements at `offset` of a block are multiplied with; `part` counts the heads of all blocks, or the parts of
/// latent vectors. 1 in formats without scales.
pub(super) fn scale(env: &Env<'_>, cache: KvCache, part: usize, offset: usize) -> f64 {
    let block_size = env.shape(cache.elements())[1];
    cache.scales().map_or(1.0, |scales| env.f64s(scales)[part * block_size + offset])
}

/// What a store means: each row of `x` goes to its slot, its parts rounded apart, each under a scale of its own in
/// formats that have scales.
pub(super) fn store(env: &mut Env<'_>, x: Slot, cache: KvCache, slot_mapping: Slot, parts: &[Range<usize>]) {
    let (block_size, width) = (env.shape(cache.elements())[1], parts.last().map_or(0, |part| part.end));
    let format = env.kv_format(cache);
    for row in 0..env.live(RowSpace::Batch) {
        let Ok(slot) = usize::try_from(env.i32s(slot_mapping)[row]) else { continue };
        for (i, part) in parts.iter().enumerate() {
            let new: Vec<f32> = env.f64s(x)[row * width..][part.clone()].iter().map(|x| *x as f32).collect();
            let mut scale = 1.0;
            if let Some(scales) = cache.scales() {
                scale = f8::scale(f8::largest(&new));
                let place = (slot / block_size * parts.len() + i) * block_size + slot % block_size;
                env.f64s_mut(scales)[place] = f64::from(scale);
            }
            // Under a scale that is not a number elements are none either.
            let rounded: Vec<f64> = new.into_iter().map(|x| f64::from(format.round(x / scale))).collect();
            env.f64s_mut(cache.elements())[slot * width..][part.clone()].copy_from_slice(&rounded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::reference::Values;
    use crate::format::KvFormat;
    use crate::op::problem::noise;
    use crate::program::{Elem, Role};

    const BLOCK: usize = 16;
    const DIM: usize = 64;

    /// The largest error of each token of a block, of values up to `size(token)`, relative to its own largest.
    fn errors(size: impl Fn(usize) -> f32) -> Vec<f64> {
        let mut p = Program::new("store", BLOCK, BLOCK);
        let x = p.slot("x", Role::Input, Elem::F32, &[BLOCK, DIM]);
        let slot_mapping = p.slot("slot_mapping", Role::Input, Elem::I32, &[BLOCK]);
        let [cache, _] = p.kv_caches(["keys", "values"], KvFormat::E2M5, [1, BLOCK, 1, DIM]);
        let value = |i: usize| f64::from(size(i / DIM) * noise(1, "x", i / DIM, i % DIM));
        let new: Vec<f64> = (0..BLOCK * DIM).map(value).collect();
        let fresh = |len| Values::F64(vec![f64::NAN; len]);
        let mut values = vec![
            Values::U32(vec![BLOCK as u32; 2]),
            Values::F64(new.clone()),
            Values::I32((0..BLOCK as i32).collect()),
        ];
        values.extend([BLOCK * DIM, BLOCK, BLOCK * DIM, BLOCK].map(fresh));
        let mut env = Env::new(&p, &mut values);
        KvStore { x, cache, slot_mapping }.reference(&mut env);
        let token = |t: usize| {
            let (new, scale) = (&new[t * DIM..][..DIM], scale(&env, cache, 0, t));
            let stored = env.f64s(cache.elements())[t * DIM..][..DIM].iter().map(|x| x * scale);
            let most = new.iter().fold(0f64, |a, x| a.max(x.abs()));
            stored.zip(new).fold(0f64, |a, (stored, x)| a.max((stored - x).abs())) / most
        };
        (0..BLOCK).map(token).collect()
    }

    #[test]
    fn every_token_has_all_the_precision_of_its_codes() {
        // The first, as those of sequences are, hundreds of times smaller, the sixth larger.
        let size = |t: usize| [1.0 / 500.0, 0.7, 1.0, 1.3, 1.6, 40.0][t.min(5)];
        for (t, error) in errors(size).into_iter().enumerate() {
            assert!(error > 0.0 && error <= 1.0 / 62.0, "token {t}: {error}");
        }
    }
}
