//! The draft model: a mailbox, the drafters' state, and a device thread of its own.
//!
//! Nothing here can fail a request. A draft that panics, hangs, answers nonsense or is not loaded yet costs
//! its guesses: the step goes on without them, the thread is replaced meanwhile, and a draft that fails
//! again and again is switched off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix::prelude::*;
use crossbeam_channel::{Receiver, bounded};
use ponder_engine::DeviceFault;
use ponder_engine::spec::{DraftJob, DrafterOptions, Drafters, Lookup, ModelLimits, Rolled, rollout};
use ponder_engine::step::{Drafted, Reserved};
use tokio::sync::oneshot;

use crate::device::{DeviceThread, Loader, Running};
use crate::message::Propose;
use crate::port::{OpenSpan, Sent};
use crate::trace::Tracer;

/// How a draft model is run.
#[derive(Clone)]
pub struct DraftSetup {
    /// Makes it on its thread.
    pub loader: Loader,
    /// Its sizes.
    pub limits: ModelLimits,
    /// Guessing that takes longer is given up and the thread replaced.
    pub timeout: Duration,
    /// Whether its device is its own: then it guesses on while the target verifies.
    pub ahead: bool,
}

/// Faults after which a draft model is switched off; as many good jobs make one of them forgotten.
const FAULTS: u32 = 3;
/// See [`FAULTS`].
const FORGET: u32 = 1000;
/// Jobs in a row without one finite logit that make a fault.
const BROKEN: u32 = 8;

/// Guessing on while the target verifies.
struct Ahead {
    job: Arc<DraftJob>,
    /// Set when the target is done: the draft stops at its next batch.
    stop: Arc<AtomicBool>,
    result: oneshot::Receiver<Result<Rolled, DeviceFault>>,
}

/// Where the model is.
enum Device {
    /// There is none, or it was switched off.
    Absent,
    /// A thread is loading it (again).
    Loading(Receiver<ponder_engine::Result<DeviceThread>>),
    /// It answers.
    Ready(DeviceThread),
}

/// Proposes tokens; without a drafter it answers with none.
pub struct DraftModel {
    drafters: Drafters,
    setup: Option<DraftSetup>,
    running: Running,
    device: Device,
    faults: u32,
    good: u32,
    broken: u32,
    ahead: Option<Ahead>,
    tracer: Arc<Tracer>,
}

impl DraftModel {
    /// Drafters around a running device thread, or without any.
    pub fn new(
        lookup: Lookup,
        model: Option<(DraftSetup, DeviceThread)>,
        running: Running,
        tracer: Arc<Tracer>,
    ) -> Self {
        let limits = model.as_ref().map(|(setup, _)| setup.limits);
        let (setup, device) = match model {
            Some((setup, thread)) => (Some(setup), Device::Ready(thread)),
            None => (None, Device::Absent),
        };
        let drafters = Drafters::new(DrafterOptions { lookup, model: limits });
        Self { drafters, setup, running, device, faults: 0, good: 0, broken: 0, ahead: None, tracer }
    }

    /// The thread, if it answers; one that was loading is looked after.
    fn ready(&mut self) -> Option<(&DeviceThread, &DraftSetup)> {
        if let Device::Loading(loaded) = &self.device
            && let Ok(outcome) = loaded.try_recv()
        {
            match outcome {
                Ok(thread) => self.device = Device::Ready(thread),
                Err(error) => self.failed(&error.to_string()),
            }
        }
        match (&self.device, &self.setup) {
            (Device::Ready(thread), Some(setup)) => Some((thread, setup)),
            _ => None,
        }
    }

    /// The draft is replaced, or switched off if that has been tried before.
    fn failed(&mut self, why: &str) {
        self.tracer.draft_failed();
        self.drafters.lost_cache();
        (self.good, self.broken) = (0, 0);
        self.faults += 1;
        // The old thread may hang for ever; it holds its own end of the channel and is left behind.
        self.device = Device::Absent;
        if self.faults >= FAULTS {
            tracing::warn!(why, faults = self.faults, "the draft model is switched off");
            return;
        }
        tracing::warn!(why, "the draft model failed; its thread is replaced, and nothing is guessed meanwhile");
        let Some(setup) = &self.setup else { return };
        let (loader, (loaded, outcome)) = (setup.loader.clone(), bounded(1));
        let running = self.running.clone();
        let load = move || drop(loaded.send(DeviceThread::start("draft", loader, running)));
        if std::thread::Builder::new().name("draft-loader".into()).spawn(load).is_ok() {
            self.device = Device::Loading(outcome);
        }
    }

