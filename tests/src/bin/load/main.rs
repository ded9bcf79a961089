//! `load`: many streaming clients at once against a real `ponder serve`, good ones and bad ones.
//!
//! First every prompt is answered alone: that is what it must say. Then a few clients, then many, ask for the same
//! at random; some leave, reset, half-close, read slowly, stop reading, or never finish their request. What is
//! checked: every text is the known answer or a beginning of it, with the same usage (nothing lost, nothing
//! doubled); who is refused is told so with 429 or 503 and a time, never reset; afterwards nothing runs and all
//! blocks are free; memory, descriptors and threads stay level. A broken law ends it with exit code 1. Latencies
//! are printed, not judged: they belong to the machine.
//!
//! `cargo run --release -p ponder-tests --bin load -- --seconds 600`; the server is `ponder` beside this program.

mod clients;
mod server;
mod tally;
mod wire;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use clients::{Asked, Crowd};
use server::{Server, Vital};
use tally::{Tally, table};

/// Many clients at once.
#[derive(Parser)]
struct Args {
    /// The program [default: `ponder` beside this one]
    #[arg(long)]
    program: Option<PathBuf>,
    /// Seconds of load with all clients
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// All clients
    #[arg(long, default_value_t = 256)]
    clients: usize,
    /// The few that they are compared with
    #[arg(long, default_value_t = 32)]
    few: usize,
    /// Seconds of load with the few [default: a third of the others]
    #[arg(long)]
    few_seconds: Option<u64>,
    /// Sequences that run at once
    #[arg(long, default_value_t = 16)]
    seats: usize,
    /// Answers that may wait; more are refused
    #[arg(long, default_value_t = 16)]
    queue: usize,
    /// Threads of the CPU backend
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Different requests
    #[arg(long, default_value_t = 24)]
    prompts: usize,
    /// Of all that is random here
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Further flags of `ponder serve`
    #[arg(last = true)]
    serve: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let beside = || std::env::current_exe().map(|me| me.with_file_name("ponder"));
    let program = args.program.clone().map_or_else(beside, Ok).context("this program's folder")?;
    let server = Server::start(&program, &args)?;
    let asked = alone(&server, args.prompts)?;
    let quiet = server.vital()?;
    let few_for = args.few_seconds.unwrap_or(args.seconds / 3);
    let (few, first) = load(&server, &asked, args.few, few_for, args.seed)?;
    let (many, second) = load(&server, &asked, args.clients, args.seconds, args.seed + 1)?;
    let rest = server.rests(Duration::from_secs(30));
    let after = settled(&server, &quiet)?;
    let mut broken: Vec<String> = few.broken.iter().chain(&many.broken).cloned().collect();
    broken.extend(rest.err().map(|e| format!("after the load: {e:#}")));
    broken.extend(vacuous(&many));
    broken.extend(server.panics());
    println!("{}", table(&[("few", args.few, few_for, &few), ("all", args.clients, args.seconds, &many)]));
    broken.extend(level("memory", &[first, second], |v| v.memory as f64 / 1e6, 16.0, "MB"));
    for (name, before, now) in
        [("descriptors", quiet.descriptors, after.descriptors), ("threads", quiet.threads, after.threads)]
    {
        println!("{name:<12} {before} before, {now} after");
        if now > before + 4 {
            broken.push(format!("{name}: {now} after the load, {before} before it"));
        }
    }
    println!("{:<12} {}", "server", server.counters()?);
    for law in &broken {
        println!("BROKEN: {law}");
    }
    if !broken.is_empty() {
        bail!("{} laws are broken", broken.len());
    }
    println!("nothing lost, nothing doubled, nothing left behind");
    Ok(())
}

/// What every request must say: each is asked alone, and once more to see that it repeats.
fn alone(server: &Server, prompts: usize) -> Result<Vec<Asked>> {
    let begun = Instant::now();
    let asked: Vec<Asked> = (0..prompts).map(|i| Asked::alone(server.address, i)).collect::<Result<_>>()?;
    for (i, one) in asked.iter().enumerate().step_by(5) {
        let again = Asked::alone(server.address, i)?;
        if again != *one {
            bail!("request {i} does not repeat even alone: {one:?}, then {again:?}");
        }
    }
    let tokens: usize = asked.iter().map(|a| a.tokens).sum();
    println!("{prompts} requests, {tokens} tokens, each alone: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(asked)
}

/// So many clients for so long; the server's state every half second.
fn load(server: &Server, asked: &[Asked], clients: usize, seconds: u64, seed: u64) -> Result<(Tally, Vec<Vital>)> {
    let until = Instant::now() + Duration::from_secs(seconds);
    let crowd = Crowd { address: server.address, asked, until, seed };
    let mut vitals = Vec::new();
    let tally = std::thread::scope(|scope| -> Result<Tally> {
        let all = scope.spawn(|| crowd.run(clients));
        while !all.is_finished() {
            vitals.push(server.vital()?);
            std::thread::sleep(Duration::from_millis(500));
        }
        all.join().map_err(|_| anyhow::anyhow!("a client panicked"))
    })?;
    Ok((tally, vitals))
}

/// Waits until descriptors and threads are as few as before: connections that were left open end with the server's
/// patience, and the runtime's threads for blocking work after ten idle seconds.
fn settled(server: &Server, quiet: &Vital) -> Result<Vital> {
    let begun = Instant::now();
    loop {
        let now = server.vital()?;
        let as_before = now.descriptors <= quiet.descriptors && now.threads <= quiet.threads;
        if as_before || begun.elapsed() > Duration::from_secs(30) {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A load under which nothing happened shows nothing.
fn vacuous(t: &Tally) -> Option<String> {
    let nothing = t.whole == 0 || t.left == 0 || t.slow == 0 || t.silent == 0;
    nothing.then(|| "the load was too small to show anything".into())
}

/// Whether a figure stays level: a line is fitted through what was seen after the first third of each load.
fn level(name: &str, loads: &[Vec<Vital>], of: fn(&Vital) -> f64, most: f64, unit: &str) -> Option<String> {
    let mut broken = None;
    for (vitals, which) in loads.iter().zip(["few", "all"]) {
        let points: Vec<(f64, f64)> =
            vitals.iter().skip(vitals.len() / 3).map(|v| (v.at.as_secs_f64(), of(v))).collect();
        let Some(slope) = slope(&points) else { continue };
        let span = points.last().map_or(0.0, |p| p.0) - points[0].0;
        let (first, last) = (points[0].1, points[points.len() - 1].1);
        let rise = slope * span;
        println!("{name:<12} {which}: {first:.1} to {last:.1} {unit}, fitted {rise:+.2} {unit} in {span:.0} s");
        // The few warm the server up; what is asked is that it does not grow with the load of all.
        if which == "all" && rise > most {
            broken = Some(format!("{name}: rises by {rise:.1} {unit} in {span:.0} s"));
        }
    }
    broken
}

/// Of the line of least squares.
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let over: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let under: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    (points.len() > 2 && under > 0.0).then(|| over / under)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let rising: Vec<(f64, f64)> = (0..10).map(|i| (f64::from(i), 3.0 * f64::from(i) + f64::from(i % 2))).collect();
        assert!((slope(&rising).unwrap() - 3.0).abs() < 0.1);
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 2.0)]), None);
    }
}
