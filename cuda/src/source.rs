//! The kernel sources, carried in the binary: the GPU machine needs no source tree.

/// A file of `kernels/`: its name and its text.
pub type File = (&'static str, &'static str);

macro_rules! kernels {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../kernels/", $name)))),*] };
}

/// Headers that kernels include.
pub const HEADERS: &[File] = kernels!["ponder.cuh", "attend.cuh", "weight.cuh", "product.cuh", "many.cuh"];

/// One file per op stem.
pub const KERNELS: &[File] = kernels![
    "attention.cu",
    "codes.cu",
    "elementwise.cu",
    "embed.cu",
    "latent.cu",
    "linear.cu",
    "mlp.cu",
    "norm.cu",
    "qkv.cu",
    "sample.cu",
    "selftest.cu",
    "split.cu",
];

/// The CPU's wrappers, its runtime, and a driver library over it.
pub const HOST: &[File] = &[
    ("ponder_host.h", include_str!("../host/ponder_host.h")),
    ("runtime.cpp", include_str!("../host/runtime.cpp")),
    ("fake_driver.cpp", include_str!("../host/fake_driver.cpp")),
];

/// The text of `kernels/{stem}.cu`. Panics if there is none: stems are written in this crate.
pub fn kernel(stem: &str) -> &'static str {
    let name = |file: &&File| file.0.strip_suffix(".cu") == Some(stem);
    KERNELS.iter().find(name).unwrap_or_else(|| panic!("no kernel file {stem}.cu")).1
}

/// FNV-1a over texts with their lengths: the key of caches. Stable across builds, unlike the standard hasher.
pub fn fingerprint<'a>(texts: impl IntoIterator<Item = &'a str>) -> u64 {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3);
    texts.into_iter().fold(0xCBF2_9CE4_8422_2325, |h, text| {
        let h = (text.len() as u64).to_le_bytes().into_iter().fold(h, step);
        text.bytes().fold(h, step)
    })
}
