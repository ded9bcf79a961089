//! From a seed to a world and what happens in it.

use std::sync::Arc;
use std::time::Duration;

use super::dice::Dice;
use super::witness::{CLOSE, EOS, NEWLINE, OPEN, TEXT, VOCAB};
use crate::kv::{CacheOptions, Preemption};
use crate::reason::{Landing, LoopOptions, Markers, Role, Start, Thinking};
use crate::request::{Request, RequestId, SamplingParams};
use crate::schedule::{DraftPolicy, ReasoningOptions, SchedulerOptions, SchedulingPolicy};
use crate::spec::{LengthOptions, Lookup, Source};

/// Who guesses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Guesses {
    /// The engine's own drafters.
    Kind(Lookup),
    /// One that knows the answer.
    Good,
    /// One that says anything.
    Bad,
    /// One that knows the answer, says anything, or fails, by turns.
    Flaky,
}

/// A request and what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// It.
    pub request: Request,
    /// Whose cache it may share.
    pub salt: u64,
    /// The device breaks in every step in which its context is at least so long.
    pub breaks_at: Option<usize>,
    /// Its logits are broken where its context is at least so long.
    pub nan_at: Option<usize>,
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A request comes.
    Arrives(Box<Arrival>),
    /// Its client goes away, or its time is over.
    Cancelled(RequestId),
    /// Its client wants the answer now.
    AnswerNow(RequestId),
    /// The device fails in the next step, by itself.
    DeviceLost,
}

/// Something that happens, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its number in the scenario.
    pub number: usize,
    /// Virtual time.
    pub at: Duration,
    /// It.
    pub what: What,
}

/// A world before it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// What it was made from.
    pub seed: u64,
    /// Limits.
    pub options: SchedulerOptions,
    /// The prefix cache and what preemption may do.
    pub cache: CacheOptions,
    /// Who guesses.
    pub guesses: Guesses,
    /// What happens, in order of time.
    pub events: Vec<Event>,
}

impl Scenario {
    /// The scenario of a seed.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 1);
        let options = options(&mut dice);
        let mut of_cache = Dice::new(seed, 4);
        let cache = CacheOptions {
            prefix_caching: of_cache.chance(3, 4),
            host_blocks: of_cache.pick(&[0, 3, 20, 200]),
            preemption: of_cache.pick(&[Preemption::Auto, Preemption::Recompute, Preemption::Swap]),
        };
        let kinds = [
            Guesses::Kind(Lookup::None),
            Guesses::Kind(Lookup::Ngram),
            Guesses::Kind(Lookup::Suffix),
            Guesses::Good,
            Guesses::Bad,
            Guesses::Flaky,
        ];
        let guesses = dice.pick(&kinds);
        let mut events = Vec::new();
        let faulty = dice.chance(1, 3);
        let arrivals = dice.between(1, 24);
        let rush = dice.pick(&[0, 3, 30, 200]);
        let mut now = Duration::ZERO;
        for id in 1..=arrivals as u64 {
            now += Duration::from_millis(dice.between(0, rush) as u64);
            let arrival = arrival(id, &options, faulty, &mut dice);
            let later = |dice: &mut Dice| now + Duration::from_millis(dice.between(0, 150) as u64);
            if dice.chance(1, 5) {
                events.push((later(&mut dice), What::Cancelled(arrival.request.id)));
            }
            if arrival.request.thinking.is_some() && dice.chance(1, 10) {
                events.push((later(&mut dice), What::AnswerNow(arrival.request.id)));
            }
            if faulty && dice.chance(1, 10) {
                events.push((later(&mut dice), What::DeviceLost));
            }
            events.push((now, What::Arrives(Box::new(arrival))));
        }
        // What happens at the same time happens in the order of its making: an arrival before its cancellation.
        events.sort_by_key(|(at, what)| (*at, !matches!(what, What::Arrives(_))));
        let events = events.into_iter().enumerate().map(|(number, (at, what))| Event { number, at, what });
        Self { seed, options, cache, guesses, events: events.collect() }
    }

    /// The same without the events whose numbers are not in `keep`.
    pub fn only(&self, keep: &[usize]) -> Self {
        let events = self.events.iter().filter(|e| keep.contains(&e.number)).cloned().collect();
        Self { events, ..self.clone() }
    }
}

