//! The driver's side of the crate (contexts, staging, modules, graphs, faults), over a stand-in for the
//! driver's library that executes the kernels on the CPU. The tests run this binary again with the
//! stand-in on the loader's path.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use ponder_cuda::device::Module;
use ponder_cuda::nvrtc::{Arch, Image};
use ponder_cuda::{CudaBackend, compile, emulated, images};
use ponder_engine::backend::Backend;
use ponder_engine::backend::check::run;
use ponder_engine::op::problem::{Problem, problems};
use ponder_engine::program::{Elem, Role, SlotDecl};
use ponder_engine::{DeviceFault, Error};

static IMAGES: LazyLock<PathBuf> = LazyLock::new(images_for_sm_90);

/// A folder of images that satisfy the names: the stand-in looks at none of them.
fn images_for_sm_90() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("no-images");
    let (arch, image) = (Arch::new("90a").unwrap(), Image { code: vec![1], log: String::new() });
    for module in compile::modules() {
        if images::load(&folder, &module, &arch, None).is_none() {
            images::store(&folder, &module, &arch, (0, 0), &image).unwrap();
        }
    }
    folder
}

/// Runs the test `name` of this binary with the stand-in and `variables`; it must say "done".
fn with_stand_in(name: &str, variables: &[(&str, &str)]) {
    let folder = match emulated::fake_driver() {
        Ok(folder) if cfg!(target_os = "linux") => folder,
        Ok(_) => return println!("SKIP: the stand-in is a Linux library"),
        Err(Error::Device { what: DeviceFault::Unsupported(why), .. }) => return println!("SKIP: {why}"),
        Err(error) => panic!("{error}"),
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("LD_LIBRARY_PATH", folder)
        .env("PONDER_CUDA_KERNELS", IMAGES.as_path())
        .env("PONDER_STAND_IN", "1")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("done"), "{said}");
}

/// Whether this is the second process.
fn inside() -> bool {
    std::env::var_os("PONDER_STAND_IN").is_some()
}

fn fault<T>(result: ponder_engine::Result<T>) -> DeviceFault {
    match result {
        Err(Error::Device { what, .. }) => what,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("no fault"),
    }
}

/// Every third problem through the driver's interface gives the bits that the kernels give directly.
fn agrees_with_the_kernels() {
    let mut backend = CudaBackend::new(0).unwrap();
    let mut direct = emulated::EmulatedCuda::new(3).unwrap();
    assert_eq!(backend.info().name, "fake GPU");
    // A few of many rows too: they take the workspace, and kernels before and after the product.
    let large = |p: &Problem| p.name.starts_with("gated mlp") || p.name.starts_with("linear Q");
    let many = problems(64, 40).into_iter().filter(large).step_by(5);
    for problem in &problems(4, 3).into_iter().step_by(3).chain(many).collect::<Vec<_>>() {
        let got = run(&mut backend, problem).unwrap_or_else(|e| panic!("{}: {e}", problem.name));
        assert!(got == run(&mut direct, problem).unwrap(), "{}", problem.name);
    }
    println!("done");
}

#[test]
fn programs_run_as_graphs() {
    if !inside() {
        return with_stand_in("programs_run_as_graphs", &[]);
    }
    agrees_with_the_kernels();
}

#[test]
fn programs_run_as_lists_where_there_are_no_graphs() {
    if !inside() {
        return with_stand_in("programs_run_as_lists_where_there_are_no_graphs", &[("FAKE_CUDA_NO_GRAPHS", "1")]);
    }
    agrees_with_the_kernels();
}

#[test]
fn a_lost_device_says_so_and_another_can_be_made() {
    if !inside() {
        return with_stand_in("a_lost_device_says_so_and_another_can_be_made", &[("FAKE_CUDA_LOSE_AFTER", "3")]);
    }
    let problems = problems(2, 2);
    let mut backend = CudaBackend::new(0).unwrap();
    let mut outcome = problems.iter().take(8).map(|p| run(&mut backend, p).map(|_| ()));
    assert!(
        matches!(fault(outcome.find(Result::is_err).unwrap()), DeviceFault::Lost(words) if words.contains("ILLEGAL_ADDRESS"))
    );
    drop(backend);
    CudaBackend::new(0).unwrap();
    println!("done");
}

#[test]
fn what_does_not_fit_is_named() {
    if !inside() {
        return with_stand_in("what_does_not_fit_is_named", &[("FAKE_CUDA_MEMORY", "1000000")]);
    }
    let mut backend = CudaBackend::new(0).unwrap();
    let decl = SlotDecl { name: "k_cache".into(), role: Role::Kv, elem: Elem::F32, shape: vec![1000, 1000] };
    let expected = DeviceFault::OutOfMemory { wanted: 4_000_000, what: "k_cache".into() };
    assert_eq!(fault(backend.alloc(&decl).map(|_| ())), expected);
    println!("done");
}

#[test]
fn work_that_never_ends_times_out() {
    if !inside() {
        return with_stand_in(
            "work_that_never_ends_times_out",
            &[("FAKE_CUDA_HANG", "1"), ("PONDER_CUDA_TIMEOUT_MS", "20")],
        );
    }
    let mut backend = CudaBackend::new(0).unwrap();
    assert_eq!(fault(run(&mut backend, &problems(2, 2)[0]).map(|_| ())), DeviceFault::Timeout(20));
    println!("done");
}

#[test]
fn an_old_driver_is_told_to_be_updated() {
    if !inside() {
        return with_stand_in("an_old_driver_is_told_to_be_updated", &[("FAKE_CUDA_OLD", "1")]);
    }
    let mut backend = CudaBackend::new(0).unwrap();
    let what = fault(run(&mut backend, &problems(2, 2)[0]).map(|_| ()));
    assert!(matches!(&what, DeviceFault::Unsupported(words) if words.contains("older")), "{what}");
    assert!(
        matches!(fault(CudaBackend::new(1).map(|_| ())), DeviceFault::Unsupported(words) if words.contains("GPU 1"))
    );
    println!("done");
}

#[test]
fn every_kernel_that_programs_name_is_in_a_module() {
    // Names are written in Rust and in CUDA: the compile check covers the latter, this the former.
    let modules = compile::modules();
    assert!(modules.contains(&Module { stem: "linear", variant: "Q4_K" }) && modules.len() == 60);
}
