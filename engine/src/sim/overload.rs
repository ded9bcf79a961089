//! What the policies are worth when more comes than can be served: the scheduler and the block pool under a virtual
//! clock, with a table of step times in place of a device and a script in place of a model.
//!
//! Lengths are spread from 100 to 30,000 tokens, evenly in their logarithm, nine tenths of them thinking. What the
//! scheduler is told about a request is a depth that is wrong for one in five; the rest it learns.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use smallvec::smallvec;

use super::dice::Dice;
use crate::kv::BlockPool;
use crate::reason::{
    Decision, Depth, Effort, Label, Lengths, Markers, Part, Prediction, Quantiles, Role, Start, Thinking,
};
use crate::request::{Request, RequestId, SamplingParams, SeqId};
use crate::schedule::{DraftPolicy, Event, Scheduler, SchedulerOptions, SchedulingPolicy};
use crate::spec::Source;
use crate::step::{Drafted, Reserved, Tokens, Verified};

const END: u32 = 0;
const CLOSE: u32 = 1;
const WORD: u32 = 2;
const SHORTEST: f64 = 100.0;
const LONGEST: f64 = 30_000.0;

/// A load, and the machine that it is too much for.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Of arrivals and lengths.
    pub seed: u64,
    /// Requests.
    pub requests: usize,
    /// Tokens that come by tokens that can be made.
    pub overload: f64,
    /// Sequences in one step.
    pub seats: usize,
    /// Tokens of the KV pool.
    pub pool_tokens: usize,
    /// A request is short up to so many tokens.
    pub short: usize,
    /// See [`SchedulerOptions::growth_quantile`].
    pub growth_quantile: f64,
    /// Requests of the same kind that were seen before, as after a restart with the statistics of yesterday.
    pub seen: usize,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            seed: 1,
            requests: 600,
            overload: 2.0,
            seats: 64,
            pool_tokens: 400_000,
            short: 1000,
            growth_quantile: 0.6,
            seen: 300,
        }
    }
}

/// Time of a step, fitted to a 70B model in FP8 on an H200 (AIConfigurator's operator tables: 21 ms for one
/// sequence of 4,500 tokens, 33 ms for 32, 39 ms for 64; prefill at 12,500 tokens a second).
fn step_time(rows: usize, context: usize) -> Duration {
    Duration::from_nanos(20_700_000 + 80_000 * rows as u64 + 45 * context as u64)
}

/// What became of one request.
#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    arrived: Duration,
    len: usize,
    started: Option<Duration>,
    answered: Option<Duration>,
    ended: Option<Duration>,
}

/// What became of a load.
#[derive(Clone, Debug)]
pub struct Outcome {
    policy: SchedulingPolicy,
    load: Load,
    /// Median and 99th percentile of the time to the first answer token of short requests.
    pub short_answer: (Duration, Duration),
    /// The same of all requests.
    pub all_answer: (Duration, Duration),
    /// Tokens made per second while requests still came.
    pub tokens_per_second: f64,
    /// Tokens computed again, by tokens computed.
    pub recomputed: f64,
    /// Longest time by which one that went before a request had arrived after it.
    pub overtaken_by: Duration,
    /// Longest wait for the first step.
    pub longest_wait: Duration,
    /// Requests that did not end.
    pub lost: usize,
}

impl Outcome {
    /// Above [`Outcome::row`]s.
    pub const HEADER: &str = "policy     seed  requests  short: first answer p50      p99   all: p50       p99   tokens/s  recomputed  overtaken by  longest wait";

    /// A line of the table.
    pub fn row(&self) -> String {
        let s = |d: Duration| d.as_secs_f64();
        format!(
            "{:<10} {:>4} {:>9} {:>23.1} s {:>6.1} s {:>6.0} s {:>7.0} s {:>10.1} {:>10.2}% {:>11.0} s {:>11.0} s",
            self.policy.to_string(),
            self.load.seed,
            self.load.requests,
            s(self.short_answer.0),
            s(self.short_answer.1),
            s(self.all_answer.0),
            s(self.all_answer.1),
            self.tokens_per_second,
            100.0 * self.recomputed,
            s(self.overtaken_by),
            s(self.longest_wait)
        )
    }
}

impl Load {
    /// Runs it to its end.
    pub fn run(&self, policy: SchedulingPolicy) -> Outcome {
        Run::new(self, policy).run(policy)
    }

    fn options(&self, policy: SchedulingPolicy) -> SchedulerOptions {
        SchedulerOptions {
            max_step_tokens: 512,
            prefill_chunk: 512,
            max_seqs: self.seats,
            max_waiting: usize::MAX,
            growth_quantile: self.growth_quantile,
            policy,
            max_model_len: 32_768,
            blocks: self.pool_tokens / 32,
            block_size: 32,
            block_bytes: 1,
            drafter: Source::Nobody,
            drafts: DraftPolicy::Off,
            max_logit_rows: self.seats,
            squeeze_thinking: false,
            max_wait: None,
        }
    }

