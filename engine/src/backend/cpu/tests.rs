//! The CPU backend against the oracle, at every level of this machine and on one and two threads.

use super::simd::Level;
use super::*;
use crate::backend::check::{
    agrees_with_reference, blocks_move, broken_tokens_show, chunks_keep_their_bits, rows_are_independent, run,
};
use crate::format::KvFormat;
use crate::op::lower::lower;
use crate::op::problem::{attention_in_blocks, problems};

/// Every level of this machine with one and with two threads.
fn backends() -> impl Iterator<Item = CpuBackend> {
    let levels = Level::available().into_iter();
    levels
        .flat_map(|level| [1, 2].map(|threads| CpuBackend::with_level(threads, level).unwrap().always_on_all_threads()))
}

/// The fastest level on two threads.
fn on_two_threads() -> CpuBackend {
    CpuBackend::new(2).unwrap().always_on_all_threads()
}

#[test]
fn the_fastest_level_agrees_with_the_oracle() {
    let count = agrees_with_reference(&mut on_two_threads()).unwrap();
    assert!(count > 100);
}

#[test]
fn blocks_move_here_and_in_the_oracle() {
    assert!(blocks_move(&mut on_two_threads()).unwrap() > 64);
    assert!(blocks_move(&mut crate::backend::reference::ReferenceBackend::default()).unwrap() > 64);
}

#[test]
fn rows_keep_their_bits() {
    rows_are_independent(&mut on_two_threads()).unwrap();
}

#[test]
fn broken_tokens_are_not_hidden_by_the_cache() {
    backends().for_each(|mut backend| assert_eq!(broken_tokens_show(&mut backend).unwrap(), 12));
}

#[test]
fn chunks_give_the_same_bits() {
    let count = chunks_keep_their_bits(&mut on_two_threads()).unwrap();
    assert!(count > 30, "{count}");
}

/// With the two tests above: every level agrees with the oracle, and keeps its rows' bits.
#[test]
fn levels_and_threads_give_the_same_bits() {
    for (rows, live) in [(1, 1), (8, 7), (32, 19), (64, 40)] {
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
    let mut backend = on_two_threads();
    for problem in problems(8, 7) {
        let fused = run(&mut backend, &problem).unwrap();
        let mut small = problem.clone();
        small.programs.iter_mut().for_each(|p| *p = lower(p, |op| !op.is_fused()));
        assert!(run(&mut backend, &small).unwrap() == fused, "{}", problem.name);
    }
}

/// Blocks that hold whole vectors of tokens are laid out in another way than others.
#[test]
fn the_size_of_blocks_changes_no_bit() {
    for kv in KvFormat::ALL {
        for rows in [1, 8, 32] {
            let in_blocks = |size| attention_in_blocks(rows, kv, size);
            for mut backend in backends() {
                let want = run(&mut backend, &in_blocks(16)).unwrap();
                for size in [8, 24, 48] {
                    let got = run(&mut backend, &in_blocks(size)).unwrap();
                    assert!(want == got, "{kv:?}, {rows} rows, blocks of {size}: {:?} differs", backend.level());
                }
            }
        }
    }
}

/// How far the products of a format are from exact ones, beside a chain of f32 fused multiply-adds:
/// root mean square over many outputs, relative to that of the outputs.
#[test]
fn integer_products_are_as_exact_as_f32_chains() {
    use crate::format::Format;
    use crate::op::Linear;
    use crate::op::problem::noise;
    use crate::program::{Program, Role, RowSpace};
    for format in Format::ALL.into_iter().filter(|f| f.is_quantised()) {
        let (rows, n, k) = (8, 256, 1536);
        let mut program = Program::new("fidelity", rows, 1);
        let x = program.slot("x", Role::Input, Elem::F32, &[rows, k]);
        let w = program.slot("w", Role::Weight, Elem::Weight(format), &[n, k]);
        let out = program.slot("out", Role::Output, Elem::F32, &[rows, n]);
        program.push(Linear { x, w, bias: None, out, space: RowSpace::Batch });
        // Heavy tails, as activations have: a few values of a group are far above the rest.
        let xs: Vec<f32> = (0..rows * k).map(|i| noise(5, "x", i / k, i % k).powi(5) * 8.0).collect();
        let ws: Vec<f32> = (0..n * k).map(|i| noise(6, "w", i / k, i % k)).collect();
        let (mut stored, mut decoded) = (Vec::new(), vec![0f32; n * k]);
        format.encode(&ws, &mut stored);
        format.decode(&stored, &mut decoded);
        let mut backend = CpuBackend::new(1).unwrap();
        let mut bound = Bound::default();
        for decl in &program.slots {
            let buffer = match decl.role {
                Role::Weight => backend.load(decl, &stored).unwrap(),
                _ => backend.alloc(decl).unwrap(),
            };
            bound.insert(decl.name.clone(), buffer);
        }
        backend.write(&bound["live"], bytemuck::cast_slice(&[rows as u32, 0])).unwrap();
        backend.write(&bound["x"], bytemuck::cast_slice(&xs)).unwrap();
        let plan = backend.compile(&program, &bound).unwrap();
        backend.launch(&plan).unwrap();
        let mut got = vec![0f32; rows * n];
        backend.read(&bound["out"], bytemuck::cast_slice_mut(&mut got)).unwrap();
        let (mut ours, mut chains, mut size) = (0f64, 0f64, 0f64);
        for (i, got) in got.iter().enumerate() {
            let (x, w) = (&xs[i / n * k..][..k], &decoded[i % n * k..][..k]);
            let exact: f64 = x.iter().zip(w).map(|(x, w)| *x as f64 * *w as f64).sum();
            let chain = x.iter().zip(w).fold(0f32, |sum, (x, w)| x.mul_add(*w, sum));
            ours += (*got as f64 - exact).powi(2);
            chains += (chain as f64 - exact).powi(2);
            size += exact * exact;
        }
        let [ours, chains] = [ours, chains].map(|e| (e / size).sqrt());
        println!("{format}: error {ours:.1e}, of f32 chains {chains:.1e}");
        assert!(ours <= chains, "{format}: {ours:e} against {chains:e}");
    }
}
