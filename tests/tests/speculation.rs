//! Speculative decoding changes no token: with a draft that is right, one that is wrong, one with a short
//! context; at any temperature, with penalties, stop strings and budgets; in company and under preemption.

use std::path::{Path, PathBuf};

use ponder::{BackendChoice, DraftOptions, Engine, EngineOptions, Generation, Prompt};
use ponder_engine::request::SamplingParams;
use ponder_engine::schedule::DraftPolicy;
use ponder_engine::spec::{LengthOptions, Lookup};
use ponder_tests::{root, tiny_model};
use safetensors::Dtype;

const QUESTIONS: [&str; 4] = ["What is 15% of 80?", "Sort 5, 3, 9.", "Is 91 prime? Think.", "a"];

#[derive(Clone, Copy, Debug)]
struct Way {
    drafts: DraftPolicy,
    lookup: Lookup,
    /// Requests at once.
    company: usize,
    /// Longest sequences that the pool holds; 0 is plenty.
    pool: usize,
    chunk: usize,
}

const FIXED: Way = Way { drafts: DraftPolicy::Fixed(4), lookup: Lookup::None, company: 1, pool: 0, chunk: 512 };

fn ways() -> Vec<Way> {
    vec![
        FIXED,
        Way { drafts: DraftPolicy::Fixed(1), chunk: 7, ..FIXED },
        Way { drafts: DraftPolicy::Auto(LengthOptions::default()), lookup: Lookup::Suffix, company: 4, ..FIXED },
        Way { lookup: Lookup::Suffix, company: 4, pool: 2, chunk: 7, ..FIXED },
        Way { drafts: DraftPolicy::Fixed(32), company: 2, ..FIXED },
    ]
}

/// An engine for the target, with the draft unless `way` is none.
fn engine(base: &EngineOptions, draft: Option<(&Path, Way)>) -> Engine {
    let mut options = EngineOptions { drafts: DraftPolicy::Off, ..base.clone() };
    if let Some((path, way)) = draft {
        options.draft = Some(DraftOptions::new(path));
        (options.drafts, options.lookup) = (way.drafts, way.lookup);
        (options.max_num_seqs, options.prefill_chunk) = (way.company, way.chunk);
        if way.pool > 0 {
            let opened = ponder::Opened::open(options.clone()).unwrap();
            let configs = [&opened.checkpoint.config, &opened.draft.as_ref().unwrap().config];
            let token: usize = configs.iter().map(|c| c.kv_bytes_per_token(options.kv_cache_dtype)).sum();
            options.kv_memory = Some((token * options.max_model_len.unwrap() * way.pool) as u64);
        }
    }
    Engine::load(options, |_| {}).unwrap()
}

fn answers(engine: &Engine, params: &[SamplingParams]) -> Vec<Vec<u32>> {
    let ask = |(i, p): (usize, &SamplingParams)| engine.generate(Prompt::user(QUESTIONS[i % 4]), p.clone()).unwrap();
    let running: Vec<Generation> = params.iter().enumerate().map(ask).collect();
    running.into_iter().map(|g| g.complete().unwrap().token_ids).collect()
}

/// One request of every kind.
fn kinds(tokens: usize) -> Vec<SamplingParams> {
    let base = SamplingParams { max_tokens: Some(tokens), seed: 5, ..SamplingParams::default() };
    vec![
        base.clone(),
        SamplingParams { temperature: 0.6, top_p: 0.95, ..base.clone() },
        SamplingParams { temperature: 1.0, ..base.clone() },
        SamplingParams {
            temperature: 1.0,
            min_p: 0.02,
            repetition_penalty: 1.1,
            frequency_penalty: 0.3,
            ..base.clone()
        },
        SamplingParams { temperature: 0.6, presence_penalty: 0.5, logit_bias: vec![(50, 3.0)], ..base.clone() },
        SamplingParams { temperature: 1.0, stop: vec!["e".into(), "1".into()], ..base.clone() },
        SamplingParams { thinking_token_budget: Some(5), answer_reserve: Some(4), ..base.clone() },
        SamplingParams { temperature: 1.0, thinking_token_budget: Some(0), ..base },
    ]
}

/// Tokens per pass of the target under the first way.
fn check(name: &str, base: &EngineOptions, draft: &Path, ways: &[Way], params: &[SamplingParams]) -> f64 {
    let want = answers(&engine(base, None), params);
    assert!(want.iter().map(Vec::len).max().unwrap() > 8 && want[0] != want[1], "{name}: vacuous: {want:?}");
    let mut first = None;
    for way in ways {
        let engine = engine(base, Some((draft, *way)));
        assert_eq!(answers(&engine, params), want, "{name}: {way:?}");
        let report = engine.handle().tracer().speculation();
        assert!(report.total().drafted > 0, "{name}: {way:?} guessed nothing");
        first.get_or_insert(report.tokens_per_pass());
    }
    first.unwrap()
}

