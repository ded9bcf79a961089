//! Compiles every kernel for every architecture, on any machine that has NVRTC, and holds what the
//! compiler says of registers, shared memory, stack and spills against `budget.json`.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ponder_engine::error::{Error, Result};
use ponder_engine::format::{Format, KvFormat};
use serde::{Deserialize, Serialize};

use crate::device::Module;
use crate::images;
use crate::nvrtc::{Arch, Image, Nvrtc};
use crate::record::{format_name, kv_name};

/// Every module there is.
pub fn modules() -> Vec<Module> {
    let plain =
        ["norm", "elementwise", "codes", "sample", "selftest", "split"].map(|stem| Module { stem, variant: "" });
    let formats = Format::ALL
        .iter()
        .flat_map(|f| ["embed", "linear", "mlp"].map(|stem| Module { stem, variant: format_name(*f) }));
    let caches = KvFormat::ALL
        .iter()
        .flat_map(|f| ["qkv", "attention", "latent"].map(|stem| Module { stem, variant: kv_name(*f) }));
    plain.into_iter().chain(formats).chain(caches).collect()
}

/// What one kernel uses on one architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelUse {
    /// The kernel.
    pub kernel: String,
    /// The architecture's name, as in [`Arch::ALL`].
    pub arch: String,
    /// Registers per thread.
    pub registers: u32,
    /// Static shared memory of a block.
    pub shared_bytes: u32,
    /// Local memory per thread.
    pub stack_bytes: u32,
    /// Bytes that a thread stores because registers ran out.
    pub spill_bytes: u32,
}

/// The outcome of [`compile`].
#[derive(Debug, Serialize)]
pub struct Report {
    /// NVRTC's version.
    pub nvrtc: String,
    /// One row per kernel and architecture; PTX has none, for nothing is allocated yet.
    pub kernels: Vec<KernelUse>,
    /// Modules compiled or found.
    pub modules: usize,
    /// Wall time.
    pub seconds: f64,
    /// What exceeds the budget, in words.
    pub violations: Vec<String>,
}

/// Compiles all modules for `archs`, as many at a time as there are cores, into `out` (where an image of
/// the same sources and NVRTC is already, it is taken).
///
/// # Errors
/// A module that does not compile, an image that cannot be written: nothing more is begun after either.
pub fn compile(nvrtc: &Nvrtc, archs: &[Arch], out: &Path) -> Result<Report> {
    let start = Instant::now();
    std::fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
    let jobs: Vec<(Module, &Arch)> = archs.iter().flat_map(|a| modules().into_iter().map(move |m| (m, a))).collect();
    let next = AtomicUsize::new(0);
    let image = |module: &Module, arch: &Arch| -> Result<Image> {
        if let Some(image) = images::load(out, module, arch, Some(nvrtc.version)) {
            return Ok(image);
        }
        let image = nvrtc.compile(module, arch)?;
        images::store(out, module, arch, nvrtc.version, &image).map_err(|e| Error::io(out, e))?;
        Ok(image)
    };
    let work = || {
        let mut done = Vec::new();
        while let Some((module, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = image(module, arch).map(|image| uses(&image.log, arch));
            if found.is_err() {
                next.store(jobs.len(), Ordering::Relaxed);
            }
            done.push(found);
        }
        done
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let results: Vec<Result<Vec<KernelUse>>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|h| h.join().expect("a compiling thread does not panic")).collect()
    });
    let mut kernels: Vec<KernelUse> = results.into_iter().collect::<Result<Vec<_>>>()?.concat();
    kernels.sort_by(|a, b| (&a.arch, &a.kernel).cmp(&(&b.arch, &b.kernel)));
    let violations = Budget::ours().violations(&kernels);
    let nvrtc = format!("{}.{}", nvrtc.version.0, nvrtc.version.1);
    Ok(Report { nvrtc, kernels, modules: jobs.len(), seconds: start.elapsed().as_secs_f64(), violations })
}

