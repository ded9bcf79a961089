//! The driver as a [`Device`]: one context, one stream for work and one for reading back, modules loaded
//! as they are needed, every program a captured graph.
//!
//! The driver's library is opened at run time through cudarc's bindings; where it is missing, or lacks a
//! function, [`Driver::new`] says so and nothing else is called.

mod fault;
mod staging;
mod work;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::null_mut;
use std::rc::Rc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUevent, CUfunction, CUmodule, CUresult, CUstream,
};
use ponder_engine::backend::{DeviceInfo, DeviceKind, DeviceMemory};
use ponder_engine::error::{DeviceFault, Error, Result};

use crate::backend::{Cuda, ROW_BUCKETS};
use crate::device::{Device, Dispatch, Module};
use crate::images::Images;
use crate::nvrtc::Arch;
use fault::{check, check_memory};
use staging::Staging;
use work::{Prepared, Work};

/// The CUDA backend on a GPU.
pub type CudaBackend = Cuda<Driver>;

impl CudaBackend {
    /// The GPU of that number, in the driver's order (`CUDA_VISIBLE_DEVICES` applies).
    ///
    /// # Errors
    /// Unsupported: no driver (naming the libraries tried), no such GPU, compute capability below 8.0, a
    /// driver that lacks a function. OutOfMemory, Lost: as the driver says.
    pub fn new(ordinal: usize) -> Result<Self> {
        Ok(Cuda::on(Driver::new(ordinal)?))
    }
}

/// Functions that are called; a driver since R525 has all of them.
const NEEDED: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuMemAlloc_v2",
    "cuMemGetInfo_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuLaunchKernelEx",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
];

/// How long a launch may take, unless `$PONDER_CUDA_TIMEOUT_MS` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

fn unsupported(what: String) -> Error {
    Error::Device { device: "cuda".into(), what: DeviceFault::Unsupported(what) }
}

/// The device's primary context, released with its last user.
struct Context {
    context: CUcontext,
    device: CUdevice,
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; a failure at the end of a lost context has no remedy.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A GPU. Everything of it stays on the thread that made it.
pub struct Driver {
    // Fields drop in this order: what uses the context before the context.
    staging: Staging,
    events: Vec<Event>,
    modules: HashMap<Module, CUmodule>,
    functions: HashMap<String, CUfunction>,
    images: Images,
    stream: Stream,
    reading: Stream,
    info: DeviceInfo,
    dependent_launch: bool,
    timeout: Duration,
    context: Rc<Context>,
}

/// A stream, destroyed when dropped.
struct Stream(CUstream);
/// An event, destroyed when dropped.
struct Event(CUevent);

impl Stream {
    fn new() -> Result<Self> {
        let (mut stream, non_blocking) = (null_mut(), 1);
        // SAFETY: a context is current.
        check(unsafe { sys::cuStreamCreate(&mut stream, non_blocking) }, "making a stream")?;
        Ok(Self(stream))
    }
}
impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}
impl Event {
    /// With a time stamp: they serve the timers too.
    fn new() -> Result<Self> {
        let mut event = null_mut();
        // SAFETY: a context is current.
        check(unsafe { sys::cuEventCreate(&mut event, 0) }, "making an event")?;
        Ok(Self(event))
    }
    fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        check(unsafe { sys::cuEventRecord(self.0, stream.0) }, "recording an event")
    }
    /// Waits without blocking in the driver, so that work that never ends is noticed.
    fn wait(&self, timeout: Duration, doing: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            // SAFETY: the event is alive.
            match unsafe { sys::cuEventQuery(self.0) } {
                CUresult::CUDA_ERROR_NOT_READY => {}
                code => return check(code, doing),
            }
            let waited = start.elapsed();
            if waited > timeout {
                let what = DeviceFault::Timeout(timeout.as_millis() as u64);
                return Err(Error::Device { device: "cuda".into(), what });
            }
            if waited > Duration::from_millis(5) {
                std::thread::sleep(Duration::from_micros(50));
            } else {
                std::thread::yield_now();
            }
        }
    }
}
impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// Whether the driver's library is here with all that is called of it.
fn find_driver() -> Result<()> {
    // SAFETY: opening NVIDIA's driver library has no preconditions.
    if !unsafe { sys::is_culib_present() } {
        let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so, libcuda.so.1" };
        return Err(unsupported(format!("no CUDA driver: tried {name} on the loader's path; install NVIDIA's driver")));
    }
    // SAFETY: it is present; looked up, not called.
    let missing = |name: &&&str| unsafe { sys::culib().get::<*const c_void>(name.as_bytes()) }.is_err();
    match NEEDED.iter().find(missing) {
        Some(name) => Err(unsupported(format!("the CUDA driver lacks {name}: update it to R525 or later"))),
        None => Ok(()),
    }
}

