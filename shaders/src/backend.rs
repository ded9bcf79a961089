//! `WgpuBackend`: memory, compilation and launches. One thread owns device and queue.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ponder_engine::backend::{Backend, Bound, DeviceInfo};
use ponder_engine::error::{DeviceFault, Error, Result};
use ponder_engine::op::Op;
use ponder_engine::program::{Elem, Program, Role, SlotDecl};

use crate::adapter::{Opened, WgpuOptions, open};
use crate::buffer::{Buffer, Contents, Part, Plain, Weight};
use crate::fault::guarded;
use crate::layout::{PANEL, layout, planes};
use crate::module::{BindingKind, Pipeline, check, interface, pipeline};
use crate::plan::{Dispatch, Plan, Planner, Step};
use crate::variants::Variant;

/// Row capacities to compile programs for.
const ROW_BUCKETS: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
/// Outputs up to this size are copied to mappable memory at the end of each launch.
const READBACK_BYTES: u64 = 64 << 10;
/// Blocks of the cache are copied to the host in pieces of this size.
const READBACK_PART: usize = 16 << 20;
/// Weights are uploaded in pieces, waiting after so many bytes: staging memory grows until a submission.
const UPLOAD_BYTES: u64 = 64 << 20;
/// Compiling every kernel of a program may take minutes on a busy machine with a software driver.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(1800);

/// A wgpu device that runs programs.
pub struct WgpuBackend {
    opened: Opened,
    options: WgpuOptions,
    info: DeviceInfo,
    pipelines: HashMap<Variant, Rc<Pipeline>>,
    /// Pipelines made since the last warm-up.
    cold: bool,
    /// Scratch by name, the largest so far. Launches follow each other on one queue, and scratch means nothing
    /// between them, so all plans share it.
    scratch: RefCell<HashMap<String, wgpu::Buffer>>,
    /// Bound where a kernel has no use for a buffer.
    empty: wgpu::Buffer,
    unsubmitted: u64,
}

/// Work in flight.
pub struct Pending(wgpu::SubmissionIndex);

