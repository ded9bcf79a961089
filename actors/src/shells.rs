//! The actors that hold state: thin shells around plain structs of the engine.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use ponder_engine::DeviceFault;
use ponder_engine::kv::BlockPool;
use ponder_engine::reason::Survival;
use ponder_engine::request::SeqId;
use ponder_engine::schedule::{Event, Lane, Scheduler, SchedulerView};
use ponder_engine::spec::{batch_of, chosen_of};
use ponder_engine::step::{Reserved, Settled, StepPlan, Verified};

use crate::device::{DeviceThread, Loader, Running};
use crate::life::{LifePhase, LifeView, Lives, Totals};
use crate::message::*;
use crate::port::Sent;
use crate::trace::Tracer;
use crate::view::BlockView;

/// Answers a message with a plain function; the span is its whole run.
macro_rules! answers {
    ($actor:ident, $name:literal, $($message:ident => $result:ty: $method:ident),* $(,)?) => { $(
        impl Handler<Sent<$message>> for $actor {
            type Result = MessageResult<Sent<$message>>;
            fn handle(&mut self, sent: Sent<$message>, _: &mut Context<Self>) -> Self::Result {
                let (message, _span) = sent.open($name, &self.tracer);
                let result: $result = self.$method(message);
                MessageResult(result)
            }
        }
    )* };
}

/// Takes what was learnt about lengths; called between steps, so it must be quick.
pub type KeepLengths = Box<dyn FnMut(&Survival) + Send>;

/// Parts of answers that are learnt from between two keepings.
const KEEP_EVERY: u64 = 128;

/// Holds the requests in flight.
pub struct SchedulerActor {
    /// The state machine.
    pub scheduler: Scheduler,
    /// Where what it learns is kept, if anywhere.
    pub keep_lengths: Option<KeepLengths>,
    /// What of it is kept.
    pub kept: u64,
    /// What each answer did, for people and for its trace.
    pub lives: Lives,
    /// Where spans go.
    pub tracer: Arc<Tracer>,
}

impl Actor for SchedulerActor {
    type Context = Context<Self>;
}

answers!(SchedulerActor, "scheduler",
    PlanStep => Option<StepPlan>: plan_step,
    ApplyStep => Vec<Event>: apply_step,
    Submit => ponder_engine::Result<()>: submit,
    SetDrafts => (): set_drafts,
    Cancel => (): cancel,
    WarmUp => (): warm_up,
    Keep => (): keep,
    Replay => Vec<SeqId>: replay,
    FailAll => Vec<Event>: fail_all,
    EndThinking => (): end_thinking,
    LookAtRequests => (SchedulerView, Totals): look,
    LookAtLife => Option<LifeView>: look_at_life,
);

impl SchedulerActor {
    fn enter(&mut self, seq: SeqId, lane: Lane) {
        if self.lives.enter(seq, lane, self.tracer.now()) {
            self.tracer.phase(seq, LifePhase::In(lane));
        }
    }
    fn plan_step(&mut self, message: PlanStep) -> Option<StepPlan> {
        let plan = self.scheduler.plan(message.now, message.only)?;
        // What is computed for nobody has no life to be traced.
        for seq in &plan.seqs {
            if let Some(lane) = self.scheduler.doing(seq.seq) {
                self.enter(seq.seq, lane);
            }
        }
        self.tracer.step_members(plan.id.0, || {
            plan.seqs.iter().filter_map(|s| Some((s.seq, LifePhase::In(self.scheduler.doing(s.seq)?)))).collect()
        });
        Some(plan)
    }
    fn apply_step(&mut self, message: ApplyStep) -> Vec<Event> {
        let events = self.scheduler.apply(&message.settled);
        let guessed = message.settled.seqs.iter().any(|s| s.drafted > 0);
        self.tracer.step_done(message.settled.device_time, self.scheduler.speculation(), guessed);
        self.keep_after(KEEP_EVERY);
        message.settled.seqs.iter().for_each(|result| self.lives.step(result));
        self.lives.totals.preemptions += message.settled.preempted.len() as u64;
        for seq in &message.settled.preempted {
            if self.scheduler.sequence(*seq).is_some() {
                self.enter(*seq, Lane::Preempted);
            }
        }
        self.told(&events);
        events
    }
    fn submit(&mut self, message: Submit) -> ponder_engine::Result<()> {
        let mut stop_text = message.stop_text.into_iter();
        self.scheduler.submit(message.now, &message.request, || stop_text.next())?;
        for choice in 0..message.request.params.n {
            self.enter(SeqId { request: message.request.id, choice }, Lane::Queued);
        }
        Ok(())
    }
    fn set_drafts(&mut self, message: SetDrafts) {
        self.scheduler.set_drafts(message.policy);
    }
    fn keep(&mut self, _: Keep) {
        self.keep_after(1);
    }
    fn keep_after(&mut self, news: u64) {
        let observed = self.scheduler.lengths().observed();
        if let Some(keep) = self.keep_lengths.as_mut().filter(|_| observed >= self.kept + news) {
            keep(self.scheduler.lengths().survival());
            self.kept = observed;
        }
    }
    fn cancel(&mut self, message: Cancel) {
        self.scheduler.cancel(message.request);
    }
    fn warm_up(&mut self, message: WarmUp) {
        self.scheduler.warm_up(message.tokens, message.tenant);
    }
    fn end_thinking(&mut self, message: EndThinking) {
        self.scheduler.end_thinking(message.request);
    }
    fn look(&mut self, message: LookAtRequests) -> (SchedulerView, Totals) {
        (self.scheduler.view(message.now), self.lives.totals)
    }
    fn look_at_life(&mut self, message: LookAtLife) -> Option<LifeView> {
        let mut life = self.lives.look(message.seq)?;
        if life.ended.is_none() {
            life.now = self.scheduler.look(message.seq, message.now);
            life.decision = self.scheduler.sequence(message.seq).and_then(|s| s.decision().cloned());
        }
        Some(life)
    }
    /// What clients are told is part of the lives.
    fn told(&mut self, events: &[Event]) {
        for event in events {
            if self.lives.told(event, self.tracer.now()) {
                self.tracer.end(event.seq, self.lives.last_ended());
            }
        }
    }
    fn replay(&mut self, message: Replay) -> Vec<SeqId> {
        self.scheduler.replay();
        if let Some((seq, reason)) = message.culprit {
            self.scheduler.fail(seq, &reason);
        }
        self.scheduler.running().to_vec()
    }
    fn fail_all(&mut self, message: FailAll) -> Vec<Event> {
        let events = self.scheduler.fail_all(&message.reason);
        self.told(&events);
        events
    }
}

