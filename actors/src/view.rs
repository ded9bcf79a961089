//! The state of a running engine as a value: what metrics count and a console draws.
//!
//! It is made when somebody asks, from two messages and the tracer's counters; a step pays nothing for it.

use std::collections::HashMap;
use std::time::Duration;

use ponder_engine::kv::BlockPool;
use ponder_engine::request::SeqId;
use ponder_engine::schedule::{Lane, SchedulerView, SeqView};
use serde::Serialize;

use crate::life::Totals;
use crate::trace::{ActorView, Tracer};

/// The block pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BlockView {
    /// All blocks.
    pub total: usize,
    /// Those that nobody holds, cached ones among them.
    pub free: usize,
    /// Those that nobody holds and that may be of use.
    #[serde(skip)]
    pub cached: Vec<u32>,
    /// Tokens per block.
    pub block_size: usize,
    /// Who holds which, in order of position.
    #[serde(skip)]
    pub tables: HashMap<SeqId, Vec<u32>>,
}

impl BlockView {
    /// Of a pool.
    pub fn of(pool: &BlockPool) -> Self {
        Self {
            total: pool.total_blocks(),
            free: pool.free_blocks(),
            cached: pool.cached().collect(),
            block_size: pool.block_size(),
            tables: pool.tables().map(|(seq, table)| (seq, table.to_vec())).collect(),
        }
    }
}

/// One sequence with its blocks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LaneView {
    /// The sequence.
    #[serde(flatten)]
    pub seq: SeqView,
    /// Its physical blocks, in order of position; sequences that share a block both list it.
    pub blocks: Vec<u32>,
}

/// The engine at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EngineView {
    /// Since the engine started, in milliseconds.
    pub now_ms: u64,
    /// Number of the last step.
    pub step: u64,
    /// Time on the device of all steps so far, in microseconds.
    pub device_us: u64,
    /// Most sequences that run at once.
    pub seats: usize,
    /// Tokens and ends of all answers so far.
    pub totals: Totals,
    /// Those that run, then those that wait; the most important first.
    pub lanes: Vec<LaneView>,
    /// The block pool.
    pub kv: BlockView,
    /// Messages by actor.
    pub actors: Vec<ActorView>,
}

impl EngineView {
    pub(crate) fn new(now: Duration, requests: SchedulerView, totals: Totals, kv: BlockView, tracer: &Tracer) -> Self {
        let lane = |seq: SeqView| {
            let id = SeqId { request: ponder_engine::request::RequestId(seq.request), choice: seq.choice };
            LaneView { blocks: kv.tables.get(&id).cloned().unwrap_or_default(), seq }
        };
        Self {
            now_ms: now.as_millis() as u64,
            step: requests.step,
            device_us: tracer.totals().device_time.as_micros() as u64,
            seats: requests.seats,
            totals,
            lanes: requests.running.into_iter().chain(requests.waiting).map(lane).collect(),
            actors: tracer.actors(),
            kv,
        }
    }

    /// Sequences in a lane.
    pub fn count(&self, lane: Lane) -> usize {
        self.lanes.iter().filter(|l| l.seq.lane == lane).count()
    }

    /// Blocks that sequences in a lane hold.
    pub fn blocks(&self, lane: Lane) -> usize {
        self.lanes.iter().filter(|l| l.seq.lane == lane).map(|l| l.blocks.len()).sum()
    }
}
