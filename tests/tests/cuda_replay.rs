//! A device that is lost in the middle of its work, on the CUDA kernels as the CPU executes them: another is
//! made, the sequences in flight are replayed on it from their tokens, and the answers are those of a device
//! that never failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ponder_actors::{BatchRunner, Generation, Loader, Submission, System, SystemOptions};
use ponder_cuda::EmulatedCuda;
use ponder_engine::backend::Backend;
use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::format::KvFormat;
use ponder_engine::kv::CacheOptions;
use ponder_engine::model::record::KvShape;
use ponder_engine::model::runner::{ModelRunner, RunnerOptions};
use ponder_engine::request::{Finish, SamplingParams};
use ponder_engine::schedule::{DraftPolicy, SchedulerOptions};
use ponder_engine::spec::{Lookup, Source};
use ponder_engine::{DeviceFault, Error};
use ponder_tests::tiny_model;
use safetensors::Dtype;

const SIZES: RunnerOptions = RunnerOptions {
    max_rows: 32,
    max_logit_rows: 4,
    max_seqs: 4,
    max_model_len: 64,
    kv: KvShape { blocks: 24, block_size: 16, format: KvFormat::F16 },
};

/// Tokens and ends of three answers. The first device is lost at its `lose_after`-th launch, if at any; how many
/// devices were made.
fn answers(lose_after: Option<u64>) -> (Vec<(Vec<u32>, Finish)>, usize) {
    let model = tiny_model::hugging_face("llama", Dtype::F32);
    let (path, made) = (model.path(), Arc::new(AtomicUsize::new(0)));
    let devices = made.clone();
    let target: Loader = Arc::new(move || {
        let mut backend = EmulatedCuda::new(1)?;
        if let Some(launches) = lose_after.filter(|_| devices.fetch_add(1, Ordering::SeqCst) == 0) {
            backend.device().lose_after(launches);
        }
        let runner = ModelRunner::load(backend, &Checkpoint::open(&path)?, SIZES, &mut |_, _| {})?;
        Ok(Box::new(runner) as Box<dyn BatchRunner>)
    });
    let scheduler = SchedulerOptions {
        max_step_tokens: SIZES.max_rows,
        prefill_chunk: 8,
        max_seqs: SIZES.max_seqs,
        max_waiting: 100,
        growth_quantile: 0.8,
        policy: Default::default(),
        max_model_len: SIZES.max_model_len,
        blocks: SIZES.kv.blocks,
        block_size: SIZES.kv.block_size,
        block_bytes: 1,
        drafts: DraftPolicy::Off,
        drafter: Source::Nobody,
        max_logit_rows: SIZES.max_logit_rows,
        squeeze_thinking: false,
        max_wait: None,
    };
    let options = SystemOptions {
        scheduler,
        cache: CacheOptions::default(),
        target,
        tokenizer: Arc::new(Checkpoint::open(&model.path()).unwrap().tokenizer().unwrap()),
        lookup: Lookup::None,
        draft: None,
        step_timeout: Duration::from_secs(120),
        lengths: Default::default(),
        keep_lengths: None,
    };
    let system = System::start(options).unwrap();
    let ask = |i: u32| {
        let params =
            SamplingParams { max_tokens: Some(6), temperature: 0.9, seed: u64::from(i), ..SamplingParams::default() };
        let prompt = (0..9 + i).map(|t| 65 + (t * 7 + i) % 26).collect();
        let submission = Submission { prompt, params, eos: vec![], thinking: None, grammar: None, tenant: "".into() };
        system.handle().submit_blocking(submission).unwrap()
    };
    let running: Vec<Generation> = (0..3).map(ask).collect();
    let answers = running.into_iter().map(|mut generation| {
        let (mut tokens, mut end) = (Vec::new(), None);
        while let Some(update) = generation.next_blocking() {
            tokens.extend(update.tokens);
            end = update.finish;
        }
        (tokens, end.expect("every answer ends").why)
    });
    (answers.collect(), made.load(Ordering::SeqCst))
}

#[test]
fn sequences_are_replayed_after_a_cuda_device_is_lost() {
    match EmulatedCuda::new(1) {
        Err(Error::Device { what: DeviceFault::Unsupported(why), .. }) => return println!("SKIP: {why}"),
        other => drop(other.unwrap().info().clone()),
    }
    let (want, _) = answers(None);
    assert!(want.iter().all(|(tokens, _)| tokens.len() == 6), "{want:?}");
    // In the first step, in the middle of a prefill, and while all decode.
    for launches in [0, 2, 6] {
        assert_eq!(answers(Some(launches)), (want.clone(), 2), "lost at launch {launches}");
    }
}
