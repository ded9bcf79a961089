//! The pool alone: hits, copies, eviction, preemption; and random operations against a model whose blocks remember
//! which tokens they hold.

mod model;

use std::sync::Arc;

use smallvec::smallvec;

use super::*;
use crate::op::SampleRow;
use crate::request::RequestId;
use crate::spec::Source;
use crate::step::{Drafted, Opening, SamplePlan, SeqPlan, StepId, Tokens};

fn seq(n: u64) -> SeqId {
    SeqId { request: RequestId(n), choice: 0 }
}
fn sample() -> Option<SamplePlan> {
    Some(SamplePlan { params: SampleRow::default(), adjust: Vec::new(), guide: None })
}
/// A sequence that starts with this log, and `share` tokens of a step.
fn start(plan: &mut StepPlan, id: u64, tenant: &str, log: &[u32], share: usize) {
    let parts = Parts { prompt: log.len(), thinking: 0..0 };
    let sample_now = sample().filter(|_| share == log.len());
    let tokens = log[..share].into();
    plan.seqs.push(SeqPlan { seq: seq(id), start: 0, tokens, max_drafts: 0, sample: sample_now, parts });
    let (log, prompt_len, tenant) = (log.to_vec(), log.len(), Arc::from(tenant));
    plan.openings.push(Opening { seq: seq(id), log, prompt_len, tenant, sample: sample() });
}
/// A sequence that goes on.
fn go_on(plan: &mut StepPlan, id: u64, start: usize, tokens: &[u32]) {
    let parts = Parts { prompt: start, thinking: 0..0 };
    plan.seqs.push(SeqPlan { seq: seq(id), start, tokens: tokens.into(), max_drafts: 0, sample: sample(), parts });
}
fn plan() -> StepPlan {
    StepPlan { id: StepId(1), chunk: 512, ..StepPlan::default() }
}
fn tokens(from: u32, count: usize) -> Vec<u32> {
    (from..).take(count).collect()
}
/// Reserves and settles; nobody says anything.
fn run(pool: &mut BlockPool, plan: StepPlan) -> Reserved {
    let reserved = pool.reserve(plan);
    pool.check().unwrap();
    pool.check_writes(&reserved).unwrap();
    let count = reserved.plan.seqs.len();
    let drafted = Drafted::by(Source::Nobody, reserved.clone(), vec![Vec::new(); count]);
    let chosen = vec![Ok(Tokens::new()); count];
    pool.settle(Verified { drafted, chosen, device_time: Default::default(), copy_time: Default::default() });
    pool.check().unwrap();
    reserved
}
/// One step with one sequence that starts with `log` and ends with it. Returns how many tokens were there.
fn once(pool: &mut BlockPool, id: u64, tenant: &str, log: &[u32]) -> usize {
    let mut p = plan();
    start(&mut p, id, tenant, log, log.len());
    let reserved = run(pool, p);
    pool.release(seq(id));
    pool.check().unwrap();
    reserved.plan.seqs[0].start
}

#[test]
fn the_last_gives_way_to_the_first() {
    let mut pool = BlockPool::new(4, 16);
    let mut p = plan();
    start(&mut p, 1, "", &tokens(0, 20), 20);
    start(&mut p, 2, "", &tokens(100, 30), 30);
    let first = run(&mut pool, p);
    assert!(first.preempted.is_empty() && pool.free_blocks() == 0);
    let mut p = plan();
    go_on(&mut p, 1, 20, &tokens(20, 30));
    go_on(&mut p, 2, 30, &[130]);
    let second = run(&mut pool, p);
    assert_eq!((second.preempted.clone(), second.tables.len()), (vec![seq(2)], 1));
    // What the first has filled stays where it is.
    assert_eq!(second.tables[0][..2], first.tables[0][..]);
}

