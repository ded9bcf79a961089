//! Compiled modules on disk.
//!
//! A file is named by module, architecture, a fingerprint of sources and options, and the version of
//! NVRTC: `linear-Q4_K-90a-0123456789abcdef-13.0.cubin` (`.ptx` for text), with the log beside it.
//! `$PONDER_CUDA_KERNELS` names a folder of images compiled ahead (any NVRTC version serves); what is
//! not there is compiled on first use into `$PONDER_CACHE`, else the user's cache folder.

use std::path::{Path, PathBuf};

use ponder_engine::Result;

use crate::device::Module;
use crate::nvrtc::{Arch, Image, Nvrtc, options};
use crate::source;

/// The part of a file's name that does not depend on NVRTC.
pub fn stem(module: &Module, arch: &Arch) -> String {
    let headers = source::HEADERS.iter().flat_map(|h| [h.0, h.1]);
    let options = options(module, arch);
    let texts = headers.chain([source::kernel(module.stem)]).chain(options.iter().map(String::as_str));
    let variant = if module.variant.is_empty() { "all" } else { module.variant };
    format!("{}-{variant}-{}-{:016x}", module.stem, arch.name(), source::fingerprint(texts))
}

fn extension(arch: &Arch) -> &'static str {
    if arch.is_ptx() { "ptx" } else { "cubin" }
}

/// The image compiled by `version` of NVRTC, or by any where `None`.
pub fn load(folder: &Path, module: &Module, arch: &Arch, version: Option<(i32, i32)>) -> Option<Image> {
    let stem = stem(module, arch);
    let path = match version {
        Some((major, minor)) => folder.join(format!("{stem}-{major}.{minor}.{}", extension(arch))),
        None => {
            let ours = |p: &PathBuf| {
                let name = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.starts_with(&stem) && name.ends_with(extension(arch))
            };
            let mut found: Vec<PathBuf> =
                std::fs::read_dir(folder).ok()?.flatten().map(|e| e.path()).filter(ours).collect();
            found.sort();
            found.pop()?
        }
    };
    let code = std::fs::read(&path).ok().filter(|code| !code.is_empty())?;
    Some(Image { code, log: std::fs::read_to_string(path.with_extension("log")).unwrap_or_default() })
}

/// Writes an image and its log; each file appears whole.
///
/// # Errors
/// Of the file system, as text for a log: a cache that cannot be written costs time, nothing else.
pub fn store(
    folder: &Path,
    module: &Module,
    arch: &Arch,
    version: (i32, i32),
    image: &Image,
) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(format!("{}-{}.{}.{}", stem(module, arch), version.0, version.1, extension(arch)));
    let put = |path: &Path, bytes: &[u8]| {
        let part = path.with_extension(format!("part{}", std::process::id()));
        std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path))
    };
    put(&path.with_extension("log"), image.log.as_bytes())?;
    put(&path, &image.code)?;
    Ok(path)
}

/// Where images compiled on first use are kept.
pub fn cache_folder() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("PONDER_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|c| c.join("ponder")))
        .or_else(|| variable("HOME").map(|h| h.join(".cache/ponder")))
        .unwrap_or_else(|| std::env::temp_dir().join("ponder"))
        .join("cuda")
}

/// From `folder`, or compiled and kept there.
///
/// # Errors
/// Of the compiler.
pub fn load_or_compile(folder: &Path, nvrtc: &Nvrtc, module: &Module, arch: &Arch) -> Result<Image> {
    if let Some(image) = load(folder, module, arch, Some(nvrtc.version)) {
        return Ok(image);
    }
    let image = nvrtc.compile(module, arch)?;
    if let Err(error) = store(folder, module, arch, nvrtc.version, &image) {
        tracing::warn!("{}: {error}; kernels are compiled again next time", folder.display());
    }
    Ok(image)
}

/// Finds images for one device: compiled ahead, cached, or compiled now.
pub struct Images {
    arch: Arch,
    ahead: Option<PathBuf>,
    cache: PathBuf,
    nvrtc: Option<Nvrtc>,
}

impl Images {
    /// Nothing is searched until a module is asked for.
    pub fn new(arch: Arch) -> Self {
        let ahead = std::env::var_os("PONDER_CUDA_KERNELS").filter(|v| !v.is_empty()).map(PathBuf::from);
        Self { arch, ahead, cache: cache_folder(), nvrtc: None }
    }
    /// The image of `module`.
    ///
    /// # Errors
    /// Unsupported, naming the places searched for NVRTC; Rejected, with the compiler's log.
    pub fn get(&mut self, module: &Module) -> Result<Image> {
        if let Some(image) = self.ahead.as_deref().and_then(|folder| load(folder, module, &self.arch, None)) {
            return Ok(image);
        }
        if self.nvrtc.is_none() {
            match Nvrtc::find(&[]) {
                Ok(nvrtc) => self.nvrtc = Some(nvrtc),
                // A cache that another NVRTC filled is better than none.
                Err(error) => return load(&self.cache, module, &self.arch, None).ok_or(error),
            }
        }
        let Some(nvrtc) = &self.nvrtc else { unreachable!("just found") };
        load_or_compile(&self.cache, nvrtc, module, &self.arch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_again_by_its_sources_only() {
        let folder = std::env::temp_dir().join(format!("ponder-images-{}", std::process::id()));
        let (module, arch) = (Module { stem: "norm", variant: "" }, Arch::new("90a").unwrap());
        let image = Image { code: vec![1, 2, 3], log: "log".into() };
        store(&folder, &module, &arch, (13, 0), &image).unwrap();
        assert_eq!(load(&folder, &module, &arch, Some((13, 0))).unwrap().log, "log");
        assert_eq!(load(&folder, &module, &arch, None).unwrap().code, [1, 2, 3]);
        assert!(load(&folder, &module, &arch, Some((12, 9))).is_none());
        assert!(load(&folder, &module, &Arch::new("80").unwrap(), None).is_none());
        assert!(load(&folder, &Module { stem: "linear", variant: "F16" }, &arch, None).is_none());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
