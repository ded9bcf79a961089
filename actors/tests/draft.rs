//! A draft model beside its target: what it guesses from its own cache, what it costs, and what its faults cost.
//!
//! Both models are a hash of all tokens that they read through the block tables from a cache of their own, so
//! a table or a mark that is wrong makes wrong guesses, and those are counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ponder_actors::{BatchRunner, DraftSetup, Generation, Loader, Submission, System, SystemOptions};
use ponder_engine::model::batch::{Batch, BatchOutput};
use ponder_engine::op::ERROR_TOKEN;
use ponder_engine::request::{Finish, SamplingParams};
use ponder_engine::schedule::{DraftPolicy, SchedulerOptions};
use ponder_engine::spec::{LengthOptions, Lookup, ModelLimits, RolloutLimits, Source};

mod common;

const BLOCK: usize = 4;

/// How a model misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// It does not.
    Good,
    /// It guesses wrong at every third position.
    Wrong,
    /// It panics at every seventh batch.
    Panics,
    /// It hangs at every ninth batch.
    Hangs,
    /// Its logits are NaN at every second batch.
    Nan,
    /// Its logits are always NaN.
    OnlyNan,
    /// It names tokens that there are not.
    Foreign,
    /// Its device refuses every fifth batch.
    Refuses,
    /// A target that takes long enough for a draft to guess on meanwhile.
    Slow,
}

struct Hash {
    cache: HashMap<usize, (u32, u32)>, // (position, token)
    mood: Mood,
    runs: Arc<AtomicUsize>,
}

impl Hash {
    fn slot(batch: &Batch, seq: u32, position: u32) -> usize {
        let table = &batch.block_tables[seq as usize];
        table[position as usize / BLOCK] as usize * BLOCK + position as usize % BLOCK
    }
}

impl BatchRunner for Hash {
    fn run(&mut self, batch: &Batch) -> ponder_engine::Result<BatchOutput> {
        let runs = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        match self.mood {
            Mood::Panics if runs.is_multiple_of(7) => panic!("a bad day"),
            Mood::Hangs if runs.is_multiple_of(9) => std::thread::sleep(Duration::from_millis(400)),
            Mood::Slow => std::thread::sleep(Duration::from_millis(2)),
            Mood::Refuses if runs.is_multiple_of(5) => return Err(ponder_engine::Error::invalid("batch", "not today")),
            _ => {}
        }
        for row in &batch.rows {
            self.cache.insert(Self::slot(batch, row.seq, row.position), (row.position, row.token));
        }
        let choose = |logit: &ponder_engine::model::batch::LogitRow| {
            let row = &batch.rows[logit.row as usize];
            let read = (0..=row.position).map(|p| {
                let (position, token) = self.cache[&Self::slot(batch, row.seq, p)];
                assert_eq!(position, p, "a slot of another position was read");
                token
            });
            let hash = read.fold(7u32, |h, t| h.wrapping_mul(31).wrapping_add(t));
            let token = 97 + (hash >> 7) % 26;
            match self.mood {
                Mood::Wrong if row.position.is_multiple_of(3) => token ^ 1,
                Mood::Nan if runs.is_multiple_of(2) => ERROR_TOKEN,
                Mood::OnlyNan => ERROR_TOKEN,
                Mood::Foreign => 1_000_000 + token,
                _ => token,
            }
        };
        Ok(BatchOutput { tokens: batch.logit_rows.iter().map(choose).collect(), ..BatchOutput::default() })
    }
    fn device_time(&self) -> Duration {
        Duration::ZERO
    }
}

fn loader(mood: Mood, runs: &Arc<AtomicUsize>) -> Loader {
    let runs = runs.clone();
    Arc::new(move || Ok(Box::new(Hash { cache: HashMap::new(), mood, runs: runs.clone() }) as Box<dyn BatchRunner>))
}

/// Tokens that the draft's context holds.
const CONTEXT: usize = 120;

/// A system with a draft in this mood, if any; counts the target's batches.
fn system(blocks: usize, draft: Option<(Mood, usize)>, drafts: DraftPolicy, runs: &Arc<AtomicUsize>) -> System {
    system_with(blocks, draft, drafts, (Mood::Good, runs), false)
}

fn system_with(
    blocks: usize,
    draft: Option<(Mood, usize)>,
    drafts: DraftPolicy,
    (target, runs): (Mood, &Arc<AtomicUsize>),
    ahead: bool,
) -> System {
    let scheduler = SchedulerOptions {
        max_step_tokens: 64,
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
        drafter: Source::Model,
        max_logit_rows: 64,
        squeeze_thinking: false,
        max_wait: None,
    };
    let rollout = RolloutLimits { max_rows: 64, vocab: 256, target_vocab: 256 };
    let draft = draft.map(|(mood, context)| DraftSetup {
        loader: loader(mood, &Arc::default()),
        limits: ModelLimits { rollout, max_model_len: context, blocks, block_size: BLOCK },
        // Only one that hangs is to be given up, however busy the machine is.
        timeout: Duration::from_millis(if mood == Mood::Hangs { 100 } else { 10_000 }),
        ahead,
    });
    System::start(SystemOptions {
        scheduler,
        cache: Default::default(),
        target: loader(target, runs),
        tokenizer: Arc::new(common::tokenizer()),
        lookup: Lookup::None,
        draft,
        step_timeout: Duration::from_secs(20),
        lengths: Default::default(),
        keep_lengths: None,
    })
    .unwrap()
}