/// Owns the block pool.
pub struct KvAllocator {
    /// The pool.
    pub pool: BlockPool,
    /// Where spans go.
    pub tracer: Arc<Tracer>,
}

impl Actor for KvAllocator {
    type Context = Context<Self>;
}

answers!(KvAllocator, "kv",
    Reserve => Reserved: reserve,
    Settle => Settled: settle,
    Clear => (): clear,
    LookAtBlocks => BlockView: look,
);

impl KvAllocator {
    fn reserve(&mut self, message: Reserve) -> Reserved {
        self.pool.reserve(message.plan)
    }
    fn settle(&mut self, message: Settle) -> Settled {
        self.pool.settle(message.verified)
    }
    fn clear(&mut self, _: Clear) {
        self.pool.clear();
    }
    fn look(&mut self, _: LookAtBlocks) -> BlockView {
        BlockView::of(&self.pool)
    }
}

/// The mailbox of the target model: always responsive, while its device thread works.
pub struct TargetModel {
    device: Option<DeviceThread>,
    loader: Loader,
    running: Running,
    step_timeout: Duration,
    tracer: Arc<Tracer>,
}

impl TargetModel {
    /// A shell around a running device thread.
    pub fn new(
        device: DeviceThread,
        loader: Loader,
        running: Running,
        step_timeout: Duration,
        tracer: Arc<Tracer>,
    ) -> Self {
        Self { device: Some(device), loader, running, step_timeout, tracer }
    }
}

impl Actor for TargetModel {
    type Context = Context<Self>;
}

impl Handler<Sent<Verify>> for TargetModel {
    type Result = ResponseFuture<Result<Verified, StepFault>>;
    fn handle(&mut self, sent: Sent<Verify>, _: &mut Context<Self>) -> Self::Result {
        let (Verify { mut drafted, launched }, span) = sent.open("target", &self.tracer);
        let batch = batch_of(&mut drafted);
        let step = drafted.reserved.plan.id.0;
        if batch.rows.is_empty() && batch.copies.is_empty() {
            // A step that only frees blocks needs no device.
            let (device_time, copy_time) = (Duration::ZERO, Duration::ZERO);
            let verified = Verified { drafted, chosen: Vec::new(), device_time, copy_time };
            return Box::pin(std::future::ready(Ok(verified)));
        }
        self.tracer.asked(drafted.draft_time);
        let result = self.device.as_ref().map(|device| device.run(batch));
        drop(launched);
        let (timeout, tracer) = (self.step_timeout, self.tracer.clone());
        Box::pin(async move {
            let _span = span;
            let fault = |fault| StepFault { step, fault };
            let result = result.ok_or_else(|| fault(DeviceFault::Lost("no device thread".into())))?;
            let answered = actix_rt::time::timeout(timeout, result);
            let answered = answered.await.map_err(|_| fault(DeviceFault::Timeout(timeout.as_millis() as u64)))?;
            let answered = answered.map_err(|_| fault(DeviceFault::Lost("the device thread ended".into())))?;
            let (output, device_time) = answered.map_err(fault)?;
            tracer.answered();
            let chosen = chosen_of(&drafted, &output);
            Ok(Verified { drafted, chosen, device_time, copy_time: output.copy_time })
        })
    }
}

impl Handler<Sent<Restart>> for TargetModel {
    type Result = MessageResult<Sent<Restart>>;
    fn handle(&mut self, sent: Sent<Restart>, _: &mut Context<Self>) -> Self::Result {
        let (_, _span) = sent.open("target", &self.tracer);
        // The old thread may hang for ever; it holds its own end of the channel and is left behind.
        self.device = None;
        MessageResult(match DeviceThread::start("target", self.loader.clone(), self.running.clone()) {
            Ok(device) => {
                self.device = Some(device);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        })
    }
}
