//! The kernels of this crate, executed on the CPU: g++ compiles the unchanged `.cu` files against
//! `host/ponder_host.h` into a shared library, and this device launches them from it.
//!
//! It is slow and exists for tests: the same dispatch lists, the same kernels, real barriers and warp
//! operations, poisoned shared memory, a seeded order of threads, deadlocks reported. What it cannot show:
//! the memory model, reduced precision inside tensor cores, speed.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use libloading::Library;
use ponder_engine::backend::{DeviceInfo, DeviceKind};
use ponder_engine::error::{DeviceFault, Error, Result};

use crate::backend::{Cuda, ROW_BUCKETS};
use crate::device::{Device, Dispatch};
use crate::source;

/// The CUDA backend on the CPU.
pub type EmulatedCuda = Cuda<Emulator>;

impl EmulatedCuda {
    /// Compiles the kernels with `$PONDER_CXX` or g++ (once; the library is kept in the temporary folder
    /// under a key of all sources) and loads them. The order of threads follows from `seed`.
    ///
    /// # Errors
    /// Unsupported, where there is no C++ compiler; Rejected with the compiler's words.
    pub fn new(seed: u64) -> Result<Self> {
        Ok(Cuda::on(Emulator::new(seed)?))
    }
}

type Launch =
    unsafe extern "C" fn(*const c_char, *const u32, u32, u32, *mut *mut c_void, u64, *mut c_char, u32) -> c_int;

/// The device.
pub struct Emulator {
    info: DeviceInfo,
    launch: Launch,
    seed: u64,
    /// Fails the launch after this many more, as a lost device would.
    fault_after: Option<u64>,
    _library: Library,
}

/// Memory that looks like a device's: aligned, and full of NaN until written.
pub struct Memory(Vec<Aligned>);

#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Aligned([u8; 256]);

fn fault(what: DeviceFault) -> Error {
    Error::Device { device: "cuda kernels on the CPU".into(), what }
}

impl Emulator {
    fn new(seed: u64) -> Result<Self> {
        let path = build()?;
        let refuse = |e: libloading::Error| fault(DeviceFault::Rejected(format!("{}: {e}", path.display())));
        // SAFETY: the library is the one that `build` made; its constructors only link a list of kernels.
        let library = unsafe { Library::new(&path) }.map_err(refuse)?;
        // SAFETY: `ponder_launch` in host/runtime.cpp has this signature.
        let launch = *unsafe { library.get::<Launch>(b"ponder_launch\0") }.map_err(refuse)?;
        let info = DeviceInfo {
            backend: "cuda",
            name: "cuda kernels on the CPU".into(),
            kind: DeviceKind::SoftwareGpu,
            memory: None,
            row_buckets: ROW_BUCKETS.to_vec(),
            features: vec!["emulated".into()],
        };
        Ok(Self { info, launch, seed, fault_after: None, _library: library })
    }
    /// The device is lost at the `launches`-th launch from now, and stays lost: for tests of recovery.
    pub fn lose_after(&mut self, launches: u64) {
        self.fault_after = Some(launches);
    }

    /// Runs one kernel with arguments as in [`Dispatch`]. Public for tests of single kernels.
    ///
    /// # Errors
    /// Rejected, with the thread and block, on a deadlock, a divergent warp operation or a misaligned access.
    pub fn run(&mut self, dispatch: &Dispatch) -> Result<()> {
        self.seed = self.seed.wrapping_add(1);
        let name = CString::new(dispatch.kernel.as_str()).expect("kernel names have no zero byte");
        let mut values = dispatch.args.clone();
        let mut args: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let mut error = [0u8; 512];
        // SAFETY: the arguments are words of at least each parameter's size, in the order of the kernel's
        // signature (record.rs writes both); buffers named by them are alive in the plan.
        let code = unsafe {
            (self.launch)(
                name.as_ptr(),
                dispatch.grid.as_ptr(),
                dispatch.threads,
                0,
                args.as_mut_ptr(),
                self.seed,
                error.as_mut_ptr().cast(),
                512,
            )
        };
        match code {
            0 => Ok(()),
            1 => panic!("no kernel {}", dispatch.kernel),
            _ => {
                let words = CStr::from_bytes_until_nul(&error).map_or("", |c| c.to_str().unwrap_or(""));
                Err(fault(DeviceFault::Rejected(format!("{}: {words}", dispatch.kernel))))
            }
        }
    }
}

