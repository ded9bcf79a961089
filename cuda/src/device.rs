//! What the backend needs of a device: memory, copies, and the launch of a list of kernels.

use ponder_engine::Result;
use ponder_engine::backend::DeviceInfo;

/// Kernels that are compiled together: a file of `kernels/`, or the part of it for one format.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Module {
    /// The file's stem.
    pub stem: &'static str,
    /// `VARIANT` of the compilation; empty for files without variants.
    pub variant: &'static str,
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// Where the kernel is.
    pub module: Module,
    /// Its name.
    pub kernel: String,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Arguments in the kernel's order, each in the low bytes of a word: pointers, u32, f32.
    pub args: Vec<u64>,
}

/// A device, real or executed on the CPU. Addresses are the device's own.
pub trait Device: 'static {
    /// Freed when dropped.
    type Memory: 'static;
    /// A launchable list.
    type Work;
    /// A launch in flight.
    type Pending;

    /// What it is.
    fn info(&self) -> &DeviceInfo;
    /// `bytes` of memory, aligned to 256, contents undefined. `what` is named when there is not enough.
    fn alloc(&mut self, bytes: usize, what: &str) -> Result<Self::Memory>;
    /// Where it begins.
    fn address(memory: &Self::Memory) -> u64;
    /// Copies to the device, ordered before the next launch.
    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<()>;
    /// Copies from the device, after all launches that were waited for.
    fn read(&mut self, from: u64, out: &mut [u8]) -> Result<()>;
    /// Makes a list launchable: finds or compiles its kernels, captures a graph.
    fn prepare(&mut self, name: &str, list: Vec<Dispatch>) -> Result<Self::Work>;
    /// Starts it.
    fn launch(&mut self, work: &Self::Work) -> Result<Self::Pending>;
    /// Runs it `times` times in a row; milliseconds in all, by the device's own clock where it has one.
    fn time_ms(&mut self, work: &Self::Work, times: usize) -> Result<f32>;
    /// Whether plans may share the memory of their scratch: launches then never overlap.
    fn shares_scratch(&self) -> bool;
    /// Waits for its end.
    fn wait(&mut self, pending: Self::Pending) -> Result<()>;
}
