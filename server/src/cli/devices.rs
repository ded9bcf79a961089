//! `ponder devices`: what a model could run on here.

use std::fmt::Write;

use anyhow::Result;
use clap::Args;
use clap::builder::FalseyValueParser;
use ponder::backends;
use ponder_engine::backend::{DeviceInfo, DeviceKind};
use ponder_engine::checkpoint::plan::bytes_in_words;
use serde_json::{Value, json};

/// Flags of `ponder devices`.
#[derive(Args)]
#[command(after_help = "The device that --backend auto picks is marked with *.

Examples:
  ponder devices
  ponder devices --json
  ponder run --backend wgpu --adapter llvmpipe \"Hello\"      name an adapter by a part of its name")]
pub struct DevicesArgs {
    /// Print one JSON object on stdout
    #[arg(long, env = "PONDER_JSON", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub json: bool,
}

/// Prints.
pub fn devices(args: &DevicesArgs) -> Result<()> {
    let found = backends::list();
    let auto = backends::preferred(&found);
    let is_auto = |d: &DeviceInfo| auto.is_some_and(|a| std::ptr::eq(a, d));
    if args.json {
        let devices: Vec<Value> = found.iter().map(|d| as_json(d, is_auto(d))).collect();
        super::print_json(&json!({ "devices": devices }));
        return Ok(());
    }
    let mut out = String::new();
    for d in &found {
        let mark = if is_auto(d) { '*' } else { ' ' };
        let memory = d.memory.map(|m| format!(", {} free", bytes_in_words(m.free))).unwrap_or_default();
        writeln!(out, "{mark} {:<5} {} ({}{memory})", d.backend, d.name, kind(d.kind))?;
        if !d.features.is_empty() {
            writeln!(out, "        {}", d.features.join(", "))?;
        }
    }
    super::print_text(&out);
    Ok(())
}

fn as_json(d: &DeviceInfo, auto: bool) -> Value {
    json!({
        "backend": d.backend,
        "name": d.name,
        "kind": kind(d.kind),
        "memory_bytes": d.memory.map(|m| m.total),
        "memory_free_bytes": d.memory.map(|m| m.free),
        "features": d.features,
        "auto": auto,
    })
}

fn kind(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cpu => "CPU",
        DeviceKind::DiscreteGpu => "GPU",
        DeviceKind::IntegratedGpu => "integrated GPU",
        DeviceKind::SoftwareGpu => "software GPU",
    }
}
