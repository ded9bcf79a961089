//! The engine as the console draws it: small enough to be sent several times a second, whatever its size.

use std::collections::HashMap;

use ponder_actors::life::{Ended, LifeView, Stretch, Totals};
use ponder_actors::trace::{ActorView, QUEUE_US};
use ponder_actors::view::{EngineView, LaneView};
use ponder_engine::schedule::SeqView;
use ponder_engine::spec::{Source, SpecReport};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Most lanes that are told; of others only their number is.
const LANES: usize = 128;
/// Most cells of the block map; a larger pool has several blocks in a cell.
pub const CELLS: usize = 4096;
/// What a cell's blocks are to their holders. The first two have none; the others are lanes.
const KINDS: [&str; 8] = ["free", "cached", "queued", "preempted", "prefill", "thinking", "answer", "tool_call"];

/// The engine at one moment. Counts are since its start: a watcher takes differences.
#[derive(Serialize, ToSchema)]
pub struct LiveView {
    /// The model's first name.
    pub model: String,
    /// The server is shutting down.
    pub draining: bool,
    /// Since the engine started, in milliseconds.
    pub now_ms: u64,
    /// Number of the last step.
    pub step: u64,
    /// Time of all steps on the target's device, in microseconds.
    pub device_us: u64,
    /// Time that guessing took, in microseconds.
    pub draft_us: u64,
    /// Most sequences that run at once.
    pub seats: usize,
    /// Answers that were let in and have not ended.
    pub admitted: usize,
    /// Tokens and ends.
    #[schema(value_type = Object)]
    pub totals: Totals,
    /// Sequences in flight, those that run first; at most 128.
    pub lanes: Vec<LaneNow>,
    /// How many there are.
    pub lanes_total: usize,
    /// The block pool.
    pub kv: BlockMap,
    /// What guessing did: one entry for each phase and drafter that guessed.
    pub guesses: Vec<Guesses>,
    /// Messages by actor.
    #[schema(value_type = Vec<Object>)]
    pub actors: Vec<ActorView>,
    /// Upper bounds of the actors' `queued` counts, in microseconds.
    #[schema(value_type = Vec<u64>)]
    pub queue_us: [u64; QUEUE_US.len()],
}

/// A sequence in flight.
#[derive(Serialize, ToSchema)]
pub struct LaneNow {
    /// The reply's id, while the request is known by it.
    pub id: Option<String>,
    /// What it does, and its counts.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub seq: SeqView,
    /// Blocks that it holds, alone or with others.
    pub blocks: usize,
}

