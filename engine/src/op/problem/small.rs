//! Problems of the ops that neither cache nor sample.

use super::Problem;
use super::maker::Maker;
use crate::format::Format;
use crate::model::Activation;
use crate::op::{AddRmsNorm, Embed, GatedMlp, GatherRows, Linear, RmsNorm};
use crate::program::RowSpace;

pub(super) fn embed(rows: usize, live: usize, format: Format, hidden: usize) -> Problem {
    let mut m = Maker::new(format!("embed {format} {hidden}"), rows, live);
    let ids = (0..rows).map(|r| if r < live { (r * 37 % 96) as u32 } else { u32::MAX }).collect();
    let tokens = m.u32s("tokens", &[rows], ids);
    let table = m.weight("table", format, &[96, hidden]);
    let out = m.output("out", hidden, 1e-6);
    m.program().push(Embed { tokens, table, out, scale: 1.5 });
    m.finish()
}

pub(super) fn linear(rows: usize, live: usize, format: Format, n: usize, k: usize, bias: bool) -> Problem {
    let mut m = Maker::new(format!("linear {format} {n}x{k} bias {bias}"), rows, live);
    let x = m.input("x", k);
    let w = m.weight("w", format, &[n, k]);
    let bias = bias.then(|| m.weight("bias", Format::F32, &[n]));
    let out = m.output("out", n, 1e-5);
    m.program().push(Linear { x, w, bias, out, space: RowSpace::Batch });
    m.finish()
}

pub(super) fn gated_mlp(rows: usize, live: usize, format: Format, hidden: usize, activation: Activation) -> Problem {
    let mut m = Maker::new(format!("gated mlp {format} {activation:?}"), rows, live);
    let ffn = 512;
    let x = m.input("x", hidden);
    let gate = m.weight("gate", format, &[ffn, hidden]);
    let up = m.weight("up", format, &[ffn, hidden]);
    let down = m.weight("down", format, &[hidden, ffn]);
    let gated = m.program().scratch("gated", &[rows, ffn]);
    let out = m.output("out", hidden, 2e-5);
    m.program().push(GatedMlp { x, gate, up, down, gated, out, activation });
    m.finish()
}

pub(super) fn add_rms_norm(rows: usize, live: usize, n: usize) -> Problem {
    let mut m = Maker::new(format!("add rms norm {n}"), rows, live);
    let (x, delta) = (m.input("x", n), m.input("delta", n));
    let weight = m.weight("weight", Format::F32, &[n]);
    // `x` is copied into the residual by an add to zeros, so that the input survives.
    let residual = m.output("residual", n, 1e-6);
    let out = m.output("out", n, 1e-5);
    let index = m.u32s("index", &[rows], (0..rows as u32).collect());
    m.program().push(GatherRows { x, index, out: residual });
    m.program().push(AddRmsNorm { residual, delta, weight, out, eps: 1e-5 });
    m.finish()
}

pub(super) fn head_norm(rows: usize, live: usize) -> Problem {
    let mut m = Maker::new("rms norm of heads", rows, live);
    let x = m.input("x", 4 * 64);
    let weight = m.weight("weight", Format::F32, &[64]);
    let out = m.output("out", 4 * 64, 1e-5);
    m.program().push(RmsNorm { x, weight, out, eps: 1e-6 });
    m.finish()
}

pub(super) fn gather(rows: usize, live: usize) -> Problem {
    let mut m = Maker::new("gather rows", rows, live);
    let x = m.input("x", 96);
    let index = m.u32s("index", &[rows], (0..rows).map(|r| (live - 1 - r.min(live - 1)) as u32).collect());
    let out = m.output("out", 96, 0.0);
    m.program().push(GatherRows { x, index, out });
    m.finish()
}
