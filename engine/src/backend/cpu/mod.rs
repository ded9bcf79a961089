//! The CPU backend: what runs where there is no GPU, so it must be fast.
//!
//! - [`simd`]: one vector type for AVX-512, AVX2, NEON and plain Rust, and AMX's tile registers, chosen at run time.
//! - [`panel`]: weights stay quantised, in panels of 16 output rows; [`activation`]: f32 activations as
//!   24-bit block fixed point, so that products are exact integers; [`tile`]: the kernels, in `integer.rs`
//!   (quantised), `tiled.rs` (the same on tile registers) and `float.rs`; `quant.rs`: how each format is read in registers.
//! - [`pool`]: threads that run a whole launch in lockstep, on processors of their own (`cores.rs`).
//! - [`plan`]: a program as steps; one file per op stem beside it.
//!
//! One plan serves every number of live rows: there is a single row bucket.
//!
//! Absent on purpose: no BLAS, no activation quantisation below f32's own rounding, no per-op thread
//! wake-up, no second layout of a weight (prefill and decode read the same panels).

pub mod activation;
mod ahead;
mod attend;
mod attention;
pub mod bandwidth;
mod cores;
mod elementwise;
mod embed;
mod float;
mod integer;
mod kv;
mod linear;
mod math;
pub mod memory;
mod mlp;
mod norm;
pub mod panel;
mod plan;
pub mod pool;
mod quant;
mod rope;
mod sample;
pub mod simd;
mod softmax;
mod stored;
pub mod tile;
#[cfg(target_arch = "x86_64")]
mod tiled;

#[cfg(test)]
mod tests;

pub use memory::Buffer;
pub use plan::Plan;

use std::rc::Rc;

use self::memory::{Arena, Contents};
use self::panel::Panels;
use self::pool::Pool;
use self::simd::Level;
use super::{Backend, Bound, DeviceInfo, DeviceKind, DeviceMemory};
use crate::error::{DeviceFault, Error, Result};
use crate::op::Op;
use crate::program::{Elem, Program, SlotDecl};

/// Environment variable that chooses a SIMD level by name.
pub const LEVEL_VARIABLE: &str = "PONDER_CPU";

/// This machine's processor.
pub struct CpuBackend {
    info: DeviceInfo,
    level: Level,
    pool: Pool,
    arena: Arena,
    on_all: bool,
}

impl CpuBackend {
    /// The fastest level of this machine (or the one that `PONDER_CPU` names) on `threads` threads;
    /// 0 means one per physical core.
    pub fn new(threads: usize) -> Result<Self> {
        let level = match std::env::var(LEVEL_VARIABLE) {
            Ok(name) => level_by_name(&name)?,
            Err(_) => Level::detect(),
        };
        Self::with_level(threads, level)
    }
    /// As [`CpuBackend::new`], with a given level.
    pub fn with_level(threads: usize, level: Level) -> Result<Self> {
        if !level.is_available() {
            return Err(Error::invalid(LEVEL_VARIABLE, format!("this machine has no {}", level.name())));
        }
        let threads = if threads == 0 { physical_cores() } else { threads };
        let pool =
            Pool::new(threads).map_err(|e| fault(DeviceFault::Unsupported(format!("{threads} threads: {e}"))))?;
        let info = DeviceInfo {
            backend: "cpu",
            name: cpu_name().unwrap_or_else(|| std::env::consts::ARCH.into()),
            kind: DeviceKind::Cpu,
            memory: main_memory(),
            row_buckets: vec![512],
            features: vec![level.name().into(), format!("{threads} threads")],
        };
        Ok(Self { info, level, pool, arena: Arena::default(), on_all: false })
    }
    /// The SIMD level in use.
    pub fn level(&self) -> Level {
        self.level
    }
    /// Threads of a launch, at most.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
    /// Every launch on all threads from now on, however little it has to do: for tests of what threads do together.
    pub fn always_on_all_threads(mut self) -> Self {
        self.on_all = true;
        self
    }
    /// Threads of a launch of `plan`.
    fn threads_for(&self, plan: &Plan, live: &plan::Live) -> usize {
        if self.on_all { self.pool.threads() } else { plan.threads(live, self.pool.threads()) }
    }
    /// Launches `plan` step by step; returns each step's op and its seconds.
    pub fn profile(&mut self, plan: &Plan) -> Result<Vec<(&'static str, f64)>> {
        let live = plan.live_rows();
        let threads = self.threads_for(plan, &live);
        let mut seconds = Vec::new();
        for (step, op) in plan.steps.iter().zip(&plan.ops) {
            let begun = std::time::Instant::now();
            self.pool.run_on(threads, &|w| step.run(w, &live)).map_err(|panic| lost(plan, &panic))?;
            seconds.push((*op, begun.elapsed().as_secs_f64()));
        }
        Ok(seconds)
    }
    /// Bytes per second at which all threads together read memory, measured now (takes about 0.2 s).
    pub fn measure_bandwidth(&mut self) -> Result<f64> {
        bandwidth::measure(&mut self.pool, self.level)
    }
}

