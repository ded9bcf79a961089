//! One command for a machine with a GPU: every op problem on it, rows held against each other, real models held
//! against the CPU, then timings of kernels and whole steps against the copy bandwidth of the same run, with PyTorch
//! and Triton beside. It carries its kernel sources; it needs a driver and NVRTC (or images compiled ahead, in
//! `$PONDER_CUDA_KERNELS`), no toolchain and no network.
//!
//! `ponder-cuda-check [--gpu N] [--json FILE] [--tests | --models | --timings] [--exact MODEL].. [--model MODEL]..
//! [--peers PYTHON] [--emulated]`
//! `--exact` models (the bundled pair) must have the CPU's tokens on every prompt, `--model` ones on nine of ten.
//! `--emulated` runs the kernels on the CPU in tiny shapes: a rehearsal, its times mean nothing.
//! The exit status is 0 if everything agreed.

use std::path::PathBuf;
use std::process::ExitCode;

use ponder_cuda::bench::{self, Scale, Table, peers};
use ponder_cuda::{Cuda, CudaBackend, Device, EmulatedCuda, models};
use ponder_engine::Result as EngineResult;
use ponder_engine::backend::check::{agrees_with_reference, rows_are_independent};
use serde::Serialize;

/// What was asked for.
struct Options {
    gpu: usize,
    json: Option<String>,
    /// The only part, if not all.
    part: Option<Part>,
    /// Paths, and whether every token must be equal.
    models: Vec<(PathBuf, bool)>,
    peers: Option<String>,
    emulated: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Tests,
    Models,
    Timings,
}

const USAGE: &str =
    "--gpu N, --json FILE, --tests, --models, --timings, --exact MODEL, --model MODEL, --peers PYTHON, --emulated";

fn options() -> Result<Options, String> {
    let mut options = Options { gpu: 0, json: None, part: None, models: Vec::new(), peers: None, emulated: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--gpu" => options.gpu = value()?.parse().map_err(|_| "--gpu needs a number")?,
            "--json" => options.json = Some(value()?),
            "--tests" => options.part = Some(Part::Tests),
            "--models" => options.part = Some(Part::Models),
            "--timings" => options.part = Some(Part::Timings),
            "--exact" => options.models.push((value()?.into(), true)),
            "--model" => options.models.push((value()?.into(), false)),
            "--peers" => options.peers = Some(value()?),
            "--emulated" => options.emulated = true,
            other => return Err(format!("unknown argument {other:?}: {USAGE}")),
        }
    }
    if options.part == Some(Part::Models) && options.models.is_empty() {
        return Err("--models needs some: --exact MODEL, --model MODEL".into());
    }
    Ok(options)
}

/// Everything that a run found, as `--json` has it.
#[derive(Default, Serialize)]
struct Findings {
    /// Problems that agreed, or what did not, by what they were held against.
    tests: Vec<(&'static str, Result<usize, String>)>,
    models: Vec<models::Report>,
    timings: Option<Table>,
}

/// Runs what was asked for on backends that `make` gives; false if something disagreed.
fn check<D: Device>(make: impl Fn() -> EngineResult<Cuda<D>>, options: &Options, tiny: bool) -> Result<bool, String> {
    let wanted = |part| options.part.is_none_or(|only| only == part);
    let (mut agreed, mut findings) = (true, Findings::default());
    if wanted(Part::Tests) {
        let mut backend = make().map_err(|e| e.to_string())?;
        let runs = [
            ("the f64 reference", agrees_with_reference(&mut backend)),
            ("other row counts", rows_are_independent(&mut backend)),
        ];
        for (what, outcome) in runs {
            match &outcome {
                Ok(count) => println!("agrees with {what}: {count} problems"),
                Err(error) => println!("DISAGREES with {what}: {error}"),
            }
            agreed &= outcome.is_ok();
            findings.tests.push((what, outcome.map_err(|e| e.to_string())));
        }
    }
    for (path, exact) in options.models.iter().filter(|_| wanted(Part::Models)) {
        let extent = if tiny { models::TINY } else { models::FULL };
        let report = models::check(&make, path, extent).map_err(|e| e.to_string())?;
        println!("{}", report.text());
        agreed &= report.passes(*exact);
        findings.models.push(report);
    }
    if wanted(Part::Timings) {
        let scale = if tiny { Scale::Tiny } else { Scale::Full };
        findings.timings = Some(timings(&mut make().map_err(|e| e.to_string())?, options, scale)?);
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&findings).expect("findings are plain data");
        std::fs::write(path, text).map_err(|e| format!("{path}: {e}"))?;
    }
    Ok(agreed)
}

fn timings<D: Device>(backend: &mut Cuda<D>, options: &Options, scale: Scale) -> Result<Table, String> {
    let mut table = bench::run(backend, scale, &mut |line| println!("{line}")).map_err(|e| e.to_string())?;
    println!("copy: {:.0} GB/s, read and written, on {}", table.copy_gb_per_s, table.device);
    if let Some(python) = &options.peers {
        peers::run_beside(&mut table, python);
    }
    peers::lines(&table).iter().for_each(|line| println!("{line}"));
    Ok(table)
}

fn run() -> Result<bool, String> {
    let options = options()?;
    if options.emulated {
        return check(|| EmulatedCuda::new(1), &options, true);
    }
    check(|| CudaBackend::new(options.gpu), &options, false)
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
