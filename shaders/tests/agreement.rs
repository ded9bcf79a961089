//! Every op on every adapter of this machine, in every profile that it can run, against the oracle; and a
//! row's bits against its neighbours, their number and the row bucket.

use std::time::Instant;

use ponder_engine::backend::check;
use ponder_engine::error::Result;
use ponder_shaders::variants::Profile;
use ponder_shaders::{WgpuBackend, WgpuOptions, adapters};

/// Runs a check on each adapter that can run `profile`.
fn on_adapters(profile: Profile, fused: bool, check: fn(&mut WgpuBackend) -> Result<usize>) {
    let able: Vec<_> = adapters().into_iter().filter(|a| !profile.subgroups() || a.subgroups).collect();
    if able.is_empty() {
        println!("SKIP: no adapter for {} (Debian: mesa-vulkan-drivers brings a software one)", profile.name());
    }
    for adapter in able {
        let name = Some(adapter.index.to_string());
        let options = WgpuOptions { adapter: name, profile: Some(profile), fused, ..WgpuOptions::default() };
        let mut backend = WgpuBackend::new(options).unwrap_or_else(|e| panic!("{}: {e}", adapter.name));
        let started = Instant::now();
        match check(&mut backend) {
            Ok(count) => {
                println!("{}, {}: {count} problems in {:.0?}", adapter.name, profile.name(), started.elapsed())
            }
            Err(e) => panic!("{}: {e}", profile.name()),
        }
    }
}

macro_rules! agreement {
    ($($module:ident: $profile:expr;)*) => {$(
        mod $module {
            use super::*;
            #[test]
            fn agrees_with_reference() {
                on_adapters($profile, true, check::agrees_with_reference);
            }
            #[test]
            fn rows_are_independent() {
                on_adapters($profile, true, check::rows_are_independent);
            }
        }
    )*};
}

agreement! {
    cpu: Profile::Cpu { broadcast: true };
    cpu_without_subgroups: Profile::Cpu { broadcast: false };
    gpu_base: Profile::GpuBase;
    gpu_subgroup: Profile::GpuSubgroup;
}

#[test]
fn broken_tokens_show() {
    Profile::ALL.into_iter().for_each(|profile| on_adapters(profile, true, check::broken_tokens_show));
}

#[test]
fn chunks_keep_their_bits() {
    on_adapters(Profile::Cpu { broadcast: true }, true, check::chunks_keep_their_bits);
}

#[test]
fn blocks_move() {
    on_adapters(Profile::Cpu { broadcast: true }, true, check::blocks_move);
}

#[test]
fn fused_ops_equal_their_parts() {
    on_adapters(Profile::Cpu { broadcast: true }, false, check::agrees_with_reference);
}
