//! Every kernel compiles for every architecture, within its budget. Needs NVRTC, no GPU.

use std::path::{Path, PathBuf};

use ponder_cuda::compile::compile;
use ponder_cuda::nvrtc::{Arch, Nvrtc};

#[test]
fn all_kernels_for_all_architectures() {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.models/nvrtc");
    let nvrtc = match Nvrtc::find(&[fetched]) {
        Ok(nvrtc) => nvrtc,
        Err(error) => return println!("SKIP: {error} (or run cuda/fetch-nvrtc.sh)"),
    };
    let archs: Vec<Arch> = Arch::ALL.iter().map(|a| Arch::new(a).unwrap()).collect();
    // Kept beside the build, keyed by sources: only what changed is compiled again.
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("images");
    let report = compile(&nvrtc, &archs, &out).unwrap_or_else(|e| panic!("{e}"));
    println!("{} kernels of {} modules in {:.0} s", report.kernels.len(), report.modules, report.seconds);
    assert!(report.kernels.len() > 100 * 6, "the log tells of {} kernels", report.kernels.len());
    assert!(report.violations.is_empty(), "{}", report.violations.join("\n"));
}
