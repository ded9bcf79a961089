//! RMS norm (Zhang and Sennrich 2019): `x / sqrt(mean(x^2) + eps) * weight`.

use super::{Cost, StepShape};
use crate::backend::reference::Env;
use crate::program::{Program, RowSpace, Slot};

/// Residual add and norm in one: `residual += delta; out = norm(residual) * weight`.
#[derive(Clone, Debug, PartialEq)]
pub struct AddRmsNorm {
    /// Read and written, `f32 [rows, n]`.
    pub residual: Slot,
    /// Added first, `f32 [rows, n]`.
    pub delta: Slot,
    /// `[n]`.
    pub weight: Slot,
    /// `f32 [rows, n]`.
    pub out: Slot,
    /// Inside the root.
    pub eps: f32,
}

/// Norm of each consecutive group of `weight.len()` values of a row: a whole row, or its heads.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    /// `f32 [rows, groups * n]`.
    pub x: Slot,
    /// `[n]`.
    pub weight: Slot,
    /// `f32`, shape of `x`; may be `x` itself.
    pub out: Slot,
    /// Inside the root.
    pub eps: f32,
}

/// The formula, once.
pub(super) fn rms_norm(x: &[f64], weight: &[f64], eps: f32, out: &mut [f64]) {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (mean + eps as f64).sqrt();
    for ((o, v), w) in out.iter_mut().zip(x).zip(weight) {
        *o = v * scale * w;
    }
}

impl AddRmsNorm {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let n = env.shape(self.weight)[0];
        for row in 0..env.live(RowSpace::Batch) {
            let delta = env.f64s(self.delta)[row * n..][..n].to_vec();
            let residual = &mut env.f64s_mut(self.residual)[row * n..][..n];
            residual.iter_mut().zip(&delta).for_each(|(r, d)| *r += d);
        }
        RmsNorm { x: self.residual, weight: self.weight, out: self.out, eps: self.eps }.reference(env);
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let n = (step.rows * program.decl(self.weight).shape[0]) as f64;
        Cost { bytes: 16.0 * n, flops: 5.0 * n }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.residual, self.delta, self.weight]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.residual, self.out]
    }
}

impl RmsNorm {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let n = env.shape(self.weight)[0];
        let width = env.shape(self.x)[1..].iter().product::<usize>();
        let weight = env.f64s(self.weight).to_vec();
        for start in (0..env.live(RowSpace::Batch) * width).step_by(n) {
            let x = env.f64s(self.x)[start..start + n].to_vec();
            rms_norm(&x, &weight, self.eps, &mut env.f64s_mut(self.out)[start..start + n]);
        }
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let width: usize = program.decl(self.x).shape[1..].iter().product();
        let n = (step.rows * width) as f64;
        Cost { bytes: 8.0 * n, flops: 4.0 * n }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.x, self.weight]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.out]
    }
}
