//! The whole system of actors around a model that is a hash: what it reads through the block tables
//! decides what it says, so a wrong table, a lost token or a stale cache changes the text.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ponder_actors::{BatchRunner, Generation, Loader, Submission, System, SystemOptions, Update};
use ponder_engine::grammar::{Grammar, GrammarSource, TokenMask};
use ponder_engine::kv::CacheOptions;
use ponder_engine::model::batch::{Batch, BatchOutput};
use ponder_engine::op::ERROR_TOKEN;
use ponder_engine::request::{Finish, SamplingParams, SeqId};
use ponder_engine::schedule::{DraftPolicy, SchedulerOptions};
use ponder_engine::spec::{LengthOptions, Lookup, Source};

mod common;

const BLOCK: usize = 4;
/// A prompt token whose sequence breaks the device after some answer tokens.
const POISON: u32 = 200;
/// A prompt token whose sequence hangs the device once.
const HANG: u32 = 201;
/// A prompt token whose sequence gives NaN logits.
const NAN: u32 = 202;

/// A seed under which only the last two tokens count.
const PERIODIC: u32 = 77;

/// A model that takes its time to go.
struct Slow(Hash, Arc<AtomicUsize>);

impl BatchRunner for Slow {
    fn run(&mut self, batch: &Batch) -> ponder_engine::Result<BatchOutput> {
        self.0.run(batch)
    }
    fn device_time(&self) -> Duration {
        Duration::ZERO
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(300));
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

/// The model: the next token is a hash of all tokens before it, read from the cache.
struct Hash {
    slots: Vec<Option<(u32, u32)>>, // (position, token)
    hangs: Arc<AtomicUsize>,
    runs: Arc<AtomicUsize>,
}

impl BatchRunner for Hash {
    fn run(&mut self, batch: &Batch) -> ponder_engine::Result<BatchOutput> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let slot = |seq: u32, p: u32| {
            let table = &batch.block_tables[seq as usize];
            table[p as usize / BLOCK] as usize * BLOCK + p as usize % BLOCK
        };
        assert!(batch.copies.swapped() == 0, "there is no host memory");
        for (from, to) in &batch.copies.copy {
            let (from, to) = (*from as usize * BLOCK, *to as usize * BLOCK);
            self.slots.copy_within(from..from + BLOCK, to);
        }
        for row in &batch.rows {
            self.slots[slot(row.seq, row.position)] = Some((row.position, row.token));
        }
        let mut tokens = Vec::new();
        for logit in &batch.logit_rows {
            let row = &batch.rows[logit.row as usize];
            let log: Vec<u32> = (0..=row.position)
                .map(|p| {
                    let (position, token) = self.slots[slot(row.seq, p)].expect("an unwritten slot was read");
                    assert_eq!(position, p, "a foreign slot was read");
                    token
                })
                .collect();
            assert!(!(log.contains(&POISON) && log.len() > 12), "poisoned prompt");
            if log.contains(&HANG) && log.len() > 8 && self.hangs.fetch_add(1, Ordering::SeqCst) == 0 {
                std::thread::sleep(Duration::from_secs(2));
            }
            let hash = match logit.params.seed_lo {
                // Soon periodic, so that it can be guessed.
                PERIODIC => log[log.len() - 2..].iter().sum(),
                seed => log.iter().fold(seed, |h, t| h.wrapping_mul(31).wrapping_add(*t)),
            };
            let letters = if logit.params.seed_lo == PERIODIC { 5 } else { 26 };
            let nothing_allowed = logit.mask.as_ref().is_some_and(|mask| mask.iter().all(|word| *word == 0));
            tokens.push(if log.contains(&NAN) || nothing_allowed { ERROR_TOKEN } else { 97 + hash % letters });
        }
        Ok(BatchOutput { tokens, logits: Vec::new(), ..BatchOutput::default() })
    }
    fn device_time(&self) -> Duration {
        Duration::ZERO
    }
}