fn level_by_name(name: &str) -> Result<Level> {
    let available = Level::available();
    available.iter().copied().find(|l| l.name() == name).ok_or_else(|| {
        let names: Vec<&str> = available.iter().map(|l| l.name()).collect();
        Error::invalid(LEVEL_VARIABLE, format!("{name:?} is not one of {}", names.join(", ")))
    })
}

fn fault(what: DeviceFault) -> Error {
    Error::Device { device: "cpu".into(), what }
}

/// A thread of a launch panicked.
fn lost(plan: &Plan, panic: &str) -> Error {
    fault(DeviceFault::Lost(format!("{}: {panic}", plan.name)))
}

/// A line `key : value` of a file under /proc.
fn proc_value(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|l| l.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

fn cpu_name() -> Option<String> {
    proc_value("/proc/cpuinfo", "model name")
}

fn main_memory() -> Option<DeviceMemory> {
    let bytes = |key| {
        let kilobytes = proc_value("/proc/meminfo", key)?;
        Some(kilobytes.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    Some(DeviceMemory { free: bytes("MemAvailable")?, total: bytes("MemTotal")? })
}

/// Cores that this process may use, each counted once: a second thread on a core shares its multipliers.
fn physical_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    let siblings = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list");
    let per_core = siblings.map_or(1, |list| if list.trim().contains([',', '-']) { 2 } else { 1 });
    (allowed / per_core).max(1)
}

impl Backend for CpuBackend {
    type Buffer = Buffer;
    type Plan = Plan;
    type Pending = ();

    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn supports(&self, _: &Op) -> bool {
        true
    }
    fn alloc(&mut self, decl: &SlotDecl) -> Result<Buffer> {
        // KV has the same size as in the host's representation, in this backend's order.
        let memory = self.arena.get(decl.bytes(), &decl.name)?;
        Ok(Buffer(Rc::new(Contents { memory, decl: decl.clone(), panels: None })))
    }
    fn load(&mut self, decl: &SlotDecl, bytes: &[u8]) -> Result<Buffer> {
        let Elem::Weight(format) = decl.elem else { panic!("{} is no weight", decl.name) };
        if format.bytes_for(decl.len()) != Some(bytes.len()) {
            let what = format!("weight {:?}: {} bytes for {:?} in {format}", decl.name, bytes.len(), decl.shape);
            return Err(fault(DeviceFault::Rejected(what)));
        }
        let [n, k] = decl.shape[..] else {
            let mut memory = self.arena.get(4 * decl.len(), &decl.name)?;
            format.decode(bytes, bytemuck::cast_slice_mut(&mut memory.bytes_mut()[..4 * decl.len()]));
            return Ok(Buffer(Rc::new(Contents { memory, decl: decl.clone(), panels: None })));
        };
        let panels = Panels { format, n, k };
        let mut memory = self.arena.get(panels.bytes(), &decl.name)?;
        panels.pack(bytes, memory.bytes_mut());
        Ok(Buffer(Rc::new(Contents { memory, decl: decl.clone(), panels: Some(panels) })))
    }
    fn write(&mut self, buffer: &Buffer, bytes: &[u8]) -> Result<()> {
        let contents = &*buffer.0;
        assert!(bytes.len() <= contents.decl.bytes(), "{} bytes for slot {:?}", bytes.len(), contents.decl);
        // SAFETY: the buffer is at least this long, no launch is running (launches are synchronous), and
        // no reference into buffers outlives a launch.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), contents.memory.start(), bytes.len()) };
        Ok(())
    }
    fn read(&mut self, buffer: &Buffer, out: &mut [u8]) -> Result<()> {
        let contents = &*buffer.0;
        assert!(out.len() <= contents.decl.bytes(), "{} bytes of slot {:?}", out.len(), contents.decl);
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(contents.memory.start(), out.as_mut_ptr(), out.len()) };
        Ok(())
    }
    fn save_blocks(&mut self, buffer: &Buffer, decl: &SlotDecl, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        for (block, out) in blocks.iter().zip(out.chunks_exact_mut(self.block_bytes(decl))) {
            let from = kv::block(buffer, *block, out.len());
            // SAFETY: the block is within the buffer, and no launch is running.
            unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        }
        Ok(())
    }
    fn load_blocks(&mut self, buffer: &Buffer, decl: &SlotDecl, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        for (block, bytes) in blocks.iter().zip(bytes.chunks_exact(self.block_bytes(decl))) {
            let to = kv::block(buffer, *block, bytes.len());
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        }
        Ok(())
    }
    fn compile(&mut self, program: &Program, bound: &Bound<Buffer>) -> Result<Plan> {
        plan::compile(program, bound, self.level, self.pool.threads())
    }
    fn launch(&mut self, plan: &Plan) -> Result<()> {
        let live = plan.live_rows();
        let steps = &plan.steps;
        let work = |w: &pool::Worker<'_>| steps.iter().for_each(|step| step.run(w, &live));
        self.pool.run_on(self.threads_for(plan, &live), &work).map_err(|panic| lost(plan, &panic))
    }
    fn wait(&mut self, (): ()) -> Result<()> {
        Ok(())
    }
}