fn attribute(device: CUdevice, which: CUdevice_attribute) -> Result<u32> {
    let mut value: c_int = 0;
    // SAFETY: the device is the driver's.
    check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) }, "asking for a device attribute")?;
    Ok(value as u32)
}

impl Driver {
    fn new(ordinal: usize) -> Result<Self> {
        find_driver()?;
        let (mut device, mut version) = (0, 0);
        let mut context = null_mut();
        let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        // SAFETY: plain calls with out-pointers that live here.
        let context = unsafe {
            check(sys::cuInit(0), "starting the driver")?;
            check(sys::cuDriverGetVersion(&mut version), "asking for the driver's version")?;
            check(sys::cuDeviceGet(&mut device, number), &format!("looking for GPU {ordinal}"))?;
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device), "making a context")?;
            let context = Rc::new(Context { context, device });
            check(sys::cuCtxSetCurrent(context.context), "entering the context")?;
            context
        };
        let (info, major, minor) = describe(device, version)?;
        let Some(arch) = Arch::of(major, minor) else {
            return Err(unsupported(format!(
                "{}: compute capability {major}.{minor}, at least 8.0 is needed",
                info.name
            )));
        };
        let limit = std::env::var("PONDER_CUDA_TIMEOUT_MS").ok().and_then(|v| v.parse().ok());
        Ok(Self {
            staging: Staging::new()?,
            events: Vec::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            images: Images::new(arch),
            stream: Stream::new()?,
            reading: Stream::new()?,
            info,
            dependent_launch: major >= 9,
            timeout: limit.map_or(TIMEOUT, Duration::from_millis),
            context,
        })
    }

    /// A kernel by name, from its module, which is compiled and loaded if it is not yet.
    fn function(&mut self, module: &Module, kernel: &str) -> Result<CUfunction> {
        if let Some(function) = self.functions.get(kernel) {
            return Ok(*function);
        }
        let loaded = match self.modules.get(module) {
            Some(loaded) => *loaded,
            None => {
                let image = self.images.get(module)?;
                let mut loaded = null_mut();
                let doing = format!("loading {}.cu {}", module.stem, module.variant);
                // SAFETY: the image is a CUBIN, or PTX with its final zero byte.
                check(unsafe { sys::cuModuleLoadData(&mut loaded, image.code.as_ptr().cast()) }, &doing)?;
                self.modules.insert(module.clone(), loaded);
                loaded
            }
        };
        let name = CString::new(kernel).expect("kernel names have no zero byte");
        let mut function = null_mut();
        // SAFETY: the module stays loaded as long as this device.
        check(unsafe { sys::cuModuleGetFunction(&mut function, loaded, name.as_ptr()) }, kernel)?;
        self.functions.insert(kernel.into(), function);
        Ok(function)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        for module in self.modules.values() {
            // SAFETY: loaded by `function`, unloaded once; plans that use it hold no more than graphs.
            let _ = unsafe { sys::cuModuleUnload(*module) };
        }
    }
}