impl WgpuBackend {
    /// Opens an adapter.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no adapter fits the options, [`Error::Device`] if the chosen one does not open.
    pub fn new(options: WgpuOptions) -> Result<Self> {
        let opened = open(&options)?;
        let mut features = vec![format!("profile {}", opened.profile.name()), opened.summary.api.clone()];
        features.push(opened.summary.driver.clone());
        let info = DeviceInfo {
            backend: "wgpu",
            name: opened.summary.name.clone(),
            kind: opened.summary.kind,
            memory: None,
            row_buckets: ROW_BUCKETS.to_vec(),
            features,
        };
        let empty = opened.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("empty"),
            size: 16,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        });
        let (pipelines, scratch) = (HashMap::new(), RefCell::default());
        Ok(Self { opened, options, info, pipelines, cold: false, scratch, empty, unsubmitted: 0 })
    }

    /// Loses the device, as a driver may at any time: for tests of recovery.
    pub fn destroy(&self) {
        self.opened.device.destroy();
    }

    fn error(&self, what: DeviceFault) -> Error {
        Error::Device { device: self.info.name.clone(), what }
    }

    fn max_binding(&self) -> u64 {
        let limit = self.opened.limits.max_storage_buffer_binding_size.min(self.opened.limits.max_buffer_size);
        self.options.max_binding_bytes.map_or(limit, |m| m.min(limit))
    }

    /// A buffer of `bytes`, rounded up to whole vec4.
    fn create(&self, name: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, DeviceFault> {
        let size = bytes.next_multiple_of(16).max(16);
        if size > self.max_binding() {
            return Err(DeviceFault::Unsupported(format!(
                "{name} needs {size} bytes in one buffer, and this device binds at most {}",
                self.max_binding()
            )));
        }
        let descriptor = wgpu::BufferDescriptor { label: Some(name), size, usage, mapped_at_creation: false };
        let made = guarded(&self.opened.device, size, name, || self.opened.device.create_buffer(&descriptor))?;
        // A lost device makes buffers without a word.
        self.opened.faults.take().map(|()| made)
    }

    fn storage(&self, name: &str, bytes: u64) -> Result<wgpu::Buffer, DeviceFault> {
        use wgpu::BufferUsages as U;
        self.create(name, bytes, U::STORAGE | U::COPY_DST | U::COPY_SRC)
    }

    /// Shared scratch of at least `bytes`.
    fn shared_scratch(&self, name: &str, bytes: u64) -> Result<wgpu::Buffer, DeviceFault> {
        if let Some(found) = self.scratch.borrow().get(name).filter(|b| b.size() >= bytes) {
            return Ok(found.clone());
        }
        let made = self.storage(name, bytes)?;
        self.scratch.borrow_mut().insert(name.to_owned(), made.clone());
        Ok(made)
    }

    /// A storage buffer with contents.
    fn upload(&mut self, name: &str, words: &[u32]) -> Result<wgpu::Buffer, DeviceFault> {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let buffer = self.storage(name, bytes.len() as u64)?;
        self.opened.queue.write_buffer(&buffer, 0, bytes);
        self.unsubmitted += bytes.len() as u64;
        if self.unsubmitted > UPLOAD_BYTES {
            self.flush()?;
        }
        Ok(buffer)
    }

    /// Submits what was written, and waits until its staging memory is free.
    fn flush(&mut self) -> Result<(), DeviceFault> {
        self.unsubmitted = 0;
        let index = self.opened.queue.submit([]);
        self.wait_for(Some(index), self.options.timeout)
    }

    /// Waits for a submission, or for all.
    fn wait_for(&self, index: Option<wgpu::SubmissionIndex>, timeout: Duration) -> Result<(), DeviceFault> {
        let wait = wgpu::PollType::Wait { submission_index: index, timeout: Some(timeout) };
        match self.opened.device.poll(wait) {
            Ok(_) => self.opened.faults.take(),
            Err(wgpu::PollError::Timeout) => Err(DeviceFault::Timeout(timeout.as_millis() as u64)),
            Err(e) => Err(DeviceFault::Lost(e.to_string())),
        }
    }

    fn load_weight(&mut self, decl: &SlotDecl, bytes: &[u8]) -> Result<Buffer, DeviceFault> {
        let Elem::Weight(format) = decl.elem else {
            return Err(DeviceFault::Rejected(format!("{} is no weight", decl.name)));
        };
        let &[n, k] = &decl.shape[..] else {
            if format != ponder_engine::format::Format::F32 {
                return Err(DeviceFault::Unsupported(format!("vector {} in {format}, not F32", decl.name)));
            }
            let words = ponder_engine::backend::cast_vec::<u32>(bytes);
            let buffer = self.upload(&decl.name, &words)?;
            return Ok(Buffer(Rc::new(Contents::Plain(Plain { buffer, staging: None, bytes: bytes.len() as u64 }))));
        };
        let per_row = layout(format).widest_row_bytes(k) as u64;
        let rows_per_part = (self.max_binding() / per_row) as usize / PANEL * PANEL;
        if rows_per_part == 0 {
            return Err(DeviceFault::Unsupported(format!("{}: a panel of rows exceeds a binding", decl.name)));
        }
        let row_bytes = bytes.len() / n;
        let mut parts = Vec::new();
        for first in (0..n).step_by(rows_per_part) {
            let rows = rows_per_part.min(n - first);
            let planes = planes(format, &bytes[first * row_bytes..][..rows * row_bytes], rows, k);
            let quants = self.upload(&decl.name, &planes.quants)?;
            let scales =
                if planes.scales.is_empty() { self.empty.clone() } else { self.upload(&decl.name, &planes.scales)? };
            parts.push(Part { first, rows, quants, scales });
        }
        Ok(Buffer(Rc::new(Contents::Weight(Weight { format, n, k, parts }))))
    }

    fn pipeline(&mut self, variant: &Variant) -> Result<Rc<Pipeline>, DeviceFault> {
        if let Some(found) = self.pipelines.get(variant) {
            return Ok(found.clone());
        }
        let checked = check(variant, self.opened.profile.subgroups()).map_err(DeviceFault::Rejected)?;
        let bound = interface(&checked).bindings.iter().filter(|b| b.kind != BindingKind::Dims).count();
        let most = self.opened.limits.max_storage_buffers_per_shader_stage;
        if bound > most as usize {
            let what = format!("kernel {} binds {bound} buffers, and this device {most} at most", variant.label());
            return Err(DeviceFault::Unsupported(what));
        }
        let device = &self.opened.device;
        let made = Rc::new(guarded(device, 0, variant.stem, || pipeline(device, variant, &checked))?);
        self.pipelines.insert(variant.clone(), made.clone());
        self.cold = true;
        Ok(made)
    }

    /// Pipelines and bind groups for the steps of a program.
    fn dispatches(&mut self, steps: &[Step]) -> Result<Vec<Dispatch>, DeviceFault> {
        // All `dims` in one uniform buffer, each at an aligned offset.
        let align = self.opened.limits.min_uniform_buffer_offset_alignment as usize;
        let mut dims = vec![0u8; steps.len() * align];
        let pipelines = steps.iter().map(|s| self.pipeline(&s.variant)).collect::<Result<Vec<_>, _>>()?;
        for ((step, pipeline), place) in steps.iter().zip(&pipelines).zip(dims.chunks_exact_mut(align)) {
            for (member, to) in pipeline.interface.dims.iter().zip(place.chunks_exact_mut(4)) {
                let (_, value) = named(&step.dims, member, &step.variant)?;
                to.copy_from_slice(&value.to_le_bytes());
            }
        }
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let uniform = self.create("dims", dims.len() as u64, usage)?;
        self.opened.queue.write_buffer(&uniform, 0, &dims);
        let device = &self.opened.device;
        let mut out = Vec::new();
        for (i, (step, pipeline)) in steps.iter().zip(&pipelines).enumerate() {
            let mut entries = Vec::new();
            for binding in &pipeline.interface.bindings {
                let resource = match binding.kind {
                    BindingKind::Dims => wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: &uniform,
                        offset: (i * align) as u64,
                        size: wgpu::BufferSize::new(align as u64),
                    }),
                    _ => named(&step.buffers, &binding.name, &step.variant)?.1.as_entire_binding(),
                };
                entries.push(wgpu::BindGroupEntry { binding: binding.index, resource });
            }
            let descriptor = wgpu::BindGroupDescriptor {
                label: Some(step.variant.stem),
                layout: &pipeline.layout,
                entries: &entries,
            };
            let bind_group = guarded(device, 0, step.variant.stem, || device.create_bind_group(&descriptor))?;
            let grid = step.grid.map(|g| g as u32);
            out.push(Dispatch { pipeline: pipeline.pipeline.clone(), bind_group, grid });
        }
        Ok(out)
    }

    fn try_compile(&mut self, program: &Program, bound: &Bound<Buffer>) -> Result<Plan, DeviceFault> {
        let mut scratch = HashMap::new();
        let mut readbacks = Vec::new();
        for decl in &program.slots {
            match decl.role {
                Role::Scratch => {
                    let bytes = decl.bytes() as u64;
                    let buffer = self.shared_scratch(&decl.name, bytes)?;
                    let plain = Plain { buffer, staging: None, bytes };
                    scratch.insert(decl.name.clone(), Buffer(Rc::new(Contents::Plain(plain))));
                }
                Role::Output => {
                    let Some(Contents::Plain(Plain { buffer, staging: Some(staging), .. })) =
                        bound.get(&decl.name).map(|b| &*b.0)
                    else {
                        continue;
                    };
                    readbacks.push((buffer.clone(), staging.clone(), staging.size()));
                }
                _ => {}
            }
        }
        let temp = |name: &str, bytes: usize| self.shared_scratch(&format!("temp: {name}"), bytes as u64);
        let planner =
            Planner { program, profile: self.opened.profile, bound, scratch: &scratch, temp: &temp, steps: Vec::new() };
        let steps = planner.plan()?;
        let dispatches = self.dispatches(&steps)?;
        let plan = Plan { name: program.name.clone(), dispatches, readbacks };
        if std::mem::take(&mut self.cold) {
            let live = &program.decl(program.live).name;
            if let Some(Contents::Plain(live)) = bound.get(live).map(|b| &*b.0) {
                self.warm_up(&plan, &live.buffer)?;
            }
        }
        Ok(plan)
    }

    /// Runs a plan with no live rows: drivers compile a kernel when it is first dispatched.
    fn warm_up(&self, plan: &Plan, live: &wgpu::Buffer) -> Result<(), DeviceFault> {
        let kept = self.storage("live, kept", 8)?;
        let mut encoder = self.opened.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(live, 0, &kept, 0, 8);
        encoder.clear_buffer(live, 0, Some(8));
        record(&mut encoder, plan);
        encoder.copy_buffer_to_buffer(&kept, 0, live, 0, 8);
        let index = self.opened.queue.submit([encoder.finish()]);
        let started = Instant::now();
        self.wait_for(Some(index), WARM_UP_TIMEOUT)?;
        tracing::debug!(program = plan.name, kernels = self.pipelines.len(), elapsed = ?started.elapsed(), "warm");
        Ok(())
    }

    fn plain<'a>(&self, buffer: &'a Buffer, bytes: usize) -> Result<&'a Plain> {
        match &*buffer.0 {
            Contents::Plain(plain) if bytes as u64 <= plain.bytes => Ok(plain),
            Contents::Plain(plain) => {
                let what = format!("{bytes} bytes for a buffer of {}", plain.bytes);
                Err(self.error(DeviceFault::Rejected(what)))
            }
            Contents::Weight(_) => Err(self.error(DeviceFault::Rejected("a weight is written by load".into()))),
        }
    }

    /// Copies mappable memory out.
    fn map(&self, staging: &wgpu::Buffer, out: &mut [u8]) -> Result<(), DeviceFault> {
        let slice = staging.slice(..(out.len() as u64).next_multiple_of(8).min(staging.size()));
        let (sender, receiver) = mpsc::channel();
        slice.map_async(wgpu::MapMode::Read, move |result| {
            // The receiver lives until the answer is there or the wait was given up.
            let _ = sender.send(result);
        });
        self.wait_for(None, self.options.timeout)?;
        match receiver.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(DeviceFault::Lost(format!("mapping failed: {e}"))),
            Err(_) => return Err(DeviceFault::Lost("mapping was not answered".into())),
        }
        {
            let view = slice.get_mapped_range().map_err(|e| DeviceFault::Rejected(e.to_string()))?;
            out.copy_from_slice(&view[..out.len()]);
        }
        staging.unmap();
        Ok(())
    }

    /// Copies blocks of `bytes` each to the host in one submission.
    fn try_save(&self, plain: &Plain, bytes: usize, blocks: &[u32], out: &mut [u8]) -> Result<(), DeviceFault> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = self.create("saved blocks", out.len() as u64, usage)?;
        let mut encoder = self.opened.device.create_command_encoder(&Default::default());
        for (i, block) in blocks.iter().enumerate() {
            let (from, to) = (u64::from(*block) * bytes as u64, (i * bytes) as u64);
            encoder.copy_buffer_to_buffer(&plain.buffer, from, &staging, to, bytes as u64);
        }
        self.opened.queue.submit([encoder.finish()]);
        self.map(&staging, out)
    }

    fn try_read(&self, plain: &Plain, out: &mut [u8]) -> Result<(), DeviceFault> {
        if let Some(staging) = &plain.staging {
            return self.map(staging, out);
        }
        let size = (out.len() as u64).next_multiple_of(8).min(plain.buffer.size());
        let staging = self.create("read", size, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?;
        let mut encoder = self.opened.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&plain.buffer, 0, &staging, 0, size);
        self.opened.queue.submit([encoder.finish()]);
        self.map(&staging, out)
    }
}

