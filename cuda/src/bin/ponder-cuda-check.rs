//! One command for a machine with a GPU: every op problem on it, rows held against each other, then
//! timings of kernels and decode steps against the copy bandwidth of the same run. It carries its kernel
//! sources; it needs a driver and NVRTC (or images compiled ahead, in `$PONDER_CUDA_KERNELS`), no
//! toolchain and no network.
//!
//! `ponder-cuda-check [--gpu N] [--json FILE] [--tests | --timings] [--emulated]`
//! `--emulated` runs the kernels on the CPU in tiny shapes: a rehearsal, its times mean nothing.
//! The exit status is 0 if everything agreed.

use std::process::ExitCode;

use ponder_cuda::bench::{self, Scale, Table};
use ponder_cuda::{Cuda, CudaBackend, Device, EmulatedCuda};
use ponder_engine::backend::check::{agrees_with_reference, rows_are_independent};

/// What was asked for.
struct Options {
    gpu: usize,
    json: Option<String>,
    tests: bool,
    timings: bool,
    emulated: bool,
}

fn options() -> Result<Options, String> {
    let mut options = Options { gpu: 0, json: None, tests: true, timings: true, emulated: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--gpu" => options.gpu = value()?.parse().map_err(|_| "--gpu needs a number")?,
            "--json" => options.json = Some(value()?),
            "--tests" => options.timings = false,
            "--timings" => options.tests = false,
            "--emulated" => options.emulated = true,
            other => {
                return Err(format!(
                    "unknown argument {other:?}: --gpu N, --json FILE, --tests, --timings, --emulated"
                ));
            }
        }
    }
    Ok(options)
}

/// Runs what was asked for; false if something disagreed.
fn check<D: Device>(backend: &mut Cuda<D>, options: &Options, scale: Scale) -> Result<bool, String> {
    let mut agreed = true;
    if options.tests {
        let runs = [
            ("the f64 reference", agrees_with_reference(backend)),
            ("other row counts", rows_are_independent(backend)),
        ];
        for (what, outcome) in runs {
            match outcome {
                Ok(count) => println!("agrees with {what}: {count} problems"),
                Err(error) => {
                    agreed = false;
                    println!("DISAGREES with {what}: {error}");
                }
            }
        }
    }
    if options.timings {
        let table = bench::run(backend, scale, &mut |line| println!("{line}")).map_err(|e| e.to_string())?;
        println!("copy: {:.0} GB/s, read and written, on {}", table.copy_gb_per_s, table.device);
        table.skipped.iter().for_each(|s| println!("skipped: {s}"));
        write_json(options, &table)?;
    }
    Ok(agreed)
}

fn write_json(options: &Options, table: &Table) -> Result<(), String> {
    let Some(path) = &options.json else { return Ok(()) };
    let text = serde_json::to_string_pretty(table).expect("a table is plain data");
    std::fs::write(path, text).map_err(|e| format!("{path}: {e}"))
}

fn run() -> Result<bool, String> {
    let options = options()?;
    if options.emulated {
        return check(&mut EmulatedCuda::new(1).map_err(|e| e.to_string())?, &options, Scale::Tiny);
    }
    check(&mut CudaBackend::new(options.gpu).map_err(|e| e.to_string())?, &options, Scale::Full)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ponder-cuda-check: {error}");
            ExitCode::from(2)
        }
    }
}