fn describe(device: CUdevice, version: c_int) -> Result<(DeviceInfo, u32, u32)> {
    let mut name = [0u8; 128];
    let (mut free, mut total) = (0, 0);
    // SAFETY: the buffer has the length that is given; a context of the device is current.
    unsafe {
        check(sys::cuDeviceGetName(name.as_mut_ptr().cast(), 127, device), "asking for the device's name")?;
        check(sys::cuMemGetInfo_v2(&mut free, &mut total), "asking for the device's memory")?;
    }
    let name = CStr::from_bytes_until_nul(&name).map_or("GPU".into(), |n| n.to_string_lossy().into_owned());
    let major = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let integrated = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0;
    let info = DeviceInfo {
        backend: "cuda",
        name,
        kind: if integrated { DeviceKind::IntegratedGpu } else { DeviceKind::DiscreteGpu },
        memory: Some(DeviceMemory { free: free as u64, total: total as u64 }),
        row_buckets: ROW_BUCKETS.to_vec(),
        features: vec![
            format!("compute {major}.{minor}"),
            format!("driver CUDA {}.{}", version / 1000, version % 1000 / 10),
        ],
    };
    Ok((info, major, minor))
}

/// Device memory, freed when dropped.
pub struct Memory {
    address: u64,
    _context: Rc<Context>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `alloc`, freed once; the driver waits for work that uses it.
        let _ = unsafe { sys::cuMemFree_v2(self.address) };
    }
}

/// A launch in flight.
pub struct Pending {
    event: Event,
    name: Rc<str>,
}

impl Device for Driver {
    type Memory = Memory;
    type Work = Work;
    type Pending = Pending;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn alloc(&mut self, bytes: usize, what: &str) -> Result<Memory> {
        let mut address = 0;
        // SAFETY: the context is current on this thread.
        check_memory(unsafe { sys::cuMemAlloc_v2(&mut address, bytes) }, bytes, what)?;
        Ok(Memory { address, _context: self.context.clone() })
    }
    fn address(memory: &Memory) -> u64 {
        memory.address
    }
    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        self.staging.write(&self.stream, to, bytes, self.timeout)
    }
    fn read(&mut self, from: u64, out: &mut [u8]) -> Result<()> {
        self.staging.read(&self.reading, from, out)
    }
    fn prepare(&mut self, name: &str, list: Vec<Dispatch>) -> Result<Work> {
        let prepared: Vec<Prepared> = list
            .into_iter()
            .map(|d| Ok(Prepared { function: self.function(&d.module, &d.kernel)?, dispatch: d }))
            .collect::<Result<_>>()?;
        Ok(Work::capture(name, prepared, &self.stream, self.dependent_launch, self.context.clone()))
    }
    fn launch(&mut self, work: &Work) -> Result<Pending> {
        work.enqueue(&self.stream, self.dependent_launch)?;
        let event = self.events.pop().map_or_else(Event::new, Ok)?;
        event.record(&self.stream)?;
        Ok(Pending { event, name: work.shared_name() })
    }
    fn time_ms(&mut self, work: &Work, times: usize) -> Result<f32> {
        let (start, end) = (Event::new()?, Event::new()?);
        start.record(&self.stream)?;
        for _ in 0..times {
            work.enqueue(&self.stream, self.dependent_launch)?;
        }
        end.record(&self.stream)?;
        end.wait(self.timeout, work.name())?;
        let mut ms = 0.0;
        // SAFETY: both events are recorded and over.
        check(unsafe { sys::cuEventElapsedTime(&mut ms, start.0, end.0) }, "reading a timer")?;
        Ok(ms)
    }
    fn shares_scratch(&self) -> bool {
        true
    }
    fn wait(&mut self, pending: Pending) -> Result<()> {
        pending.event.wait(self.timeout, &pending.name)?;
        self.events.push(pending.event);
        Ok(())
    }
}