fn options(dice: &mut Dice) -> SchedulerOptions {
    let block_size = dice.pick(&[1, 2, 4, 8, 16]);
    let max_model_len = dice.between(20, 160);
    let max_seqs = dice.between(1, 10);
    let max_step_tokens = dice.between(max_seqs, 48);
    // From a pool that cannot hold the longest sequence to one that holds several.
    let most = max_model_len * dice.pick(&[1, 2, 4]);
    let pool = dice.between(max_model_len / 2, most);
    SchedulerOptions {
        max_step_tokens,
        prefill_chunk: dice.between(1, 24),
        max_seqs,
        max_waiting: dice.pick(&[2, 100, 100, 100, 100, 100]),
        growth_quantile: dice.pick(&[0.0, 0.0, 0.5, 0.8]),
        policy: dice.pick(&[
            SchedulingPolicy::Fcfs,
            SchedulingPolicy::Priority,
            SchedulingPolicy::default(),
            SchedulingPolicy::Reasoning(ReasoningOptions {
                stretch: 20.0,
                longest_patience: Duration::from_millis(100),
            }),
        ]),
        max_model_len,
        blocks: pool.div_ceil(block_size),
        block_size,
        block_bytes: 100,
        drafter: Source::Suffix,
        drafts: match dice.between(0, 2) {
            0 => DraftPolicy::Off,
            1 => DraftPolicy::Fixed(dice.between(1, 9)),
            _ => DraftPolicy::Auto(LengthOptions::default()),
        },
        max_logit_rows: dice.between(max_seqs, max_step_tokens),
        squeeze_thinking: false,
        max_wait: dice.chance(1, 4).then(|| Duration::from_millis(dice.between(5, 100) as u64)),
    }
}

/// The markers of the model of the simulation.
pub fn markers() -> Arc<Markers> {
    let spellings = [(Role::Open, vec![OPEN]), (Role::Close, CLOSE.to_vec())];
    Arc::new(Markers::from_ids(&spellings, &[NEWLINE], &[NEWLINE]))
}

fn arrival(id: u64, options: &SchedulerOptions, faulty: bool, dice: &mut Dice) -> Arrival {
    let max_tokens = dice.chance(9, 10).then(|| dice.between(1, 60));
    let mut params = SamplingParams {
        seed: dice.roll() % 4,
        priority: if options.policy == SchedulingPolicy::Priority { dice.between(0, 2) as i32 - 1 } else { 0 },
        n: dice.pick(&[1, 1, 1, 1, 2, 3]),
        max_tokens,
        presence_penalty: dice.pick(&[0.0, 0.0, 0.0, 0.5]),
        repetition_penalty: dice.pick(&[1.0, 1.0, 1.0, 1.1]),
        ignore_eos: dice.chance(1, 8),
        stop_token_ids: if dice.chance(1, 8) { vec![TEXT + 3] } else { Vec::new() },
        ..SamplingParams::default()
    };
    let thinking = dice.chance(2, 3).then(|| {
        let start = dice.pick(&[Start::Fresh, Start::Thinking, Start::Closed]);
        params.thinking_token_budget = dice.chance(3, 4).then(|| dice.between(0, 20) as i64);
        params.answer_reserve = dice.chance(1, 2).then(|| dice.between(0, max_tokens.map_or(8, |m| (m - 1).min(8))));
        let landing = dice.chance(1, 3).then(|| Landing { tokens: vec![20, 21], at: 0.8 });
        let loops = dice.chance(1, 2).then(|| LoopOptions { max_period: 4, ..LoopOptions::default() });
        Arc::new(Thinking { landing, loops, ..Thinking::new(markers(), start) })
    });
    // One of a few beginnings, as conversations with one system prompt have them, then something of its own.
    let (beginning, len) = (dice.between(0, 3) as u64, dice.between(0, options.max_model_len / 2));
    let mut shared = Dice::new(beginning, 2);
    let mut prompt: Vec<u32> = (0..len).map(|_| text(&mut shared)).collect();
    let long = if dice.chance(1, 20) { options.max_model_len } else { options.max_model_len / 3 };
    prompt.extend((0..dice.between(0, long)).map(|_| text(dice)));
    // Who shares a cache: what another tenant computed holds another salt, and must never be read.
    let tenant = dice.between(0, 1) as u64;
    params.cache_salt = tenant.to_string().into();
    let shortest = prompt.len() + 1;
    let trouble = |dice: &mut Dice| shortest + dice.between(0, 10);
    Arrival {
        request: Request {
            id: RequestId(id),
            prompt,
            params,
            eos: vec![EOS],
            thinking,
            grammar: None,
            tenant: Arc::from(""),
        },
        salt: tenant,
        breaks_at: (faulty && dice.chance(1, 12)).then(|| trouble(dice)),
        nan_at: (faulty && dice.chance(1, 12)).then(|| trouble(dice)),
    }
}

fn text(dice: &mut Dice) -> u32 {
    TEXT + (dice.roll() % u64::from(VOCAB - TEXT)) as u32
}
