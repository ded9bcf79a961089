//! Every op problem of the engine on the kernels themselves, executed on the CPU.

use ponder_cuda::EmulatedCuda;
use ponder_engine::backend::check;

/// The emulator, or a note that this machine has no C++ compiler.
fn emulator(seed: u64) -> Option<EmulatedCuda> {
    match EmulatedCuda::new(seed) {
        Ok(backend) => Some(backend),
        Err(ponder_engine::Error::Device { what: ponder_engine::DeviceFault::Unsupported(why), .. }) => {
            println!("SKIP: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

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

#[test]
fn broken_tokens_show() {
    let Some(mut backend) = emulator(4) else { return };
    check::broken_tokens_show(&mut backend).unwrap_or_else(|e| panic!("{e}"));
}
