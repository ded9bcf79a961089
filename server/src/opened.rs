//! A model that was opened and checked, with nothing of it loaded yet: prompts can be tokenised and
//! refused, and the memory plan can be read, before the first gigabyte moves.

use ponder_engine::backend::{Backend, DeviceInfo, DeviceKind};
use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::model::runner::ModelRunner;
use ponder_engine::{Error, Result};

use crate::drafting;
use crate::memory::{Beside, Sizing, main_memory, size_beside};
use crate::options::EngineOptions;
use crate::prompt::Prompter;

/// What a load reports.
#[derive(Clone, Debug)]
pub enum LoadProgress {
    /// The memory plan, before anything is allocated.
    Planned {
        /// The device, in words.
        device: String,
        /// The plan.
        sizing: Sizing,
    },
    /// Bytes of weights on the device, and in all.
    Weights {
        /// So far.
        done: u64,
        /// In the end.
        total: u64,
    },
}

/// An opened model.
pub struct Opened {
    /// How it shall be loaded.
    pub options: EngineOptions,
    /// Its files.
    pub checkpoint: Checkpoint,
    /// Turns prompts into its tokens.
    pub prompter: Prompter,
    /// The draft model's files, if there is one.
    pub draft: Option<Checkpoint>,
}

impl Opened {
    /// Opens and checks the files.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and of the tokenizer, and options out of range.
    pub fn open(options: EngineOptions) -> Result<Self> {
        options.validate()?;
        let checkpoint = Checkpoint::open(&options.model)?;
        let prompter = Prompter::new(&checkpoint, &options)?;
        let draft = options.draft.as_ref().map(|draft| drafting::open(draft, &checkpoint, &prompter)).transpose()?;
        Ok(Self { options, checkpoint, prompter, draft })
    }

    /// The memory plan on `device`.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn sizing(&self, device: &DeviceInfo) -> Result<Sizing> {
        let main = matches!(device.kind, DeviceKind::Cpu | DeviceKind::SoftwareGpu);
        let memory = if main { main_memory() } else { device.memory };
        let shared = self.draft.as_ref().filter(|_| drafting::shares_memory(&self.options));
        let beside = shared.map(|draft| Beside::of(&self.options, &draft.config, draft.weight_bytes()));
        size_beside(&self.options, &self.checkpoint.config, self.checkpoint.weight_bytes(), beside, memory)
    }

    /// The memory plan on `device`, and the certainty that all weights are numbers.
    ///
    /// # Errors
    /// If it does not fit, or if a weight is NaN or infinite.
    pub fn checked_sizing(&self, device: &DeviceInfo) -> Result<Sizing> {
        let sizing = self.sizing(device)?;
        self.checkpoint.check_finite(self.options.threads())?;
        self.checkpoint.forget_pages();
        Ok(sizing)
    }

    /// Tokens of the longest sequence, as far as the files and the options bound it; the memory may bound it further.
    pub fn max_model_len(&self) -> usize {
        let context = self.checkpoint.config.context;
        self.options.max_model_len.unwrap_or(context).min(context)
    }

    /// Refuses a prompt that can never run with these options.
    pub fn check_prompt(&self, tokens: &[u32]) -> Result<()> {
        let most = self.max_model_len();
        match tokens.len() {
            0 => Err(Error::invalid("prompt", "is empty")),
            n if n >= most => {
                Err(Error::invalid("prompt", format!("{n} tokens leave no room for an answer in {most}")))
            }
            _ => Ok(()),
        }
    }

    /// Loads the model on the device that `make` opens, on this thread: for looking inside, and for scoring.
    ///
    /// # Errors
    /// If it does not fit, if a weight is NaN or infinite, and those of the device.
    pub fn runner<B: Backend>(
        &self,
        info: &DeviceInfo,
        make: impl Fn() -> Result<B>,
        mut progress: impl FnMut(LoadProgress),
    ) -> Result<ModelRunner<B>> {
        let sizing = self.checked_sizing(info)?;
        progress(LoadProgress::Planned { device: describe(info), sizing: sizing.clone() });
        let mut weights = |done, total| progress(LoadProgress::Weights { done, total });
        ModelRunner::load(make()?, &self.checkpoint, sizing.runner, &mut weights)
    }
}

/// A device in a few words: `cpu: Intel Xeon (avx512)`.
pub fn describe(info: &DeviceInfo) -> String {
    format!("{}: {}", info.backend, info.name)
}
