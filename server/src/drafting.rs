//! The draft model on its way in: its files, whether it suits its target, its sizes, its thread.

use std::path::PathBuf;
use std::time::Duration;

use ponder_actors::{DraftSetup, Loader};
use ponder_engine::backend::{Backend, DeviceInfo, DeviceKind};
use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::checkpoint::plan::bytes_in_words;
use ponder_engine::model::ModelConfig;
use ponder_engine::model::runner::RunnerOptions;
use ponder_engine::spec::{ModelLimits, RolloutLimits, same_tokens};
use ponder_engine::{Error, Result};

use crate::backends::{self, WithBackend, resolved};
use crate::engine::{First, loader};
use crate::memory::{Beside, free_main_memory};
use crate::options::{BackendChoice, DraftOptions, EngineOptions};
use crate::prompt::Prompter;

/// Weights that fit in the cache beside a core: more threads would only wait for each other.
const ONE_THREAD: u64 = 4 << 20;

/// Opens a draft's files and refuses one that speaks another language.
pub(crate) fn open(options: &DraftOptions, target: &Checkpoint, prompter: &Prompter) -> Result<Checkpoint> {
    let draft = Checkpoint::open(&options.model)?;
    same_tokens(prompter.tokenizer(), &draft.tokenizer()?)?;
    let (ours, theirs) = (target.weight_bytes(), draft.weight_bytes());
    if theirs >= ours {
        let [ours, theirs] = [ours, theirs].map(bytes_in_words);
        tracing::warn!("draft_model: its weights take {theirs}, the model's {ours}: guessing will not be faster");
    }
    Ok(draft)
}

/// Whether model and draft take from one memory.
pub(crate) fn shares_memory(options: &EngineOptions) -> bool {
    let choice = |b: BackendChoice| match resolved(b) {
        BackendChoice::Reference => BackendChoice::Cpu,
        other => other,
    };
    options.draft.as_ref().is_some_and(|d| d.backend.is_none_or(|b| choice(b) == choice(options.backend)))
}

/// Sizes a draft beside its target and makes its loader.
pub(crate) fn setup(
    options: &EngineOptions,
    checkpoint: Checkpoint,
    target: &ModelConfig,
    sizes: &RunnerOptions,
) -> Result<DraftSetup> {
    let draft = options.draft.as_ref().expect("there are files of a draft");
    checkpoint.check_finite(options.threads())?;
    checkpoint.forget_pages();
    let config = checkpoint.config.clone();
    // Beyond its own context it does not guess.
    let max_model_len = sizes.max_model_len.min(config.context);
    let runner = RunnerOptions { max_logit_rows: sizes.max_seqs, max_model_len, ..*sizes };
    if !shares_memory(options) {
        check_memory(options, &checkpoint, &runner)?;
    }
    let threads = match draft.threads {
        0 if checkpoint.weight_bytes() <= ONE_THREAD => 1,
        0 => options.threads,
        n => n,
    };
    let backend = draft.backend.unwrap_or(options.backend);
    let place = EngineOptions { backend, threads, ..options.clone() };
    let make = MakeLoader { path: draft.model.clone(), checkpoint, sizes: runner };
    let (loader, kind) = backends::open(&place, make)?;
    let rollout = RolloutLimits { max_rows: runner.max_rows, vocab: config.vocab, target_vocab: target.vocab };
    let limits = ModelLimits { rollout, max_model_len, blocks: runner.kv.blocks, block_size: runner.kv.block_size };
    Ok(DraftSetup { loader, limits, timeout: timeout(kind), ahead: !shares_memory(options) })
}

/// A draft in a memory of its own: the CPU's beside a GPU, as a rule.
fn check_memory(options: &EngineOptions, checkpoint: &Checkpoint, runner: &RunnerOptions) -> Result<()> {
    let beside = Beside::of(options, &checkpoint.config, checkpoint.weight_bytes());
    let pool = (runner.kv.blocks * runner.kv.block_size) as u64 * beside.kv_per_token;
    match free_main_memory() {
        Some(free) if beside.fixed + pool > free / 10 * 9 => {
            let [needs, has] = [beside.fixed + pool, free / 10 * 9].map(bytes_in_words);
            Err(Error::invalid("draft_model", format!("needs {needs} with its cache and {has} may be used")))
        }
        _ => Ok(()),
    }
}

struct MakeLoader {
    path: PathBuf,
    checkpoint: Checkpoint,
    sizes: RunnerOptions,
}

impl WithBackend for MakeLoader {
    type Out = (Loader, DeviceKind);
    fn with<B: Backend>(
        self,
        info: DeviceInfo,
        make: impl Fn() -> Result<B> + Send + Sync + 'static,
    ) -> Result<Self::Out> {
        Ok((loader(self.path, First::unseen(self.checkpoint), self.sizes, make), info.kind))
    }
}

/// A draft that takes this long hangs: far above any step, kernels compiled on first use included, and far
/// below what a target may take.
fn timeout(kind: DeviceKind) -> Duration {
    match kind {
        DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu => Duration::from_secs(10),
        DeviceKind::Cpu | DeviceKind::SoftwareGpu => Duration::from_secs(60),
    }
}
