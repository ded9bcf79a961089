//! The engine: a loaded model behind the actors, for programs that embed it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use ponder_actors::{BatchRunner, KeepLengths, Loader, Submission, System, SystemOptions};
use ponder_engine::backend::{Backend, DeviceInfo, DeviceKind};
use ponder_engine::checkpoint::{Checkpoint, GenerationDefaults};
use ponder_engine::kv::CacheOptions;
use ponder_engine::model::ModelConfig;
use ponder_engine::model::runner::{ModelRunner, RunnerOptions};
use ponder_engine::reason::Survival;
use ponder_engine::request::SamplingParams;
use ponder_engine::schedule::{DraftPolicy, SchedulerOptions};
use ponder_engine::spec::{Lookup, Source};
use ponder_engine::text::Tokenizer;
use ponder_engine::{Error, Result};

use crate::backends::{self, WithBackend};
use crate::drafting;
use crate::generation::{Choices, Generation};
use crate::memory::Sizing;
use crate::opened::{LoadProgress, Opened, describe};
use crate::options::EngineOptions;
use crate::prompt::{Prompt, Prompter, Rendered};
use crate::warm::AfterTurn;

/// A loaded model that answers requests, many at once. Dropping it ends its threads; what is in flight
/// then ends without an answer.
pub struct Engine {
    system: System,
    prompter: Arc<Prompter>,
    prefix_caching: bool,
    config: ModelConfig,
    generation: GenerationDefaults,
    device: DeviceInfo,
    sizing: Sizing,
    trace: Option<PathBuf>,
}

impl Engine {
    /// Opens, checks and loads a model; `progress` hears of the memory plan before anything is allocated.
    ///
    /// # Errors
    /// If the files are damaged, if the model does not fit, or if there is no such device.
    pub fn load(options: EngineOptions, progress: impl FnMut(LoadProgress)) -> Result<Self> {
        Opened::open(options)?.load(progress)
    }

    /// Starts a request with one answer.
    ///
    /// # Errors
    /// If a parameter is out of its range, or if the prompt is empty or too long.
    pub fn generate(&self, prompt: Prompt, params: SamplingParams) -> Result<Generation> {
        if params.n != 1 {
            return Err(Error::invalid("n", "is not 1; several answers come from generate_choices"));
        }
        self.generate_choices(prompt, params).map(Generation::new)
    }

    /// Starts a request with `params.n` answers, which share their prompt and differ in their randomness.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_choices(&self, prompt: Prompt, params: SamplingParams) -> Result<Choices> {
        params.validate(self.config.vocab)?;
        let started = Instant::now();
        let rendered = self.prompter.prepare(&prompt, &params)?;
        futures::executor::block_on(self.submit(rendered, params, started))
    }

    /// Starts a request whose prompt is tokens already; its times count from `started`.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub async fn submit(&self, prompt: Rendered, params: SamplingParams, started: Instant) -> Result<Choices> {
        params.validate(self.config.vocab)?;
        let n = usize::from(params.n);
        let eos = self.generation.eos.clone();
        let after = prompt.turn.filter(|_| self.prefix_caching).map(|turn| AfterTurn {
            handle: self.system.handle().clone(),
            prompter: self.prompter.clone(),
            turn,
            prompt: prompt.tokens.clone(),
            tenant: params.cache_salt.clone(),
        });
        let Rendered { tokens, thinking, grammar, .. } = prompt;
        let submission = Submission { prompt: tokens, params, eos, thinking, grammar, tenant: "".into() };
        Ok(Choices::new(self.system.handle().submit(submission).await?, started, n, after))
    }

    /// Turns prompts into tokens.
    pub fn prompter(&self) -> &Prompter {
        &self.prompter
    }
    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        self.prompter.tokenizer()
    }
    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
    /// What the model's files recommend.
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        &self.generation
    }
    /// Where it runs.
    pub fn device(&self) -> &DeviceInfo {
        &self.device
    }
    /// What was allocated.
    pub fn sizing(&self) -> &Sizing {
        &self.sizing
    }
    /// Longest prompt and answer together, in tokens.
    pub fn max_model_len(&self) -> usize {
        self.sizing.runner.max_model_len
    }
    /// Sequences that run at once.
    pub fn seats(&self) -> usize {
        self.sizing.runner.max_seqs
    }
    /// The actors' way in, for callers that submit tokens and read raw updates.
    pub fn handle(&self) -> &ponder_actors::Handle {
        self.system.handle()
    }

    /// Writes the trace now, if one was asked for.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_trace(&self) -> Result<()> {
        let Some(path) = &self.trace else { return Ok(()) };
        let json = self.system.handle().tracer().chrome_json().to_string();
        std::fs::write(path, json).map_err(|e| Error::io(path, e))
    }
}

impl Opened {
    /// Loads it. See [`Engine::load`].
    ///
    /// # Errors
    /// As there.
    pub fn load(self, progress: impl FnMut(LoadProgress)) -> Result<Engine> {
        let options = self.options.clone();
        backends::open(&options, Start { opened: self, progress })
    }
}

struct Start<P> {
    opened: Opened,
    progress: P,
}