    fn done(&mut self, drafted: &mut Drafted, job: &DraftJob, rolled: Rolled, took: Duration) {
        self.broken = if rolled.broken > 0 && rolled.broken == job.asks.len() { self.broken + 1 } else { 0 };
        self.drafters.finish(drafted, job, rolled, took);
        self.good += 1;
        if self.good >= FORGET {
            (self.good, self.faults) = (0, self.faults.saturating_sub(1));
        }
        if self.broken >= BROKEN {
            self.failed("its logits are no numbers");
        }
    }
}

impl Actor for DraftModel {
    type Context = Context<Self>;
}

/// What the draft's thread found, or why it found nothing.
type Outcome = Result<Rolled, DeviceFault>;

impl Handler<Sent<Propose>> for DraftModel {
    type Result = ResponseActFuture<Self, Drafted>;
    fn handle(&mut self, sent: Sent<Propose>, _: &mut Context<Self>) -> Self::Result {
        let (Propose { reserved }, span) = sent.open("draft", &self.tracer);
        let start = Instant::now();
        let Some(ahead) = self.ahead.take() else { return self.guess(reserved, span, start) };
        ahead.stop.store(true, Ordering::Relaxed);
        let outcome = within(self.timeout(), ahead.result).into_actor(self);
        Box::pin(outcome.then(move |outcome: Outcome, draft: &mut Self, _| {
            match outcome {
                Ok(rolled) => draft.drafters.went_ahead(&ahead.job, &rolled),
                Err(fault) => draft.failed(&fault.to_string()),
            }
            draft.guess(reserved, span, start)
        }))
    }
}

/// Waits for the draft's thread, not for ever.
async fn within(timeout: Duration, result: oneshot::Receiver<Outcome>) -> Outcome {
    let answered = actix_rt::time::timeout(timeout, result);
    let answered = answered.await.map_err(|_| DeviceFault::Timeout(timeout.as_millis() as u64))?;
    answered.map_err(|_| DeviceFault::Lost("the draft's thread ended".into()))?
}

impl DraftModel {
    fn timeout(&self) -> Duration {
        self.setup.as_ref().map_or(Duration::ZERO, |setup| setup.timeout)
    }

    /// Follows the plan and guesses; then goes ahead, if it may.
    fn guess(&mut self, reserved: Reserved, span: OpenSpan, start: Instant) -> ResponseActFuture<Self, Drafted> {
        let model = self.ready().is_some();
        let (mut drafted, job) = self.drafters.propose(reserved, model);
        self.tracer.foreseen(self.drafters.foreseen_guesses());
        let Some((thread, setup)) = self.ready().filter(|_| !job.asks.is_empty()) else {
            self.go_ahead(&drafted);
            return Box::pin(actix::fut::ready(drafted));
        };
        let (job, limits, timeout) = (Arc::new(job), setup.limits.rollout, setup.timeout);
        let asked = job.clone();
        let result = thread.call(move |model| rollout(&asked.asks, limits, &mut |batch| model.run(batch), &|| false));
        Box::pin(within(timeout, result).into_actor(self).map(move |outcome: Outcome, draft: &mut Self, _| {
            let _span = span;
            match outcome {
                Ok(rolled) => {
                    draft.done(&mut drafted, &job, rolled, start.elapsed());
                    draft.go_ahead(&drafted);
                }
                Err(fault) => {
                    drafted.draft_time = start.elapsed();
                    draft.failed(&fault.to_string());
                }
            }
            drafted
        }))
    }

    /// While the target verifies: the guesses after these, should all of them be right.
    fn go_ahead(&mut self, drafted: &Drafted) {
        if !self.setup.as_ref().is_some_and(|setup| setup.ahead) || self.ready().is_none() {
            return;
        }
        let job = Arc::new(self.drafters.ahead(drafted));
        let Some((thread, setup)) = self.ready().filter(|_| !job.asks.is_empty()) else { return };
        let (asked, limits, stop) = (job.clone(), setup.limits.rollout, Arc::new(AtomicBool::new(false)));
        let told = stop.clone();
        let result = thread.call(move |model| {
            rollout(&asked.asks, limits, &mut |batch| model.run(batch), &|| told.load(Ordering::Relaxed))
        });
        self.ahead = Some(Ahead { job, stop, result });
    }
}
