//! Every message of the system, in the order in which a step sends them.
//!
//! Messages carry ids, token ids and block tables, never tensors.

use std::time::Duration;

use actix::prelude::*;
use ponder_engine::DeviceFault;
use ponder_engine::request::{Request, RequestId, SeqId};
use ponder_engine::schedule::{DraftPolicy, Event, SchedulerView, StopText};
use ponder_engine::step::{Drafted, Reserved, Settled, StepPlan, Verified};

/// A message with the name that it has in traces.
pub trait Named: Message {
    /// Its name.
    const NAME: &'static str;
    /// The step that it belongs to, 0 if none.
    fn step(&self) -> u64 {
        0
    }
}

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident $fields:tt -> $result:ty $(, step $step:expr)?;)*) => { $(
        messages!(@item $(#[$doc])* $name $fields $result);
        impl Named for $name {
            const NAME: &'static str = stringify!($name);
            $(fn step(&self) -> u64 { let get: fn(&$name) -> u64 = $step; get(self) })?
        }
    )* };
    (@item $(#[$doc:meta])* $name:ident { $($body:tt)* } $result:ty) => {
        $(#[$doc])*
        pub struct $name { $($body)* }
        impl Message for $name {
            type Result = $result;
        }
    };
}

messages! {
    /// To the scheduler: who runs, how many tokens each? `None` when there is nothing to do.
    PlanStep {
        /// Time since the start of the system.
        pub now: Duration,
        /// Only this sequence may run: the search for the one that breaks the device.
        pub only: Option<SeqId>,
    } -> Option<StepPlan>;

    /// To the KV allocator: where does it live?
    Reserve {
        /// The plan.
        pub plan: StepPlan,
    } -> Reserved, step |m| m.plan.id.0;

    /// To the draft model: what do we guess?
    Propose {
        /// The reservation.
        pub reserved: Reserved,
    } -> Drafted, step |m| m.reserved.plan.id.0;

    /// To the target model: what is true? Also plain prefill and decode.
    Verify {
        /// The guesses.
        pub drafted: Drafted,
        /// Dropped when the device has its work.
        pub launched: tokio::sync::oneshot::Sender<()>,
    } -> Result<Verified, StepFault>, step |m| m.drafted.reserved.plan.id.0;

    /// To the KV allocator: what do we keep?
    Settle {
        /// The results.
        pub verified: Verified,
    } -> Settled, step |m| m.verified.drafted.reserved.plan.id.0;

    /// To the scheduler: tell the requests.
    ApplyStep {
        /// What was kept.
        pub settled: Settled,
        /// Time since the start of the system.
        pub now: Duration,
    } -> Vec<Event>, step |m| m.settled.id.0;

    /// To the streamer: tell the clients. Answers with the requests whose clients are gone.
    Deliver {
        /// New tokens and ends.
        pub events: Vec<Event>,
    } -> Vec<RequestId>;

    /// To the streamer: a client wants to hear of this request.
    Listen {
        /// Its request.
        pub request: RequestId,
        /// Its answers.
        pub choices: u8,
        /// Ends the text before any of these.
        pub stop: Vec<String>,
        /// Where to.
        pub sink: crate::streamer::Sink,
    } -> ();

    /// To the streamer: the request was refused.
    Forget {
        /// It.
        pub request: RequestId,
    } -> ();

    /// To the scheduler: a new request.
    Submit {
        /// The request.
        pub request: Request,
        /// Finds stop strings, one per answer; empty where there are none.
        pub stop_text: Vec<Box<dyn StopText>>,
        /// Time since the start of the system.
        pub now: Duration,
    } -> ponder_engine::Result<()>;

    /// To the scheduler: guess so many tokens from now on.
    SetDrafts {
        /// How many.
        pub policy: DraftPolicy,
    } -> ();

    /// To the scheduler: a client went away.
    Cancel {
        /// Its request.
        pub request: RequestId,
    } -> ();

    /// To the scheduler: when there is nothing else to do, have this in the cache.
    WarmUp {
        /// Tokens of a prompt that may come.
        pub tokens: Vec<u32>,
        /// Whose it would be.
        pub tenant: std::sync::Arc<str>,
    } -> ();

    /// To the scheduler: a client wants the answer now.
    EndThinking {
        /// Its request.
        pub request: RequestId,
    } -> ();

    /// To the scheduler: keep what was learnt about lengths; the engine stops.
    Keep {} -> ();

    /// To the scheduler: who is in flight?
    LookAtRequests {
        /// Time since the start of the system.
        pub now: Duration,
    } -> (SchedulerView, crate::life::Totals);

    /// To the scheduler: what did this answer do so far? It is in flight, or among the last that ended.
    LookAtLife {
        /// Whose answer.
        pub seq: SeqId,
        /// Time since the start of the system.
        pub now: Duration,
    } -> Option<crate::life::LifeView>;

    /// To the KV allocator: who holds what?
    LookAtBlocks {} -> crate::view::BlockView;

    /// To the scheduler: the device is new and its cache empty; start over from the token logs.
    Replay {
        /// Found guilty: ends with this reason instead.
        pub culprit: Option<(SeqId, String)>,
    } -> Vec<SeqId>;

    /// To the KV allocator: the cache is empty.
    Clear {} -> ();

    /// To the target model: a new device thread.
    Restart {} -> Result<(), String>;

    /// To the supervisor: the device failed during a step; what now?
    Failed {
        /// What happened.
        pub fault: StepFault,
        /// The sequences of that step.
        pub suspects: Vec<SeqId>,
        /// Time since the start of the system.
        pub now: Duration,
    } -> crate::supervisor::Verdict;

    /// To the supervisor: a step with these sequences went well.
    Succeeded {
        /// The sequences; none if the one that had to run alone is gone.
        pub seqs: Vec<SeqId>,
        /// Whether it chose a token, so that it got past the point where the device broke.
        pub chose: bool,
    } -> Option<SeqId>;

    /// To the scheduler: end everything in flight with this reason.
    FailAll {
        /// Why.
        pub reason: String,
    } -> Vec<Event>;
}

/// A device that did not finish its step.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("step {step}: {fault}")]
pub struct StepFault {
    /// The step.
    pub step: u64,
    /// What happened.
    pub fault: DeviceFault,
}
