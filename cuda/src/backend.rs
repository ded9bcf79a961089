//! The engine's [`Backend`] over any [`Device`]: slots become addresses, programs become dispatch lists.

use std::rc::Rc;

use ponder_engine::backend::{Backend, Bound, DeviceInfo};
use ponder_engine::error::{DeviceFault, Error, Result};
use ponder_engine::op::Op;
use ponder_engine::program::{Elem, Program, Role, SlotDecl};

use crate::device::Device;
use crate::record::{record, workspace_bytes};
use crate::weight::pack;

/// CUDA programs on a device: the driver's, or the CPU that executes the same kernels.
pub struct Cuda<D: Device> {
    device: D,
    /// The largest scratch so far. Launches follow each other on one stream and scratch does not outlive
    /// a launch, so one allocation serves every plan that fits it.
    scratch: Option<Buffer<D>>,
}

/// Memory of a slot, freed with the last clone.
pub struct Buffer<D: Device> {
    memory: Rc<D::Memory>,
    bytes: usize,
}

impl<D: Device> Clone for Buffer<D> {
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), bytes: self.bytes }
    }
}

/// A launchable program. Holds every buffer it names.
pub struct Plan<D: Device> {
    work: D::Work,
    _buffers: Vec<Buffer<D>>,
}

/// Row capacities that get a plan of their own: 1 to 8 exactly, then powers of two.
pub const ROW_BUCKETS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 256, 512];

impl<D: Device> Cuda<D> {
    /// The backend of `device`.
    pub fn on(device: D) -> Self {
        Self { device, scratch: None }
    }
    /// The device itself, for counters and timers.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }
    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer<D>> {
        // Never nothing: an address is expected even of an empty slot.
        let memory = self.device.alloc(bytes.max(16), what)?;
        Ok(Buffer { memory: Rc::new(memory), bytes: bytes.max(16) })
    }
    /// Scratch of `bytes` in all, shared where the device allows it.
    fn scratch(&mut self, bytes: usize) -> Result<Buffer<D>> {
        if let Some(scratch) = self.scratch.as_ref().filter(|s| s.bytes >= bytes && self.device.shares_scratch()) {
            return Ok(scratch.clone());
        }
        let buffer = self.allocate(bytes, "scratch")?;
        self.scratch = Some(buffer.clone());
        Ok(buffer)
    }
    /// Milliseconds of `times` launches in a row.
    ///
    /// # Errors
    /// As those of a launch.
    pub fn time_ms(&mut self, plan: &Plan<D>, times: usize) -> Result<f32> {
        self.device.time_ms(&plan.work, times)
    }
    /// A weight that is packed already ([`pack`]).
    ///
    /// # Errors
    /// As [`Backend::load`].
    pub fn load_packed(&mut self, decl: &SlotDecl, bytes: &[u8]) -> Result<Buffer<D>> {
        let buffer = self.allocate(bytes.len(), &decl.name)?;
        self.device.write(D::address(&buffer.memory), bytes)?;
        Ok(buffer)
    }
    fn rejected(&self, what: String) -> Error {
        Error::Device { device: self.device.info().name.clone(), what: DeviceFault::Rejected(what) }
    }
}

impl<D: Device> Backend for Cuda<D> {
    type Buffer = Buffer<D>;
    type Plan = Plan<D>;
    type Pending = D::Pending;

    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }
    fn supports(&self, _: &Op) -> bool {
        true
    }
    fn alloc(&mut self, decl: &SlotDecl) -> Result<Buffer<D>> {
        self.allocate(decl.bytes(), &decl.name)
    }
    fn load(&mut self, decl: &SlotDecl, bytes: &[u8]) -> Result<Buffer<D>> {
        let Elem::Weight(format) = decl.elem else { panic!("{} is no weight", decl.name) };
        let packed: Vec<u8>;
        let bytes = match decl.shape[..] {
            [n, k] => {
                packed = pack(format, n, k, bytes);
                &packed
            }
            _ => bytes,
        };
        self.load_packed(decl, bytes)
    }
    fn write(&mut self, buffer: &Buffer<D>, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= buffer.bytes, "{} bytes into a buffer of {}", bytes.len(), buffer.bytes);
        self.device.write(D::address(&buffer.memory), bytes)
    }
    fn read(&mut self, buffer: &Buffer<D>, out: &mut [u8]) -> Result<()> {
        assert!(out.len() <= buffer.bytes, "{} bytes from a buffer of {}", out.len(), buffer.bytes);
        self.device.read(D::address(&buffer.memory), out)
    }
    fn save_blocks(&mut self, buffer: &Buffer<D>, decl: &SlotDecl, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        let bytes = self.block_bytes(decl);
        for (block, out) in blocks.iter().zip(out.chunks_exact_mut(bytes)) {
            let from = *block as usize * bytes;
            assert!(from + bytes <= buffer.bytes, "block {block} of a buffer of {}", buffer.bytes);
            self.device.read(D::address(&buffer.memory) + from as u64, out)?;
        }
        Ok(())
    }
    fn load_blocks(&mut self, buffer: &Buffer<D>, decl: &SlotDecl, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        let size = self.block_bytes(decl);
        for (block, bytes) in blocks.iter().zip(bytes.chunks_exact(size)) {
            let to = *block as usize * size;
            assert!(to + size <= buffer.bytes, "block {block} of a buffer of {}", buffer.bytes);
            self.device.write(D::address(&buffer.memory) + to as u64, bytes)?;
        }
        Ok(())
    }
    fn compile(&mut self, program: &Program, bound: &Bound<Buffer<D>>) -> Result<Plan<D>> {
        let aligned = |bytes: usize| bytes.next_multiple_of(256);
        let of_scratch = program.slots.iter().filter(|d| d.role == Role::Scratch);
        let scratch_bytes: usize = of_scratch.map(|d| aligned(d.bytes())).sum();
        let scratch = self.scratch(scratch_bytes + workspace_bytes(program))?;
        let mut next = D::address(&scratch.memory);
        let (mut buffers, mut addresses) = (vec![scratch], Vec::with_capacity(program.slots.len()));
        for decl in &program.slots {
            if decl.role == Role::Scratch {
                addresses.push(next);
                next += aligned(decl.bytes()) as u64;
                continue;
            }
            let unbound = || self.rejected(format!("slot {:?} of {} is not bound", decl.name, program.name));
            let buffer = bound.get(&decl.name).ok_or_else(unbound)?;
            addresses.push(D::address(&buffer.memory));
            buffers.push(buffer.clone());
        }
        let list = record(program, &addresses, next)?;
        let work = self.device.prepare(&program.name, list)?;
        Ok(Plan { work, _buffers: buffers })
    }
    fn launch(&mut self, plan: &Plan<D>) -> Result<D::Pending> {
        self.device.launch(&plan.work)
    }
    fn wait(&mut self, pending: D::Pending) -> Result<()> {
        self.device.wait(pending)
    }
}
