//! Problems of sampling, whose answers do not hang on the last bits of a logit.

use super::maker::Maker;
use super::{Expected, Problem, noise};
use crate::op::sample::sample_row;
use crate::op::{Adjust, SEEN, Sample, SampleRow};
use crate::program::{Elem, Role};

/// Rows of logits under parameters that differ from row to row.
pub(super) fn sampling(rows: usize, live: usize) -> Vec<Problem> {
    let base = SampleRow { temperature: 0.8, seed_lo: 99, seed_hi: 5, position: 1000, ..SampleRow::default() };
    let cases = [
        ("greedy", SampleRow { temperature: 0.0, ..base }),
        ("temperature", base),
        ("top k", SampleRow { top_k: 5, temperature: 1.5, ..base }),
        ("top p", SampleRow { top_p: 0.7, ..base }),
        ("min p", SampleRow { min_p: 0.1, ..base }),
        ("all filters", SampleRow { top_k: 40, top_p: 0.9, min_p: 0.02, choice: 3, ..base }),
        ("many kept", SampleRow { top_k: 3000, top_p: 0.99, ..base }),
        ("penalties", SampleRow { repetition: 1.3, presence: 0.5, frequency: 0.2, ..base }),
        ("masked", SampleRow { top_p: 0.9, mask: 1, ..base }),
        ("masked, greedy", SampleRow { temperature: 0.0, mask: 1, ..base }),
        ("penalties, greedy", SampleRow { temperature: 0.0, repetition: 1.3, presence: 0.5, frequency: 0.2, ..base }),
    ];
    // Two values: more ties than a device's list of candidates is likely to hold.
    let flat = [
        ("top p of ties", SampleRow { top_p: 0.7, ..base }),
        ("top k of ties", SampleRow { top_k: 2, ..base }),
        ("all filters on ties", SampleRow { top_k: 3000, top_p: 0.8, min_p: 0.5, ..base }),
    ];
    let spread = cases.iter().map(|(name, row)| sample_problem(rows, live, name, *row, false));
    spread.chain(flat.iter().map(|(name, row)| sample_problem(rows, live, name, *row, true))).collect()
}

fn sample_problem(rows: usize, live: usize, name: &str, params: SampleRow, flat: bool) -> Problem {
    let vocab: usize = 5003;
    let mut m = Maker::new(format!("sample, {name}"), rows, live);
    let mut lists: Vec<Adjust> = Vec::new();
    let (mut offsets, mut table, mut logits) = (vec![0u32], Vec::new(), Vec::new());
    let words = vocab.div_ceil(32);
    let masks = masks(rows, words);
    for row in 0..rows {
        let list: Vec<Adjust> = (0..row as u32 % 7)
            .map(|i| Adjust { token: i * 331 + row as u32, count: SEEN | i, bias: if i == 3 { 4.0 } else { 0.0 } })
            .collect();
        let (row_params, row_logits) = stable_row(row, vocab, params, &list, &masks, flat);
        table.extend_from_slice(bytemuck::cast_slice::<SampleRow, u32>(&[row_params]));
        logits.extend(if row < live { row_logits } else { vec![f32::NAN; vocab] });
        lists.extend(list);
        offsets.push(lists.len() as u32);
    }
    lists.resize(lists.len() + 1, Adjust { token: 0, count: 0, bias: 0.0 });
    m.set("logits", logits);
    let logits = m.program().slot("logits", Role::Input, Elem::F32, &[rows, vocab]);
    let width = size_of::<SampleRow>() / 4;
    let params = m.u32s("params", &[rows, width], table);
    let offsets = m.u32s("offsets", &[rows + 1], offsets);
    let adjust = m.u32s("adjust", &[lists.len(), 3], bytemuck::cast_slice(&lists).to_vec());
    let masks = m.u32s("masks", &[rows, words], masks);
    m.problem.outputs.push(Expected { slot: "sampled".into(), len: live, width: 1, tolerance: None });
    let out = m.program().slot("sampled", Role::Output, Elem::U32, &[rows]);
    m.program().push(Sample { logits, params, offsets, adjust, masks, out });
    m.finish()
}

/// Sets of about a third of the tokens; beyond the vocabulary every bit is set. The last row's comes first: rows
/// name masks in another order than their own, and what a row gets does not depend on how many there are.
fn masks(rows: usize, words: usize) -> Vec<u32> {
    let bit = |row: usize, token: usize| noise(5, "mask", row, token) > 0.3;
    let word = |row: usize, w: usize| (0..32).map(|b| u32::from(bit(row, 32 * w + b)) << b).sum();
    let mut masks: Vec<u32> = (0..rows * words).map(|i| word(rows - 1 - i / words, i % words)).collect();
    masks.chunks_mut(words).for_each(|row| row[words - 1] |= 0xffff_0000);
    masks
}

/// Parameters and logits whose choice does not hang on the last bits, so that f32 and f64 must agree.
/// Row 5 carries a NaN and row 6 an infinity: faults of one row only.
fn stable_row(
    row: usize,
    vocab: usize,
    params: SampleRow,
    list: &[Adjust],
    masks: &[u32],
    flat: bool,
) -> (SampleRow, Vec<f32>) {
    let words = vocab.div_ceil(32);
    let which = if params.mask == 0 { 0 } else { (masks.len() / words - row) as u32 };
    let mask = which.checked_sub(1).map(|m| &masks[m as usize * words..][..words]);
    let params = SampleRow { mask: which, ..params };
    let logits = |attempt: usize| -> Vec<f32> {
        let value = |i| match noise(3, "logits", row + 1000 * attempt, i) {
            x if flat => 0.25 * f32::from(u8::from(x > 0.0)),
            x => x.powi(3) * 9.0,
        };
        let mut z: Vec<f32> = (0..vocab).map(value).collect();
        match row {
            5 => z[4000] = f32::NAN,
            6 => z[1] = f32::INFINITY,
            7 => z[..vocab - 1].fill(f32::NEG_INFINITY),
            _ => {}
        }
        z
    };
    let wide = |z: &[f32]| z.iter().map(|v| *v as f64).collect::<Vec<f64>>();
    for attempt in 0..200 {
        let params = SampleRow { position: params.position + row as u32, ..params };
        let z = logits(attempt);
        let choice = |p: SampleRow, jitter: f64| {
            // Ties are to stay.
            let jitter = if flat { 0.0 } else { jitter };
            let moved: Vec<f64> = wide(&z).iter().enumerate().map(|(i, v)| v + jitter * (i % 3) as f64).collect();
            sample_row(&moved, &p, list, mask)
        };
        let near = |f: f32| SampleRow { top_p: (params.top_p * f).min(1.0), min_p: params.min_p * f, ..params };
        let first = choice(params, 0.0);
        let variants =
            [choice(near(1.0003), 0.0), choice(near(0.9997), 0.0), choice(params, 2e-5), choice(params, -2e-5)];
        if variants.iter().all(|v| *v == first) {
            return (params, z);
        }
    }
    unreachable!("some attempt is stable")
}
