//! Starts the actors, runs the loop around the step, and hands out the way in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::prelude::*;
use ponder_engine::grammar::GrammarSource;
use ponder_engine::kv::{BlockPool, CacheOptions};
use ponder_engine::reason::{Lengths, Survival, Thinking};
use ponder_engine::request::{Request, RequestId, SamplingParams, SeqId};
use ponder_engine::schedule::{DraftPolicy, Event, Scheduler, SchedulerOptions, StopText};
use ponder_engine::spec::Lookup;
use ponder_engine::text::Tokenizer;
use ponder_engine::{Error, Result};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::device::{AllGone, DeviceThread, Loader, Running};
use crate::draft::{DraftModel, DraftSetup};
use crate::life::LifeView;
use crate::message::*;
use crate::port::{Port, PortClosed};
use crate::shells::{KeepLengths, KvAllocator, SchedulerActor, TargetModel};
use crate::step::{Star, StepError, Stepped, step};
use crate::streamer::{Streamer, TokenStop, Update};
use crate::supervisor::{Supervision, Supervisor, Verdict};
use crate::trace::Tracer;
use crate::view::EngineView;

/// Everything that a system is started with.
pub struct SystemOptions {
    /// Limits of steps and sequences.
    pub scheduler: SchedulerOptions,
    /// How the cache is shared, and what becomes of it where it is short.
    pub cache: CacheOptions,
    /// Makes the target model on its thread.
    pub target: Loader,
    /// For streaming and stop strings.
    pub tokenizer: Arc<Tokenizer>,
    /// What is looked up in logs as guesses.
    pub lookup: Lookup,
    /// The draft model, if there is one.
    pub draft: Option<DraftSetup>,
    /// A step that takes longer is given up and its device replaced.
    pub step_timeout: Duration,
    /// What is known about lengths.
    pub lengths: Survival,
    /// Takes what was learnt about them, now and then and at the end.
    pub keep_lengths: Option<KeepLengths>,
}

/// What a caller submits.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Prompt tokens.
    pub prompt: Vec<u32>,
    /// How to go on.
    pub params: SamplingParams,
    /// The model's end tokens.
    pub eos: Vec<u32>,
    /// How it thinks; `None`: all it says is the answer.
    pub thinking: Option<Arc<Thinking>>,
    /// What its answers keep to.
    pub grammar: Option<GrammarSource>,
    /// Whose it is; what one tenant's answers say serves as guesses for nobody else.
    pub tenant: Arc<str>,
}

/// The way in; clone it freely. The system ends when the last [`System`] is dropped.
#[derive(Clone)]
pub struct Handle {
    star: Star,
    streamer: Port<Streamer>,
    tokenizer: Arc<Tokenizer>,
    tracer: Arc<Tracer>,
    wake: Arc<Notify>,
    next_request: Arc<AtomicU64>,
}

/// A request in flight: updates come out, dropping it cancels.
pub struct Generation {
    /// Its id.
    pub id: RequestId,
    updates: mpsc::UnboundedReceiver<Update>,
    wake: Arc<Notify>,
}

impl Generation {
    /// The next update; `None` after every answer has ended.
    pub async fn next(&mut self) -> Option<Update> {
        self.updates.recv().await
    }
    /// The same, for threads without an async runtime.
    pub fn next_blocking(&mut self) -> Option<Update> {
        self.updates.blocking_recv()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.updates.close();
        self.wake.notify_one();
    }
}

impl Handle {
    /// Takes a request or says why not.
    pub async fn submit(&self, submission: Submission) -> Result<Generation> {
        let id = RequestId(self.next_request.fetch_add(1, Ordering::Relaxed));
        let Submission { prompt, params, eos, thinking, grammar, tenant } = submission;
        let (sink, updates) = mpsc::unbounded_channel();
        let (choices, stop) = (params.n, params.stop.clone());
        let stop_text = if stop.is_empty() { 0 } else { choices };
        let stop_text = (0..stop_text)
            .map(|_| Box::new(TokenStop::new(&self.tokenizer, stop.clone())) as Box<dyn StopText>)
            .collect();
        let closed = |closed: PortClosed| Error::invalid("engine", format!("is shutting down: {closed}"));
        // The streamer first: no token may come before its listener.
        self.streamer.call(Listen { request: id, choices, stop, sink }).await.map_err(closed)?;
        let request = Request { id, prompt, params, eos, thinking, grammar, tenant };
        let submit = Submit { request, stop_text, now: self.tracer.now() };
        if let Err(refused) = self.star.scheduler.call(submit).await.map_err(closed)? {
            self.streamer.call(Forget { request: id }).await.map_err(closed)?;
            return Err(refused);
        }
        self.wake.notify_one();
        Ok(Generation { id, updates, wake: self.wake.clone() })
    }

    /// The same, for threads without an async runtime.
    pub fn submit_blocking(&self, submission: Submission) -> Result<Generation> {
        futures::executor::block_on(self.submit(submission))
    }