/// The block pool as a strip of cells.
#[derive(Serialize, ToSchema)]
pub struct BlockMap {
    /// All blocks.
    pub total: usize,
    /// Those that nobody holds.
    pub free: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks per cell; the last cell may have fewer.
    pub per_cell: usize,
    /// What the first number of a run means.
    pub kinds: [&'static str; KINDS.len()],
    /// Runs of equal cells: `[kind, shared, cells]`; `shared` is 1 where several sequences hold a block of the cell.
    pub runs: Vec<[u32; 3]>,
}

/// Guesses of one drafter in one phase.
#[derive(Serialize, ToSchema)]
pub struct Guesses {
    /// Whether thinking was guessed.
    pub thinking: bool,
    /// Who guessed.
    pub source: &'static str,
    /// Steps in which it did.
    pub steps: u64,
    /// Guesses.
    pub drafted: u64,
    /// Right ones.
    pub accepted: u64,
}

impl LiveView {
    /// Of a look at an engine. `names`: ids on the wire by the engine's own.
    pub fn new(model: String, view: EngineView, report: &SpecReport, mut names: HashMap<u64, String>) -> Self {
        let lanes_total = view.lanes.len();
        let kv = BlockMap::new(&view);
        let lane = |l: LaneView| LaneNow { id: names.remove(&l.seq.request), blocks: l.blocks.len(), seq: l.seq };
        Self {
            model,
            draining: false,
            now_ms: view.now_ms,
            step: view.step,
            device_us: view.device_us,
            draft_us: report.draft_us,
            seats: view.seats,
            admitted: 0,
            totals: view.totals,
            lanes_total,
            kv,
            lanes: view.lanes.into_iter().take(LANES).map(lane).collect(),
            guesses: guesses(report),
            actors: view.actors,
            queue_us: QUEUE_US,
        }
    }
}

fn guesses(report: &SpecReport) -> Vec<Guesses> {
    let phases = report.counts.iter().enumerate();
    let all = phases.flat_map(|(phase, row)| Source::ALL.iter().zip(row).map(move |(source, n)| (phase, source, n)));
    let some = all.filter(|(_, _, n)| n.steps > 0);
    let entry = |(phase, source, n): (usize, &Source, &ponder_engine::spec::Acceptance)| Guesses {
        thinking: phase == 1,
        source: source.name(),
        steps: n.steps,
        drafted: n.drafted,
        accepted: n.accepted,
    };
    some.map(entry).collect()
}

impl BlockMap {
    fn new(view: &EngineView) -> Self {
        let kv = &view.kv;
        // Kind and holders of every block.
        let mut blocks = vec![(0usize, 0u32); kv.total];
        let cached = KINDS.iter().position(|k| *k == "cached").unwrap_or(0);
        for block in &kv.cached {
            if let Some(entry) = blocks.get_mut(*block as usize) {
                entry.0 = cached;
            }
        }
        for lane in &view.lanes {
            let kind = KINDS.iter().position(|k| *k == lane.seq.lane.name()).unwrap_or(0);
            for block in &lane.blocks {
                if let Some(entry) = blocks.get_mut(*block as usize) {
                    *entry = (kind, entry.1 + 1);
                }
            }
        }
        let per_cell = kv.total.div_ceil(CELLS).max(1);
        let mut runs: Vec<[u32; 3]> = Vec::new();
        for cell in blocks.chunks(per_cell) {
            let mut count = [0usize; KINDS.len()];
            cell.iter().for_each(|(kind, _)| count[*kind] += 1);
            let kind = (0..KINDS.len()).max_by_key(|k| count[*k]).unwrap_or(0) as u32;
            let shared = u32::from(cell.iter().any(|(_, holders)| *holders > 1));
            match runs.last_mut() {
                Some([k, s, cells]) if (*k, *s) == (kind, shared) => *cells += 1,
                _ => runs.push([kind, shared, 1]),
            }
        }
        Self { total: kv.total, free: kv.free, block_size: kv.block_size, per_cell, kinds: KINDS, runs }
    }
}

/// What an answer did so far.
#[derive(Serialize, ToSchema)]
pub struct Life {
    /// The engine's number of its request.
    pub request: u64,
    /// Which of the request's answers.
    pub choice: u8,
    /// The reply's id, while the request is in flight.
    pub id: Option<String>,
    /// What it did, in order, each with its time and its counts.
    #[schema(value_type = Vec<Object>)]
    pub stretches: Vec<Stretch>,
    /// How deep it was to think, and why; null where nothing was decided.
    pub decision: Option<Value>,
    /// How it ended; null while it is in flight.
    #[schema(value_type = Option<Object>)]
    pub ended: Option<Ended>,
    /// Its sequence, while it is in flight.
    #[schema(value_type = Option<Object>)]
    pub now: Option<SeqView>,
}

impl Life {
    /// Of an answer.
    pub fn new(request: u64, choice: u8, id: Option<String>, life: LifeView) -> Self {
        let decision = life.decision.as_ref().and_then(|d| serde_json::to_value(d).ok());
        Self { request, choice, id, stretches: life.stretches, decision, ended: life.ended, now: life.now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ponder_actors::view::BlockView;
    use ponder_engine::schedule::Lane;

    fn view(total: usize, lanes: &[(Lane, Vec<u32>)]) -> EngineView {
        let lane = |(lane, blocks): &(Lane, Vec<u32>)| {
            let seq = SeqView {
                request: 1,
                choice: 0,
                lane: *lane,
                prompt_tokens: 0,
                output_tokens: 0,
                max_tokens: 0,
                cached_tokens: 0,
                counts: Default::default(),
                thinking_budget: None,
                recomputed_tokens: 0,
                drafted_tokens: 0,
                accepted_tokens: 0,
                age_ms: 0,
            };
            LaneView { seq, blocks: blocks.clone() }
        };
        EngineView {
            now_ms: 0,
            step: 0,
            device_us: 0,
            seats: 1,
            totals: Totals::default(),
            lanes: lanes.iter().map(lane).collect(),
            kv: BlockView { total, free: 0, block_size: 16, ..BlockView::default() },
            actors: Vec::new(),
        }
    }

    #[test]
    fn blocks_as_runs() {
        let map = BlockMap::new(&view(8, &[(Lane::Thinking, vec![0, 1, 2]), (Lane::Answer, vec![4])]));
        assert_eq!((map.per_cell, &map.runs[..]), (1, &[[5, 0, 3], [0, 0, 1], [6, 0, 1], [0, 0, 3]][..]));
        let shared = BlockMap::new(&view(2, &[(Lane::Thinking, vec![0]), (Lane::Thinking, vec![0, 1])]));
        assert_eq!(shared.runs, [[5, 1, 1], [5, 0, 1]]);
        // What somebody holds is no longer merely cached.
        let mut kept = view(4, &[(Lane::Answer, vec![1])]);
        kept.kv.cached = vec![1, 2];
        assert_eq!(BlockMap::new(&kept).runs, [[0, 0, 1], [6, 0, 1], [1, 0, 1], [0, 0, 1]]);
    }

    #[test]
    fn a_large_pool_has_no_more_cells() {
        let every_third: Vec<u32> = (0..100_000).step_by(3).collect();
        let map = BlockMap::new(&view(100_000, &[(Lane::Answer, every_third)]));
        let cells: u32 = map.runs.iter().map(|r| r[2]).sum();
        assert!(cells as usize <= CELLS && cells as usize * map.per_cell >= 100_000);
    }

    #[test]
    fn every_lane_has_a_kind() {
        assert!(Lane::ALL.iter().all(|l| KINDS.contains(&l.name())));
    }
}