    fn lengths(&self) -> Lengths {
        let (mut lengths, mut dice) = (Lengths::default(), Dice::new(self.seed, 8));
        for _ in 0..self.seen {
            let (len, depth) = kind(&mut dice);
            lengths.end(Some(depth), Part::Thinking, len * 9 / 10, true, 0);
            lengths.end(Some(depth), Part::Answer, len - len * 9 / 10, true, 0);
        }
        lengths
    }

    /// Requests in the order of their arrival, at exponential distances.
    fn requests(&self) -> Vec<(Duration, usize, Request)> {
        let mut dice = Dice::new(self.seed, 7);
        // With as many sequences as seats and memory allow, of the mean length of those in flight.
        let mean = (LONGEST - SHORTEST) / (LONGEST / SHORTEST).ln();
        let each = (LONGEST + SHORTEST) / 4.0;
        let seats = (self.seats as f64).min(self.pool_tokens as f64 / each);
        let served = seats / step_time(seats as usize, (seats * each) as usize).as_secs_f64() / mean;
        let markers = Arc::new(Markers::from_ids(&[(Role::Close, vec![CLOSE])], &[], &[]));
        let mut now = 0.0;
        let mut request = |id: u64| {
            now += -(1.0 - dice.uniform()).ln() / (self.overload * served);
            let (len, depth) = kind(&mut dice);
            let thinking = Thinking {
                loops: None,
                decision: Some(decision(depth)),
                ..Thinking::new(markers.clone(), Start::Thinking)
            };
            let prompt = vec![WORD; dice.between(20, 400)];
            let params = SamplingParams { ignore_eos: false, ..SamplingParams::default() };
            let request = Request {
                id: RequestId(id),
                prompt,
                params,
                eos: vec![END],
                thinking: Some(Arc::new(thinking)),
                grammar: None,
                tenant: Arc::from(""),
            };
            (Duration::from_secs_f64(now), len, request)
        };
        (1..=self.requests as u64).map(&mut request).collect()
    }
}

/// A length, and the depth that the scheduler is told: wrong by one for one in five.
fn kind(dice: &mut Dice) -> (usize, Depth) {
    let at = dice.uniform();
    let depth = (at * 4.0) as usize;
    let told = match (dice.chance(4, 5), dice.chance(1, 2)) {
        (true, _) => depth,
        (false, up) => {
            if depth == 0 || (up && depth < 3) {
                depth + 1
            } else {
                depth - 1
            }
        }
    };
    ((SHORTEST * (LONGEST / SHORTEST).powf(at)) as usize, Depth::ALL[told])
}

/// What a classifier says that knows the depth only.
fn decision(depth: Depth) -> Decision {
    let tokens = Quantiles { p50: 0.0, p90: 0.0, p95: 0.0 };
    let prediction = Some(Prediction { depth, probabilities: [0.25; 4], tokens });
    Decision {
        effort: Effort::Auto,
        think: true,
        budget: None,
        hint: None,
        extension: None,
        prediction,
        reasons: Vec::new(),
    }
}

struct Run {
    load: Load,
    scheduler: Scheduler,
    pool: BlockPool,
    requests: std::vec::IntoIter<(Duration, usize, Request)>,
    fates: HashMap<SeqId, Fate>,
    /// In the order in which they first ran.
    order: Vec<SeqId>,
    now: Duration,
    made: usize,
    made_in_window: usize,
    computed: usize,
    recomputed: usize,
}

impl Run {
    fn new(load: &Load, policy: SchedulingPolicy) -> Self {
        let options = load.options(policy);
        Self {
            load: *load,
            scheduler: Scheduler::new(options).with_lengths(load.lengths()),
            pool: BlockPool::new(options.blocks, options.block_size),
            requests: load.requests().into_iter(),
            fates: HashMap::new(),
            order: Vec::new(),
            now: Duration::ZERO,
            made: 0,
            made_in_window: 0,
            computed: 0,
            recomputed: 0,
        }
    }

    fn run(mut self, policy: SchedulingPolicy) -> Outcome {
        let window = self.requests.as_slice().last().map_or(Duration::ZERO, |r| r.0);
        loop {
            while self.requests.as_slice().first().is_some_and(|r| r.0 <= self.now) {
                let (arrived, len, request) = self.requests.next().expect("it was just seen");
                let id = SeqId { request: request.id, choice: 0 };
                self.fates.insert(id, Fate { arrived, len, ..Fate::default() });
                self.scheduler.submit(arrived, &request, || None).expect("every request fits");
            }
            if self.now <= window {
                self.made_in_window = self.made;
            }
            if !self.step() {
                match self.requests.as_slice().first() {
                    Some(next) => self.now = next.0,
                    None => return self.outcome(policy, window),
                }
            }
        }
    }

