//! The one seam between the engine and a device: compile a program once, launch it often.

pub mod check;
pub mod cpu;
pub mod reference;

use crate::error::Result;
use crate::op::Op;
use crate::program::{Program, SlotDecl};

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// `cpu`, `wgpu`, `cuda`, `reference`.
    pub backend: &'static str,
    /// The device's own name.
    pub name: String,
    /// Its kind.
    pub kind: DeviceKind,
    /// Its memory, where the device tells.
    pub memory: Option<DeviceMemory>,
    /// Row capacities to compile programs for, ascending. One entry means: one program
    /// serves every number of live rows.
    pub row_buckets: Vec<usize>,
    /// Features chosen at run time (SIMD level, subgroups, ...), for `ponder devices`.
    pub features: Vec<String>,
}

/// Memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What could be had now.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// Kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The CPU through our own kernels.
    Cpu,
    /// A GPU with its own memory.
    DiscreteGpu,
    /// A GPU that shares memory.
    IntegratedGpu,
    /// A GPU API served by the CPU (lavapipe, WARP).
    SoftwareGpu,
}

/// Bytes as values, whatever their alignment.
pub fn cast_vec<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// Buffers by slot name.
pub type Bound<B> = rustc_hash::FxHashMap<String, B>;

/// A device that runs programs. Lives on one thread; its handles never leave it.
pub trait Backend: 'static {
    /// A device buffer: a cheap handle, freed with the last clone.
    type Buffer: Clone;
    /// A compiled program (op list, dispatch list, captured graph).
    type Plan;
    /// Work in flight.
    type Pending;

    /// What this device is.
    fn info(&self) -> &DeviceInfo;
    /// Whether `op` runs as it stands; if not, the engine lowers it ([`crate::op::lower`]) before `compile`.
    fn supports(&self, op: &Op) -> bool;
    /// A buffer for an input, an output or a KV slot. Contents are undefined.
    fn alloc(&mut self, decl: &SlotDecl) -> Result<Self::Buffer>;
    /// A weight, from its stored bytes, in whatever layout this device likes; the numbers stay the stored ones.
    fn load(&mut self, decl: &SlotDecl, bytes: &[u8]) -> Result<Self::Buffer>;
    /// Copies `bytes` to the front of an input buffer, ordered before the next launch.
    fn write(&mut self, buffer: &Self::Buffer, bytes: &[u8]) -> Result<()>;
    /// Copies the front of an output buffer into `out`. Call it after `wait`.
    fn read(&mut self, buffer: &Self::Buffer, out: &mut [u8]) -> Result<()>;
    /// Bytes that one block of a KV slot takes in host memory.
    fn block_bytes(&self, decl: &SlotDecl) -> usize {
        decl.bytes() / decl.shape[0].max(1)
    }
    /// Copies blocks of a KV buffer to host memory, exactly: `[blocks, block_bytes]`. Call it between launches.
    fn save_blocks(&mut self, buffer: &Self::Buffer, decl: &SlotDecl, blocks: &[u32], out: &mut [u8]) -> Result<()>;
    /// Puts blocks that were saved into any blocks of a buffer of the same declaration, before the next launch.
    fn load_blocks(&mut self, buffer: &Self::Buffer, decl: &SlotDecl, blocks: &[u32], bytes: &[u8]) -> Result<()>;
    /// Compiles. Scratch is the plan's own; every other slot is found in `bound` by name.
    fn compile(&mut self, program: &Program, bound: &Bound<Self::Buffer>) -> Result<Self::Plan>;
    /// Starts the work with the present contents of the inputs.
    fn launch(&mut self, plan: &Self::Plan) -> Result<Self::Pending>;
    /// Waits for it.
    fn wait(&mut self, pending: Self::Pending) -> Result<()>;
}
