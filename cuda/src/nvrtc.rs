//! NVIDIA's run-time compiler, found and loaded by ourselves.
//!
//! It is looked for, in this order: `$PONDER_NVRTC` (a library or its folder); folders that the caller
//! names; the loader's own path, by soname; the site-packages of the active Python environment
//! (`nvidia/cu13/lib`, `nvidia/cuda_nvrtc/lib`); `$CUDA_HOME` and `/usr/local/cuda*`. In a folder the
//! builtins library is opened first and for all: a wheel's NVRTC does not find it otherwise.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use libloading::Library;
use ponder_engine::error::{DeviceFault, Error, Result};

use crate::device::Module;
use crate::source;

/// What the kernels are compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch(String);

impl Arch {
    /// Every architecture that is compiled ahead of time; `ptx` is compute_80 as text, for GPUs to come.
    pub const ALL: [&'static str; 7] = ["80", "86", "89", "90a", "100f", "120f", "ptx"];

    /// One of [`Arch::ALL`], or another number that NVRTC knows.
    ///
    /// # Errors
    /// Invalid, if it is neither `ptx` nor digits with an optional `a` or `f`.
    pub fn new(name: &str) -> Result<Self> {
        let digits = name.strip_suffix(['a', 'f']).unwrap_or(name);
        if name == "ptx" || (digits.len() >= 2 && digits.bytes().all(|b| b.is_ascii_digit())) {
            return Ok(Self(name.into()));
        }
        Err(Error::invalid("arch", format!("{name:?}: one of {}", Self::ALL.join(", "))))
    }
    /// What runs best on compute capability `major.minor`; `None` before 8.0.
    pub fn of(major: u32, minor: u32) -> Option<Self> {
        let name = match (major, minor) {
            (..8, _) => return None,
            (8, 6) => "86",
            (8, 9) => "89",
            (8, _) => "80",
            (9, 0) => "90a",
            (10, _) => "100f",
            (12, _) => "120f",
            _ => "ptx",
        };
        Some(Self(name.into()))
    }
    /// Its name as in [`Arch::ALL`].
    pub fn name(&self) -> &str {
        &self.0
    }
    /// Whether the image is PTX text, which the driver compiles.
    pub fn is_ptx(&self) -> bool {
        self.0 == "ptx"
    }
    /// 10 * major + minor of the least GPU that it runs on.
    fn capability(&self) -> i32 {
        if self.is_ptx() { 80 } else { self.0.trim_end_matches(['a', 'f']).parse().unwrap_or(0) }
    }
    fn option(&self) -> String {
        if self.is_ptx() { "--gpu-architecture=compute_80".into() } else { format!("--gpu-architecture=sm_{}", self.0) }
    }
}

/// Options besides the architecture and the variant. Products are explicit `fmaf`, so that two kernels
/// that sum the same numbers round alike.
pub const OPTIONS: &[&str] = &["--std=c++17", "-default-device", "--fmad=false", "--generate-line-info"];

/// A compiled module.
#[derive(Clone, Debug)]
pub struct Image {
    /// A CUBIN, or PTX with its final zero byte.
    pub code: Vec<u8>,
    /// The compiler's log, with the use of registers and memory by kernel.
    pub log: String,
}

type Program = *mut c_void;

/// The library's functions.
pub struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log: Getter,
    cubin: Getter,
    ptx: Getter,
    words: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Compute capabilities that it compiles for, as 10 * major + minor, ascending.
    pub capabilities: Vec<i32>,
    /// (major, minor).
    pub version: (i32, i32),
    _builtins: Option<Library>,
    _library: Library,
}

/// A pair of functions: the size of something, and the thing.
struct Getter {
    size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

fn unsupported(what: String) -> Error {
    Error::Device { device: "cuda".into(), what: DeviceFault::Unsupported(what) }
}

/// Opens for all libraries opened later.
#[cfg(unix)]
fn open(path: &Path) -> Result<Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: NVIDIA's libraries have no constructors that touch the program's state.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map(Into::into)
}
#[cfg(not(unix))]
fn open(path: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: as above.
    unsafe { Library::new(path) }
}