fn base(backend: BackendChoice, model: PathBuf, len: usize) -> EngineOptions {
    EngineOptions { backend, max_model_len: Some(len), max_num_seqs: 4, ..EngineOptions::new(model) }
}

fn has_wgpu(test: &str) -> bool {
    let there = ponder::backends::list().iter().any(|d| d.backend == "wgpu");
    if !there {
        println!("SKIP: {test} on wgpu: there is no adapter; Debian's mesa-vulkan-drivers brings a software one");
    }
    there
}

#[test]
fn tiny_pairs_on_the_cpu() {
    let target = tiny_model::hugging_face("llama", Dtype::F32);
    let other = tiny_model::hugging_face("qwen3", Dtype::F16);
    let base = base(BackendChoice::Cpu, target.path(), 256);
    // The same weights: every guess is right, whatever the temperature, because both draw the same noise.
    let per_pass = check("itself", &base, &target.path(), &ways(), &kinds(32));
    assert!(per_pass > 3.0, "{per_pass} tokens a pass with a perfect draft");
    check("another family", &base, &other.path(), &ways(), &kinds(32));
    // A draft that knows 64 positions only.
    let short = tiny_model::hugging_face("llama", Dtype::F32);
    let file = short.path().join("config.json");
    let config = std::fs::read_to_string(&file)
        .unwrap()
        .replace("\"max_position_embeddings\":512", "\"max_position_embeddings\":64");
    std::fs::write(file, config).unwrap();
    check("a short context", &base, &short.path(), &[FIXED], &kinds(48));
}

#[test]
fn tiny_pairs_on_wgpu_and_on_both() {
    if !has_wgpu("tiny_pairs_on_wgpu_and_on_both") {
        return;
    }
    let target = tiny_model::hugging_face("llama", Dtype::F32);
    let ways = [FIXED, Way { company: 4, pool: 2, chunk: 7, ..FIXED }];
    let base = base(BackendChoice::Wgpu, target.path(), 256);
    let per_pass = check("itself on wgpu", &base, &target.path(), &ways, &kinds(16)[..6]);
    assert!(per_pass > 2.5, "{per_pass}");
    // The target on one backend, the draft on another: they round differently, and agree nearly always.
    let mut options = EngineOptions { drafts: DraftPolicy::Fixed(3), ..base.clone() };
    options.draft = Some(DraftOptions { backend: Some(BackendChoice::Cpu), ..DraftOptions::new(target.path()) });
    let params = &kinds(16)[..4];
    let want = answers(&engine(&base, None), params);
    let mixed = Engine::load(options, |_| {}).unwrap();
    assert_eq!(answers(&mixed, params), want, "the draft on the CPU");
    assert!(mixed.handle().tracer().speculation().tokens_per_pass() > 2.0);
}

#[test]
fn the_bundled_pair_thinks_the_same() {
    let models = root().join("models");
    let base = base(BackendChoice::Cpu, models.join("target"), 512);
    let per_pass = check("bundled", &base, &models.join("draft"), &ways()[..4], &kinds(96));
    println!("the bundled pair: {per_pass:.2} tokens per pass with 4 guesses, over all kinds of requests");
}

#[test]
fn a_draft_with_other_tokens_is_refused_with_the_first() {
    let target = tiny_model::hugging_face("llama", Dtype::F32);
    let other = tiny_model::hugging_face("llama", Dtype::F32);
    let file = other.path().join("tokenizer.json");
    let swapped = std::fs::read_to_string(&file).unwrap();
    let swapped = swapped.replace("\"A\":65", "\"A\":66_").replace("\"B\":66,", "\"B\":65,").replace("66_", "66");
    std::fs::write(file, swapped).unwrap();
    let refused = |draft: PathBuf| {
        let options =
            EngineOptions { draft: Some(DraftOptions::new(draft)), ..base(BackendChoice::Cpu, target.path(), 128) };
        ponder::Opened::open(options).err().expect("refused").to_string()
    };
    let said = refused(other.path());
    assert!(said.starts_with("draft_model: another tokenizer: token 65 is \"B\""), "{said}");
    let said = refused(root().join("models/target"));
    assert!(said.starts_with("draft_model: another tokenizer: token"), "{said}");
}
