//! Runs seeds, makes a failing one small, and says how to see it again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::check::{Failure, Law};
use super::scenario::Scenario;
use super::world::{Report, World};

/// A seed that broke a law.
#[derive(Clone, Debug)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// Events that suffice to break it; others are dropped.
    pub keep: Vec<usize>,
    /// What they break.
    pub failure: Failure,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keep: Vec<String> = self.keep.iter().map(usize::to_string).collect();
        writeln!(f, "seed {}: {}", self.seed, self.failure)?;
        write!(f, "  cargo run --release -p ponder-tests --bin simulate -- --seed {}", self.seed)?;
        if keep.is_empty() { Ok(()) } else { write!(f, " --keep {}", keep.join(",")) }
    }
}

/// Runs a scenario; a panic is a failure like others.
///
/// # Errors
/// The first law that was broken.
pub fn run(scenario: Scenario) -> Result<Report, Failure> {
    run_world(World::new(scenario))
}

pub(super) fn run_world(world: World) -> Result<Report, Failure> {
    catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
        let detail = text.unwrap_or_else(|| "a panic without words".into());
        Err(Failure { law: Law::NoPanic, step: 0, at: Duration::ZERO, detail })
    })
}

/// Runs a seed, with all its events or those in `keep`.
///
/// # Errors
/// What it breaks, with as few events as break it still.
pub fn try_seed(seed: u64, keep: Option<&[usize]>) -> Result<Report, Box<Found>> {
    let whole = Scenario::new(seed);
    let scenario = keep.map_or_else(|| whole.clone(), |keep| whole.only(keep));
    run(scenario.clone()).map_err(|failure| Box::new(shrink(&scenario, failure, run)))
}

/// Drops events, many at once and then one by one, as long as something is still broken.
pub(super) fn shrink(
    scenario: &Scenario,
    failure: Failure,
    run: impl Fn(Scenario) -> Result<Report, Failure>,
) -> Found {
    let mut found = Found { seed: scenario.seed, keep: scenario.events.iter().map(|e| e.number).collect(), failure };
    let mut size = found.keep.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < found.keep.len() {
            let mut fewer = found.keep.clone();
            fewer.drain(at..(at + size).min(fewer.len()));
            match run(scenario.only(&fewer)) {
                Err(failure) => (found.keep, found.failure) = (fewer, failure),
                Ok(_) => at += size,
            }
        }
        if size == 1 {
            return found;
        }
        size = size.div_ceil(2);
    }
}

/// Seeds that once failed, one a line: the seed and the events that sufficed, `17 0,3,5`; `#` is a comment.
const KEPT: &str = include_str!("seeds.txt");

/// The seeds of `seeds.txt`.
pub fn kept() -> Vec<(u64, Option<Vec<usize>>)> {
    let lines = KEPT.lines().map(|l| l.split('#').next().unwrap_or_default().trim()).filter(|l| !l.is_empty());
    let numbers = |text: &str| text.split(',').map(|n| n.parse().expect("a number")).collect();
    lines
        .map(|line| match line.split_once(' ') {
            Some((seed, keep)) => (seed.parse().expect("a seed"), Some(numbers(keep))),
            None => (line.parse().expect("a seed"), None),
        })
        .collect()
}
