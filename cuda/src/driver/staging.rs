//! Pinned host memory between the engine's bytes and the device: copies run beside the work, and the
//! caller's buffer is free at once.

use std::ptr::null_mut;
use std::time::Duration;

use cudarc::driver::sys;
use ponder_engine::error::Result;

use super::fault::{check, check_memory};
use super::{Event, Stream};

/// Bytes of each half of the writing buffer, and of the reading buffer.
const HALF: usize = 4 << 20;

/// A host allocation that the device reads directly, freed when dropped.
struct Pinned(*mut u8);

impl Pinned {
    fn new(bytes: usize) -> Result<Self> {
        let mut pointer = null_mut();
        // SAFETY: a context is current.
        check_memory(unsafe { sys::cuMemHostAlloc(&mut pointer, bytes, 0) }, bytes, "pinned host memory")?;
        Ok(Self(pointer.cast()))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { sys::cuMemFreeHost(self.0.cast()) };
    }
}

/// Two halves for writing, used in turn; a half is used again when the device has read it.
pub struct Staging {
    out: [Pinned; 2],
    read: [Event; 2],
    in_flight: [bool; 2],
    half: usize,
    at: usize,
    back: Pinned,
}

impl Staging {
    pub fn new() -> Result<Self> {
        Ok(Self {
            out: [Pinned::new(HALF)?, Pinned::new(HALF)?],
            read: [Event::new()?, Event::new()?],
            in_flight: [false; 2],
            half: 0,
            at: 0,
            back: Pinned::new(HALF)?,
        })
    }

    /// Copies `bytes` to the device, in the order of `stream`.
    pub fn write(&mut self, stream: &Stream, to: u64, bytes: &[u8], timeout: Duration) -> Result<()> {
        let mut to = to;
        for part in bytes.chunks(HALF) {
            if self.at + part.len() > HALF {
                self.read[self.half].record(stream)?;
                self.in_flight[self.half] = true;
                self.half ^= 1;
                self.at = 0;
                if std::mem::take(&mut self.in_flight[self.half]) {
                    self.read[self.half].wait(timeout, "copying to the device")?;
                }
            }
            // SAFETY: `at + len` is within the half, which no copy in flight reads; the target is a live
            // allocation of at least these bytes.
            unsafe {
                let from = self.out[self.half].0.add(self.at);
                std::ptr::copy_nonoverlapping(part.as_ptr(), from, part.len());
                check(sys::cuMemcpyHtoDAsync_v2(to, from.cast(), part.len(), stream.0), "copying to the device")?;
            }
            self.at += part.len().next_multiple_of(256);
            to += part.len() as u64;
        }
        Ok(())
    }

    /// Copies from the device what work that was waited for has written.
    pub fn read(&mut self, stream: &Stream, from: u64, out: &mut [u8]) -> Result<()> {
        let mut from = from;
        for part in out.chunks_mut(HALF) {
            // SAFETY: the source is a live allocation of at least these bytes; the copy is over after the
            // synchronisation.
            unsafe {
                check(
                    sys::cuMemcpyDtoHAsync_v2(self.back.0.cast(), from, part.len(), stream.0),
                    "reading from the device",
                )?;
                check(sys::cuStreamSynchronize(stream.0), "reading from the device")?;
                std::ptr::copy_nonoverlapping(self.back.0, part.as_mut_ptr(), part.len());
            }
            from += part.len() as u64;
        }
        Ok(())
    }
}
