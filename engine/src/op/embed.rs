//! Token ids to vectors: rows of the embedding, decoded from its stored format.

use super::{Cost, StepShape};
use crate::backend::reference::Env;
use crate::program::{Program, RowSpace, Slot};

/// `out[r] = scale * table[tokens[r]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// `u32 [rows]`.
    pub tokens: Slot,
    /// Weight `[vocab, hidden]`.
    pub table: Slot,
    /// `f32 [rows, hidden]`.
    pub out: Slot,
    /// 1, or `sqrt(hidden)` for Gemma.
    pub scale: f32,
}

impl Embed {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let hidden = env.shape(self.table)[1];
        for row in 0..env.live(RowSpace::Batch) {
            let token = env.u32s(self.tokens)[row] as usize;
            let values: Vec<f64> = env.f64s(self.table)[token * hidden..][..hidden].to_vec();
            let out = &mut env.f64s_mut(self.out)[row * hidden..][..hidden];
            out.iter_mut().zip(values).for_each(|(o, v)| *o = v * self.scale as f64);
        }
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let table = program.decl(self.table);
        let row = table.bytes() / table.shape[0] + 4 * table.shape[1];
        Cost { bytes: (step.rows * row) as f64, flops: 0.0 }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.tokens, self.table]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.out]
    }
}
