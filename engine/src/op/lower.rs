//! Expansion of fused ops into small ones, for backends that lack the fused kernel.

use super::{Add, GatedAct, Linear, Op, RmsNorm};
use crate::program::{Program, RowSpace};

/// Rewrites every op that `supported` refuses, until all are supported or nothing can be expanded.
/// An op that still is not supported is left for `compile` to report.
pub fn lower(program: &Program, supported: impl Fn(&Op) -> bool) -> Program {
    let mut out = Program { ops: Vec::new(), ..program.clone() };
    for op in &program.ops {
        push_lowered(&mut out, op.clone(), &supported);
    }
    out
}

fn push_lowered(program: &mut Program, op: Op, supported: &impl Fn(&Op) -> bool) {
    if supported(&op) {
        return program.ops.push(op);
    }
    match expand(program, &op) {
        Some(parts) => parts.into_iter().for_each(|part| push_lowered(program, part, supported)),
        None => program.ops.push(op),
    }
}

/// One level of expansion; `None` for ops that are small already.
fn expand(program: &mut Program, op: &Op) -> Option<Vec<Op>> {
    match op {
        Op::AddRmsNorm(o) => Some(vec![
            Add { residual: o.residual, delta: o.delta }.into(),
            RmsNorm { x: o.residual, weight: o.weight, out: o.out, eps: o.eps }.into(),
        ]),
        Op::QkvRopeStore(o) => Some(o.parts()),
        Op::GatedMlp(o) => {
            let shape = program.decl(o.gated).shape.clone();
            // Shared by all layers: lives between two neighbouring ops only.
            let up = program.find("lowered.up").unwrap_or_else(|| program.scratch("lowered.up", &shape));
            let linear = |x, w, out| Linear { x, w, bias: None, out, space: RowSpace::Batch };
            Some(vec![
                linear(o.x, o.gate, o.gated).into(),
                linear(o.x, o.up, up).into(),
                GatedAct { gate: o.gated, up, out: o.gated, activation: o.activation }.into(),
                linear(o.gated, o.down, o.out).into(),
            ])
        }
        _ => None,
    }
}
