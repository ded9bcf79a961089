//! Products of many token rows give the bits of the kernels for few, and agree with the reference: across the switch,
//! on ragged numbers of rows, in both orders in which copies may land.

mod common;

use common::emulator;
use ponder_engine::backend::check::run;
use ponder_engine::backend::reference::ReferenceBackend;
use ponder_engine::op::problem::{Problem, problems};

/// Rows below the switch to the kernels for many.
const FEW: usize = 63;
/// Capacities and live rows at the switch and beyond; every how many of the problems; and the seed, whose parity decides
/// in which launches copies land late.
const MANY: [(usize, usize, usize, u64); 5] =
    [(64, 64, 1, 1), (64, 64, 1, 2), (64, 63, 6, 3), (65, 65, 4, 4), (130, 127, 5, 5)];

fn products(rows: usize, live: usize, with: &[&str]) -> Vec<Problem> {
    problems(rows, live).into_iter().filter(|p| with.iter().any(|stem| p.name.starts_with(stem))).collect()
}

/// The product of rows `first..` of `whole` by a program of few rows.
fn few(whole: &Problem, few: &Problem, first: usize) -> Problem {
    let mut part = few.clone();
    let x = &whole.launches[0].1["x"];
    let mine = part.launches[0].1.get_mut("x").unwrap();
    let from = first * (mine.len() / FEW);
    let len = mine.len().min(x.len() - from);
    mine[..len].copy_from_slice(&x[from..from + len]);
    part
}

#[test]
fn many_rows_have_the_bits_of_few() {
    let stems = ["linear", "gated mlp"];
    let small = products(FEW, FEW, &stems);
    let Some(mut backend) = emulator(0) else { return };
    let first_rows: Vec<_> = small.iter().map(|p| run(&mut backend, p).unwrap().remove(0)).collect();
    for (rows, live, every, seed) in MANY {
        let mut backend = emulator(seed).unwrap();
        for (i, whole) in products(rows, live, &stems).iter().enumerate().step_by(every) {
            let got = run(&mut backend, whole).unwrap_or_else(|e| panic!("{}: {e}", whole.name)).remove(0);
            for first in (0..live).step_by(FEW) {
                let want = match first {
                    0 => first_rows[i].clone(),
                    _ => run(&mut backend, &few(whole, &small[i], first)).unwrap().remove(0),
                };
                let row = want.len() / FEW;
                let len = row * FEW.min(live - first);
                let part = &got[first * row..][..len];
                assert!(part == &want[..len], "{}: {live} of {rows} rows, from {first}", whole.name);
                assert!(part.iter().any(|b| *b != part[0]), "{} says nothing", whole.name);
            }
        }
    }
}

/// Three products in a launch, of one format and of several, with what follows them.
#[test]
fn queries_keys_and_values_of_many_rows_have_the_bits_of_few() {
    let Some(mut backend) = emulator(6) else { return };
    // Every fifth has every weight format.
    let pairs = products(70, 66, &["qkv"]).into_iter().zip(products(FEW, FEW, &["qkv"]));
    let mut compared = 0;
    for (many, few) in pairs.step_by(5) {
        let [got, want] = [&many, &few].map(|p| run(&mut backend, p).unwrap_or_else(|e| panic!("{}: {e}", p.name)));
        for (got, want) in got.iter().zip(&want) {
            assert!(got[..want.len()] == want[..], "{}", many.name);
            compared += 1;
        }
    }
    assert!(compared >= 4, "{compared} outputs");
}

#[test]
fn many_rows_agree_with_the_reference() {
    let Some(mut backend) = emulator(7) else { return };
    for problem in &products(96, 90, &["linear", "gated mlp"]) {
        let want = run(&mut ReferenceBackend::default(), problem).unwrap();
        let got = run(&mut backend, problem).unwrap_or_else(|e| panic!("{}: {e}", problem.name));
        for ((expected, want), got) in problem.outputs.iter().zip(&want).zip(&got) {
            let [want, got] = [want, got].map(|bytes| bytemuck::pod_collect_to_vec::<u8, f32>(bytes));
            let largest = want.iter().fold(0f32, |most, v| most.max(v.abs()));
            let differences = want.iter().zip(&got).map(|(w, g)| (w - g).abs());
            let worst = differences.fold(0f32, |most, d| if d > most || d.is_nan() { d } else { most });
            let allowed = expected.tolerance.expect("products have one") * f64::from(largest);
            assert!(f64::from(worst) <= allowed, "{}: {} off by {worst} of {largest}", problem.name, expected.slot);
        }
    }
}