    /// When there is nothing else to do, these tokens are computed and cached: a prompt that begins with them may
    /// come with this salt.
    pub async fn warm_up(&self, tokens: Vec<u32>, tenant: Arc<str>) {
        // A system that shuts down has no next turn.
        if self.star.scheduler.call(WarmUp { tokens, tenant }).await.is_ok() {
            self.wake.notify_one();
        }
    }
    /// Ends the thinking of a request's answers after their next token; no request, no effect.
    pub async fn end_thinking(&self, request: RequestId) -> Result<()> {
        let closed = |closed: PortClosed| Error::invalid("engine", format!("is shutting down: {closed}"));
        self.star.scheduler.call(EndThinking { request }).await.map_err(closed)
    }

    /// The state of the engine now. It costs two messages, and only when somebody looks.
    pub async fn view(&self) -> Result<EngineView> {
        let closed = |closed: PortClosed| Error::invalid("engine", format!("is shutting down: {closed}"));
        let now = self.tracer.now();
        let (requests, totals) = self.star.scheduler.call(LookAtRequests { now }).await.map_err(closed)?;
        let blocks = self.star.kv.call(LookAtBlocks {}).await.map_err(closed)?;
        Ok(EngineView::new(now, requests, totals, blocks, &self.tracer))
    }

    /// What an answer did so far, if it is in flight or among the last that ended.
    pub async fn life(&self, seq: SeqId) -> Result<Option<LifeView>> {
        let closed = |closed: PortClosed| Error::invalid("engine", format!("is shutting down: {closed}"));
        self.star.scheduler.call(LookAtLife { seq, now: self.tracer.now() }).await.map_err(closed)
    }

    /// Guesses so many tokens from now on: for measurements, on an engine without requests in flight.
    pub fn set_drafts(&self, policy: DraftPolicy) -> Result<()> {
        let set = futures::executor::block_on(self.star.scheduler.call(SetDrafts { policy }));
        set.map_err(|closed| Error::invalid("engine", format!("is shutting down: {closed}")))
    }

    /// The recorder of spans.
    pub fn tracer(&self) -> &Arc<Tracer> {
        &self.tracer
    }
}

/// How long the end of a system waits for its devices.
const LAST_BATCH: Duration = Duration::from_secs(5);

/// The running actors. Dropping it stops them, and waits for their thread and for their devices.
pub struct System {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    all_gone: AllGone,
}

impl System {
    /// Loads the model on its device thread and starts the actors on another.
    pub fn start(options: SystemOptions) -> Result<Self> {
        let (running, all_gone) = Running::new();
        let device = DeviceThread::start("target", options.target.clone(), running.clone())?;
        let draft = options.draft.as_ref();
        let draft = draft.map(|d| DeviceThread::start("draft", d.loader.clone(), running.clone())).transpose()?;
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let body = move || {
            actix::System::with_tokio_rt(runtime).block_on(async move {
                let handle = start_actors(options, device, draft, running);
                let sent = ready.send(handle.clone());
                if sent.is_ok() {
                    let run = Loop { star: handle.star.clone(), streamer: handle.streamer.clone(), handle };
                    let supervisor = run.supervisor();
                    let scheduler = run.star.scheduler.clone();
                    futures::future::select(Box::pin(run.run(supervisor)), stopped).await;
                    // It is gone if it panicked; then there is nothing to keep.
                    let _ = scheduler.call(Keep {}).await;
                }
                actix::System::current().stop();
            });
        };
        let thread = std::thread::Builder::new().name("actors".into()).spawn(body);
        let thread = thread.map_err(|e| Error::invalid("actor thread", e.to_string()))?;
        let handle = is_ready.recv().map_err(|_| Error::invalid("actor thread", "ended at its start"))?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread), all_gone })
    }

    /// The way in.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for System {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic over there was reported by its own hook.
            let _ = thread.join();
        }
        if !self.all_gone.wait(LAST_BATCH) {
            tracing::warn!("a device does not end and is left behind");
        }
    }
}

/// What the actors of one thread run on: it knows no files and sockets, so it sleeps on a futex, which is quicker to wake
/// than a poll of descriptors.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a clock and a thread suffice")
}

