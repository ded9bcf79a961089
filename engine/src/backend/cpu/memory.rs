//! Memory of the CPU backend: aligned, zeroed, counted by its handles.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::rc::Rc;

use super::panel::Panels;
use crate::error::{DeviceFault, Error, Result};
use crate::program::SlotDecl;

/// Bytes on a boundary of 64 (or of a huge page, where there are enough of them).
pub struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    /// Zeroed memory; the system gives pages when they are first written.
    pub fn new(bytes: usize, what: &str) -> Result<Self> {
        let fault = || Error::Device {
            device: "cpu".into(),
            what: DeviceFault::OutOfMemory { wanted: bytes as u64, what: what.into() },
        };
        let align = if bytes >= 4 << 20 { 2 << 20 } else { 64 };
        let layout = Layout::from_size_align(bytes.max(64), align).map_err(|_| fault())?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(fault)?;
        Ok(Self { start, layout })
    }
    /// Its first byte. Who writes through it holds no reference to the same bytes.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }
    /// Bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }
    /// All bytes, to fill them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the allocation is this long, initialised, and borrowed mutably here.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
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
