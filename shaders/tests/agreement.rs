//! Every op on every adapter of this machine, in every profile that it can run, against the oracle.

use ponder_engine::backend::check;
use ponder_shaders::variants::Profile;
use ponder_shaders::{WgpuBackend, WgpuOptions, adapters};

/// A backend per adapter and profile; none where there is no adapter.
fn backends(fused: bool) -> Vec<(String, WgpuBackend)> {
    let mut out = Vec::new();
    for adapter in adapters() {
        for profile in Profile::ALL {
            if adapter.profile == "gpu-base" && profile.subgroups() {
                continue;
            }
            let options = WgpuOptions {
                adapter: Some(adapter.index.to_string()),
                profile: Some(profile),
                fused,
                ..WgpuOptions::default()
            };
            let name = format!("{}, {}", adapter.name, profile.name());
            out.push((name, WgpuBackend::new(options).expect("a listed adapter opens")));
        }
    }
    if out.is_empty() {
        println!("SKIP: no Vulkan, Metal or DX12 adapter (Debian: mesa-vulkan-drivers)");
    }
    out
}

#[test]
fn agrees_with_reference() {
    let mut failures = Vec::new();
    for (name, mut backend) in backends(true) {
        let started = std::time::Instant::now();
        match check::agrees_with_reference(&mut backend) {
            Ok(count) => println!("{name}: {count} problems agree ({:.1?})", started.elapsed()),
            Err(e) => failures.push(format!("{name}: {e}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn rows_are_independent() {
    let mut failures = Vec::new();
    for (name, mut backend) in backends(true) {
        let started = std::time::Instant::now();
        match check::rows_are_independent(&mut backend) {
            Ok(count) => println!("{name}: {count} problems ({:.1?})", started.elapsed()),
            Err(e) => failures.push(format!("{name}: {e}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