fn start_actors(options: SystemOptions, device: DeviceThread, draft: Option<DeviceThread>, running: Running) -> Handle {
    let tracer = Arc::new(Tracer::default());
    let (blocks, block_size) = (options.scheduler.blocks, options.scheduler.block_size);
    let shell = SchedulerActor {
        scheduler: Scheduler::new(options.scheduler).with_lengths(Lengths::new(options.lengths)),
        keep_lengths: options.keep_lengths,
        kept: 0,
        lives: Default::default(),
        tracer: tracer.clone(),
    };
    let allocator = KvAllocator { pool: BlockPool::with(blocks, block_size, options.cache), tracer: tracer.clone() };
    let target = TargetModel::new(device, options.target, running.clone(), options.step_timeout, tracer.clone());
    let draft = DraftModel::new(options.lookup, options.draft.zip(draft), running, tracer.clone());
    let star = Star {
        scheduler: Port::new("scheduler", shell.start()),
        kv: Port::new("kv", allocator.start()),
        draft: Port::new("draft", draft.start()),
        target: Port::new("target", target.start()),
    };
    let tokenizer = options.tokenizer;
    let streamer = Streamer::new(tokenizer.clone(), tracer.clone());
    let streamer = Streamer::start_in_arbiter(&Arbiter::with_tokio_rt(runtime).handle(), |_| streamer);
    Handle {
        star,
        streamer: Port::new("streamer", streamer),
        tokenizer,
        tracer,
        wake: Arc::new(Notify::new()),
        next_request: Arc::new(AtomicU64::new(1)),
    }
}

/// The loop around the step.
struct Loop {
    star: Star,
    streamer: Port<Streamer>,
    handle: Handle,
}

impl Loop {
    fn supervisor(&self) -> Port<Supervisor> {
        let supervisor = Supervisor { rules: Supervision::default(), tracer: self.handle.tracer.clone() };
        Port::new("supervisor", supervisor.start())
    }

    /// Steps until the system closes. What a step made is delivered when the device is at work on the next one.
    async fn run(&self, supervisor: Port<Supervisor>) {
        let mut made: Vec<Event> = Vec::new();
        let mut only = None;
        let mut since = None;
        loop {
            let now = self.handle.tracer.now();
            let (launched, at_work) = oneshot::channel();
            let events = std::mem::take(&mut made);
            let deliver = async {
                let _ = at_work.await;
                self.deliver(events).await
            };
            let (stepped, delivered) = futures::join!(step(&self.star, now, only, since, launched), deliver);
            let (cancelled, outcome) = match (delivered, stepped) {
                (Err(closed), _) => (0, Err(StepError::Closed(closed))),
                (Ok(cancelled), stepped) => (cancelled, stepped),
            };
            since = outcome.as_ref().ok().and_then(|stepped| Some(stepped.as_ref()?.settled_at));
            let next = match outcome {
                Ok(Some(stepped)) => self.after_step(&supervisor, stepped, only, &mut made).await,
                Ok(None) if only.is_some() => {
                    // The suspect has left: the next one, or everybody, goes on.
                    let gone = Succeeded { seqs: Vec::new(), chose: true };
                    supervisor.call(gone).await
                }
                // A cancelled request's blocks are freed by the next step.
                Ok(None) if cancelled > 0 => Ok(None),
                Ok(None) => {
                    self.handle.tracer.idle();
                    self.handle.wake.notified().await;
                    Ok(None)
                }
                Err(StepError::Fault(fault, suspects)) => self.recover(&supervisor, fault, suspects, &mut made).await,
                Err(StepError::Closed(closed)) => Err(closed),
            };
            match next {
                Ok(next) => only = next,
                Err(closed) => {
                    tracing::debug!(%closed, "the step loop ends");
                    return;
                }
            }
        }
    }

    /// Tells the clients; those who are gone are cancelled. Returns how many.
    async fn deliver(&self, events: Vec<Event>) -> Result<usize, PortClosed> {
        let gone = self.streamer.call(Deliver { events }).await?;
        for request in &gone {
            self.star.scheduler.call(Cancel { request: *request }).await?;
        }
        Ok(gone.len())
    }

    async fn after_step(
        &self,
        supervisor: &Port<Supervisor>,
        stepped: Stepped,
        only: Option<SeqId>,
        made: &mut Vec<Event>,
    ) -> Result<Option<SeqId>, PortClosed> {
        let chose = !stepped.events.is_empty();
        // What was made before is delivered.
        *made = stepped.events;
        if only.is_none() {
            return Ok(None);
        }
        supervisor.call(Succeeded { seqs: stepped.seqs, chose }).await
    }

    /// A new device thread, an empty cache, and the token logs again.
    async fn recover(
        &self,
        supervisor: &Port<Supervisor>,
        fault: StepFault,
        suspects: Vec<SeqId>,
        made: &mut Vec<Event>,
    ) -> Result<Option<SeqId>, PortClosed> {
        tracing::error!(%fault, sequences = suspects.len(), "the device failed; its thread is replaced");
        let verdict = supervisor.call(Failed { fault, suspects, now: self.handle.tracer.now() }).await?;
        let restarted = self.star.target.call(Restart {}).await?;
        self.star.kv.call(Clear {}).await?;
        let give_up = match (verdict, restarted) {
            (Verdict::Replay { culprit, only }, Ok(())) => {
                self.star.scheduler.call(Replay { culprit }).await?;
                return Ok(only);
            }
            (Verdict::GiveUp { reason }, _) => reason,
            (_, Err(error)) => format!("the device could not be restarted: {error}"),
        };
        made.extend(self.star.scheduler.call(FailAll { reason: give_up }).await?);
        Ok(None)
    }
}
