//! How fast this machine reads memory: the limit of decoding.

use std::time::Instant;

use super::memory::{Memory, Ptr};
use super::pool::Pool;
use crate::error::{DeviceFault, Error, Result};

/// Bytes that each turn reads: more than most caches, and no more memory than a small model takes.
const BYTES: usize = 128 << 20;
/// Turns; the best counts, the others were disturbed.
const TURNS: usize = 7;

/// Bytes per second that all threads of `pool` read together.
pub fn measure(pool: &mut Pool) -> Result<f64> {
    let mut memory = Memory::new(BYTES, "bandwidth measurement")?;
    memory.bytes_mut().fill(1);
    let start = Ptr(memory.start().cast::<u64>());
    let mut best = f64::INFINITY;
    for _ in 0..TURNS {
        let begun = Instant::now();
        let ran = pool.run(&|w| {
            w.phase(BYTES >> 20, 4, |range| {
                let words = 1usize << 17;
                // SAFETY: MiB `range` of the memory above, which nobody writes.
                let part = unsafe { start.slice(range.start * words, range.len() * words) };
                let sum = part.chunks_exact(64).fold([0u64; 64], |mut sum, chunk| {
                    sum.iter_mut().zip(chunk).for_each(|(s, c)| *s = s.wrapping_add(*c));
                    sum
                });
                std::hint::black_box(sum);
            });
        });
        ran.map_err(|e| Error::Device { device: "cpu".into(), what: DeviceFault::Lost(e) })?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(BYTES as f64 / best)
}
