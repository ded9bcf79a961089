//! The CPU backend against the oracle, at every level of this machine and on one and two threads.

use super::simd::Level;
use super::*;
use crate::backend::check::{agrees_with_reference, rows_are_independent, run};
use crate::op::lower::lower;
use crate::op::problem::problems;

/// Every level of this machine with one and with two threads.
fn backends() -> impl Iterator<Item = CpuBackend> {
    let levels = Level::available().into_iter();
    levels.flat_map(|level| [1, 2].map(|threads| CpuBackend::with_level(threads, level).unwrap()))
}

#[test]
fn every_level_agrees_with_the_oracle() {
    for mut backend in backends() {
        let count = agrees_with_reference(&mut backend).unwrap_or_else(|e| panic!("{:?}: {e}", backend.level()));
        assert!(count > 100);
    }
}

#[test]
fn rows_keep_their_bits() {
    for mut backend in backends() {
        rows_are_independent(&mut backend).unwrap_or_else(|e| panic!("{:?}: {e}", backend.level()));
    }
}

#[test]
fn levels_and_threads_give_the_same_bits() {
    for (rows, live) in [(1, 1), (16, 13), (64, 40)] {
        for problem in problems(rows, live) {
            let mut first: Option<Vec<Vec<u8>>> = None;
            for mut backend in backends() {
                let got = run(&mut backend, &problem).unwrap();
                let want = first.get_or_insert_with(|| got.clone());
                let (level, threads) = (backend.level(), backend.threads());
                assert!(*want == got, "{} ({live} rows): {level:?} on {threads} threads differs", problem.name);
            }
        }
    }
}

#[test]
fn lowered_programs_give_the_same_bits() {
    let mut backend = CpuBackend::new(2).unwrap();
    for problem in problems(8, 7) {
        let fused = run(&mut backend, &problem).unwrap();
        let mut small = problem.clone();
        small.programs.iter_mut().for_each(|p| *p = lower(p, |op| !op.is_fused()));
        assert!(run(&mut backend, &small).unwrap() == fused, "{}", problem.name);
    }
}
