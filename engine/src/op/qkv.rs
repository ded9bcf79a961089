//! Query, key and value projection, optional bias and head norm, RoPE, and the store into the cache.

use super::{ApplyRope, Cost, KvStore, Linear, RmsNorm, StepShape};
use crate::backend::reference::Env;
use crate::model::Pairing;
use crate::program::{KvCache, Program, RowSpace, Slot};

/// Everything between the attention norm and attention itself.
#[derive(Clone, Debug, PartialEq)]
pub struct QkvRopeStore {
    /// `f32 [rows, hidden]`.
    pub x: Slot,
    /// Weights `[heads * head_dim, hidden]`, then twice `[kv_heads * head_dim, hidden]`.
    pub wq: Slot,
    /// See `wq`.
    pub wk: Slot,
    /// See `wq`.
    pub wv: Slot,
    /// Biases of q, k and v.
    pub bias: Option<[Slot; 3]>,
    /// Weights `[head_dim]` of the norms on each head of q and k, before RoPE.
    pub norm: Option<[Slot; 2]>,
    /// Epsilon of that norm.
    pub eps: f32,
    /// `f32 [rows, rope_dim / 2, 2]`.
    pub rope: Slot,
    /// Rotated leading values of a head.
    pub rope_dim: usize,
    /// Which values form a pair.
    pub pairing: Pairing,
    /// Whether heads of q and k go through [`crate::format::hadamard`] after RoPE: the products of queries and
    /// keys are the same, and codes round such keys better.
    pub hadamard: bool,
    /// `i32 [rows]`: `block * block_size + offset`, -1 for padding.
    pub slot_mapping: Slot,
    /// Where keys go, `[blocks, block_size, kv_heads, head_dim]`.
    pub k_cache: KvCache,
    /// Where values go, as `k_cache`.
    pub v_cache: KvCache,
    /// Rotated queries, `f32 [rows, heads * head_dim]`.
    pub q: Slot,
    /// Scratch for new keys, `f32 [rows, kv_heads * head_dim]`.
    pub k: Slot,
    /// Scratch for new values, as `k`.
    pub v: Slot,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl QkvRopeStore {
    /// The same work as small ops: the meaning of this op, and its lowering.
    pub(super) fn parts(&self) -> Vec<super::Op> {
        let mut parts: Vec<super::Op> = Vec::new();
        let bias = |i: usize| self.bias.map(|b| b[i]);
        for (i, (w, out)) in [(self.wq, self.q), (self.wk, self.k), (self.wv, self.v)].into_iter().enumerate() {
            parts.push(Linear { x: self.x, w, bias: bias(i), out, space: RowSpace::Batch }.into());
        }
        for (i, (x, heads)) in [(self.q, self.heads), (self.k, self.kv_heads)].into_iter().enumerate() {
            if let Some(norm) = self.norm {
                parts.push(RmsNorm { x, weight: norm[i], out: x, eps: self.eps }.into());
            }
            let (head_dim, dim, pairing, hadamard) = (self.head_dim, self.rope_dim, self.pairing, self.hadamard);
            parts.push(ApplyRope { x, rope: self.rope, heads, head_dim, dim, pairing, hadamard }.into());
        }
        let store = |x, cache| KvStore { x, cache, slot_mapping: self.slot_mapping };
        parts.push(store(self.k, self.k_cache).into());
        parts.push(store(self.v, self.v_cache).into());
        parts
    }
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        self.parts().iter().for_each(|op| op.reference(env));
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        self.parts()
            .iter()
            .map(|op| op.cost(program, step))
            .fold(Cost::default(), |a, b| Cost { bytes: a.bytes + b.bytes, flops: a.flops + b.flops })
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        let mut reads = vec![self.x, self.wq, self.wk, self.wv, self.rope, self.slot_mapping];
        reads.extend(self.bias.into_iter().flatten());
        reads.extend(self.norm.into_iter().flatten());
        reads
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        let caches = self.k_cache.slots().chain(self.v_cache.slots());
        [self.q, self.k, self.v].into_iter().chain(caches).collect()
    }
}
