//! Random operations against memory that remembers: every slot holds a fingerprint of tenant and tokens up to it,
//! so that whatever is read wrongly, written while shared, or copied too late shows.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

const SIZE: usize = 4;

/// Fingerprint of a tenant's tokens up to each position.
fn fingerprints(tenant: &str, log: &[u32]) -> Vec<u64> {
    let mut h = tenant.bytes().fold(1u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
    let step = |t: &u32| {
        h = (h ^ u64::from(*t) ^ 0x9E37).wrapping_mul(0x100_0000_01B3).rotate_left(17);
        h
    };
    log.iter().map(step).collect()
}

/// What a sequence is to whoever plans.
#[derive(Clone)]
struct Seq {
    tenant: &'static str,
    prompt: usize,
    log: Vec<u32>,
    cached: usize,
    running: bool,
}

struct Model {
    pool: BlockPool,
    memory: Vec<[u64; SIZE]>,
    host: Vec<[u64; SIZE]>,
    seqs: BTreeMap<u64, Seq>,
    /// Logs of those that ended: new prompts begin like them.
    ended: VecDeque<(&'static str, Vec<u32>)>,
    released: Vec<SeqId>,
    next: u64,
    hits: usize,
    saves: usize,
}

impl Model {
    fn new(blocks: usize, options: CacheOptions) -> Self {
        Self {
            pool: BlockPool::with(blocks, SIZE, options),
            memory: vec![[0; SIZE]; blocks],
            host: vec![[0; SIZE]; options.host_blocks],
            seqs: BTreeMap::new(),
            ended: VecDeque::new(),
            released: Vec::new(),
            next: 0,
            hits: 0,
            saves: 0,
        }
    }

    /// A new sequence, often with the beginning of an old one.
    fn submit(&mut self, a: u8, b: u8) {
        let tenant = ["", "a"][usize::from(a) % 2];
        let old = (!self.ended.is_empty()).then(|| &self.ended[usize::from(b) % self.ended.len()]);
        let mut log: Vec<u32> = match old {
            // Also those of the other tenant: they must not be found.
            Some((_, log)) if a % 8 < 6 => log[..1 + usize::from(b) % log.len()].to_vec(),
            _ => Vec::new(),
        };
        log.extend((0..1 + u32::from(a) % 9).map(|i| u32::from(b) % 3 + i % 2));
        log.truncate(self.pool.total * SIZE - 8);
        self.next += 1;
        let prompt = log.len();
        self.seqs.insert(self.next, Seq { tenant, prompt, log, cached: 0, running: true });
    }

    fn end(&mut self, a: u8) {
        let Some(id) = self.seqs.keys().nth(usize::from(a) % self.seqs.len().max(1)).copied() else { return };
        let ended = self.seqs.remove(&id).unwrap();
        self.ended.push_front((ended.tenant, ended.log));
        self.ended.truncate(6);
        self.released.push(seq(id));
    }

    /// One step, with so many tokens; `c` decides about guesses and cuts.
    fn step(&mut self, budget: u8, c: u8) {
        let mut plan = StepPlan { chunk: 9, ..plan() };
        plan.released = std::mem::take(&mut self.released);
        let mut left = usize::from(budget) % 40 + 1;
        for (id, s) in self.seqs.iter().filter(|(_, s)| s.running) {
            let take = (s.log.len() - s.cached).min(left).min(9);
            left -= take;
            if take == 0 && s.cached > 0 {
                plan.idle.push(seq(*id));
                continue;
            }
            let end = s.cached + take;
            let chooses = end == s.log.len();
            let thinking = s.prompt..s.prompt + usize::from(c) % 7;
            plan.seqs.push(SeqPlan {
                seq: seq(*id),
                start: s.cached,
                tokens: s.log[s.cached..end].into(),
                max_drafts: if chooses { usize::from(c) % 4 } else { 0 },
                sample: sample().filter(|_| chooses),
                parts: Parts { prompt: s.prompt, thinking },
            });
            if s.cached == 0 {
                let (log, tenant) = (s.log.clone(), Arc::from(s.tenant));
                plan.openings.push(Opening { seq: seq(*id), log, prompt_len: s.prompt, tenant, sample: sample() });
            }
        }
        plan.spare = left;
        let reserved = self.pool.reserve(plan);
        self.pool.check().unwrap();
        self.pool.check_writes(&reserved).unwrap();
        self.run(&reserved);
        self.settle(reserved, c);
    }

    /// What a device does: copies, then all stores, then all reads.
    fn run(&mut self, reserved: &Reserved) {
        let copies = &reserved.copies;
        self.saves += copies.save.len();
        copies.save.iter().for_each(|(b, p)| self.host[*p as usize] = self.memory[*b as usize]);
        copies.load.iter().for_each(|(p, b)| self.memory[*b as usize] = self.host[*p as usize]);
        copies.copy.iter().for_each(|(f, t)| self.memory[*t as usize] = self.memory[*f as usize]);
        let planned = || reserved.plan.seqs.iter().zip(&reserved.tables);
        for (p, table) in planned() {
            let s = &self.seqs[&p.seq.request.0];
            assert_eq!(p.tokens[..], s.log[p.start..p.start + p.tokens.len()], "others than the log's");
            assert!(!p.tokens.is_empty() && (p.sample.is_some() == (p.start + p.tokens.len() == s.log.len())));
            self.hits += p.start.saturating_sub(s.cached);
            let all = fingerprints(s.tenant, &s.log);
            for at in p.start..p.start + p.tokens.len() {
                self.memory[table[at / SIZE] as usize][at % SIZE] = all[at];
            }
            // Guesses are stored as well, wrong ones.
            let end = p.start + p.tokens.len();
            (end..end + p.max_drafts).for_each(|at| self.memory[table[at / SIZE] as usize][at % SIZE] = 13);
        }
        for (p, table) in planned() {
            let s = &self.seqs[&p.seq.request.0];
            let all = fingerprints(s.tenant, &s.log);
            for at in 0..p.start + p.tokens.len() {
                assert_eq!(self.memory[table[at / SIZE] as usize][at % SIZE], all[at], "{:?} reads at {at}", p.seq);
            }
        }
    }

    /// Tokens are chosen, guesses accepted; now and then a choice is void and the log cut back behind the input.
    fn settle(&mut self, reserved: Reserved, c: u8) {
        let (mut chosen, mut drafts) = (Vec::new(), Vec::new());
        for (p, table) in reserved.plan.seqs.iter().zip(&reserved.tables) {
            let s = self.seqs.get_mut(&p.seq.request.0).unwrap();
            s.cached = p.start + p.tokens.len();
            let accepted = if p.sample.is_some() { p.max_drafts.min(usize::from(c) % 3) } else { 0 };
            let said: Tokens = (0..=accepted as u32).map(|i| (u32::from(c) + i) % 3).collect();
            drafts.push(vec![0; p.max_drafts]);
            if p.sample.is_none() {
                chosen.push(Ok(Tokens::new()));
                continue;
            }
            if c % 31 == 30 && p.seq.request.0 % 3 == 0 {
                chosen.push(Err("broken".into()));
                continue;
            }
            s.log.extend_from_slice(&said);
            let all = fingerprints(s.tenant, &s.log);
            (s.cached..s.cached + accepted).for_each(|at| self.memory[table[at / SIZE] as usize][at % SIZE] = all[at]);
            s.cached += accepted;
            if c % 16 == 15 && accepted > 0 {
                // The scheduler takes the first choice only.
                s.log.truncate(s.log.len() - accepted);
                s.cached -= accepted;
            }
            chosen.push(Ok(said));
        }
        for lost in &reserved.preempted {
            self.seqs.get_mut(&lost.request.0).unwrap().cached = 0;
        }
        let broken: Vec<u64> = (reserved.plan.seqs.iter().zip(&chosen))
            .filter(|(_, c)| c.is_err())
            .map(|(p, _)| p.seq.request.0)
            .collect();
        let drafted = Drafted::by(crate::spec::Source::Model, reserved, drafts);
        self.pool.settle(Verified { drafted, chosen, device_time: Default::default(), copy_time: Default::default() });
        for id in broken {
            self.seqs.remove(&id);
            self.released.push(seq(id));
        }
        let full = self.pool.total * SIZE - 8;
        let long: Vec<u64> = self.seqs.iter().filter(|(_, s)| s.log.len() >= full).map(|(id, _)| *id).collect();
        for id in long {
            self.seqs.remove(&id);
            self.released.push(seq(id));
        }
        self.pool.check().unwrap();
    }
}

fn play(ops: &[(u8, u8, u8)], blocks: usize, options: CacheOptions) -> Model {
    let mut model = Model::new(blocks, options);
    for (op, a, b) in ops {
        match op % 8 {
            0 | 1 if model.seqs.len() < 6 => model.submit(*a, *b),
            2 => model.end(*a),
            _ => model.step(*a, *b),
        }
    }
    // Everybody goes: nothing is held.
    while !model.seqs.is_empty() {
        model.end(0);
    }
    model.step(0, 0);
    assert_eq!(model.pool.free_blocks(), blocks);
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn nobody_reads_what_is_not_theirs(
        ops in proptest::collection::vec(any::<(u8, u8, u8)>(), 1..150),
        blocks in 7usize..30,
        host_blocks in 0usize..12,
        preemption in prop_oneof![Just(Preemption::Swap), Just(Preemption::Recompute), Just(Preemption::Auto)],
        prefix_caching in prop::bool::weighted(0.8),
    ) {
        play(&ops, blocks, CacheOptions { prefix_caching, host_blocks, preemption });
    }
}

#[test]
fn the_random_operations_do_something() {
    let mut dice = 1u32;
    let mut next = || {
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (dice >> 24) as u8
    };
    let ops: Vec<(u8, u8, u8)> = (0..3000).map(|_| (next(), next(), next())).collect();
    let options = CacheOptions { host_blocks: 8, preemption: Preemption::Swap, ..CacheOptions::default() };
    let model = play(&ops, 14, options);
    assert!(model.hits > 100 && model.saves > 10, "{} hits, {} saves", model.hits, model.saves);
}