    fn step(&mut self) -> bool {
        let Some(plan) = self.scheduler.plan(self.now, None) else { return false };
        let reserved = self.pool.reserve(plan);
        for seq in &reserved.plan.seqs {
            let fate = self.fates.get_mut(&seq.seq).expect("it was submitted");
            if fate.started.is_none() {
                fate.started = Some(self.now);
                self.order.push(seq.seq);
            }
        }
        let rows: usize = reserved.plan.seqs.iter().map(|s| s.tokens.len()).sum();
        let context: usize = reserved.plan.seqs.iter().map(|s| s.start + s.tokens.len()).sum();
        let device_time = step_time(rows, context);
        self.computed += rows;
        self.now += device_time;
        let chosen = self.choose(&reserved);
        let drafts = vec![Vec::new(); chosen.len()];
        let drafted = Drafted::by(Source::Nobody, reserved, drafts);
        let settled = self.pool.settle(Verified { drafted, chosen, device_time, copy_time: Duration::ZERO });
        for event in self.scheduler.apply(&settled) {
            self.hear(event);
        }
        true
    }

    /// The script: thinking, its end, the answer, its end.
    fn choose(&self, reserved: &Reserved) -> Vec<Result<Tokens, String>> {
        let say = |seq: &crate::step::SeqPlan| {
            let sequence = self.scheduler.sequence(seq.seq).expect("it runs");
            let (at, len) = (sequence.output_len() + 1, self.fates[&seq.seq].len);
            match seq.sample {
                None => Tokens::new(),
                Some(_) if at == len * 9 / 10 => smallvec![CLOSE],
                Some(_) if at >= len => smallvec![END],
                Some(_) => smallvec![WORD],
            }
        };
        reserved.plan.seqs.iter().map(|seq| Ok(say(seq))).collect()
    }

    fn hear(&mut self, event: Event) {
        let fate = self.fates.get_mut(&event.seq).expect("it was submitted");
        self.made += event.tokens.len();
        if event.spans.iter().any(|s| s.label == Label::Content && s.len > 0) {
            fate.answered.get_or_insert(self.now);
        }
        if let Some(finished) = event.finish {
            self.recomputed += finished.recomputed_tokens;
            fate.ended = Some(self.now);
        }
    }

    fn outcome(self, policy: SchedulingPolicy, window: Duration) -> Outcome {
        let percentiles = |short: usize| {
            let fates = self.fates.values().filter(|f| f.len <= short);
            let mut times: Vec<Duration> = fates.filter_map(|f| Some(f.answered? - f.arrived)).collect();
            times.sort();
            let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
            (at(0.5), at(0.99))
        };
        // Whoever ran first before a request, and came after it.
        let (mut overtaken_by, mut latest) = (Duration::ZERO, Duration::ZERO);
        for id in &self.order {
            latest = latest.max(self.fates[id].arrived);
            overtaken_by = overtaken_by.max(latest - self.fates[id].arrived);
        }
        let waits = self.fates.values().filter_map(|f| Some(f.started? - f.arrived));
        Outcome {
            policy,
            load: self.load,
            short_answer: percentiles(self.load.short),
            all_answer: percentiles(usize::MAX),
            tokens_per_second: self.made_in_window as f64 / window.as_secs_f64(),
            recomputed: self.recomputed as f64 / self.computed as f64,
            overtaken_by,
            longest_wait: waits.max().unwrap_or_default(),
            lost: self.fates.values().filter(|f| f.ended.is_none()).count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ReasoningOptions;

    #[test]
    fn short_requests_do_not_wait_for_long_ones() {
        for seed in [1, 2] {
            let load = Load { seed, requests: 300, ..Load::default() };
            let (fcfs, ours) = (load.run(SchedulingPolicy::Fcfs), load.run(SchedulingPolicy::default()));
            let table = format!("{}\n{}\n{}", Outcome::HEADER, fcfs.row(), ours.row());
            assert_eq!((fcfs.lost, ours.lost), (0, 0));
            assert!(ours.short_answer.1 * 5 <= fcfs.short_answer.1, "{table}");
            assert!(ours.tokens_per_second >= 0.97 * fcfs.tokens_per_second, "{table}");
            assert!(ours.recomputed < 0.02 && fcfs.recomputed < 0.02, "{table}");
            assert!(ours.overtaken_by <= ReasoningOptions::default().longest_patience, "{table}");
            assert_eq!(fcfs.overtaken_by, Duration::ZERO);
        }
    }

    #[test]
    fn nobody_is_overtaken_for_longer_than_the_bound() {
        let load = Load { requests: 100, seats: 16, pool_tokens: 100_000, ..Load::default() };
        for seconds in [5, 40] {
            let longest_patience = Duration::from_secs(seconds);
            let policy = ReasoningOptions { longest_patience, ..ReasoningOptions::default() };
            let outcome = load.run(SchedulingPolicy::Reasoning(policy));
            assert!(outcome.overtaken_by <= longest_patience && outcome.lost == 0, "{}", outcome.row());
        }
    }
}