fn named<'a, T>(
    list: &'a [(&'static str, T)],
    name: &str,
    variant: &Variant,
) -> Result<&'a (&'static str, T), DeviceFault> {
    list.iter()
        .find(|(n, _)| *n == name)
        .ok_or_else(|| DeviceFault::Rejected(format!("{name:?} of kernel {} is not given", variant.label())))
}

/// One pass over a plan's dispatches.
fn record(encoder: &mut wgpu::CommandEncoder, plan: &Plan) {
    let descriptor = wgpu::ComputePassDescriptor { label: Some(&plan.name), timestamp_writes: None };
    let mut pass = encoder.begin_compute_pass(&descriptor);
    for dispatch in &plan.dispatches {
        pass.set_pipeline(&dispatch.pipeline);
        pass.set_bind_group(0, &dispatch.bind_group, &[]);
        let [x, y, z] = dispatch.grid;
        pass.dispatch_workgroups(x, y, z);
    }
}

impl Backend for WgpuBackend {
    type Buffer = Buffer;
    type Plan = Plan;
    type Pending = Pending;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn supports(&self, op: &Op) -> bool {
        let latent = matches!(op, Op::LatentStore(_) | Op::LatentAttention(_));
        !latent && (self.options.fused || !op.is_fused())
    }

    fn alloc(&mut self, decl: &SlotDecl) -> Result<Buffer> {
        let bytes = decl.bytes() as u64;
        let make = |backend: &Self| {
            let buffer = backend.storage(&decl.name, bytes)?;
            let staging = match decl.role == Role::Output && bytes <= READBACK_BYTES {
                true => {
                    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                    Some(backend.create(&decl.name, bytes, usage)?)
                }
                false => None,
            };
            Ok(Plain { buffer, staging, bytes })
        };
        let plain = make(self).map_err(|e| self.error(e))?;
        Ok(Buffer(Rc::new(Contents::Plain(plain))))
    }