/// Names by preference.
const NAMES: [&str; 4] = ["libnvrtc.so.13", "libnvrtc.so.12", "nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];

impl Nvrtc {
    /// Loads the first library of the search order, `folders` after `$PONDER_NVRTC`.
    ///
    /// # Errors
    /// Unsupported, naming every place that was tried.
    pub fn find(folders: &[PathBuf]) -> Result<Self> {
        let mut tried = Vec::new();
        for path in candidates(folders) {
            match Self::load(&path) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) if path.exists() => tried.push(format!("{} ({error})", path.display())),
                Err(_) => tried.push(path.display().to_string()),
            }
        }
        let places = match variable("PONDER_NVRTC") {
            Some(_) => "as PONDER_NVRTC says",
            None => {
                "on the loader's path, in the Python of VIRTUAL_ENV or CONDA_PREFIX, in CUDA_HOME and /usr/local/cuda*"
            }
        };
        let advice = "install it (pip install nvidia-cuda-nvrtc), or let PONDER_NVRTC name its folder";
        Err(unsupported(format!("no NVRTC {places}: tried {}; {advice}", tried.join(", "))))
    }

    fn load(path: &Path) -> Result<Self, libloading::Error> {
        let builtins = builtins_beside(path).and_then(|b| open(&b).ok());
        let library = open(path)?;
        // SAFETY: the types are those of nvrtc.h, unchanged since CUDA 11.1.
        unsafe {
            let getter = |size: &[u8], get: &[u8]| -> Result<Getter, libloading::Error> {
                Ok(Getter { size: *library.get(size)?, get: *library.get(get)? })
            };
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = *library.get(b"nvrtcVersion\0")?;
            let mut numbers = (0, 0);
            version(&mut numbers.0, &mut numbers.1);
            let count: unsafe extern "C" fn(*mut c_int) -> c_int = *library.get(b"nvrtcGetNumSupportedArchs\0")?;
            let list: unsafe extern "C" fn(*mut c_int) -> c_int = *library.get(b"nvrtcGetSupportedArchs\0")?;
            let mut archs = 0;
            count(&mut archs);
            let mut capabilities = vec![0; archs.max(0) as usize];
            list(capabilities.as_mut_ptr());
            Ok(Self {
                create: *library.get(b"nvrtcCreateProgram\0")?,
                destroy: *library.get(b"nvrtcDestroyProgram\0")?,
                compile: *library.get(b"nvrtcCompileProgram\0")?,
                log: getter(b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0")?,
                cubin: getter(b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0")?,
                ptx: getter(b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0")?,
                words: *library.get(b"nvrtcGetErrorString\0")?,
                capabilities,
                version: numbers,
                _builtins: builtins,
                _library: library,
            })
        }
    }

    /// Whether it compiles for `arch`.
    ///
    /// # Errors
    /// Invalid, with what it does compile for.
    pub fn check(&self, arch: &Arch) -> Result<()> {
        if self.capabilities.contains(&arch.capability()) {
            return Ok(());
        }
        let known: Vec<String> = self.capabilities.iter().map(i32::to_string).collect();
        let (major, minor) = self.version;
        let why = format!("{:?}: NVRTC {major}.{minor} compiles for {}", arch.name(), known.join(", "));
        Err(Error::invalid("arch", why))
    }

    /// Compiles a module. Any thread may; programs are independent.
    ///
    /// # Errors
    /// Rejected, with the compiler's log.
    pub fn compile(&self, module: &Module, arch: &Arch) -> Result<Image> {
        let text = |s: &str| CString::new(s).expect("sources and options have no zero byte");
        let (source, name) = (text(source::kernel(module.stem)), text(&format!("{}.cu", module.stem)));
        let headers: Vec<(CString, CString)> = source::HEADERS.iter().map(|h| (text(h.0), text(h.1))).collect();
        let names: Vec<*const c_char> = headers.iter().map(|h| h.0.as_ptr()).collect();
        let texts: Vec<*const c_char> = headers.iter().map(|h| h.1.as_ptr()).collect();
        let options: Vec<CString> = options(module, arch).iter().map(|o| text(o)).collect();
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = null_mut();
        // SAFETY: every pointer lives to the end of this function; counts are those of the arrays.
        let (code, log, image) = unsafe {
            let count = headers.len() as c_int;
            let code =
                (self.create)(&mut program, source.as_ptr(), name.as_ptr(), count, texts.as_ptr(), names.as_ptr());
            if code != 0 {
                return Err(self.refused(module, arch, code, ""));
            }
            let code = (self.compile)(program, options.len() as c_int, options.as_ptr());
            let log = self.get(program, &self.log);
            let image = self.get(program, if arch.is_ptx() { &self.ptx } else { &self.cubin });
            (self.destroy)(&mut program);
            (code, log, image)
        };
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_string();
        if code != 0 { Err(self.refused(module, arch, code, &log)) } else { Ok(Image { code: image, log }) }
    }

    /// # Safety
    /// `program` is alive.
    unsafe fn get(&self, program: Program, getter: &Getter) -> Vec<u8> {
        let mut size = 0;
        // SAFETY: the buffer has the size that the library asked for.
        unsafe {
            if (getter.size)(program, &mut size) != 0 {
                return Vec::new();
            }
            let mut bytes = vec![0u8; size];
            (getter.get)(program, bytes.as_mut_ptr().cast());
            bytes
        }
    }
    fn refused(&self, module: &Module, arch: &Arch, code: c_int, log: &str) -> Error {
        // SAFETY: NVRTC returns a static string for every code.
        let words = unsafe { CStr::from_ptr((self.words)(code)) }.to_string_lossy();
        let what = format!(
            "NVRTC {}.{}: {}.cu {} for {}: {words}\n{log}",
            self.version.0,
            self.version.1,
            module.stem,
            module.variant,
            arch.name()
        );
        Error::Device { device: "cuda".into(), what: DeviceFault::Rejected(what) }
    }
}

/// All options of a compilation.
pub fn options(module: &Module, arch: &Arch) -> Vec<String> {
    let mut options: Vec<String> = OPTIONS.iter().map(|o| o.to_string()).collect();
    options.push(arch.option());
    if !module.variant.is_empty() {
        options.push(format!("-DVARIANT={}", module.variant));
        options.push(format!("-DVARIANT_{}=1", module.variant));
    }
    if !arch.is_ptx() {
        options.push("--ptxas-options=-v".into());
    }
    options
}

/// The builtins library in the folder of `nvrtc`.
fn builtins_beside(nvrtc: &Path) -> Option<PathBuf> {
    let folder = nvrtc.parent()?;
    let mut found: Vec<PathBuf> = entries(folder)
        .into_iter()
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libnvrtc-builtins.so.")))
        .collect();
    found.sort();
    found.pop()
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// Paths in the order of the search.
fn candidates(folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut all_in = |folder: &Path| found.extend(NAMES.iter().map(|n| folder.join(n)).filter(|p| p.exists()));
    if let Some(path) = variable("PONDER_NVRTC") {
        return if path.is_dir() { NAMES.iter().map(|n| path.join(n)).collect() } else { vec![path] };
    }
    folders.iter().for_each(|f| all_in(f));
    let mut by_name: Vec<PathBuf> = NAMES.iter().map(PathBuf::from).collect();
    let mut later = Vec::new();
    let mut all_later = |folder: &Path| later.extend(NAMES.iter().map(|n| folder.join(n)).filter(|p| p.exists()));
    for prefix in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable) {
        for python in entries(&prefix.join("lib")) {
            let packages = python.join("site-packages/nvidia");
            ["cu13/lib", "cuda_nvrtc/lib"].iter().for_each(|f| all_later(&packages.join(f)));
        }
    }
    variable("CUDA_HOME").iter().for_each(|home| all_later(&home.join("lib64")));
    let mut toolkits: Vec<PathBuf> =
        entries(Path::new("/usr/local")).into_iter().filter(|p| p.to_string_lossy().contains("/cuda")).collect();
    toolkits.sort();
    toolkits.iter().rev().for_each(|t| all_later(&t.join("lib64")));
    found.append(&mut by_name);
    found.append(&mut later);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_by_capability() {
        let name = |major, minor| Arch::of(major, minor).map(|a| a.name().to_string());
        assert_eq!(name(7, 5), None);
        assert_eq!(name(8, 7).as_deref(), Some("80"));
        assert_eq!(name(9, 0).as_deref(), Some("90a"));
        assert_eq!(name(10, 3).as_deref(), Some("100f"));
        assert_eq!(name(13, 0).as_deref(), Some("ptx"));
        assert!(Arch::new("sm_90").is_err() && Arch::new("100f").is_ok());
    }
}
