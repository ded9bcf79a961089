//! Causal grouped-query attention over a paged KV cache, and the store into it.

use super::{Cost, StepShape};
use crate::backend::reference::Env;
use crate::program::{Elem, Program, RowSpace, Slot};

/// `out[r, h] = softmax(scale * q[r, h] . K[0..=position]) V[0..=position]`, keys and values read
/// through the row's block table. Token `t` of a sequence lies in block `table[t / block_size]` at
/// offset `t % block_size`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// `f32 [rows, heads * head_dim]`.
    pub q: Slot,
    /// KV `[blocks, block_size, kv_heads, head_dim]`.
    pub k_cache: Slot,
    /// As `k_cache`.
    pub v_cache: Slot,
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
    /// KV `[blocks, block_size, kv_heads, head_dim]`.
    pub cache: Slot,
    /// `i32 [rows]`.
    pub slot_mapping: Slot,
}

impl Attention {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let block_size = env.shape(self.k_cache)[1];
        let max_blocks = env.shape(self.block_tables)[1];
        let (dim, group) = (self.head_dim, self.heads / self.kv_heads);
        for row in 0..env.live(RowSpace::Batch) {
            let position = env.u32s(self.positions)[row] as usize;
            let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
            let table = env.u32s(self.block_tables)[env.u32s(self.row_seq)[row] as usize * max_blocks..].to_vec();
            for head in 0..self.heads {
                let at = |t: usize| {
                    let slot = table[t / block_size] as usize * block_size + t % block_size;
                    (slot * self.kv_heads + head / group) * dim
                };
                let q = &env.f64s(self.q)[(row * self.heads + head) * dim..][..dim];
                let key = env.f64s(self.k_cache);
                let scores: Vec<f64> = (first..=position)
                    .map(|t| key[at(t)..][..dim].iter().zip(q).map(|(k, q)| k * q).sum::<f64>() * self.scale as f64)
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut out = vec![0.0; dim];
                for (t, w) in (first..=position).zip(&weights) {
                    let value = &env.f64s(self.v_cache)[at(t)..][..dim];
                    out.iter_mut().zip(value).for_each(|(o, v)| *o += w / total * v);
                }
                env.f64s_mut(self.out)[(row * self.heads + head) * dim..][..dim].copy_from_slice(&out);
            }
        }
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let Elem::Kv(format) = program.decl(self.k_cache).elem else { unreachable!("cache slots hold KV") };
        let tokens = (step.rows * self.window.map_or(step.context, |w| w.min(step.context))) as f64;
        Cost {
            bytes: tokens * (2 * self.kv_heads * self.head_dim * format.bytes()) as f64,
            flops: tokens * (4 * self.heads * self.head_dim) as f64,
        }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.q, self.k_cache, self.v_cache, self.positions, self.row_seq, self.block_tables]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.out]
    }
}

impl KvStore {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let width: usize = env.shape(self.cache)[2..].iter().product();
        let Elem::Kv(format) = env.decl(self.cache).elem else { unreachable!("cache slots hold KV") };
        for row in 0..env.live(RowSpace::Batch) {
            let slot = env.i32s(self.slot_mapping)[row];
            if slot < 0 {
                continue;
            }
            let x = env.f64s(self.x)[row * width..][..width].to_vec();
            let out = &mut env.f64s_mut(self.cache)[slot as usize * width..][..width];
            out.iter_mut().zip(x).for_each(|(o, v)| *o = format.round(v as f32) as f64);
        }
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let cache = program.decl(self.cache);
        let Elem::Kv(format) = cache.elem else { unreachable!("cache slots hold KV") };
        let n = step.rows * cache.shape[2] * cache.shape[3];
        Cost { bytes: (n * (4 + format.bytes())) as f64, flops: 0.0 }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.x, self.slot_mapping]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.cache]
    }
}