    fn load(&mut self, decl: &SlotDecl, bytes: &[u8]) -> Result<Buffer> {
        if bytes.len() != decl.bytes() {
            let what = format!("{} bytes for weight {}, which has {}", bytes.len(), decl.name, decl.bytes());
            return Err(self.error(DeviceFault::Rejected(what)));
        }
        self.load_weight(decl, bytes).map_err(|e| self.error(e))
    }

    fn write(&mut self, buffer: &Buffer, bytes: &[u8]) -> Result<()> {
        let plain = self.plain(buffer, bytes.len())?;
        if bytes.len().is_multiple_of(4) {
            self.opened.queue.write_buffer(&plain.buffer, 0, bytes);
        } else {
            let mut padded = bytes.to_vec();
            padded.resize(bytes.len().next_multiple_of(4), 0);
            self.opened.queue.write_buffer(&plain.buffer, 0, &padded);
        }
        Ok(())
    }

    fn read(&mut self, buffer: &Buffer, out: &mut [u8]) -> Result<()> {
        let plain = self.plain(buffer, out.len())?;
        self.try_read(plain, out).map_err(|e| self.error(e))
    }

    fn save_blocks(&mut self, buffer: &Buffer, decl: &SlotDecl, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        let bytes = self.block_bytes(decl);
        let plain = self.plain(buffer, decl.bytes())?;
        let most = (READBACK_PART / bytes).max(1);
        for (blocks, out) in blocks.chunks(most).zip(out.chunks_mut(most * bytes)) {
            self.try_save(plain, bytes, blocks, out).map_err(|e| self.error(e))?;
        }
        Ok(())
    }

