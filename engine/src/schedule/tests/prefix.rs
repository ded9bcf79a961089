//! The cache and the scheduler together: what is found is not computed, and nobody's tokens change by it.

use super::*;

fn roomy(blocks: usize) -> SchedulerOptions {
    let (max_step_tokens, prefill_chunk) = (512, 512);
    SchedulerOptions { max_step_tokens, prefill_chunk, max_seqs: 64, max_model_len: 1200, ..options(blocks) }
}
fn id(request: u64) -> SeqId {
    SeqId { request: RequestId(request), choice: 0 }
}
fn with_prompt(id: u64, prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request { prompt, ..request(id, 1, max_tokens) }
}

#[test]
fn a_shared_system_prompt_of_1000_tokens_is_computed_once_for_50_requests() {
    let system: Vec<u32> = (0..1000).map(|t| t * 3 % 700).collect();
    let ask = |i: u64| with_prompt(i, [&system[..], &[i as u32 + 1; 10]].concat(), 5);
    let mut world = World::with(roomy(2000), CacheOptions::default(), 1..1001);
    (0..50).for_each(|i| world.submit(&ask(i)));
    world.run();
    // Each one's own 10 tokens, and an input for each of its tokens but the last.
    assert_eq!(world.rows, 1000 + 50 * 10 + 50 * 4);
    let cached: Vec<usize> = (0..50).map(|i| world.ended[&id(i)].cached_tokens).collect();
    assert!(cached[0] == 0 && cached[1..].iter().all(|c| *c == 1000), "{cached:?}");
    // A pool that holds it once only, with little beside it.
    let mut tight = World::with(roomy(275), CacheOptions::default(), 1..1001);
    (0..50).for_each(|i| tight.submit(&ask(i)));
    tight.run();
    assert_eq!(tight.outputs, world.outputs);
    assert!(tight.rows < 1000 + 50 * 20 + 50 * 4, "{} rows", tight.rows);
}

#[test]
fn answers_of_one_request_share_its_prompt() {
    let mut asked = request(1, 40, 6);
    asked.params.n = 5;
    let mut world = World::with(roomy(100), CacheOptions::default(), 1..1001);
    world.submit(&asked);
    world.run();
    assert_eq!(world.ended.len(), 5);
    assert!(world.rows <= 40 + 4 * 4 + 5 * 5, "{} rows", world.rows);
}

#[test]
fn a_second_turn_computes_what_is_new_and_no_other_tenant_gains() {
    let mut world = World::with(roomy(300), CacheOptions::default(), 1..1001);
    world.submit(&request(1, 50, 30));
    world.run();
    let turn = [&request(1, 50, 30).prompt[..], &world.outputs[&id(1)], &[7; 12]].concat();
    let before = world.rows;
    world.submit(&with_prompt(2, turn.clone(), 1));
    world.run();
    // The last token of the first answer was never an input.
    assert_eq!((world.ended[&id(2)].cached_tokens, world.rows - before), (79, 13));
    let mut other = with_prompt(3, turn.clone(), 1);
    other.params.cache_salt = "another".into();
    world.submit(&other);
    world.run();
    assert_eq!(world.ended[&id(3)].cached_tokens, 0);
    assert_eq!(world.outputs[&id(3)], world.outputs[&id(2)]);
    let off = CacheOptions { prefix_caching: false, ..CacheOptions::default() };
    let mut world = World::with(roomy(300), off, 1..1001);
    (4..6).for_each(|i| {
        world.submit(&with_prompt(i, turn.clone(), 1));
        world.run();
    });
    assert_eq!((world.ended[&id(5)].cached_tokens, world.pool.cached_blocks()), (0, 0));
}

#[test]
fn swapped_and_recomputed_sequences_say_the_same() {
    let requests: Vec<Request> = (0..8).map(|i| request(i, 6 + (i as usize * 7) % 20, 30)).collect();
    let want: Vec<Vec<u32>> = requests.iter().map(alone).collect();
    for caching in [true, false] {
        let mut recomputed = Vec::new();
        for preemption in [Preemption::Recompute, Preemption::Swap] {
            let cache = CacheOptions { prefix_caching: caching, host_blocks: 60, preemption };
            let mut world = World::with(options(16), cache, 1..1001);
            requests.iter().for_each(|r| world.submit(r));
            world.run();
            requests.iter().zip(&want).for_each(|(r, want)| {
                assert_eq!(&world.outputs[&id(r.id.0)], want, "{preemption:?}, caching {caching}");
            });
            assert!(world.preemptions > 0);
            assert_eq!(world.saved > 0 && world.loaded > 0, preemption == Preemption::Swap, "{preemption:?}");
            recomputed.push(world.ended.values().map(|f| f.recomputed_tokens).sum::<usize>());
        }
        assert!(recomputed[0] > 0 && recomputed[1] == 0, "what was swapped is not computed again: {recomputed:?}");
    }
}

#[test]
fn idle_time_caches_what_may_come_and_yields_to_what_comes() {
    let log: Vec<u32> = (0..60).map(|t| t * 5 + 2).collect();
    let next = |i: u64| with_prompt(i, [&log[..], &[3; 9]].concat(), 2);
    let mut world = World::with(options(60), CacheOptions::default(), 1..1001);
    world.scheduler.warm_up(log.clone(), "".into());
    world.run();
    assert_eq!((world.rows, world.outputs.len()), (60, 0));
    world.submit(&next(1));
    world.run();
    assert_eq!(world.ended[&id(1)].cached_tokens, 60);
    // A request that comes meanwhile runs at once, and finds what was made so far.
    let mut world = World::with(options(60), CacheOptions::default(), 1..1001);
    world.scheduler.warm_up(log.clone(), "".into());
    (0..3).for_each(|_| assert!(world.step()));
    world.submit(&next(2));
    world.run();
    assert_eq!(world.ended[&id(2)].cached_tokens, 27);
    assert_eq!(world.pool.free_blocks(), 60);
    // A pool that a request needs all of: idle work is in nobody's way.
    let mut world = World::with(options(18), CacheOptions::default(), 1..1001);
    world.scheduler.warm_up(log.clone(), "".into());
    world.step();
    world.submit(&request(3, 40, 30));
    world.run();
    assert_eq!(world.outputs[&id(3)], alone(&request(3, 40, 30)));
    assert_eq!(world.pool.free_blocks(), 18);
}
