//! The scheduler and the pool played against each other with a model that is a hash.

mod prefix;
mod thinking;

use std::collections::HashMap;
use std::ops::Range;

use super::*;
use crate::kv::{BlockPool, CacheOptions, Preemption};
use crate::op::threefry2x32;
use crate::reason::Label;
use crate::request::SamplingParams;
use crate::spec::Source;
use crate::step::{Drafted, Reserved, SamplePlan, Verified};

const BLOCK: usize = 4;

fn options(blocks: usize) -> SchedulerOptions {
    SchedulerOptions {
        max_step_tokens: 24,
        prefill_chunk: 9,
        max_seqs: 6,
        max_waiting: 1000,
        growth_quantile: 0.0,
        policy: SchedulingPolicy::Fcfs,
        max_model_len: 100,
        blocks,
        block_size: BLOCK,
        block_bytes: 1,
        drafts: DraftPolicy::Off,
        drafter: Source::Nobody,
        max_logit_rows: 64,
        squeeze_thinking: false,
        max_wait: None,
    }
}

fn request(id: u64, prompt: usize, max_tokens: usize) -> Request {
    let params = SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() };
    Request {
        id: RequestId(id),
        prompt: (0..prompt as u32).map(|t| t * 7 + id as u32).collect(),
        params,
        eos: vec![0],
        thinking: None,
        grammar: None,
        tenant: "".into(),
    }
}

/// A cache whose slots remember (position, token): what a wrong block table reads is wrong. Guesses are right more
/// often than not; the wrong ones are cached too, as a device would.
struct Witness {
    slots: HashMap<u32, (usize, u32)>,
    /// Host memory.
    saved: HashMap<u32, (usize, u32)>,
    /// What the model says.
    vocabulary: Range<u32>,
}

impl Witness {
    fn new(vocabulary: Range<u32>) -> Self {
        Self { slots: HashMap::new(), saved: HashMap::new(), vocabulary }
    }

    fn run(&mut self, reserved: Reserved) -> Verified {
        let (mut chosen, mut drafts) = (Vec::new(), Vec::new());
        let copies = &reserved.copies;
        for (block, place) in &copies.save {
            copy(&self.slots, *block, &mut self.saved, *place);
        }
        for (place, block) in &copies.load {
            copy(&self.saved, *place, &mut self.slots, *block);
        }
        for (from, to) in &copies.copy {
            copy(&self.slots.clone(), *from, &mut self.slots, *to);
        }
        for (seq, table) in reserved.plan.seqs.iter().zip(&reserved.tables) {
            let slot = |p: usize| table[p / BLOCK] * BLOCK as u32 + (p % BLOCK) as u32;
            for (i, token) in seq.tokens.iter().enumerate() {
                self.slots.insert(slot(seq.start + i), (seq.start + i, *token));
            }
            let end = seq.start + seq.tokens.len();
            let Some(sample) = &seq.sample else {
                chosen.push(Ok(Tokens::new()));
                drafts.push(Vec::new());
                continue;
            };
            let (mut said, mut guesses) = (Tokens::new(), Vec::new());
            for i in 0..=seq.max_drafts {
                let token = self.next(slot, end + i, sample);
                said.push(token);
                let wrong = threefry2x32([9, end as u32], [i as u32, token])[0].is_multiple_of(4);
                if i == seq.max_drafts {
                    break;
                }
                let guess = if wrong { token + 1 } else { token };
                guesses.push(guess);
                self.slots.insert(slot(end + i), (end + i, guess));
                if wrong {
                    break;
                }
            }
            chosen.push(Ok(said));
            drafts.push(guesses);
        }
        let drafted = Drafted::by(Source::Model, reserved, drafts);
        Verified { drafted, chosen, device_time: Duration::ZERO, copy_time: Duration::ZERO }
    }

