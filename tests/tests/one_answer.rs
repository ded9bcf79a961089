//! One answer: a request's tokens are the same alone, in company, in chunks of any size, on any number
//! of threads, whatever of it is in the cache already, and with a pool so small that it is preempted, be it computed
//! again or swapped.

use std::path::PathBuf;

use ponder::{BackendChoice, Completion, Engine, EngineOptions, Generation, Prompt};
use ponder_engine::format::{Format, KvFormat};
use ponder_engine::kv::Preemption;
use ponder_engine::request::SamplingParams;
use ponder_tests::{smollm2, tiny_model};
use safetensors::Dtype;

/// A way to run.
#[derive(Clone, Copy, Debug)]
struct Way {
    chunk: usize,
    threads: usize,
    /// Requests that run beside the one that is looked at.
    company: usize,
    /// Tokens of the longest sequences that the pool holds; 0 is plenty, with 1 somebody is preempted.
    pool: usize,
    /// Times that everything is asked before: its prompts, and its answers, are in the cache.
    before: usize,
    preemption: Preemption,
    caching: bool,
}

const ALONE: Way =
    Way { chunk: 512, threads: 1, company: 0, pool: 0, before: 0, preemption: Preemption::Auto, caching: false };

const CACHED: Way = Way { caching: true, ..ALONE };

const WAYS: [Way; 12] = [
    Way { threads: 2, ..ALONE },
    Way { chunk: 1, threads: 2, ..ALONE },
    Way { chunk: 7, ..ALONE },
    Way { company: 16, threads: 2, ..ALONE },
    Way { company: 16, chunk: 7, threads: 2, ..ALONE },
    Way { company: 5, chunk: 7, pool: 2, ..ALONE },
    CACHED,
    Way { before: 2, ..CACHED },
    Way { before: 1, company: 16, chunk: 7, threads: 2, ..CACHED },
    Way { company: 12, pool: 1, preemption: Preemption::Recompute, ..CACHED },
    Way { company: 12, pool: 1, chunk: 7, preemption: Preemption::Swap, ..CACHED },
    Way { company: 12, pool: 1, preemption: Preemption::Swap, ..ALONE },
];

struct Case {
    options: EngineOptions,
    params: SamplingParams,
    prompts: Vec<String>,
}

impl Case {
    /// Token ids of the answers to the first prompts, `count` of them, when the requests run this way.
    ///
    /// The requests come one by one, and a fast engine may end the first before the last has come, so that
    /// nobody has to be preempted. A way that is about that runs again until somebody was.
    fn answers(&self, way: Way, count: usize) -> Vec<Vec<u32>> {
        for _ in 0..20 {
            let (answers, preempted) = self.run(way, count);
            if preempted || way.pool != 1 {
                return answers;
            }
        }
        panic!("{way:?}: nobody was preempted in 20 runs");
    }

    /// One run: the answers, and whether one of all the requests was preempted in this way.
    fn run(&self, way: Way, count: usize) -> (Vec<Vec<u32>>, bool) {
        let len = self.options.max_model_len.expect("set by every case");
        let options = EngineOptions {
            prefill_chunk: way.chunk,
            threads: way.threads,
            max_num_seqs: way.company + 1,
            max_step_tokens: 512,
            prefix_caching: way.caching,
            preemption: way.preemption,
            swap_space: 64 << 20,
            // Who looks ahead lets nobody in who would have to be preempted.
            growth_quantile: if way.pool > 0 { 0.0 } else { self.options.growth_quantile },
            ..self.options.clone()
        };
        let mut options = options;
        if way.pool > 0 {
            let opened = ponder::Opened::open(options.clone()).unwrap();
            let token = opened.checkpoint.config.kv_bytes(options.kv_cache_dtype).per_token();
            options.kv_memory = Some(token * (len.next_multiple_of(16) * way.pool) as u64);
        }
        let engine = Engine::load(options, |_| {}).unwrap();
        let ask = |i: usize| {
            let prompt = Prompt::user(self.prompts[i % self.prompts.len()].repeat(1 + i / self.prompts.len()));
            let params = SamplingParams { seed: self.params.seed + i as u64, ..self.params.clone() };
            engine.generate(prompt, params).unwrap()
        };
        let all = way.company.max(count - 1);
        for _ in 0..way.before {
            (0..=all).map(ask).collect::<Vec<_>>().into_iter().for_each(|g| drop(g.complete().unwrap()));
        }
        let running: Vec<Generation> = (0..=all).map(ask).collect();
        let ended: Vec<_> = running.into_iter().map(|g| g.complete().unwrap()).collect();
        let cached = |c: &Completion| c.cached_tokens > c.prompt_tokens / 2;
        assert!(way.before == 0 || ended.iter().all(cached), "{way:?}: nothing was found in the cache");
        let preemptions = futures::executor::block_on(engine.handle().view()).unwrap().totals.preemptions;
        let recomputed: usize = ended.iter().map(|c| c.recomputed_tokens).sum();
        let preempted = preemptions > 0 && (way.preemption != Preemption::Recompute || recomputed > 0);
        (ended.into_iter().take(count).map(|c| c.token_ids).collect(), preempted)
    }

