//! `ponder cuda compile`: every CUDA kernel as images for chosen GPUs, on a machine that need have none.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand};
use ponder_cuda::compile::{KernelUse, Report, compile_named};

/// `ponder cuda`.
#[derive(Args)]
pub struct CudaArgs {
    #[command(subcommand)]
    command: CudaCommand,
}

/// What there is to do about CUDA.
#[derive(Subcommand)]
enum CudaCommand {
    /// Compile every kernel ahead of time; needs NVIDIA's NVRTC library, no GPU and no driver
    Compile(CompileArgs),
}

/// Flags of `ponder cuda compile`.
#[derive(Args)]
#[command(
    after_help = "A machine with a GPU takes the images where PONDER_CUDA_KERNELS names their folder, and needs no
NVRTC then. NVRTC is looked for where PONDER_NVRTC says (a library or its folder), on the loader's path, in the
active Python environment (pip install nvidia-cuda-nvrtc), in CUDA_HOME and in /usr/local/cuda*.

Examples:
  ponder cuda compile --out kernels
  ponder cuda compile --arch 90a,100f --out kernels --json | jq '.kernels[] | select(.spill_bytes > 0)'
  PONDER_CUDA_KERNELS=kernels ponder serve --backend cuda"
)]
struct CompileArgs {
    /// GPUs: compute capabilities such as 90a, or ptx, which the driver of any later GPU compiles
    #[arg(
        long,
        env = "PONDER_ARCH",
        value_delimiter = ',',
        default_value = "80,86,89,90a,100f,120f,ptx",
        value_name = "LIST"
    )]
    arch: Vec<String>,
    /// Folder for the images and report.json; what is there already and up to date is kept
    #[arg(long, env = "PONDER_OUT", value_name = "DIR")]
    out: PathBuf,
    /// Print one JSON object on stdout: registers, shared memory, stack and spills of each kernel on each GPU
    #[arg(long, env = "PONDER_JSON", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    json: bool,
}

/// Does it.
pub fn cuda(args: CudaArgs) -> Result<()> {
    let CudaCommand::Compile(args) = args.command;
    let archs: Vec<&str> = args.arch.iter().map(|a| a.trim()).collect();
    let report = compile_named(&archs, &args.out)?;
    if args.json {
        super::print_json(&serde_json::to_value(&report)?);
    } else {
        super::print_text(&as_text(&report, &args)?);
    }
    Ok(())
}

/// One line per GPU, then what exceeds the budget.
fn as_text(report: &Report, args: &CompileArgs) -> Result<String> {
    let mut out = String::from("GPU      kernels  registers  shared bytes  kernels that spill\n");
    for group in report.kernels.chunk_by(|a, b| a.arch == b.arch) {
        let most = |of: fn(&KernelUse) -> u32| group.iter().map(of).max().unwrap_or(0);
        let spilling = group.iter().filter(|k| k.spill_bytes > 0).count();
        let (registers, shared) = (most(|k| k.registers), most(|k| k.shared_bytes));
        writeln!(out, "{:<8} {:>7} {registers:>10} {shared:>13} {spilling:>19}", group[0].arch, group.len())?;
    }
    let (modules, seconds, nvrtc) = (report.modules, report.seconds, &report.nvrtc);
    writeln!(out, "{modules} modules by NVRTC {nvrtc} in {seconds:.1} s, in {}", args.out.display())?;
    report.violations.iter().try_for_each(|v| writeln!(out, "over budget: {v}"))?;
    Ok(out)
}