fn system(blocks: usize) -> System {
    drafting(blocks, Lookup::None, DraftPolicy::Off, Arc::default())
}

/// A system with a drafter; `runs` counts the steps of the device.
fn drafting(blocks: usize, lookup: Lookup, drafts: DraftPolicy, runs: Arc<AtomicUsize>) -> System {
    let hangs = Arc::new(AtomicUsize::new(0));
    let target: Loader = Arc::new(move || {
        let model = Hash { slots: vec![None; 64 * 64], hangs: hangs.clone(), runs: runs.clone() };
        Ok(Box::new(model) as Box<dyn BatchRunner>)
    });
    with_model(target, blocks, lookup, drafts)
}

fn with_model(target: Loader, blocks: usize, lookup: Lookup, drafts: DraftPolicy) -> System {
    let scheduler = SchedulerOptions {
        max_step_tokens: 32,
        prefill_chunk: 7,
        max_seqs: 8,
        max_waiting: 1000,
        growth_quantile: 0.8,
        policy: Default::default(),
        max_model_len: 120,
        blocks,
        block_size: BLOCK,
        block_bytes: 1,
        drafts,
        drafter: Source::Suffix,
        max_logit_rows: 64,
        squeeze_thinking: false,
        max_wait: None,
    };
    let tokenizer = Arc::new(common::tokenizer());
    let step_timeout = Duration::from_millis(500);
    let (cache, lengths, keep_lengths) = (CacheOptions::default(), Default::default(), None);
    let options =
        SystemOptions { scheduler, cache, target, tokenizer, lookup, draft: None, step_timeout, lengths, keep_lengths };
    System::start(options).unwrap()
}

fn submission(prompt: &[u32], max_tokens: usize) -> Submission {
    let params = SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() };
    Submission { prompt: prompt.to_vec(), params, eos: vec![0], thinking: None, grammar: None, tenant: "".into() }
}

fn submit(system: &System, submission: Submission) -> Generation {
    system.handle().submit_blocking(submission).unwrap()
}

/// Text, tokens and end of a request with one answer.
fn collect(mut generation: Generation) -> (String, Vec<u32>, Finish) {
    let (mut text, mut tokens, mut end) = (String::new(), Vec::new(), None);
    while let Some(Update { text: more, tokens: new, finish, .. }) = generation.next_blocking() {
        assert!(end.is_none(), "an update after the end");
        text += &more;
        tokens.extend(new);
        end = finish;
    }
    (text, tokens, end.expect("every answer ends").why)
}

fn alone(prompt: &[u32], max_tokens: usize) -> String {
    collect(submit(&system(64), submission(prompt, max_tokens))).0
}

fn prompt(i: u32) -> Vec<u32> {
    (0..3 + i * 5 % 17).map(|t| 65 + (t * 7 + i) % 26).collect()
}

/// Else a process that ends right after would have its drivers torn down under the device's thread.
#[test]
fn the_end_of_a_system_waits_for_its_devices() {
    let gone = Arc::new(AtomicUsize::new(0));
    let count = gone.clone();
    let target: Loader = Arc::new(move || {
        let model = Hash { slots: vec![None; 64 * 64], hangs: Arc::default(), runs: Arc::default() };
        Ok(Box::new(Slow(model, count.clone())) as Box<dyn BatchRunner>)
    });
    let system = with_model(target, 64, Lookup::None, DraftPolicy::Off);
    assert_eq!(collect(submit(&system, submission(&prompt(1), 8))).1.len(), 8);
    drop(system);
    assert_eq!(gone.load(Ordering::SeqCst), 1);
}

#[test]
fn answers_are_the_same_alone_and_in_company() {
    let want: Vec<String> = (0..12).map(|i| alone(&prompt(i), 20)).collect();
    for blocks in [200, 30] {
        let system = system(blocks);
        let running: Vec<Generation> = (0..12).map(|i| submit(&system, submission(&prompt(i), 20))).collect();
        for (generation, want) in running.into_iter().zip(&want) {
            let (text, tokens, end) = collect(generation);
            assert_eq!((&text, tokens.len(), end), (want, 20, Finish::Length), "{blocks} blocks");
        }
    }
}

