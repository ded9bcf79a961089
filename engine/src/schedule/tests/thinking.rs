//! Thinking through the scheduler: budgets, forced tokens and labels do not depend on guesses, company or memory.

use std::sync::Arc;

use super::*;
use crate::reason::{
    CloseReason, Decision, Effort, Landing, Lengths, LoopOptions, Markers, Part, Phase, Policy, Role, Start, Survival,
    Thinking, decide,
};

/// Says 0 to 9: 0 ends, 2 opens, 3 4 closes, 9 is a newline.
const SAYS: Range<u32> = 0..10;
const NEWLINE: u32 = 9;

fn markers() -> Arc<Markers> {
    let spellings = [(Role::Open, vec![2]), (Role::Close, vec![3, 4])];
    Arc::new(Markers::from_ids(&spellings, &[NEWLINE], &[NEWLINE]))
}

fn thinker(id: u64, start: Start, budget: Option<i64>, max_tokens: usize) -> Request {
    let mut request = request(id, 5 + (id as usize * 7) % 20, max_tokens);
    request.params.thinking_token_budget = budget;
    request.params.answer_reserve = Some(3);
    let landing = id.is_multiple_of(3).then(|| Landing { tokens: vec![20, 21], at: 0.8 });
    let loops = Some(LoopOptions { max_period: 4, ..LoopOptions::default() });
    request.thinking = Some(Arc::new(Thinking { landing, loops, ..Thinking::new(markers(), start) }));
    request
}

fn id(request: &Request) -> SeqId {
    SeqId { request: request.id, choice: 0 }
}

fn all_kinds() -> Vec<Request> {
    let budgets = [None, Some(0), Some(1), Some(2), Some(5), Some(12)];
    let starts = [Start::Fresh, Start::Thinking, Start::Closed];
    (0..18).map(|i| thinker(i, starts[i as usize % 3], budgets[i as usize / 3], 12 + (i as usize * 5) % 30)).collect()
}

fn check(request: &Request, world: &World) {
    let finished = &world.ended[&id(request)];
    let report = finished.thinking.unwrap();
    let labels = &world.labels[&id(request)];
    let count = |label| labels.iter().filter(|l| **l == label).count();
    assert_eq!(finished.reasoning_tokens, count(Label::Reasoning));
    assert_eq!(report.counts.content, count(Label::Content));
    assert!(finished.reasoning_tokens <= request.params.thinking_cap().unwrap().unwrap_or(usize::MAX));
    let end = usize::from(matches!(finished.why, Finish::Stop { .. }));
    assert_eq!(
        labels.len() + end,
        finished.completion_tokens,
        "every token is told once: {request:?} {finished:?} {labels:?} {:?}",
        world.outputs
    );
    assert!(finished.completion_tokens <= request.params.max_tokens.unwrap());
    assert_eq!(report.ended_in, Phase::Answering);
    if report.closed_by.is_some() {
        let said = world.outputs[&id(request)].iter().zip(labels).any(|(t, l)| *l == Label::Content && *t != NEWLINE);
        assert!(said, "an empty answer of {request:?}");
    }
}

#[test]
fn guesses_company_and_memory_change_no_thinking_answer() {
    let requests = all_kinds();
    let alone = |request: &Request| {
        let mut world = World::saying(64, SAYS);
        world.submit(request);
        world.run();
        check(request, &world);
        (world.outputs.remove(&id(request)).unwrap(), world.labels.remove(&id(request)).unwrap(), world.steps)
    };
    let want: Vec<_> = requests.iter().map(alone).collect();
    let (mut preempted, mut forced) = (0, 0);
    for (blocks, drafts) in [(200, 0), (200, 4), (40, 3), (25, 0), (18, 2)] {
        let mut world = World::saying(blocks, SAYS);
        world.drafts = drafts;
        for (i, request) in requests.iter().enumerate() {
            world.submit(request);
            (0..i % 3).for_each(|_| {
                world.step();
            });
        }
        world.run();
        preempted += world.preemptions;
        for (request, (tokens, labels, _)) in requests.iter().zip(&want) {
            let context = format!("{blocks} blocks, {drafts} guesses, {request:?}");
            assert_eq!(&world.outputs[&id(request)], tokens, "{context}");
            assert_eq!(&world.labels[&id(request)], labels, "{context}");
            check(request, &world);
            let by = world.ended[&id(request)].thinking.unwrap().closed_by;
            forced += usize::from(matches!(by, Some(CloseReason::Budget | CloseReason::Reserve)));
        }
        assert_eq!(world.pool.free_blocks(), blocks);
    }
    assert!(preempted > 0 && forced > 10, "{preempted} {forced}");
}

#[test]
fn thousands_of_random_requests() {
    let mut answered = 0;
    for seed in 0..400u32 {
        let mut dice = 0;
        let mut below = |n: u32| {
            dice += 1;
            threefry2x32([seed, 3], [dice, 0])[0] % n
        };
        let mut world = World::saying(18 + below(60) as usize, SAYS);
        world.drafts = below(6) as usize;
        let starts = [Start::Fresh, Start::Thinking, Start::Closed];
        let requests: Vec<Request> = (0..6)
            .map(|i| {
                let budget = (below(4) > 0).then(|| below(15) as i64);
                thinker(u64::from(seed * 10 + i), starts[below(3) as usize], budget, 8 + below(30) as usize)
            })
            .collect();
        for request in &requests {
            world.submit(request);
            (0..below(4)).for_each(|_| {
                world.step();
            });
        }
        world.run();
        requests.iter().for_each(|r| check(r, &world));
        answered += world.ended.len();
    }
    assert_eq!(answered, 2400);
}

