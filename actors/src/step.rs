//! One step, one screen: the order of all work.

use std::time::{Duration, Instant};

use ponder_engine::request::SeqId;
use ponder_engine::schedule::Event;
use ponder_engine::step::Settled;
use tokio::sync::oneshot;

use crate::draft::DraftModel;
use crate::message::{ApplyStep, PlanStep, Propose, Reserve, Settle, StepFault, Verify};
use crate::port::{Port, PortClosed};
use crate::shells::{KvAllocator, SchedulerActor, TargetModel};

/// The four actors that hold state.
#[derive(Clone)]
pub struct Star {
    /// Who runs.
    pub scheduler: Port<SchedulerActor>,
    /// Where it lives.
    pub kv: Port<KvAllocator>,
    /// What we guess.
    pub draft: Port<DraftModel>,
    /// What is true.
    pub target: Port<TargetModel>,
}

/// What a step did.
pub struct Stepped {
    /// What clients are told.
    pub events: Vec<Event>,
    /// Who took part.
    pub seqs: Vec<SeqId>,
    /// When its work was done.
    pub settled_at: Instant,
}

/// Why a step did not happen.
pub enum StepError {
    /// The device failed; the sequences of the step are suspects.
    Fault(StepFault, Vec<SeqId>),
    /// The system is shutting down.
    Closed(PortClosed),
}

impl From<PortClosed> for StepError {
    fn from(closed: PortClosed) -> Self {
        StepError::Closed(closed)
    }
}

/// Runs one step; `None` when there is nothing to do. `since` is when the step before was settled, if this one follows at
/// once: what happens in between is part of what a step takes. `launched` is dropped when the target has its work, or
/// when there is none: whatever can wait until then should, for until then the device waits.
pub async fn step(
    star: &Star,
    now: Duration,
    only: Option<SeqId>,
    since: Option<Instant>,
    launched: oneshot::Sender<()>,
) -> Result<Option<Stepped>, StepError> {
    let since = since.unwrap_or_else(Instant::now);
    let Some(plan) = star.scheduler.call(PlanStep { now, only }).await? else { return Ok(None) };
    let reserved = star.kv.call(Reserve { plan }).await?;
    let seqs: Vec<SeqId> = reserved.plan.seqs.iter().map(|s| s.seq).collect();
    let rows: usize = reserved.plan.seqs.iter().map(|s| s.tokens.len()).sum();
    let drafted = star.draft.call(Propose { reserved }).await?;
    let verified = star.target.call(Verify { drafted, launched }).await?;
    let verified = verified.map_err(|fault| StepError::Fault(fault, seqs.clone()))?;
    let settled = star.kv.call(Settle { verified }).await?;
    let settled_at = Instant::now();
    let settled = Settled { took: settled_at - since, ..settled };
    log_line(&settled, rows);
    let events = star.scheduler.call(ApplyStep { settled, now }).await?;
    Ok(Some(Stepped { events, seqs, settled_at }))
}

/// One fixed-column line per step: what an operator greps.
fn log_line(settled: &Settled, rows: usize) {
    if !tracing::enabled!(target: "ponder::step", tracing::Level::INFO) {
        return;
    }
    let chosen: usize = settled.seqs.iter().filter_map(|s| s.chosen.as_ref().ok()).map(|c| c.len()).sum();
    let drafted: usize = settled.seqs.iter().map(|s| s.drafted).sum();
    let host = settled.took.saturating_sub(settled.device_time).saturating_sub(settled.draft_time);
    tracing::info!(
        target: "ponder::step",
        "step {:>8} seqs {:>4} rows {:>5} drafted {:>4} chosen {:>4} preempted {:>2} free {:>6} draft {:>7} us device {:>8} us host {:>6} us",
        settled.id.0,
        settled.seqs.len(),
        rows,
        drafted,
        chosen,
        settled.preempted.len(),
        settled.free_blocks,
        settled.draft_time.as_micros(),
        settled.device_time.as_micros(),
        host.as_micros(),
    );
}