#[test]
fn rejected_drafts_return_their_blocks() {
    let mut pool = BlockPool::new(4, 4);
    let mut p = plan();
    start(&mut p, 1, "", &[1, 2, 3], 3);
    p.seqs[0].max_drafts = 8;
    let reserved = pool.reserve(p);
    assert_eq!(pool.free_blocks(), 1);
    let drafted = Drafted::by(Source::Model, reserved, vec![vec![7; 8]]);
    let chosen = vec![Ok(smallvec![7, 7, 9])];
    let settled =
        pool.settle(Verified { drafted, chosen, device_time: Default::default(), copy_time: Default::default() });
    assert_eq!((settled.seqs[0].cached, settled.free_blocks), (5, 2));
    pool.release(seq(1));
    assert_eq!((pool.free_blocks(), pool.cached_blocks()), (4, 2));
    pool.check().unwrap();
}

#[test]
fn a_next_turn_computes_its_new_tokens_only() {
    let mut pool = BlockPool::new(16, 4);
    assert_eq!(once(&mut pool, 1, "", &tokens(0, 10)), 0);
    // Ten tokens: two full blocks are shared, the two tokens of the third are copied.
    let mut p = plan();
    start(&mut p, 2, "", &tokens(0, 15), 15);
    let second = run(&mut pool, p);
    assert_eq!((second.plan.seqs[0].start, second.plan.seqs[0].tokens.len()), (10, 5));
    assert_eq!(second.copies.copy.len(), 1);
    assert_eq!(second.copies.copy[0].1, second.tables[0][2], "into a block of its own");
    assert!(second.plan.seqs[0].sample.is_some());
    // The same once more while it runs: the last token is computed all the same.
    let mut p = plan();
    start(&mut p, 3, "", &tokens(0, 15), 15);
    assert_eq!(run(&mut pool, p).plan.seqs[0].start, 12, "what was filled in the last step ends with a full block");
    // Another ending of the third block.
    assert_eq!(once(&mut pool, 4, "", &[&tokens(0, 9)[..], &[99; 5]].concat()), 9);
}

#[test]
fn tenants_do_not_find_each_others_blocks() {
    let mut pool = BlockPool::new(64, 4);
    let log = tokens(0, 21);
    for tenant in ["", "a", "b"] {
        assert_eq!(once(&mut pool, 1, tenant, &log), 0, "{tenant:?} is the first of its kind");
        assert_eq!(once(&mut pool, 2, tenant, &log), 20, "{tenant:?}");
    }
    let mut off = BlockPool::with(64, 4, CacheOptions { prefix_caching: false, ..CacheOptions::default() });
    assert_eq!((once(&mut off, 1, "", &log), once(&mut off, 2, "", &log)), (0, 0));
    assert_eq!((off.free.len(), off.cached_blocks()), (64, 0));
}

#[test]
fn a_shared_beginning_is_computed_once_even_in_one_step() {
    let mut pool = BlockPool::new(400, 16);
    let system = tokens(0, 1000);
    let log = |i: u32| [&system[..], &tokens(5000 + 100 * i, 10)].concat();
    let mut p = StepPlan { spare: 2048, ..plan() };
    // Nobody was given tokens: all start with what is left. The first has a chunk of 512, the others wait for it.
    (0..50).for_each(|i| start(&mut p, i.into(), "", &log(i), 0));
    let first = run(&mut pool, p);
    assert_eq!((first.plan.seqs.len(), first.plan.seqs[0].tokens.len(), first.plan.idle.len()), (1, 512, 49));
    let mut p = StepPlan { spare: 2048, ..plan() };
    go_on(&mut p, 0, 512, &log(0)[512..]);
    (1..50).for_each(|i| start(&mut p, i.into(), "", &log(i), 0));
    let second = run(&mut pool, p);
    let computed: usize = second.plan.seqs.iter().map(|s| s.tokens.len()).sum();
    // The last 8 tokens of 1,000 share a block with what differs: nothing can be copied from it before it is there.
    assert_eq!((second.plan.seqs.len(), computed), (50, 498 + 49 * 18));
    let mut p = plan();
    start(&mut p, 99, "", &[&system[..], &[7; 10]].concat(), 1010);
    assert_eq!(run(&mut pool, p).plan.seqs[0].start, 1000, "the step after can");
}

