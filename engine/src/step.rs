//! One step as a chain of types: `StepPlan → Reserved → Drafted → Verified → Settled`.
//!
//! Each is what one actor answers and the next is asked with. They carry ids, token ids and block
//! tables, never tensors.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::grammar::Guide;
use crate::kv::{Copies, Parts};
use crate::op::{Adjust, SampleRow};
use crate::request::SeqId;
use crate::spec::Source;

/// Token ids of one sequence in one step: mostly one, or it and some guesses that were right, for which nothing is
/// allocated.
pub type Tokens = SmallVec<[u32; 4]>;

/// Number of a step, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepId(pub u64);

/// Who runs, and how many tokens each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// The step.
    pub id: StepId,
    /// Sequences that run, the most important first.
    pub seqs: Vec<SeqPlan>,
    /// Running sequences that sit this step out, the most important first: after `seqs`, whom to preempt last.
    pub idle: Vec<SeqId>,
    /// Sequences that ended since the last plan: nobody holds their blocks any more.
    pub released: Vec<SeqId>,
    /// Those of `seqs` that start, or start over. Where some of their tokens are in the cache, the reservation
    /// gives them others of their log instead; one with no tokens yet may get some that others did not need.
    pub openings: Vec<Opening>,
    /// Tokens of the step that nobody was given.
    pub spare: usize,
    /// Most tokens of one prompt in one step.
    pub chunk: usize,
}

impl StepPlan {
    /// The opening of a sequence, if it starts.
    pub fn opening(&self, seq: SeqId) -> Option<&Opening> {
        self.openings.iter().find(|o| o.seq == seq)
    }
}

/// What must be known of a sequence that nobody follows yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Opening {
    /// The sequence.
    pub seq: SeqId,
    /// Its whole log.
    pub log: Vec<u32>,
    /// Length of the prompt.
    pub prompt_len: usize,
    /// Whose request it is: nobody's tokens are found, or serve as guesses, for anybody else.
    pub tenant: Arc<str>,
    /// How to choose the token after the log.
    pub sample: Option<SamplePlan>,
}

/// One sequence's share of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct SeqPlan {
    /// The sequence.
    pub seq: SeqId,
    /// Position of the first of `tokens`: how many tokens are cached already.
    pub start: usize,
    /// Tokens to process.
    pub tokens: Tokens,
    /// Most tokens to draft after them.
    pub max_drafts: usize,
    /// How to choose the token after the last one; `None` while the prompt is not through.
    pub sample: Option<SamplePlan>,
    /// What the log's tokens are to the cache.
    pub parts: Parts,
}

/// How to choose a token.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplePlan {
    /// Parameters; position is the one of the token to be chosen.
    pub params: SampleRow,
    /// Penalties and biases.
    pub adjust: Vec<Adjust>,
    /// What the answer keeps to, if it does here.
    pub guide: Option<Guide>,
}

/// Where it lives.
#[derive(Clone, Debug, PartialEq)]
pub struct Reserved {
    /// The plan, without those for whom there was no room.
    pub plan: StepPlan,
    /// Physical blocks of each sequence of `plan.seqs`, drafts included.
    pub tables: Vec<Vec<u32>>,
    /// Sequences whose blocks were taken: they start over from their token logs.
    pub preempted: Vec<SeqId>,
    /// What moves before the step's first op, in every cache that these tables index.
    pub copies: Copies,
}

/// What we guess.
#[derive(Clone, Debug, PartialEq)]
pub struct Drafted {
    /// The reservation.
    pub reserved: Reserved,
    /// Guessed tokens of each sequence of the plan; may be empty.
    pub drafts: Vec<Vec<u32>>,
    /// Who guessed them.
    pub sources: Vec<Source>,
    /// How long that took, waiting included.
    pub draft_time: Duration,
    /// Passes of the draft model in that time.
    pub passes: usize,
    /// Tokens that it read besides, because it had not guessed for a while.
    pub caught_up: usize,
}

impl Drafted {
    /// Guesses of one drafter that took no time.
    pub fn by(source: Source, reserved: Reserved, drafts: Vec<Vec<u32>>) -> Self {
        let sources = vec![source; drafts.len()];
        Self { sources, draft_time: Duration::ZERO, passes: 0, caught_up: 0, reserved, drafts }
    }
}

/// What is true.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// The step.
    pub drafted: Drafted,
    /// For each sequence of the plan: the accepted drafts and the token after them; empty inside a prompt.
    pub chosen: Vec<Result<Tokens, String>>,
    /// From launch to end on the device.
    pub device_time: Duration,
    /// What [`Reserved::copies`] took before that.
    pub copy_time: Duration,
}

/// What we keep.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settled {
    /// The step.
    pub id: StepId,
    /// Results in the plan's order.
    pub seqs: Vec<SettledSeq>,
    /// Sequences that lost their blocks.
    pub preempted: Vec<SeqId>,
    /// Blocks that nobody holds, cached ones too.
    pub free_blocks: usize,
    /// Token rows that were computed, guesses not counted.
    pub rows: usize,
    /// From launch to end on the device.
    pub device_time: Duration,
    /// How long guessing took.
    pub draft_time: Duration,
    /// Passes of the draft model in that time.
    pub passes: usize,
    /// Tokens that it read besides, because it had not guessed for a while.
    pub caught_up: usize,
    /// How long the whole step took, from the settlement of the one before, or from its plan where it did not follow at
    /// once; the loop around it knows.
    pub took: Duration,
}

/// One sequence's result.
#[derive(Clone, Debug, PartialEq)]
pub struct SettledSeq {
    /// The sequence.
    pub seq: SeqId,
    /// Tokens cached now.
    pub cached: usize,
    /// Tokens that were cached before the step.
    pub start: usize,
    /// New tokens, or why this sequence alone failed.
    pub chosen: Result<Tokens, String>,
    /// Tokens that were drafted for it.
    pub drafted: usize,
    /// By whom.
    pub source: Source,
}
