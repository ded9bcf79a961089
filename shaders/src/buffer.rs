//! Device buffers: plain ones, and weights in planes, cut by rows where they exceed the binding limit.

use std::rc::Rc;

use ponder_engine::format::Format;

/// A handle of device memory, freed with its last clone.
#[derive(Clone)]
pub struct Buffer(pub(crate) Rc<Contents>);

pub(crate) enum Contents {
    /// Values as the host writes them.
    Plain(Plain),
    /// A matrix weight.
    Weight(Weight),
}

/// A buffer of values.
pub(crate) struct Plain {
    pub buffer: wgpu::Buffer,
    /// Where small outputs are copied at the end of a launch, mappable.
    pub staging: Option<wgpu::Buffer>,
    pub bytes: u64,
}

/// A weight `[n, k]`.
pub(crate) struct Weight {
    pub format: Format,
    pub n: usize,
    pub k: usize,
    pub parts: Vec<Part>,
}

/// Consecutive rows of a weight.
pub(crate) struct Part {
    pub first: usize,
    pub rows: usize,
    pub quants: wgpu::Buffer,
    /// A buffer of four bytes for formats without scales.
    pub scales: wgpu::Buffer,
}
