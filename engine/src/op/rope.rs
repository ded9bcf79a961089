//! Rotary position embedding applied to heads, from host-made cos and sin, and what prepares them for narrow codes.

use super::{Cost, StepShape};
use crate::backend::reference::Env;
use crate::format::hadamard;
use crate::model::Pairing;
use crate::program::{Program, RowSpace, Slot};

/// Rotates the first `dim` values of every head of `x`, in place; with `hadamard` the whole head is then transformed
/// by [`crate::format::hadamard`].
#[derive(Clone, Debug, PartialEq)]
pub struct ApplyRope {
    /// Read and written, `f32 [rows, heads * head_dim]`.
    pub x: Slot,
    /// `f32 [rows, dim / 2, 2]`: cos and sin per pair.
    pub rope: Slot,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rotated leading values.
    pub dim: usize,
    /// Which values form a pair.
    pub pairing: Pairing,
    /// Whether heads are transformed.
    pub hadamard: bool,
}

impl Pairing {
    /// Indices of pair `i` among `dim` rotated values.
    pub fn pair(self, i: usize, dim: usize) -> (usize, usize) {
        match self {
            Pairing::Interleaved => (2 * i, 2 * i + 1),
            Pairing::Halves => (i, i + dim / 2),
        }
    }
}

impl ApplyRope {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let half = self.dim / 2;
        for row in 0..env.live(RowSpace::Batch) {
            let table = env.f64s(self.rope)[row * self.dim..][..self.dim].to_vec();
            for head in 0..self.heads {
                let x = &mut env.f64s_mut(self.x)[(row * self.heads + head) * self.head_dim..][..self.head_dim];
                for i in 0..half {
                    let (a, b) = self.pairing.pair(i, self.dim);
                    let (cos, sin) = (table[2 * i], table[2 * i + 1]);
                    (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos);
                }
                if self.hadamard {
                    hadamard::transform(x, hadamard::factor(self.head_dim));
                }
            }
        }
    }
    pub(super) fn cost(&self, _: &Program, step: &StepShape) -> Cost {
        let n = (step.rows * self.heads * self.dim) as f64;
        let sums = if self.hadamard { hadamard::run(self.head_dim).ilog2() as usize + 1 } else { 0 };
        let flops = 3.0 * n + (step.rows * self.heads * self.head_dim * sums) as f64;
        Cost { bytes: 8.0 * n + 4.0 * (step.rows * self.dim) as f64, flops }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.x, self.rope]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.x]
    }
}