fn ask(system: &System, i: u32, max_tokens: usize) -> Generation {
    let params = SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() };
    let prompt = (0..3 + i * 5 % 17).map(|t| 65 + (t * 7 + i) % 26).collect();
    let submission = Submission { prompt, params, eos: vec![0], thinking: None, grammar: None, tenant: "".into() };
    system.handle().submit_blocking(submission).unwrap()
}

fn text(mut generation: Generation) -> String {
    let (mut text, mut end) = (String::new(), None);
    while let Some(update) = generation.next_blocking() {
        text += &update.text;
        end = update.finish;
    }
    assert_eq!(end.expect("every answer ends").why, Finish::Length);
    text
}

fn plain(count: u32) -> Vec<String> {
    let system = system(200, None, DraftPolicy::Off, &Arc::default());
    (0..count).map(|i| text(ask(&system, i, 60))).collect()
}

#[test]
fn a_good_draft_saves_passes_in_any_company_and_memory() {
    let want = plain(4);
    for (blocks, together) in [(200, false), (200, true), (45, true)] {
        let runs = Arc::new(AtomicUsize::new(0));
        let system = system(blocks, Some((Mood::Good, CONTEXT)), DraftPolicy::Fixed(5), &runs);
        if together {
            let all: Vec<Generation> = (0..4).map(|i| ask(&system, i, 60)).collect();
            all.into_iter().zip(&want).for_each(|(g, want)| assert_eq!(&text(g), want, "{blocks} blocks"));
        } else {
            (0..4).for_each(|i| assert_eq!(text(ask(&system, i, 60)), want[i as usize]));
            // 60 tokens at 6 a pass, and up to three for the prompt.
            let runs = runs.load(Ordering::SeqCst);
            assert!(runs <= 4 * 14, "{runs} passes of the target");
        }
        let report = system.handle().tracer().speculation();
        let total = report.total();
        // Its cache is its own, but its blocks are the target's: all it reads is right, so all it guesses is.
        assert_eq!(total.accepted, total.drafted, "{blocks} blocks, together: {together}");
        assert!(total.accepted > 100 && total.steps == report.counts[0][Source::Model as usize].steps);
    }
}

#[test]
fn a_bad_draft_costs_guesses_and_nothing_else() {
    let want = plain(3);
    let moods = [Mood::Wrong, Mood::Panics, Mood::Hangs, Mood::Nan, Mood::OnlyNan, Mood::Foreign, Mood::Refuses];
    for mood in moods {
        for policy in [DraftPolicy::Fixed(4), DraftPolicy::Auto(LengthOptions::default())] {
            let system = system(45, Some((mood, CONTEXT)), policy, &Arc::default());
            let all: Vec<Generation> = (0..3).map(|i| ask(&system, i, 60)).collect();
            all.into_iter().zip(&want).for_each(|(g, want)| assert_eq!(&text(g), want, "{mood:?} {policy:?}"));
            let faults = system.handle().tracer().draft_faults();
            let faulty = matches!(mood, Mood::Panics | Mood::Hangs | Mood::OnlyNan | Mood::Refuses);
            assert!(!faulty || faults > 0 || policy != DraftPolicy::Fixed(4), "{mood:?} was not noticed");
            assert!(faults <= 3, "{mood:?}: {faults} faults, and still on");
        }
    }
}

#[test]
fn a_draft_with_a_shorter_context_is_silent_beyond_it() {
    let want = plain(2);
    let system = system(200, Some((Mood::Good, 32)), DraftPolicy::Fixed(4), &Arc::default());
    (0..2).for_each(|i| assert_eq!(text(ask(&system, i, 60)), want[i as usize]));
    let total = system.handle().tracer().speculation().total();
    assert!(total.accepted == total.drafted && total.drafted > 20 && total.drafted < 60, "{}", total.drafted);
}

#[test]
fn a_draft_on_its_own_device_goes_ahead_and_changes_nothing() {
    let want = plain(4);
    for mood in [Mood::Good, Mood::Wrong, Mood::Panics, Mood::Hangs, Mood::Nan, Mood::Refuses] {
        for blocks in [200, 45] {
            let system =
                system_with(blocks, Some((mood, CONTEXT)), DraftPolicy::Fixed(3), (Mood::Slow, &Arc::default()), true);
            let all: Vec<Generation> = (0..4).map(|i| ask(&system, i, 60)).collect();
            all.into_iter().zip(&want).for_each(|(g, want)| assert_eq!(&text(g), want, "{mood:?}, {blocks} blocks"));
            let tracer = system.handle().tracer();
            let total = tracer.speculation().total();
            if mood == Mood::Good {
                assert_eq!(total.accepted, total.drafted, "what was guessed ahead is as right");
                assert!(tracer.foreseen_guesses() > 0 && tracer.draft_faults() == 0);
            }
        }
    }
}
