//! `simulate --seeds 50000`: many small worlds, in which everything happens that may happen to an engine.
//!
//! `--from N` begins elsewhere, `--seed N [--keep 0,3,5]` shows one. A seed that breaks a law is made small, and
//! printed as the command that shows it again; it belongs into `engine/src/sim/seeds.txt` then.
//!
//! `--policies` prints what the scheduling policies are worth under overload instead.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use ponder_engine::schedule::{ReasoningOptions, SchedulingPolicy};
use ponder_engine::sim::overload::{Load, Outcome};
use ponder_engine::sim::{Report, Scenario, try_seed};

/// Runs the deterministic simulation of the engine.
#[derive(Parser)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 50_000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this seed
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Only these of its events
    #[arg(long, value_delimiter = ',', requires = "seed")]
    keep: Option<Vec<usize>>,
    /// Compare the scheduling policies at twice the load that can be served, for each of this many seeds
    #[arg(long, value_name = "SEEDS", num_args = 0..=1, default_missing_value = "3", conflicts_with_all = ["seeds", "from", "seed"])]
    policies: Option<u64>,
    /// Requests of each such load
    #[arg(long, default_value_t = 600, requires = "policies")]
    requests: usize,
    /// Patience in multiples of a request's expected time
    #[arg(long, requires = "policies")]
    stretch: Option<f64>,
    /// Longest patience in seconds
    #[arg(long, requires = "policies")]
    patience: Option<u64>,
    /// Quantile of the growth of KV that admission counts with
    #[arg(long, requires = "policies")]
    quantile: Option<f64>,
    /// Requests that were seen before
    #[arg(long, requires = "policies")]
    seen: Option<usize>,
    /// Threads; 0 is one per core
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn main() {
    let args = Args::parse();
    if let Some(seeds) = args.policies {
        return policies(seeds, &args);
    }
    if let Some(seed) = args.seed {
        Scenario::new(seed).events.iter().for_each(|event| println!("{event:?}"));
    }
    // Panics are failures like others, and told as such.
    std::panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let seeds = args.seed.map_or(args.from..args.from + args.seeds, |seed| seed..seed + 1);
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let (mut all, mut broken) = (Report::default(), 0);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return (all, broken);
            }
            match try_seed(seed, args.keep.as_deref()) {
                Ok(report) => all += report,
                Err(found) => {
                    println!("{found}");
                    broken += 1;
                }
            }
        }
    };
    let (mut all, mut broken) = (Report::default(), 0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let (report, failed) = worker.join().expect("panics are caught");
            all += report;
            broken += failed;
        }
    });
    println!("{} seeds, {broken} broken, {:.1} s\n{all:#?}", seeds.end - seeds.start, started.elapsed().as_secs_f64());
    std::process::exit(i32::from(broken > 0));
}

fn policies(seeds: u64, args: &Args) {
    println!("{}", Outcome::HEADER);
    let d = ReasoningOptions::default();
    let ours = SchedulingPolicy::Reasoning(ReasoningOptions {
        stretch: args.stretch.unwrap_or(d.stretch),
        longest_patience: args.patience.map_or(d.longest_patience, Duration::from_secs),
    });
    for seed in 1..=seeds {
        let load = Load { seed, requests: args.requests, ..Load::default() };
        let growth_quantile = args.quantile.unwrap_or(load.growth_quantile);
        let load = Load { growth_quantile, seen: args.seen.unwrap_or(load.seen), ..load };
        for policy in [SchedulingPolicy::Fcfs, ours] {
            println!("{}", load.run(policy).row());
        }
    }
}
