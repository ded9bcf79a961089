//! Every op problem of the engine on the kernels themselves, executed on the CPU.

mod common;

use common::emulator;
use ponder_engine::backend::check;
use ponder_engine::op::Op;
use ponder_engine::op::problem::{Expected, Problem, problems};

#[test]
fn agrees_with_the_reference() {
    let Some(mut backend) = emulator(1) else { return };
    let count = check::agrees_with_reference(&mut backend).unwrap_or_else(|e| panic!("{e}"));
    assert!(count > 200, "{count} problems ran");
}

#[test]
fn blocks_move() {
    let Some(mut backend) = emulator(3) else { return };
    assert!(check::blocks_move(&mut backend).unwrap_or_else(|e| panic!("{e}")) > 64);
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let Some(mut backend) = emulator(2) else { return };
    let count = check::rows_are_independent(&mut backend).unwrap_or_else(|e| panic!("{e}"));
    assert!(count > 500, "{count} problems ran");
}

#[test]
fn chunks_keep_their_bits() {
    let Some(mut backend) = emulator(3) else { return };
    let count = check::chunks_keep_their_bits(&mut backend).unwrap_or_else(|e| panic!("{e}"));
    assert!(count > 30, "{count} outputs were compared");
}

/// Beyond 64 rows a block takes many columns and walks the splits of a sequence: the same bits as a block per split.
#[test]
fn a_chunk_attends_as_its_rows_do() {
    let Some(mut backend) = emulator(5) else { return };
    let attends = |p: &Problem| ["attention", "qkv", "latent"].iter().any(|name| p.name.starts_with(name));
    let pairs = problems(128, 64).into_iter().zip(problems(64, 64)).filter(|(many, _)| attends(many));
    // Every second one has every format and every shape.
    for (many, few) in pairs.step_by(2) {
        let [many_rows, few_rows] = [&many, &few].map(|p| check::run(&mut backend, p).unwrap());
        assert!(many_rows == few_rows, "{}", many.name);
    }
}

/// The host may read them after the launch.
#[test]
fn logits_are_left_as_they_are() {
    let Some(mut backend) = emulator(6) else { return };
    let samples = problems(4, 3).into_iter().filter(|p| p.name.starts_with("sample"));
    for mut problem in samples {
        let logits = problem.launches[0].1["logits"].clone();
        problem.outputs = vec![Expected { slot: "logits".into(), len: logits.len() / 4, width: 1, tolerance: None }];
        assert!(check::run(&mut backend, &problem).unwrap() == [logits], "{}", problem.name);
    }
}

#[test]
fn broken_tokens_show() {
    let Some(mut backend) = emulator(4) else { return };
    check::broken_tokens_show(&mut backend).unwrap_or_else(|e| panic!("{e}"));
}

/// What the kernels have no registers or no alignment for.
#[test]
fn latents_of_other_widths_are_refused() {
    let Some(mut backend) = emulator(7) else { return };
    let problem = problems(1, 1).into_iter().find(|p| p.name.starts_with("latent chunk")).unwrap();
    for (latent, rope) in [(544, 64), (80, 16), (64, 12)] {
        let mut problem = problem.clone();
        for op in &mut problem.programs[0].ops {
            if let Op::LatentAttention(o) = op {
                (o.latent, o.rope) = (latent, rope);
            }
        }
        let error = check::run(&mut backend, &problem).unwrap_err().to_string();
        assert!(error.contains(&format!("latent vectors of {latent} + {rope} elements")), "{error}");
    }
}