    /// A hash of what the cache really holds; like a device it knows what was forbidden at the first place only.
    fn next(&self, slot: impl Fn(usize) -> u32, end: usize, sample: &SamplePlan) -> u32 {
        let read = (0..end).map(|p| {
            let (position, token) = self.slots[&slot(p)];
            assert_eq!(position, p, "a foreign or stale slot was read");
            token
        });
        let hash = read.fold(17u32, |h, t| h.wrapping_mul(31).wrapping_add(t));
        let (low, n) = (self.vocabulary.start, self.vocabulary.len() as u32);
        let wish = if n > 99 { hash % n } else { threefry2x32([1, 2], [hash, 0])[0] % n };
        let allowed = |t: &u32| !sample.adjust.iter().any(|a| a.token == *t && a.bias == f32::NEG_INFINITY);
        (0..n).map(|i| low + (wish + i) % n).find(allowed).expect("something is allowed")
    }
}

/// A block, slot by slot.
fn copy(from: &HashMap<u32, (usize, u32)>, source: u32, to: &mut HashMap<u32, (usize, u32)>, target: u32) {
    for i in 0..BLOCK as u32 {
        match from.get(&(source * BLOCK as u32 + i)) {
            Some(slot) => to.insert(target * BLOCK as u32 + i, *slot),
            None => to.remove(&(target * BLOCK as u32 + i)),
        };
    }
}

struct World {
    scheduler: Scheduler,
    pool: BlockPool,
    witness: Witness,
    outputs: HashMap<SeqId, Vec<u32>>,
    ended: HashMap<SeqId, Finished>,
    labels: HashMap<SeqId, Vec<Label>>,
    preemptions: usize,
    /// Rows that were computed, guesses not counted; blocks that went to host memory, and came back.
    rows: usize,
    saved: usize,
    loaded: usize,
    /// Most guesses per sequence and step.
    drafts: usize,
    steps: usize,
}

impl World {
    fn new(blocks: usize) -> Self {
        Self::saying(blocks, 1..1001)
    }
    fn saying(blocks: usize, vocabulary: Range<u32>) -> Self {
        Self::with(options(blocks), CacheOptions::default(), vocabulary)
    }
    fn with(options: SchedulerOptions, cache: CacheOptions, vocabulary: Range<u32>) -> Self {
        Self {
            scheduler: Scheduler::new(options),
            pool: BlockPool::with(options.blocks, BLOCK, cache),
            rows: 0,
            saved: 0,
            loaded: 0,
            witness: Witness::new(vocabulary),
            labels: HashMap::new(),
            drafts: 0,
            steps: 0,
            outputs: HashMap::new(),
            ended: HashMap::new(),
            preemptions: 0,
        }
    }
    fn submit(&mut self, request: &Request) {
        self.scheduler.submit(Duration::ZERO, request, || None).unwrap();
    }
    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            assert_eq!(event.tokens.len(), event.spans.iter().map(|s| s.len).sum::<usize>());
            let labels = self.labels.entry(event.seq).or_default();
            event.spans.iter().for_each(|s| labels.extend(std::iter::repeat_n(s.label, s.len)));
            self.outputs.entry(event.seq).or_default().extend(event.tokens);
            if let Some(finished) = event.finish {
                assert!(self.ended.insert(event.seq, *finished).is_none(), "{:?} ended twice", event.seq);
            }
        }
    }
    fn step(&mut self) -> bool {
        let Some(mut plan) = self.scheduler.plan(Duration::ZERO, None) else { return false };
        assert!(plan.seqs.iter().map(|s| s.tokens.len()).sum::<usize>() <= self.scheduler.options.max_step_tokens);
        self.steps += 1;
        for (i, seq) in plan.seqs.iter_mut().enumerate().filter(|(_, s)| s.sample.is_some()) {
            let Some(free) = self.scheduler.sequence(seq.seq).map(Sequence::free_tokens) else { continue };
            seq.max_drafts = ((self.steps + i) % (self.drafts + 1)).min(free.saturating_sub(1));
        }
        let reserved = self.pool.reserve(plan);
        self.pool.check().unwrap();
        self.pool.check_writes(&reserved).unwrap();
        self.preemptions += reserved.preempted.len();
        self.saved += reserved.copies.save.len();
        self.loaded += reserved.copies.load.len();
        let settled = self.pool.settle(self.witness.run(reserved));
        self.pool.check().unwrap();
        self.rows += settled.rows;
        let events = self.scheduler.apply(&settled);
        self.take(events);
        true
    }
    fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        let (running, waiting) = self.scheduler.counts();
        panic!("no end in 10,000 steps: {running} run, {waiting} wait, {} preempted", self.preemptions);
    }
}