#[test]
fn several_answers_differ_by_choice_only_in_their_seed() {
    let system = system(64);
    let mut asked = submission(&prompt(1), 6);
    asked.params.n = 3;
    let mut generation = submit(&system, asked);
    let mut texts = [const { String::new() }; 3];
    let mut ends = 0;
    while let Some(update) = generation.next_blocking() {
        texts[update.choice as usize] += &update.text;
        ends += usize::from(update.finish.is_some());
    }
    assert_eq!(ends, 3);
    assert!(texts.iter().all(|t| *t == texts[0] && t.len() == 6), "the hash ignores the choice: {texts:?}");
}

#[test]
fn guessing_changes_nothing_but_the_number_of_steps() {
    let ask = |system: &System, i: u32, seed: u64| {
        let mut asked = submission(&prompt(i), 60);
        asked.params.seed = seed;
        submit(system, asked)
    };
    for (seed, predictable) in [(u64::from(PERIODIC), true), (5, false)] {
        let plain = Arc::new(AtomicUsize::new(0));
        let system = drafting(200, Lookup::None, DraftPolicy::Off, plain.clone());
        let want: Vec<String> = (0..3).map(|i| collect(ask(&system, i, seed)).0).collect();
        for drafter in [Lookup::Ngram, Lookup::Suffix] {
            for policy in [DraftPolicy::Fixed(1), DraftPolicy::Fixed(5), DraftPolicy::Auto(LengthOptions::default())] {
                // One at a time in a large pool, then together in a small one.
                let runs = Arc::new(AtomicUsize::new(0));
                let system = drafting(200, drafter, policy, runs.clone());
                (0..3).for_each(|i| assert_eq!(collect(ask(&system, i, seed)).0, want[i as usize]));
                if predictable && policy == DraftPolicy::Fixed(5) {
                    let (with, without) = (runs.load(Ordering::SeqCst), plain.load(Ordering::SeqCst));
                    assert!(10 * with < 6 * without, "{with} steps with {drafter:?}, {without} without");
                }
                let system = drafting(26, drafter, policy, Arc::default());
                let together: Vec<Generation> = (0..3).map(|i| ask(&system, i, seed)).collect();
                together.into_iter().zip(&want).for_each(|(g, want)| assert_eq!(&collect(g).0, want));
            }
        }
    }
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let full = alone(&prompt(2), 30);
    let stop = &full[9..12];
    let at = full.find(stop).unwrap();
    let mut asked = submission(&prompt(2), 30);
    asked.params.stop = vec![stop.to_string()];
    let (text, _, end) = collect(submit(&system(64), asked));
    assert_eq!((text.as_str(), end), (&full[..at], Finish::StopString { text: stop.into() }));
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let system = system(30);
    for i in 0..20 {
        let mut generation = submit(&system, submission(&prompt(i), 60));
        if i % 2 == 0 {
            generation.next_blocking();
        }
    }
    // Were anything held, this one could not run: it needs nearly the whole pool.
    let (text, ..) = collect(submit(&system, submission(&prompt(3), 100)));
    assert_eq!(text.len(), 100);
}

#[test]
fn a_request_that_breaks_the_device_fails_alone() {
    let want: Vec<String> = (0..4).map(|i| alone(&prompt(i), 25)).collect();
    let system = system(200);
    let poisoned = submit(&system, submission(&[POISON, 70, 71], 40));
    let running: Vec<Generation> = (0..4).map(|i| submit(&system, submission(&prompt(i), 25))).collect();
    for (generation, want) in running.into_iter().zip(&want) {
        assert_eq!(&collect(generation).0, want);
    }
    let (text, _, end) = collect(poisoned);
    assert!(matches!(&end, Finish::Failed { reason } if reason.contains("poisoned prompt")), "{end:?}");
    assert_eq!(text.len(), 10, "what was said before stays said");
}