    fn check(&self, name: &str, ways: &[Way]) {
        let want = self.answers(ALONE, 2);
        let longest = want.iter().map(Vec::len).max().unwrap();
        let distinct = |ids: &Vec<u32>| ids.iter().collect::<std::collections::HashSet<_>>().len();
        assert!(longest > 8 && want.iter().any(|w| distinct(w) > 4) && want[0] != want[1], "{name}: vacuous: {want:?}");
        for way in ways {
            assert_eq!(self.answers(*way, 2), want, "{name}: {way:?}");
        }
    }
}

fn prompts() -> Vec<String> {
    let questions = [
        "What is 15% of 80?",
        "Name three primes.",
        "Why is the sky blue? Explain it to a child, in a few short sentences.",
        "Écris une phrase.",
        "a",
    ];
    questions.map(String::from).to_vec()
}

fn case(backend: BackendChoice, model: PathBuf, params: &SamplingParams, max_model_len: usize, kv: KvFormat) -> Case {
    let options =
        EngineOptions { backend, max_model_len: Some(max_model_len), kv_cache_dtype: kv, ..EngineOptions::new(model) };
    Case { options, params: params.clone(), prompts: prompts() }
}

/// The backends that run here: the CPU always, wgpu where there is an adapter.
fn backends(test: &str) -> Vec<BackendChoice> {
    if ponder::backends::list().iter().any(|d| d.backend == "wgpu") {
        return vec![BackendChoice::Cpu, BackendChoice::Wgpu];
    }
    println!("SKIP: {test} on wgpu: there is no adapter; Debian's mesa-vulkan-drivers brings a software one");
    vec![BackendChoice::Cpu]
}

#[test]
fn tiny_models_of_every_family() {
    let greedy = SamplingParams { max_tokens: Some(24), ignore_eos: true, ..SamplingParams::default() };
    let random = SamplingParams {
        temperature: 1.2,
        top_p: 0.95,
        repetition_penalty: 1.1,
        frequency_penalty: 0.2,
        seed: 11,
        ..greedy.clone()
    };
    let models = [
        ("llama", tiny_model::hugging_face("llama", Dtype::F32), KvFormat::F32),
        ("qwen2", tiny_model::hugging_face("qwen2", Dtype::BF16), KvFormat::F16),
        ("qwen3", tiny_model::hugging_face("qwen3", Dtype::F16), KvFormat::BF16),
        ("gguf", tiny_model::gguf(Format::Q4_1), KvFormat::F16),
        ("llama, fp8", tiny_model::hugging_face("llama", Dtype::F32), KvFormat::E2M5),
        ("qwen3, fp8", tiny_model::hugging_face("qwen3", Dtype::F16), KvFormat::E2M5),
    ];
    for backend in backends("tiny_models_of_every_family") {
        for (name, model, kv) in &models {
            case(backend, model.path(), &greedy, 480, *kv).check(&format!("{name} on {backend}"), &WAYS);
            case(backend, model.path(), &random, 480, *kv).check(&format!("{name} on {backend}, sampled"), &WAYS);
        }
    }
}

#[test]
fn the_real_model() {
    let Some(model) = smollm2("the_real_model") else { return };
    let greedy = SamplingParams { max_tokens: Some(32), ignore_eos: true, ..SamplingParams::default() };
    for kv in [KvFormat::F16, KvFormat::E2M5] {
        case(BackendChoice::Cpu, model.clone(), &greedy, 512, kv).check(&format!("SmolLM2 on cpu, {kv}"), &WAYS);
    }
    if backends("the_real_model").contains(&BackendChoice::Wgpu) {
        // A software adapter computes a few tokens a second: fewer tokens, and the ways that differ most.
        let short = SamplingParams { max_tokens: Some(10), ..greedy };
        let ways = [Way { chunk: 7, ..ALONE }, Way { company: 16, ..ALONE }];
        case(BackendChoice::Wgpu, model.clone(), &short, 512, KvFormat::F16).check("SmolLM2 on wgpu", &ways);
        let fp8 = case(BackendChoice::Wgpu, model, &short, 512, KvFormat::E2M5);
        fp8.check("SmolLM2 on wgpu, fp8", &[Way { chunk: 7, ..ALONE }]);
    }
}
