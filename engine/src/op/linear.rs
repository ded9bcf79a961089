//! Matrix product with a weight in its stored format.

use super::{Cost, StepShape};
use crate::backend::reference::Env;
use crate::program::{Program, RowSpace, Slot};

/// `out[r, n] = sum_k x[r, k] * w[n, k] (+ bias[n])`, summed in f32 in an order that depends on
/// (k, format, backend) alone, never on the number of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `f32 [rows, k]`.
    pub x: Slot,
    /// Weight `[n, k]`.
    pub w: Slot,
    /// `[n]`.
    pub bias: Option<Slot>,
    /// `f32 [rows, n]`.
    pub out: Slot,
    /// Token rows, or logit rows for the output projection.
    pub space: RowSpace,
}

impl Linear {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let (n, k) = (env.shape(self.w)[0], env.shape(self.w)[1]);
        for row in 0..env.live(self.space) {
            let x = &env.f64s(self.x)[row * k..][..k];
            let mut y: Vec<f64> =
                env.f64s(self.w).chunks_exact(k).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
            if let Some(bias) = self.bias {
                y.iter_mut().zip(env.f64s(bias)).for_each(|(y, b)| *y += b);
            }
            env.f64s_mut(self.out)[row * n..][..n].copy_from_slice(&y);
        }
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let w = program.decl(self.w);
        let rows = match self.space {
            RowSpace::Batch => step.rows,
            RowSpace::Logits => step.logit_rows,
        } as f64;
        let (n, k) = (w.shape[0] as f64, w.shape[1] as f64);
        Cost { bytes: w.bytes() as f64 + 4.0 * rows * (n + k), flops: 2.0 * rows * n * k }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        [self.x, self.w].into_iter().chain(self.bias).collect()
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.out]
    }
}