/// `ponder cuda compile`: architectures by name, images and the report's JSON into `out`.
///
/// # Errors
/// A name that is no architecture, or none that this NVRTC compiles for; no NVRTC; a module that does not
/// compile; a folder that cannot be written.
pub fn compile_named(archs: &[&str], out: &Path) -> Result<Report> {
    let mut archs: Vec<Arch> = archs.iter().map(|a| Arch::new(a)).collect::<Result<_>>()?;
    archs.sort();
    archs.dedup();
    let nvrtc = Nvrtc::find(&[])?;
    archs.iter().try_for_each(|arch| nvrtc.check(arch))?;
    let report = compile(&nvrtc, &archs, out)?;
    let path = out.join("report.json");
    let text = serde_json::to_string_pretty(&report).expect("a report is plain data");
    std::fs::write(&path, text).map_err(|e| Error::io(path, e))?;
    Ok(report)
}

/// Reads ptxas's verbose log.
fn uses(log: &str, arch: &Arch) -> Vec<KernelUse> {
    let mut found: Vec<KernelUse> = Vec::new();
    let number_before = |line: &str, unit: &str| -> Option<u32> {
        line[..line.find(unit)?].split(|c: char| !c.is_ascii_digit()).rfind(|s| !s.is_empty())?.parse().ok()
    };
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let kernel = rest.split('\'').next().unwrap_or_default().to_string();
            let arch = arch.name().to_string();
            found.push(KernelUse { kernel, arch, registers: 0, shared_bytes: 0, stack_bytes: 0, spill_bytes: 0 });
        }
        let Some(last) = found.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            last.stack_bytes = number_before(line, " bytes stack frame").unwrap_or(0);
            last.spill_bytes = number_before(line, " bytes spill stores").unwrap_or(0);
        }
        if line.contains(" registers") {
            last.registers = number_before(line, " registers").unwrap_or(0);
            last.shared_bytes = number_before(line, " bytes smem").unwrap_or(0);
        }
    }
    found
}

/// Ceilings by kernel name: the first rule whose name is the kernel's beginning holds.
#[derive(Debug, Deserialize)]
pub struct Budget {
    rules: Vec<Rule>,
}

/// Ceilings for kernels whose names begin alike.
#[derive(Debug, Deserialize)]
struct Rule {
    begins: String,
    #[serde(default)]
    ends: String,
    registers: u32,
    shared_bytes: u32,
    /// Spills and stack allowed; 0 for whatever runs in every step's hot path.
    #[serde(default)]
    local_bytes: u32,
}

impl Budget {
    /// The checked-in one.
    pub fn ours() -> Self {
        serde_json::from_str(include_str!("../budget.json")).expect("budget.json is tested")
    }
    /// One line for each kernel over its ceiling or without a rule.
    pub fn violations(&self, kernels: &[KernelUse]) -> Vec<String> {
        let mut out = Vec::new();
        for k in kernels {
            let Some(rule) = self.rules.iter().find(|r| k.kernel.starts_with(&r.begins) && k.kernel.ends_with(&r.ends))
            else {
                out.push(format!("{} has no rule in budget.json", k.kernel));
                continue;
            };
            let mut hold = |what: &str, used: u32, allowed: u32| {
                if used > allowed {
                    out.push(format!("{} on {}: {used} {what}, allowed {allowed}", k.kernel, k.arch));
                }
            };
            hold("registers", k.registers, rule.registers);
            hold("bytes of shared memory", k.shared_bytes, rule.shared_bytes);
            hold("bytes of stack", k.stack_bytes, rule.local_bytes);
            hold("bytes spilled", k.spill_bytes, rule.local_bytes);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_understood_and_held_against_the_budget() {
        let log = "ptxas info    : 156 bytes gmem\n\
            ptxas info    : Compiling entry function 'linear_BF16_4' for 'sm_90a'\n\
            ptxas info    : Function properties for linear_BF16_4\n\
            ptxas         .     8 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 70 registers, used 1 barriers, 16384 bytes smem\n";
        let found = uses(log, &Arch::new("90a").unwrap());
        let expected = KernelUse {
            kernel: "linear_BF16_4".into(),
            arch: "90a".into(),
            registers: 70,
            shared_bytes: 16384,
            stack_bytes: 8,
            spill_bytes: 4,
        };
        assert_eq!(found, std::slice::from_ref(&expected));
        assert_eq!(Budget::ours().violations(&found).len(), 2, "stack and spills in a hot kernel");
        let unknown = KernelUse { kernel: "unknown".into(), ..expected };
        assert!(Budget::ours().violations(&[unknown])[0].contains("no rule"));
    }
}
