//! How fast this machine reads memory: the limit of decoding.

use std::time::Instant;

use super::integer::fetch_ahead;
use super::memory::{Memory, Ptr};
use super::pool::Pool;
use super::simd::{Isa, Kernel, Level};
use crate::error::{DeviceFault, Error, Result};

/// Bytes that each turn reads: more than most caches, and no more memory than a small model takes.
const BYTES: usize = 128 << 20;
/// Bytes that a thread reads at a time.
const PART: usize = 4 << 20;
/// Turns; the best counts, the others were disturbed.
const TURNS: usize = 7;

/// Bytes per second that all threads of `pool` read together, asking ahead as the products of a step do.
pub fn measure(pool: &mut Pool, level: Level) -> Result<f64> {
    let mut memory = Memory::new(BYTES, "bandwidth measurement")?;
    memory.bytes_mut().fill(1);
    let start = Ptr(memory.start());
    let mut best = f64::INFINITY;
    for _ in 0..TURNS {
        let begun = Instant::now();
        let ran = pool.run(&|w| {
            w.phase(BYTES / PART, 1, |range| {
                // SAFETY: part `range` of the memory above, which nobody writes.
                let part = unsafe { start.slice(range.start * PART, range.len() * PART) };
                std::hint::black_box(level.run(Sum(part)));
            });
        });
        ran.map_err(|e| Error::Device { device: "cpu".into(), what: DeviceFault::Lost(e) })?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(BYTES as f64 / best)
}

/// The wrapping sum of words: reads them, and little else.
struct Sum<'a>(&'a [u8]);

/// Vectors that are read between two looks ahead.
const VECTORS: usize = 8;

impl Kernel for Sum<'_> {
    type Out = u32;
    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> u32 {
        let mut sums = [s.splat_i(0); VECTORS];
        for chunk in self.0.chunks_exact(64 * VECTORS) {
            fetch_ahead(chunk.as_ptr(), chunk.len());
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 64 bytes of the chunk.
                *sum = s.add_i(*sum, unsafe { s.load_i(chunk.as_ptr().add(64 * i)) });
            }
        }
        sums.into_iter().fold(0, |total: u32, sum| total.wrapping_add(s.sum_i(sum) as u32))
    }
}
