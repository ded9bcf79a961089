//! What tests on the executed kernels share.

use ponder_cuda::EmulatedCuda;

/// The emulator, or a note that this machine has no C++ compiler.
pub fn emulator(seed: u64) -> Option<EmulatedCuda> {
    match EmulatedCuda::new(seed) {
        Ok(backend) => Some(backend),
        Err(ponder_engine::Error::Device { what: ponder_engine::DeviceFault::Unsupported(why), .. }) => {
            println!("SKIP: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