fn alone(request: &Request) -> Vec<u32> {
    let mut world = World::new(64);
    world.submit(request);
    world.run();
    world.outputs.remove(&SeqId { request: request.id, choice: 0 }).unwrap()
}

#[test]
fn answers_do_not_depend_on_company_or_on_memory() {
    let requests: Vec<Request> =
        (0..9).map(|i| request(i, 1 + (i as usize * 11) % 40, 1 + (i as usize * 7) % 30)).collect();
    let want: Vec<Vec<u32>> = requests.iter().map(alone).collect();
    let mut preempted = 0;
    for blocks in [200, 40, 25, 18] {
        let mut world = World::new(blocks);
        for (i, request) in requests.iter().enumerate() {
            world.submit(request);
            (0..i % 3).for_each(|_| {
                world.step();
            });
        }
        world.run();
        preempted += world.preemptions;
        for (request, want) in requests.iter().zip(&want) {
            let id = SeqId { request: request.id, choice: 0 };
            assert_eq!(&world.outputs[&id], want, "{blocks} blocks, request {}", request.id.0);
            assert_eq!(world.ended[&id].completion_tokens, want.len());
        }
        assert_eq!(world.pool.free_blocks(), blocks);
    }
    assert!(preempted > 0, "the small pools must have been short");
}

#[test]
fn a_cancel_at_every_step_leaves_nothing_behind() {
    for preemption in [Preemption::Recompute, Preemption::Swap] {
        let cache = CacheOptions { host_blocks: 12, preemption, ..CacheOptions::default() };
        for at in 0..40 {
            let mut world = World::with(options(18), cache, 1..1001);
            (0..4).for_each(|i| world.submit(&request(i, 20, 20)));
            (0..at).for_each(|_| {
                world.step();
            });
            world.scheduler.cancel(RequestId(1));
            world.run();
            let events = world.scheduler.drain_ended();
            world.take(events);
            assert_eq!(world.ended.len(), 4, "cancelled before step {at}");
            assert_eq!(world.pool.free_blocks(), 18);
        }
    }
}

#[test]
fn what_can_never_fit_is_refused() {
    let mut world = World::new(7);
    let refuse = |w: &mut World, r: &Request| w.scheduler.submit(Duration::ZERO, r, || None).unwrap_err().to_string();
    assert!(refuse(&mut world, &request(1, 20, 60)).contains("the KV cache holds 28"));
    assert!(refuse(&mut world, &request(1, 100, 1)).contains("no room"));
    assert!(refuse(&mut world, &request(1, 0, 1)).contains("empty"));
    world.submit(&request(2, 20, 8));
    world.run();
    assert_eq!(world.outputs.len(), 1);
}

#[test]
fn a_lost_device_is_replayed() {
    let want = alone(&request(3, 15, 20));
    for at in [1, 3, 10] {
        let mut world = World::new(64);
        world.submit(&request(3, 15, 20));
        world.submit(&request(4, 15, 20));
        (0..at).for_each(|_| {
            world.step();
        });
        world.scheduler.replay();
        world.pool.clear();
        world.witness.slots.clear();
        world.run();
        assert_eq!(world.outputs[&SeqId { request: RequestId(3), choice: 0 }], want);
    }
}