#[test]
fn a_device_that_hangs_once_is_replaced_and_nobody_notices() {
    let want = alone(&prompt(5), 25);
    let system = system(200);
    let hanging = submit(&system, submission(&[HANG, 70, 71], 20));
    let other = submit(&system, submission(&prompt(5), 25));
    assert_eq!(collect(other).0, want);
    assert_eq!(collect(hanging).1.len(), 20);
}

#[test]
fn broken_numbers_fail_one_request() {
    let want = alone(&prompt(6), 15);
    let system = system(200);
    let broken = submit(&system, submission(&[NAN, 70], 10));
    let other = submit(&system, submission(&prompt(6), 15));
    assert_eq!(collect(other).0, want);
    let (text, _, end) = collect(broken);
    assert!(text.is_empty() && matches!(&end, Finish::Failed { reason } if reason.contains("NaN")), "{end:?}");
}

/// Allows everything for so many tokens; then it fails.
struct Breaks {
    after: usize,
    taken: usize,
}

impl Grammar for Breaks {
    fn mask(&mut self) -> Result<TokenMask, String> {
        if self.taken < self.after { Ok([u32::MAX; 8].into()) } else { Err("too many states".into()) }
    }
    fn words(&self) -> usize {
        8
    }
    fn push(&mut self, _: u32) -> bool {
        self.taken += 1;
        true
    }
    fn rollback(&mut self, tokens: usize) {
        self.taken -= tokens;
    }
}

#[test]
fn a_grammar_that_breaks_ends_its_request_and_no_other() {
    let want = alone(&prompt(6), 15);
    // Guesses run ahead of the text into the failure; that they are wrong there must end nothing early.
    for (lookup, drafts) in [(Lookup::None, DraftPolicy::Off), (Lookup::Suffix, DraftPolicy::Fixed(5))] {
        let system = drafting(200, lookup, drafts, Arc::default());
        let mut broken = submission(&prompt(6), 15);
        broken.grammar = Some(GrammarSource::new(|| Box::new(Breaks { after: 4, taken: 0 })));
        let broken = submit(&system, broken);
        let other = submit(&system, submission(&prompt(6), 15));
        assert_eq!(collect(other).0, want);
        let (text, _, end) = collect(broken);
        assert_eq!(text, want[..4]);
        let named = matches!(&end, Finish::Failed { reason } if reason == "grammar error: too many states");
        assert!(named, "{end:?}");
    }
}

#[test]
fn refusals_name_the_field() {
    let system = system(7);
    let refused = |s: Submission| system.handle().submit_blocking(s).err().unwrap().to_string();
    assert_eq!(refused(submission(&[], 5)), "prompt: is empty");
    assert!(refused(submission(&[65; 20], 20)).contains("the KV cache holds 28"));
}

#[test]
fn the_life_of_a_request_as_a_tree() {
    let system = system(64);
    system.handle().tracer().listen(true);
    let generation = submit(&system, submission(&prompt(3), 4)); // a prompt of 18 tokens, in chunks of 7
    let id = SeqId { request: generation.id, choice: 0 };
    collect(generation);
    let tree = system.handle().tracer().span_tree(id);
    let documented = include_str!("../../docs/life_of_a_request.md");
    assert!(documented.contains(&tree), "docs/life_of_a_request.md should contain\n{tree}");
    let chrome = system.handle().tracer().chrome_json();
    let events = chrome["traceEvents"].as_array().unwrap();
    assert!(events.len() > 20);
    // Each step says whose it was, and the end what it took.
    let verified = events.iter().filter(|e| e["name"] == "Verify" && e["args"]["answers"][0] == "request 1 answer 0");
    assert_eq!(verified.count(), 6);
    let done = events.iter().find(|e| e["name"] == "done").expect("an end");
    assert_eq!((&done["args"]["ended"]["why"], &done["args"]["ended"]["output_tokens"]), (&"length".into(), &4.into()));
    assert_eq!(done["args"]["stretches"][2]["chosen"], 3);
}
