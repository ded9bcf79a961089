//! The CPU's runtime catches what it is there to catch, in both orders of asynchronous work.

mod common;

use common::emulator;
use ponder_cuda::device::{Dispatch, Module};
use ponder_cuda::emulated::Emulator;
use ponder_cuda::{Device, EmulatedCuda};
use ponder_engine::Result;

/// Mistakes of kernels/selftest.cu.
const NONE: u64 = 0;
const NO_BARRIER: u64 = 1;
const NEVER_ARRIVES: u64 = 2;
const DIVERGENT: u64 = 3;
const REFILL_TOO_EARLY: u64 = 4;
const READ_TOO_EARLY: u64 = 5;

const TILES: usize = 11;

/// Runs a kernel of selftest.cu; its 128 results.
fn launch(backend: &mut EmulatedCuda, kernel: &str, mistake: u64) -> Result<Vec<f32>> {
    let device = backend.device();
    let x: Vec<f32> = (0..TILES * 128).map(|i| (i % 97) as f32 - 48.0).collect();
    let (input, output) = (device.alloc(x.len() * 4, "x")?, device.alloc(512, "out")?);
    device.write(Emulator::address(&input), bytemuck::cast_slice(&x))?;
    let args = match kernel {
        "selftest_ring" | "selftest_copies" => {
            vec![Emulator::address(&input), Emulator::address(&output), TILES as u64, mistake]
        }
        _ => vec![Emulator::address(&output), mistake],
    };
    let module = Module { stem: "selftest", variant: "" };
    device.run(&Dispatch { module, kernel: kernel.into(), grid: [1, 1, 1], threads: 128, args })?;
    let mut out = vec![0f32; 128];
    device.read(Emulator::address(&output), bytemuck::cast_slice_mut(&mut out))?;
    Ok(out)
}

fn ring_sum(i: usize) -> f32 {
    (0..TILES).map(|t| (t + 1) as f32 * (((t * 128 + i) % 97) as f32 - 48.0)).sum()
}

/// Whether the kernel gives the right numbers; an error is a wrong answer with words.
fn right(kernel: &str, mistake: u64, seed: u64) -> Option<bool> {
    // Its first launch has the seed after the one that it is made with.
    let mut backend = emulator(seed - 1)?;
    let expected: Vec<f32> = match kernel {
        "selftest_ring" | "selftest_copies" => (0..128).map(ring_sum).collect(),
        _ => (0..128).map(|i| ((i + 33) % 128) as f32).collect(),
    };
    Some(launch(&mut backend, kernel, mistake).is_ok_and(|out| out == expected))
}

#[test]
fn right_kernels_are_right_in_every_order() {
    for seed in 10..20 {
        for kernel in ["selftest_exchange", "selftest_ring", "selftest_copies"] {
            let Some(right) = right(kernel, NONE, seed) else { return };
            assert!(right, "{kernel}, seed {seed}");
        }
    }
}

#[test]
fn a_missing_barrier_shows() {
    let Some(right) = right("selftest_exchange", NO_BARRIER, 10) else { return };
    assert!(!right);
}

#[test]
fn copies_that_come_late_or_early_show() {
    // An odd seed lands copies late, an even one at once.
    for kernel in ["selftest_ring", "selftest_copies"] {
        let Some(late) = right(kernel, READ_TOO_EARLY, 11) else { return };
        assert!(!late, "{kernel}: reading before the copy has landed");
        let early = right(kernel, REFILL_TOO_EARLY, 10);
        assert_eq!(early, Some(false), "{kernel}: refilling a slot that is still read");
    }
}

#[test]
fn deadlock_and_divergence_are_named() {
    let Some(mut backend) = emulator(9) else { return };
    let words = |result: Result<Vec<f32>>| result.unwrap_err().to_string();
    let deadlock = words(launch(&mut backend, "selftest_ring", NEVER_ARRIVES));
    assert!(deadlock.contains("deadlock in block (0, 0, 0)"), "{deadlock}");
    let divergence = words(launch(&mut backend, "selftest_exchange", DIVERGENT));
    assert!(divergence.contains("different operations"), "{divergence}");
    // The device is whole afterwards.
    assert!(launch(&mut backend, "selftest_ring", NONE).is_ok());
}