    fn load_blocks(&mut self, buffer: &Buffer, decl: &SlotDecl, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        let size = self.block_bytes(decl);
        let plain = self.plain(buffer, decl.bytes())?;
        for (block, bytes) in blocks.iter().zip(bytes.chunks_exact(size)) {
            self.opened.queue.write_buffer(&plain.buffer, u64::from(*block) * size as u64, bytes);
        }
        Ok(())
    }

    fn compile(&mut self, program: &Program, bound: &Bound<Buffer>) -> Result<Plan> {
        self.try_compile(program, bound).map_err(|e| self.error(e))
    }

    fn launch(&mut self, plan: &Plan) -> Result<Pending> {
        self.opened.faults.take().map_err(|e| self.error(e))?;
        let mut encoder = self.opened.device.create_command_encoder(&Default::default());
        record(&mut encoder, plan);
        for (buffer, staging, bytes) in &plan.readbacks {
            encoder.copy_buffer_to_buffer(buffer, 0, staging, 0, *bytes);
        }
        self.unsubmitted = 0;
        Ok(Pending(self.opened.queue.submit([encoder.finish()])))
    }

    fn wait(&mut self, pending: Pending) -> Result<()> {
        self.wait_for(Some(pending.0), self.options.timeout).map_err(|e| self.error(e))
    }
}
