//! Ops that only move or add: residual add, row gather, block copy.

use super::{Cost, StepShape};
use crate::backend::reference::Env;
use crate::program::{Program, RowSpace, Slot};

/// `residual += delta`.
#[derive(Clone, Debug, PartialEq)]
pub struct Add {
    /// Read and written, `f32 [rows, n]`.
    pub residual: Slot,
    /// `f32 [rows, n]`.
    pub delta: Slot,
}

/// `out[l] = x[index[l]]`: the rows whose logits are wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherRows {
    /// `f32 [rows, n]`.
    pub x: Slot,
    /// `u32 [logit_rows]`.
    pub index: Slot,
    /// `f32 [logit_rows, n]`.
    pub out: Slot,
}

/// Copies whole KV blocks within one buffer: pairs `(from, to)`; sources and targets of one launch are
/// disjoint. The live row count is the number of pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyBlocks {
    /// `u32 [rows, 2]`.
    pub pairs: Slot,
    /// KV buffer, read and written.
    pub cache: Slot,
}

impl Add {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let live = env.live(RowSpace::Batch) * env.shape(self.residual)[1];
        let delta = env.f64s(self.delta)[..live].to_vec();
        env.f64s_mut(self.residual)[..live].iter_mut().zip(delta).for_each(|(r, d)| *r += d);
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let n = (step.rows * program.decl(self.residual).shape[1]) as f64;
        Cost { bytes: 12.0 * n, flops: n }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.residual, self.delta]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.residual]
    }
}

impl GatherRows {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let n = env.shape(self.x)[1];
        for row in 0..env.live(RowSpace::Logits) {
            let from = env.u32s(self.index)[row] as usize;
            let values = env.f64s(self.x)[from * n..][..n].to_vec();
            env.f64s_mut(self.out)[row * n..][..n].copy_from_slice(&values);
        }
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        Cost { bytes: (8 * step.logit_rows * program.decl(self.x).shape[1]) as f64, flops: 0.0 }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.x, self.index]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.out]
    }
}

impl CopyBlocks {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let block: usize = env.shape(self.cache)[1..].iter().product();
        for pair in 0..env.live(RowSpace::Batch) {
            let from = env.u32s(self.pairs)[2 * pair] as usize;
            let to = env.u32s(self.pairs)[2 * pair + 1] as usize;
            env.f64s_mut(self.cache).copy_within(from * block..(from + 1) * block, to * block);
        }
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let cache = program.decl(self.cache);
        Cost { bytes: (2 * step.rows * cache.bytes() / cache.shape[0].max(1)) as f64, flops: 0.0 }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.pairs, self.cache]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.cache]
    }
}