#[test]
fn a_forced_close_takes_one_step() {
    // The model never closes by itself: it says only 5 and 6.
    let mut request = thinker(1, Start::Thinking, Some(4), 20);
    request.params.ignore_eos = true;
    let mut world = World::saying(64, 5..7);
    world.submit(&request);
    world.run();
    let tokens = &world.outputs[&id(&request)];
    assert_eq!(tokens[4..7], [3, 4, NEWLINE]);
    assert_eq!(tokens.len(), 20);
    // 17 tokens were chosen, one a step; one step of two chunks for the prompt, and one that only frees.
    assert!(world.steps <= 17 + 2, "{} steps", world.steps);
    assert_eq!(world.ended[&id(&request)].thinking.unwrap().closed_by, Some(CloseReason::Budget));
}

#[test]
fn no_thinking_where_the_template_opened_it() {
    let request = thinker(1, Start::Thinking, Some(0), 10);
    let mut world = World::saying(64, 5..7);
    world.submit(&request);
    world.step();
    let seq = world.scheduler.sequence(id(&request)).unwrap();
    assert_eq!(seq.tokens[seq.prompt_len..][..3], [3, 4, NEWLINE], "the close goes through with the prompt");
    world.run();
    assert_eq!(world.ended[&id(&request)].reasoning_tokens, 0);

    let mut tight = thinker(2, Start::Thinking, Some(0), 3);
    tight.params.answer_reserve = None;
    let refused = world.scheduler.submit(Duration::ZERO, &tight, || None).unwrap_err().to_string();
    assert!(refused.starts_with("max_tokens"), "{refused}");
}

/// Finds two sixes in a row.
struct TwoSixes(u32);

impl StopText for TwoSixes {
    fn push(&mut self, token: u32) -> Option<String> {
        self.0 = if token == 6 { self.0 + 1 } else { 0 };
        (self.0 == 2).then(|| "66".into())
    }
}

#[test]
fn stop_strings_count_in_the_answer_only() {
    let request = thinker(1, Start::Thinking, Some(6), 40);
    let mut world = World::saying(64, 6..7);
    world.scheduler.submit(Duration::ZERO, &request, || Some(Box::new(TwoSixes(0)))).unwrap();
    world.run();
    let finished = &world.ended[&id(&request)];
    assert_eq!(finished.why, Finish::StopString { text: "66".into() });
    assert_eq!(finished.reasoning_tokens, 6);
    assert_eq!(world.outputs[&id(&request)], [6, 6, 6, 6, 6, 6, 3, 4, NEWLINE, 6, 6]);
}

#[test]
fn the_answer_on_demand_and_the_decision() {
    let mut request = thinker(1, Start::Thinking, None, 40);
    let policy = Policy::default();
    let decision: Decision = decide(Effort::Low, Some(30), "", &policy, &Survival::default()).unwrap();
    let thinking = request.thinking.take().unwrap();
    request.thinking = Some(Arc::new(Thinking { decision: Some(decision.clone()), ..(*thinking).clone() }));
    let mut world = World::saying(64, 5..7);
    world.submit(&request);
    (0..6).for_each(|_| {
        world.step();
    });
    world.scheduler.end_thinking(request.id);
    world.run();
    let finished = &world.ended[&id(&request)];
    assert_eq!(finished.thinking.unwrap().closed_by, Some(CloseReason::Asked));
    assert!(finished.reasoning_tokens < 10);
    assert_eq!(finished.decision.as_ref(), Some(&decision));
}

/// Ends an answer at its second token.
struct Second(usize);

impl StopText for Second {
    fn push(&mut self, _: u32) -> Option<String> {
        self.0 += 1;
        (self.0 == 2).then(String::new)
    }
}

#[test]
fn where_it_may_be_cut_thinking_is_closed_before_anybody_is_preempted() {
    // Both think for 40 tokens and more; the pool holds little more than one of them.
    let requests = [1, 2].map(|i| {
        let request = thinker(i, Start::Thinking, None, 60);
        Request {
            thinking: Some(Arc::new(Thinking { loops: None, ..Thinking::new(markers(), Start::Thinking) })),
            ..request
        }
    });
    let run = |squeeze_thinking: bool| {
        let options = SchedulerOptions { squeeze_thinking, growth_quantile: 0.0, ..options(20) };
        let mut world = World::with(options, CacheOptions::default(), 5..7);
        // What was seen before was short: both are let in.
        let mut lengths = Lengths::default();
        for _ in 0..200 {
            lengths.end(None, Part::Thinking, 3, true, 0);
            lengths.end(None, Part::Answer, 2, true, 0);
        }
        world.scheduler = Scheduler::new(options).with_lengths(lengths);
        for request in &requests {
            world.scheduler.submit(Duration::ZERO, request, || Some(Box::new(Second(0)))).unwrap();
        }
        world.run();
        assert_eq!(world.pool.free_blocks(), 20);
        world
    };
    let (whole, squeezed) = (run(false), run(true));
    assert!(whole.preemptions > 0);
    assert_eq!(squeezed.preemptions, 0);
    let by = |world: &World, request: &Request| world.ended[&id(request)].thinking.unwrap().closed_by;
    assert_ne!(by(&whole, &requests[1]), Some(CloseReason::Memory), "it is off by itself");
    assert_eq!(by(&squeezed, &requests[1]), Some(CloseReason::Memory));
    assert_eq!(squeezed.outputs[&id(&requests[0])], whole.outputs[&id(&requests[0])], "the first goes on");
    requests.iter().for_each(|request| check(request, &squeezed));
}
