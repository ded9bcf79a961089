//! The OS thread that owns a model and its backend. GPU objects never leave it; batches come over a
//! bounded channel; a panic there ends the thread and nothing else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use ponder_engine::backend::Backend;
use ponder_engine::model::batch::{Batch, BatchOutput};
use ponder_engine::model::runner::ModelRunner;
use ponder_engine::{DeviceFault, Error, Result};
use tokio::sync::oneshot;

/// What a device thread does: the backend's type ends here.
pub trait BatchRunner {
    /// Runs a batch and waits for it.
    fn run(&mut self, batch: &Batch) -> Result<BatchOutput>;
    /// Time that the last batch spent on the device.
    fn device_time(&self) -> Duration;
}

impl<B: Backend> BatchRunner for ModelRunner<B> {
    fn run(&mut self, batch: &Batch) -> Result<BatchOutput> {
        ModelRunner::run(self, batch)
    }
    fn device_time(&self) -> Duration {
        self.last_device_time
    }
}

/// Makes the model on its thread, as often as the thread has to be replaced.
pub type Loader = Arc<dyn Fn() -> Result<Box<dyn BatchRunner>> + Send + Sync>;

/// A batch's result with its device time.
pub type Ran = Result<(BatchOutput, Duration), DeviceFault>;

/// How long a thread that has done its work gives way before it sleeps: longer than the actors take between two steps.
const ATTENTIVE: Duration = Duration::from_millis(1);

/// Something to do with the model; answers whether the thread must end after it.
type Work = Box<dyn FnOnce(&mut dyn BatchRunner) -> bool + Send>;

/// Held by every device thread of a system until its model is gone: a process that ends before has drivers torn down
/// under a thread that still uses them.
#[derive(Clone)]
pub struct Running(#[allow(dead_code)] Sender<()>);

/// What a system waits for at its end: the last [`Running`].
pub struct AllGone(Receiver<()>);

impl Running {
    /// For the threads of one system.
    pub fn new() -> (Self, AllGone) {
        let (running, gone) = bounded(0);
        (Self(running), AllGone(gone))
    }
}

impl AllGone {
    /// Waits for the threads, but not for one that hangs: false if some are left after `most`.
    pub fn wait(&self, most: Duration) -> bool {
        matches!(self.0.recv_timeout(most), Err(RecvTimeoutError::Disconnected))
    }
}

/// The sending end. Dropping it ends the thread after its present batch.
pub struct DeviceThread {
    work: Sender<Work>,
}

impl DeviceThread {
    /// Starts a thread named `name` and waits until its model is loaded.
    pub fn start(name: &str, loader: Loader, running: Running) -> Result<Self> {
        let (work, inbox) = bounded::<Work>(1);
        let (loaded, is_loaded) = bounded(1);
        let spawned = std::thread::Builder::new().name(name.into()).spawn(move || {
            match catch_unwind(AssertUnwindSafe(|| loader())) {
                Ok(Ok(model)) => {
                    let _ = loaded.send(Ok(()));
                    serve(model, &inbox);
                }
                Ok(Err(error)) => drop(loaded.send(Err(error))),
                Err(panic) => drop(loaded.send(Err(lost(&*panic)))),
            }
            drop(running);
        });
        spawned.map_err(|e| Error::invalid("device thread", e.to_string()))?;
        is_loaded.recv().map_err(|_| Error::invalid("device thread", "ended while loading"))??;
        Ok(Self { work })
    }

    /// Hands a batch over. The receiver fails when the thread ends without an answer.
    pub fn run(&self, batch: Batch) -> oneshot::Receiver<Ran> {
        self.call(move |model| {
            let output = model.run(&batch)?;
            // Before whoever waits for the answer wants this core.
            drop(batch);
            Ok((output, model.device_time()))
        })
    }

    /// Hands anything over that a model can do. A panic in there, or a lost device, ends the thread.
    pub fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn BatchRunner) -> Result<R> + Send + 'static,
    ) -> oneshot::Receiver<Result<R, DeviceFault>> {
        let (answer, result) = oneshot::channel();
        let work: Work = Box::new(move |model| {
            let done = catch_unwind(AssertUnwindSafe(|| work(model)));
            let (done, fatal) = match done {
                Ok(Ok(done)) => (Ok(done), false),
                Ok(Err(Error::Device { what, .. })) => {
                    let fatal = !matches!(what, DeviceFault::Unsupported(_));
                    (Err(what), fatal)
                }
                Ok(Err(other)) => (Err(DeviceFault::Rejected(other.to_string())), false),
                Err(panic) => (Err(DeviceFault::Lost(message(&*panic))), true),
            };
            // Whoever asked may have given up waiting.
            let _ = answer.send(done);
            fatal
        });
        // Refused work is dropped, and its receiver sees that: the thread has ended or is still busy.
        let _ = self.work.try_send(work);
        result
    }
}

/// The next work. Between two steps it comes within a fraction of a millisecond, and waking a thread that sleeps would
/// take as long again; so it gives way for a while before it sleeps.
fn next(inbox: &Receiver<Work>) -> Option<Work> {
    let begun = Instant::now();
    while begun.elapsed() < ATTENTIVE {
        match inbox.try_recv() {
            Ok(work) => return Some(work),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => std::thread::yield_now(),
        }
    }
    inbox.recv().ok()
}

fn serve(mut model: Box<dyn BatchRunner>, inbox: &Receiver<Work>) {
    while let Some(work) = next(inbox) {
        if work(&mut *model) {
            // After a panic or a lost device nothing in here can be trusted, its destructors included.
            std::mem::forget(model);
            return;
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.as_deref().unwrap_or("(no message)"))
}

fn lost(panic: &(dyn Any + Send)) -> Error {
    Error::Device { device: "device thread".into(), what: DeviceFault::Lost(message(panic)) }
}
