//! The draft model: a mailbox, the drafters' state, and a device thread of its own.
//!
//! Nothing here can fail a request. A draft that panics, hangs, answers nonsense or is not loaded yet costs
//! its guesses: the step goes on without them, the thread is replaced meanwhile, and a draft that fails
//! again and again is switched off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use crossbeam_channel::{Receiver, bounded};
use ponder_engine::DeviceFault;
use ponder_engine::spec::{DraftJob, DrafterOptions, Drafters, Lookup, ModelLimits, Rolled, rollout};
use ponder_engine::step::Drafted;

use crate::device::{DeviceThread, Loader};
use crate::message::Propose;
use crate::port::Sent;
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
}

/// Faults after which a draft model is switched off; as many good jobs make one of them forgotten.
const FAULTS: u32 = 3;
/// See [`FAULTS`].
const FORGET: u32 = 1000;
/// Jobs in a row without one finite logit that make a fault.
const BROKEN: u32 = 8;

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
    device: Device,
    faults: u32,
    good: u32,
    broken: u32,
    tracer: Arc<Tracer>,
}

impl DraftModel {
    /// Drafters around a running device thread, or without any.
    pub fn new(lookup: Lookup, model: Option<(DraftSetup, DeviceThread)>, tracer: Arc<Tracer>) -> Self {
        let limits = model.as_ref().map(|(setup, _)| setup.limits);
        let (setup, device) = match model {
            Some((setup, thread)) => (Some(setup), Device::Ready(thread)),
            None => (None, Device::Absent),
        };
        let drafters = Drafters::new(DrafterOptions { lookup, model: limits });
        Self { drafters, setup, device, faults: 0, good: 0, broken: 0, tracer }
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
        let load = move || drop(loaded.send(DeviceThread::start("draft", loader)));
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
        let model = self.ready().is_some();
        let (mut drafted, job) = self.drafters.propose(reserved, model);
        let Some((thread, setup)) = self.ready().filter(|_| !job.asks.is_empty()) else {
            return Box::pin(actix::fut::ready(drafted));
        };
        let (job, limits, timeout) = (Arc::new(job), setup.limits.rollout, setup.timeout);
        let asked = job.clone();
        let result = thread.call(move |model| rollout(&asked.asks, limits, &mut |batch| model.run(batch), &|| false));
        let outcome = async move {
            let answered = actix_rt::time::timeout(timeout, result);
            let answered = answered.await.map_err(|_| DeviceFault::Timeout(timeout.as_millis() as u64))?;
            answered.map_err(|_| DeviceFault::Lost("the draft's thread ended".into()))?
        };
        Box::pin(outcome.into_actor(self).map(move |outcome: Outcome, draft, _| {
            let _span = span;
            match outcome {
                Ok(rolled) => draft.done(&mut drafted, &job, rolled, start.elapsed()),
                Err(fault) => {
                    drafted.draft_time = start.elapsed();
                    draft.failed(&fault.to_string());
                }
            }
            drafted
        }))
    }
}
