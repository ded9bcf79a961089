//! Preferences: who goes first, and how much memory a sequence will want. The mechanics of a step are elsewhere.
//!
//! Every answer has a [`Rank`]; the smaller goes first, in the queue and among those that run.
//!
//! - `fcfs`: the one that arrived first.
//! - `priority`: the smaller `priority` of the request, then the one that arrived first.
//! - `reasoning`: the one that is *due* first, which is its arrival plus a patience in proportion to the time that it
//!   is expected to take still (the mean of the survival curves). So short work overtakes long work, and who thinks
//!   for longer than it looked falls back. At peak, when more are in flight than a step has seats, long thinkers
//!   pause and keep their cache.
//!
//! **Nobody starves**: patience ends at [`ReasoningOptions::longest_patience`], so nobody who arrives later than that
//! after a request ever goes before it. What goes before it is therefore what arrived by then, and no more.
//!
//! **Memory**: an answer starts when, as far as a quantile of the survival curves can tell, the pool will hold it and
//! all that are in flight at every time until they end (the peak of LightLLM's Past-Future scheduler, ASPLOS 2025):
//! neither `max_tokens`, which is far too much, nor the next chunk, which is far too little.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::Error;
use crate::request::SeqId;

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SchedulingPolicy {
    /// Who came first.
    Fcfs,
    /// Who is more important: the smaller number.
    Priority,
    /// Who needs less, within bounds.
    Reasoning(ReasoningOptions),
}

/// The preferences of [`SchedulingPolicy::Reasoning`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReasoningOptions {
    /// Patience, in multiples of the time that a request is expected to take.
    pub stretch: f64,
    /// The longest patience: the bound on overtaking.
    pub longest_patience: Duration,
}

impl Default for ReasoningOptions {
    fn default() -> Self {
        Self { stretch: 2.0, longest_patience: Duration::from_secs(1200) }
    }
}

impl Default for SchedulingPolicy {
    fn default() -> Self {
        Self::Reasoning(ReasoningOptions::default())
    }
}

impl SchedulingPolicy {
    /// Its word on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fcfs => "fcfs",
            Self::Priority => "priority",
            Self::Reasoning(_) => "reasoning",
        }
    }

    /// How many may be in flight for each seat of a step: who is overtaken pauses and keeps its cache.
    pub(super) const fn in_flight(self) -> usize {
        match self {
            Self::Fcfs => 1,
            Self::Priority | Self::Reasoning(_) => 4,
        }
    }

    /// How much later than a request one may arrive that goes before it, where that does not follow from its rank.
    pub(super) const fn overtaking(self) -> Option<Duration> {
        match self {
            Self::Reasoning(options) => Some(options.longest_patience),
            Self::Fcfs | Self::Priority => None,
        }
    }

    /// The rank of an answer that is expected to take `left` from now on.
    pub(super) fn rank(&self, id: SeqId, arrived: Duration, priority: i32, left: Duration) -> Rank {
        let (class, due) = match self {
            Self::Fcfs => (0, arrived),
            Self::Priority => (priority, arrived),
            Self::Reasoning(o) => {
                let patience = (left.as_secs_f64() * o.stretch).min(o.longest_patience.as_secs_f64());
                (0, arrived + Duration::from_secs_f64(patience))
            }
        };
        Rank { class, due, arrived, id }
    }
}

impl fmt::Display for SchedulingPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SchedulingPolicy {
    type Err = Error;
    fn from_str(word: &str) -> Result<Self, Error> {
        match word {
            "fcfs" => Ok(Self::Fcfs),
            "priority" => Ok(Self::Priority),
            "reasoning" => Ok(Self::default()),
            _ => Err(Error::invalid("scheduling_policy", format!("{word:?} is none of fcfs, priority, reasoning"))),
        }
    }
}

/// The smaller goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    class: i32,
    due: Duration,
    arrived: Duration,
    id: SeqId,
}