#[test]
fn thinking_goes_first_then_the_least_recently_used() {
    let mut pool = BlockPool::new(12, 4);
    let think = |pool: &mut BlockPool, id: u64, from: u32| {
        let mut p = plan();
        start(&mut p, id, "", &tokens(from, 16), 16);
        p.seqs[0].parts = Parts { prompt: 4, thinking: 4..12 };
        run(pool, p);
        pool.release(seq(id));
    };
    think(&mut pool, 1, 0);
    once(&mut pool, 2, "", &tokens(100, 16));
    think(&mut pool, 3, 200);
    assert_eq!(pool.cached_blocks(), 12);
    // Four blocks are needed: the older thinking goes, the answer behind it included, its prompt stays.
    once(&mut pool, 4, "", &tokens(300, 12));
    assert_eq!(pool.tree.find(&Tenant::Salted("".into()), &tokens(0, 16), 16, 4).path.len(), 1);
    assert_eq!(pool.tree.find(&Tenant::Salted("".into()), &tokens(200, 16), 16, 4).path.len(), 4);
    once(&mut pool, 5, "", &tokens(400, 16));
    assert_eq!(pool.tree.find(&Tenant::Salted("".into()), &tokens(100, 16), 16, 4).path.len(), 4);
    assert_eq!(pool.tree.find(&Tenant::Salted("".into()), &tokens(0, 16), 16, 4).path.len(), 0, "the oldest");
    assert_eq!(pool.tree.find(&Tenant::Salted("".into()), &tokens(200, 16), 16, 4).path.len(), 1);
    pool.check().unwrap();
}

#[test]
fn a_swapped_sequence_comes_back_with_all_its_tokens() {
    for (preemption, back, loads) in [(Preemption::Swap, 30, 8), (Preemption::Recompute, 0, 0)] {
        let mut pool = BlockPool::with(12, 4, CacheOptions { host_blocks: 10, preemption, ..CacheOptions::default() });
        let mut p = plan();
        start(&mut p, 1, "", &tokens(0, 12), 12);
        start(&mut p, 2, "", &tokens(100, 30), 30);
        run(&mut pool, p);
        let mut p = plan();
        go_on(&mut p, 1, 12, &tokens(12, 34));
        p.idle = vec![seq(2)];
        let short = run(&mut pool, p);
        assert_eq!((short.preempted, short.copies.save.len()), (vec![seq(2)], loads), "{preemption:?}");
        pool.release(seq(1));
        // Something else takes all of the pool meanwhile.
        once(&mut pool, 3, "", &tokens(500, 48));
        let mut p = plan();
        start(&mut p, 2, "", &tokens(100, 31), 31);
        let again = run(&mut pool, p);
        assert_eq!((again.plan.seqs[0].start, again.copies.load.len()), (back, loads), "{preemption:?}");
        pool.release(seq(2));
        pool.check().unwrap();
    }
}

#[test]
fn guesses_are_given_up_before_anybody_is_preempted() {
    let mut pool = BlockPool::new(6, 4);
    let mut p = plan();
    start(&mut p, 1, "", &tokens(0, 7), 7);
    p.seqs[0].max_drafts = 9;
    start(&mut p, 2, "", &tokens(100, 10), 10);
    p.seqs[1].max_drafts = 4;
    let reserved = run(&mut pool, p);
    assert!(reserved.preempted.is_empty());
    let drafts: Vec<usize> = reserved.plan.seqs.iter().map(|s| s.max_drafts).collect();
    assert!(drafts[0] < 9 && drafts[1] == 0, "{drafts:?}");
}

#[test]
fn a_log_that_was_cut_back_writes_no_shared_block() {
    let mut pool = BlockPool::new(16, 4);
    let mut p = plan();
    start(&mut p, 1, "", &tokens(0, 8), 8);
    run(&mut pool, p);
    // The scheduler says that it goes on inside its second block.
    let mut p = plan();
    go_on(&mut p, 1, 6, &[50, 51]);
    let reserved = run(&mut pool, p);
    assert_eq!(reserved.plan.seqs[0].start, 6);
    assert_eq!(reserved.copies.copy.len(), 1);
}