impl Device for Emulator {
    type Memory = Memory;
    type Work = Vec<Dispatch>;
    type Pending = ();

    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn alloc(&mut self, bytes: usize, what: &str) -> Result<Memory> {
        let mut blocks = Vec::new();
        let refuse = |_| fault(DeviceFault::OutOfMemory { wanted: bytes as u64, what: what.into() });
        blocks.try_reserve_exact(bytes.div_ceil(256)).map_err(refuse)?;
        blocks.resize(bytes.div_ceil(256), Aligned([0xFF; 256]));
        Ok(Memory(blocks))
    }
    fn address(memory: &Memory) -> u64 {
        memory.0.as_ptr() as u64
    }
    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the backend writes within live allocations of this device.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }
    fn read(&mut self, from: u64, out: &mut [u8]) -> Result<()> {
        // SAFETY: as for `write`.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, out.as_mut_ptr(), out.len()) };
        Ok(())
    }
    fn prepare(&mut self, _: &str, list: Vec<Dispatch>) -> Result<Vec<Dispatch>> {
        Ok(list)
    }
    fn launch(&mut self, work: &Vec<Dispatch>) -> Result<()> {
        match &mut self.fault_after {
            Some(0) => return Err(fault(DeviceFault::Lost("as asked by lose_after".into()))),
            Some(n) => *n -= 1,
            None => {}
        }
        work.iter().try_for_each(|dispatch| self.run(dispatch))
    }
    fn time_ms(&mut self, work: &Vec<Dispatch>, times: usize) -> Result<f32> {
        let start = std::time::Instant::now();
        (0..times).try_for_each(|_| self.launch(work))?;
        Ok(start.elapsed().as_secs_f32() * 1e3)
    }
    fn shares_scratch(&self) -> bool {
        false // fresh NaN for every plan
    }
    fn wait(&mut self, (): ()) -> Result<()> {
        Ok(())
    }
}

/// Flags of the compiler. No contraction: a fused multiply-add is written `fmaf`, here as on a GPU.
fn flags() -> Vec<&'static str> {
    let mut flags = vec!["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-ftls-model=initial-exec", "-w"];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        flags.push("-mfma");
    }
    flags
}

/// A folder with a `libcuda.so` over the executed kernels (host/fake_driver.cpp): with the folder first in
/// `LD_LIBRARY_PATH`, [`crate::CudaBackend`] itself runs on the CPU, for tests of what talks to the driver.
///
/// # Errors
/// As [`EmulatedCuda::new`].
pub fn fake_driver() -> Result<PathBuf> {
    static COPYING: Mutex<()> = Mutex::new(());
    let library = build()?;
    let _guard = COPYING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = library.with_extension("driver");
    if folder.join("libcuda.so").exists() {
        return Ok(folder);
    }
    let put = || {
        std::fs::create_dir_all(&folder)?;
        let (part, whole) = (folder.join(format!("part{}", std::process::id())), folder.join("libcuda.so"));
        std::fs::copy(&library, &part).and_then(|_| std::fs::rename(&part, &whole))
    };
    put().map_err(|e| Error::io(&folder, e))?;
    Ok(folder)
}

/// The shared library of all kernels, built if it is not there.
fn build() -> Result<PathBuf> {
    // One build in this process; processes beside it are kept apart by the folder's name.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _guard = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let compiler = std::env::var("PONDER_CXX").unwrap_or_else(|_| "g++".into());
    let files: Vec<source::File> = [source::HEADERS, source::KERNELS, source::HOST].concat();
    let key = source::fingerprint(
        files.iter().flat_map(|f| [f.0, f.1]).chain(flags()).chain([compiler.as_str(), std::env::consts::ARCH]),
    );
    let library = std::env::temp_dir().join(format!("ponder-cuda-emulator-{key:016x}.so"));
    if library.exists() {
        return Ok(library);
    }
    let folder = std::env::temp_dir().join(format!("ponder-cuda-emulator-{key:016x}-{}", std::process::id()));
    let io = |source| Error::io(&folder, source);
    std::fs::create_dir_all(&folder).map_err(io)?;
    for (name, text) in &files {
        std::fs::write(folder.join(name), text).map_err(io)?;
    }
    let units: Vec<&str> = files.iter().map(|f| f.0).filter(|n| n.ends_with(".cu") || n.ends_with(".cpp")).collect();
    let built = compile_and_link(&compiler, &folder, &units);
    // Moved into place whole, so that a build beside this one never loads half a file.
    let moved = built.and_then(|so| std::fs::rename(so, &library).map_err(io));
    let _ = std::fs::remove_dir_all(&folder); // a leftover in the temporary folder harms nobody
    moved.map(|()| library)
}

fn compile_and_link(compiler: &str, folder: &Path, units: &[&str]) -> Result<PathBuf> {
    let spawn = |command: &mut Command| {
        command.current_dir(folder).stderr(std::process::Stdio::piped()).spawn().map_err(|e| {
            fault(DeviceFault::Unsupported(format!(
                "the C++ compiler {compiler:?} does not start ({e}); install g++ or set PONDER_CXX"
            )))
        })
    };
    let finish = |child: std::process::Child| -> Result<()> {
        let output = child.wait_with_output().map_err(|e| Error::io(folder, e))?;
        let words = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(fault(DeviceFault::Rejected(format!("{compiler}: {words}")))) }
    };
    let children: Vec<_> = units
        .iter()
        .map(|unit| {
            spawn(Command::new(compiler).args(flags()).args(["-x", "c++", "-c", unit, "-o", &format!("{unit}.o")]))
        })
        .collect::<Result<_>>()?;
    children.into_iter().try_for_each(finish)?;
    let objects: Vec<String> = units.iter().map(|unit| format!("{unit}.o")).collect();
    finish(spawn(Command::new(compiler).arg("-shared").args(objects).args(["-o", "emulator.so"]))?)?;
    Ok(folder.join("emulator.so"))
}