impl Rank {
    /// Before the first is known.
    pub(super) fn new(id: SeqId, arrived: Duration) -> Self {
        Self { class: 0, due: arrived, arrived, id }
    }
}

/// What a sequence holds, and what it will still want, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Growth {
    /// Blocks of what is known of it.
    pub holds: usize,
    /// Blocks that it will take before it ends.
    pub wants: usize,
}

/// Who is in flight, as far as memory goes.
#[derive(Clone, Debug, Default)]
pub(super) struct Forecast {
    /// Those that end last first.
    growths: Vec<Growth>,
}

impl Forecast {
    pub fn add(&mut self, growth: Growth) {
        let at = self.growths.partition_point(|g| g.wants > growth.wants);
        self.growths.insert(at, growth);
    }

    /// Whether `more` may start in a pool of `blocks`. If all grow alike, then when one ends, all that end later have
    /// grown as much as it has. Only the time until `more` ends matters: what comes after it is not its fault.
    pub fn fits(&self, more: Growth, blocks: usize) -> bool {
        let at = self.growths.partition_point(|g| g.wants > more.wants);
        let mut held: usize = self.growths[..at].iter().map(|g| g.holds).sum();
        let until_it_ends = [&more].into_iter().chain(&self.growths[at..]);
        until_it_ends.zip(at + 1..).all(|(growth, alive)| {
            held += growth.holds;
            held + alive * growth.wants <= blocks
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestId;

    fn rank(policy: SchedulingPolicy, id: u64, arrived: u64, priority: i32, left: u64) -> Rank {
        let id = SeqId { request: RequestId(id), choice: 0 };
        policy.rank(id, Duration::from_secs(arrived), priority, Duration::from_secs(left))
    }

    #[test]
    fn ranks() {
        let fcfs = |id, arrived, left| rank(SchedulingPolicy::Fcfs, id, arrived, 0, left);
        assert!(fcfs(1, 1, 900) < fcfs(2, 2, 1));
        assert!(fcfs(1, 1, 0) < fcfs(2, 1, 0), "equal arrivals in the order of their ids");
        let priority = |id, arrived, priority| rank(SchedulingPolicy::Priority, id, arrived, priority, 0);
        assert!(priority(2, 5, -1) < priority(1, 1, 0) && priority(1, 1, 0) < priority(3, 2, 0));
        let reasoning = |id, arrived, left| rank(SchedulingPolicy::default(), id, arrived, 0, left);
        assert!(reasoning(2, 50, 5) < reasoning(1, 1, 600), "short work overtakes");
        assert!(reasoning(1, 1, 100_000) < reasoning(2, 1202, 0), "but nobody who comes later than the bound");
    }

    #[test]
    fn the_peak_is_when_most_are_large() {
        let growth = |holds, wants| Growth { holds, wants };
        let peak = |forecast: &Forecast, more| (0..).find(|blocks| forecast.fits(more, *blocks)).unwrap();
        let mut forecast = Forecast::default();
        assert_eq!(peak(&forecast, growth(3, 5)), 8);
        forecast.add(growth(10, 20));
        // The short one ends when the other has grown by 1 as well; that one grows to 30 whoever else is there.
        assert_eq!(peak(&forecast, growth(1, 1)), 13);
        // Both at once: 10 + 8 held, and 15 more each when the second ends.
        assert_eq!(peak(&forecast, growth(8, 15)), 48);
        forecast.add(growth(8, 15));
        assert_eq!(peak(&forecast, growth(2, 14)), 62);
        assert_eq!(peak(&forecast, growth(2, 30)), 20 + 3 * 15);
    }

    #[test]
    fn words() {
        for policy in [SchedulingPolicy::Fcfs, SchedulingPolicy::Priority, SchedulingPolicy::default()] {
            assert_eq!(policy.name().parse::<SchedulingPolicy>().unwrap(), policy);
        }
        assert!("lifo".parse::<SchedulingPolicy>().unwrap_err().to_string().contains("fcfs, priority, reasoning"));
    }
}