impl<P: FnMut(LoadProgress)> WithBackend for Start<P> {
    type Out = Engine;
    fn with<B: Backend>(
        mut self,
        info: DeviceInfo,
        make: impl Fn() -> Result<B> + Send + Sync + 'static,
    ) -> Result<Engine> {
        let sizing = self.opened.checked_sizing(&info)?;
        (self.progress)(LoadProgress::Planned { device: describe(&info), sizing: sizing.clone() });
        let Opened { options, checkpoint, prompter, draft } = self.opened;
        let (config, generation) = (checkpoint.config.clone(), checkpoint.generation.clone());
        let (report, reports) = mpsc::channel();
        let draft =
            draft.map(|draft| drafting::setup(&options, draft, &checkpoint.config, &sizing.runner)).transpose()?;
        let (lengths, keep_lengths) = remembered(options.length_stats.as_deref())?;
        let system = SystemOptions {
            cache: CacheOptions {
                prefix_caching: options.prefix_caching,
                host_blocks: sizing.swap_blocks(options.swap_space),
                preemption: options.preemption,
            },
            scheduler: scheduler_options(&options, &sizing),
            target: loader(options.model.clone(), First { checkpoint, report: Some(report) }, sizing.runner, make),
            tokenizer: prompter.tokenizer().clone(),
            lookup: options.lookup,
            draft,
            step_timeout: step_timeout(info.kind),
            lengths,
            keep_lengths,
        };
        let started = std::thread::scope(|scope| {
            let starting = scope.spawn(move || System::start(system));
            for (done, total) in reports {
                (self.progress)(LoadProgress::Weights { done, total });
            }
            starting.join()
        });
        let system = started.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        system.handle().tracer().listen(options.trace.is_some());
        let (prompter, prefix_caching) = (Arc::new(prompter), options.prefix_caching);
        Ok(Engine { system, prompter, prefix_caching, config, generation, device: info, sizing, trace: options.trace })
    }
}

/// What only the first load has: the files as they were checked, and somebody who watches.
pub(crate) struct First {
    checkpoint: Checkpoint,
    report: Option<mpsc::Sender<(u64, u64)>>,
}

impl First {
    /// Nobody watches.
    pub(crate) fn unseen(checkpoint: Checkpoint) -> Self {
        Self { checkpoint, report: None }
    }
}

/// Loads the model on the device's thread. A device that is replaced later finds the files open no more
/// (their maps would count as memory) and opens them again.
pub(crate) fn loader<B: Backend>(
    path: PathBuf,
    first: First,
    sizes: RunnerOptions,
    make: impl Fn() -> Result<B> + Send + Sync + 'static,
) -> Loader {
    let first = Mutex::new(Some(first));
    Arc::new(move || {
        let first = first.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let (checkpoint, report) = match first {
            Some(First { checkpoint, report }) => (checkpoint, report),
            None => (Checkpoint::open(&path)?, None),
        };
        let mut progress = |done, total| {
            // Nobody has to watch.
            let _ = report.as_ref().map(|r| r.send((done, total)));
        };
        let runner = ModelRunner::load(make()?, &checkpoint, sizes, &mut progress)?;
        Ok(Box::new(runner) as Box<dyn BatchRunner>)
    })
}

fn scheduler_options(options: &EngineOptions, sizing: &Sizing) -> SchedulerOptions {
    let sizes = &sizing.runner;
    SchedulerOptions {
        max_step_tokens: options.max_step_tokens,
        prefill_chunk: options.prefill_chunk,
        max_seqs: options.max_num_seqs,
        max_waiting: usize::MAX,
        growth_quantile: options.growth_quantile,
        policy: options.scheduling_policy,
        max_model_len: sizes.max_model_len,
        blocks: sizes.kv.blocks,
        block_size: sizes.kv.block_size,
        block_bytes: sizing.plan.per_block(),
        drafts: if usual(options) == Source::Nobody { DraftPolicy::Off } else { options.drafts },
        drafter: usual(options),
        max_logit_rows: sizes.max_logit_rows,
        squeeze_thinking: options.squeeze_thinking,
        max_wait: options.max_wait,
    }
}

/// The lengths in a file, if there is one, and what keeps them there. A file that cannot be written later costs what
/// was learnt and a warning, nothing else.
fn remembered(path: Option<&Path>) -> Result<(Survival, Option<KeepLengths>)> {
    let Some(path) = path else { return Ok(Default::default()) };
    let lengths = Survival::load(path)
        .map_err(|e| Error::checkpoint(path, "lengths", format!("{e}; name another file, or remove this one")))?;
    // Written once at the start: who may not write is told now, not after a day.
    lengths.save(path)?;
    let path = path.to_path_buf();
    let keep = move |lengths: &Survival| {
        if let Err(error) = lengths.save(&path) {
            tracing::warn!(%error, "the lengths of finished requests are not kept");
        }
    };
    Ok((lengths, Some(Box::new(keep))))
}

/// Who guesses as a rule.
fn usual(options: &EngineOptions) -> Source {
    match (&options.draft, options.lookup) {
        (Some(_), _) => Source::Model,
        (None, Lookup::Suffix) => Source::Suffix,
        (None, Lookup::Ngram) => Source::Ngram,
        (None, Lookup::None) => Source::Nobody,
    }
}

/// A GPU that needs a minute for a step hangs; a CPU may just have a large model to read.
fn step_timeout(kind: DeviceKind) -> Duration {
    match kind {
        DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu => Duration::from_secs(60),
        DeviceKind::Cpu | DeviceKind::SoftwareGpu => Duration::from_secs(1800),
    }
}
