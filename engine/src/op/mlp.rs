//! The gated MLP (Shazeer 2020): `down(act(gate(x)) * up(x))`.

use super::{Cost, Linear, StepShape};
use crate::backend::reference::Env;
use crate::model::Activation;
use crate::program::{Program, RowSpace, Slot};

/// The whole MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedMlp {
    /// `f32 [rows, hidden]`.
    pub x: Slot,
    /// Weight `[ffn, hidden]`.
    pub gate: Slot,
    /// Weight `[ffn, hidden]`.
    pub up: Slot,
    /// Weight `[hidden, ffn]`.
    pub down: Slot,
    /// Scratch for the gated values, `f32 [rows, ffn]`.
    pub gated: Slot,
    /// `f32 [rows, hidden]`.
    pub out: Slot,
    /// Gate activation.
    pub activation: Activation,
}

/// `out = act(gate) * up`, element by element; `out` may be `gate`.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedAct {
    /// `f32 [rows, ffn]`.
    pub gate: Slot,
    /// `f32 [rows, ffn]`.
    pub up: Slot,
    /// `f32 [rows, ffn]`.
    pub out: Slot,
    /// Gate activation.
    pub activation: Activation,
}

impl Activation {
    /// The function itself, in f64.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
        }
    }
}

impl GatedMlp {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let linear = |x, w, out| Linear { x, w, bias: None, out, space: RowSpace::Batch };
        linear(self.x, self.gate, self.gated).reference(env);
        let gate = env.f64s(self.gated).to_vec();
        linear(self.x, self.up, self.gated).reference(env);
        let live = env.live(RowSpace::Batch) * env.shape(self.gate)[0];
        let gated = &mut env.f64s_mut(self.gated)[..live];
        gated.iter_mut().zip(gate).for_each(|(u, g)| *u *= self.activation.apply(g));
        linear(self.gated, self.down, self.out).reference(env);
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let linear = |w| Linear { x: self.x, w, bias: None, out: self.out, space: RowSpace::Batch }.cost(program, step);
        let parts = [linear(self.gate), linear(self.up), linear(self.down)];
        Cost { bytes: parts.iter().map(|c| c.bytes).sum(), flops: parts.iter().map(|c| c.flops).sum() }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.x, self.gate, self.up, self.down]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.gated, self.out]
    }
}

impl GatedAct {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let live = env.live(RowSpace::Batch) * env.shape(self.gate)[1];
        let out: Vec<f64> = env.f64s(self.gate)[..live]
            .iter()
            .zip(env.f64s(self.up))
            .map(|(g, u)| self.activation.apply(*g) * u)
            .collect();
        env.f64s_mut(self.out)[..live].copy_from_slice(&out);
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let n = (step.rows * program.decl(self.gate).shape[1]) as f64;
        Cost { bytes: 12.0 * n, flops: 6.0 * n }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.gate, self.up]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.out]
    }
}
