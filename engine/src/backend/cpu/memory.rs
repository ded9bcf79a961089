//! Memory of the CPU backend: aligned, zeroed, counted by its handles.

use std::rc::Rc;

use memmap2::{MmapOptions, MmapRaw};

use super::panel::Panels;
use crate::error::{DeviceFault, Error, Result};
use crate::program::SlotDecl;

/// A huge page: with small ones a step would look up tens of thousands of addresses.
const HUGE: usize = 2 << 20;
/// Buffers that share a mapping, so that small ones lie in huge pages too.
const SHARED: usize = 64 << 20;
/// Alignment of buffers.
const ALIGN: usize = 64;

/// Zeroed bytes, alone in a mapping or beside others.
pub struct Memory {
    /// Freed with the last buffer in it.
    _mapping: Rc<MmapRaw>,
    start: *mut u8,
    len: usize,
}

/// Zeroed pages that the system provides when they are first written; starts on a huge page.
fn map(bytes: usize, what: &str) -> Result<(Rc<MmapRaw>, *mut u8)> {
    let fault = || Error::Device {
        device: "cpu".into(),
        what: DeviceFault::OutOfMemory { wanted: bytes as u64, what: what.into() },
    };
    let (align, len) = if bytes >= HUGE { (HUGE, bytes.checked_add(HUGE)) } else { (ALIGN, Some(bytes.max(ALIGN))) };
    let map = MmapOptions::new().len(len.ok_or_else(fault)?).map_anon().map_err(|_| fault())?;
    #[cfg(target_os = "linux")]
    if bytes >= HUGE {
        // A wish: without huge pages everything works, only slower.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    let map = MmapRaw::from(map);
    let start = map.as_mut_ptr();
    let start = start.wrapping_add(start.align_offset(align));
    Ok((Rc::new(map), start))
}

impl Memory {
    /// A mapping of its own.
    pub fn new(bytes: usize, what: &str) -> Result<Self> {
        let (_mapping, start) = map(bytes, what)?;
        Ok(Self { _mapping, start, len: bytes })
    }
    /// Its first byte, on a boundary of 64. Who writes through it holds no reference to the same bytes.
    pub fn start(&self) -> *mut u8 {
        self.start
    }
    /// All bytes, to fill them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is this long from `start`, zeroed, and these bytes are this value's own.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Gives buffers out of shared mappings.
#[derive(Default)]
pub struct Arena {
    /// The mapping in use, its next free byte, and bytes left.
    free: Option<(Rc<MmapRaw>, *mut u8, usize)>,
}

impl Arena {
    /// Zeroed memory, on a boundary of 64.
    pub fn get(&mut self, bytes: usize, what: &str) -> Result<Memory> {
        let size = bytes.max(1).checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX);
        if size > SHARED / 4 {
            return Memory::new(bytes, what);
        }
        if self.free.as_ref().is_none_or(|(_, _, left)| *left < size) {
            let (mapping, start) = map(SHARED, what)?;
            self.free = Some((mapping, start, SHARED));
        }
        let (mapping, next, left) = self.free.as_mut().expect("just made where it was missing");
        let memory = Memory { _mapping: mapping.clone(), start: *next, len: bytes };
        *next = next.wrapping_add(size);
        *left -= size;
        Ok(memory)
    }
}

/// A buffer: what a slot is bound to.
#[derive(Clone)]
pub struct Buffer(pub(super) Rc<Contents>);

/// Behind the handle.
pub(super) struct Contents {
    pub memory: Memory,
    pub decl: SlotDecl,
    /// How a weight matrix lies in `memory`; `None` for everything else.
    pub panels: Option<Panels>,
}

/// A pointer that a launch may carry to its threads. Which thread touches which elements is the
/// business of the step that holds it: ranges of one phase are disjoint, phases are ordered.
pub struct Ptr<T>(pub *mut T);

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ptr<T> {}

// SAFETY: a plain address; every dereference states why it may.
unsafe impl<T> Send for Ptr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Ptr<T> {}

impl<T> Ptr<T> {
    /// Element `i` on.
    ///
    /// # Safety
    /// Within the buffer.
    #[inline(always)]
    pub unsafe fn at(self, i: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }
    /// `len` elements from `start`.
    ///
    /// # Safety
    /// Within the buffer, and nobody writes them meanwhile.
    #[inline(always)]
    pub unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.0.add(start), len) }
    }
    /// `len` elements from `start`, to write.
    ///
    /// # Safety
    /// Within the buffer, and nobody else touches them meanwhile.
    #[inline(always)]
    pub unsafe fn slice_mut<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}
