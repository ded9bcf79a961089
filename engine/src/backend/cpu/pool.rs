//! Threads that run a whole launch in lockstep.
//!
//! Waking a thread costs tens of microseconds, and a step has hundreds of phases: so threads are woken
//! once per launch, and between phases they meet at a barrier that spins. A spin is bounded: on a busy
//! machine it becomes a yield. Between launches they yield, then sleep. A launch with little to do is run by fewer of
//! them: meeting takes longer then than the work.
//!
//! A panic in one thread poisons the barrier; the others leave their phase, and the launch is an error.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::cores;

/// Spins at a barrier before a thread begins to yield: about 50 us.
const SPINS: u32 = 3000;
/// Yields between launches before a worker sleeps: meant to last longer than a small draft model needs for its guesses,
/// since the step that verifies them would begin with waking it.
const YIELDS: u32 = 2000;

/// Spans that a phase is cut into at most. Threads without a span of their own share one.
const SPANS: usize = 8;

/// No processor.
const NOWHERE: usize = usize::MAX;

/// A value on a cache line of its own.
#[repr(align(128))]
struct Line<T>(T);

/// What all threads of a launch run. The lifetime is erased: `run` returns only when all have left it.
type Job = *const (dyn Fn(&Worker<'_>) + Sync);

struct Shared {
    threads: usize,
    /// Number of launches begun; workers wait for it to move.
    epoch: Line<AtomicUsize>,
    /// Threads at the barrier.
    arrived: Line<AtomicUsize>,
    /// Barriers passed.
    generation: Line<AtomicUsize>,
    /// Items taken of each span of the present phase.
    taken: [Line<AtomicUsize>; SPANS],
    /// Workers that have left the present launch.
    left: Line<AtomicUsize>,
    /// Processor of each thread when it last began a launch; [`NOWHERE`] where that is not known.
    cores: Vec<AtomicUsize>,
    poisoned: AtomicBool,
    stop: AtomicBool,
    /// What the present launch runs, and on how many threads.
    job: UnsafeCell<Option<(Job, usize)>>,
    /// The first panic's message.
    panic: Mutex<Option<String>>,
    /// Workers asleep, and their bell.
    sleepers: Mutex<usize>,
    bell: Condvar,
}

// SAFETY: `job` is written by the owner alone, between launches (all workers have left, `left` is
// acquired), and read by workers after they acquired the new `epoch`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure that outlives its launch.
unsafe impl Send for Shared {}

/// A thread's view of a launch.
pub struct Worker<'a> {
    /// Index among the threads.
    pub index: usize,
    /// Threads of the launch.
    pub threads: usize,
    shared: &'a Shared,
}

/// The threads; the caller of [`Pool::run`] is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// Unwinds a thread whose neighbour panicked.
struct Poisoned;

impl Worker<'_> {
    /// Shares `0..total` out in chunks of `chunk`, and waits until all are done.
    pub fn phase(&self, total: usize, chunk: usize, work: impl FnMut(Range<usize>)) {
        let chunk = chunk.max(1);
        self.phase_aligned(total, chunk, chunk, work);
    }
    /// As [`Worker::phase`]. Each thread goes through a span of its own, from [`Worker::first`] on, and then helps in the
    /// spans of those that are not done. Spans begin at multiples of `align`.
    pub fn phase_aligned(&self, total: usize, chunk: usize, align: usize, mut work: impl FnMut(Range<usize>)) {
        let (spans, own) = (self.spans(), self.own_span());
        for span in (own..spans).chain(0..own) {
            let taken = &self.shared.taken[span].0;
            let Range { start, end } = self.span(span, total, align);
            while taken.load(Ordering::Relaxed) < end - start {
                let from = start + taken.fetch_add(chunk, Ordering::Relaxed);
                if from < end {
                    work(from..end.min(from + chunk));
                }
            }
        }
        self.sync();
    }
    /// The item of such a phase that this thread is given first, if it is not late.
    pub fn first(&self, total: usize, chunk: usize, align: usize) -> usize {
        let own = self.own_span();
        let before = self.index - (0..self.index).take_while(|i| self.span_of(*i) != own).count();
        let span = self.span(own, total, align);
        span.end.min(span.start + before * chunk)
    }
    /// Threads that share this one's span: how many chunks it is to its next one, about.
    pub fn sharing(&self) -> usize {
        let own = self.own_span();
        (0..self.threads).filter(|i| self.span_of(*i) == own).count()
    }
    fn spans(&self) -> usize {
        self.threads.min(SPANS)
    }
    fn own_span(&self) -> usize {
        self.span_of(self.index)
    }
    fn span_of(&self, thread: usize) -> usize {
        thread * self.spans() / self.threads
    }
    fn span(&self, span: usize, total: usize, align: usize) -> Range<usize> {
        let parts = total.div_ceil(align);
        let from = |span: usize| total.min(parts * span / self.spans() * align);
        from(span)..from(span + 1)
    }
    /// Chunk size that gives each thread a few turns.
    pub fn chunk(&self, total: usize) -> usize {
        if self.threads == 1 { total.max(1) } else { total.div_ceil(self.threads * 4).max(1) }
    }
    /// Waits for all threads of the launch.
    fn sync(&self) {
        let shared = self.shared;
        let generation = shared.generation.0.load(Ordering::Acquire);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.taken[..self.spans()].iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
            shared.generation.0.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut spins = 0;
        while shared.generation.0.load(Ordering::Acquire) == generation {
            if shared.poisoned.load(Ordering::Relaxed) {
                resume_unwind(Box::new(Poisoned));
            }
            relax(&mut spins);
        }
    }
}

/// One turn of a wait.
fn relax(spins: &mut u32) {
    *spins += 1;
    if *spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

impl Shared {
    /// Runs the job as thread `index` of `threads`; a panic poisons the launch.
    fn work(&self, index: usize, threads: usize, job: &(dyn Fn(&Worker<'_>) + Sync)) {
        let worker = Worker { index, threads, shared: self };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            if !payload.is::<Poisoned>() {
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert_with(|| message(payload.as_ref()));
            }
            self.poisoned.store(true, Ordering::Release);
        }
    }
    /// Waits until a launch after `seen` begins; gives way, then sleeps. It does not spin: what everybody waits for
    /// between launches is another thread's work, which may want this very core.
    fn wait_for_work(&self, seen: usize) {
        for _ in 0..YIELDS {
            if self.epoch.0.load(Ordering::Acquire) != seen {
                return;
            }
            std::thread::yield_now();
        }
        let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        *sleepers += 1;
        while self.epoch.0.load(Ordering::Acquire) == seen {
            sleepers = self.bell.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
        }
        *sleepers -= 1;
    }
    /// Notes where thread `index` begins its launch; one that is where another is that comes before it moves away.
    fn take_place(&self, index: usize) {
        let Some(mut here) = cores::here() else { return };
        let others = || self.cores[..index].iter().map(|core| core.load(Ordering::Relaxed));
        if others().any(|core| core == here) {
            cores::leave(others());
            here = cores::here().unwrap_or(NOWHERE);
        }
        self.cores[index].store(here, Ordering::Relaxed);
    }
    /// Begins a launch (or the end of the pool) for the workers.
    fn ring(&self) {
        self.epoch.0.fetch_add(1, Ordering::Release);
        // The lock orders this against a worker about to sleep: it saw the new epoch, or it hears the bell.
        if *self.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            self.bell.notify_all();
        }
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("panic without a message").to_string()
}

fn worker_loop(shared: &Shared, index: usize) {
    let mut epoch = 0;
    loop {
        shared.wait_for_work(epoch);
        epoch += 1;
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: the owner wrote `job` before it moved the epoch, and keeps the closure alive until
        // every worker has counted itself in `left`.
        let (job, threads) = unsafe { (*shared.job.get()).map(|(job, threads)| (&*job, threads)) }.expect("a job");
        if index < threads {
            shared.take_place(index);
            shared.work(index, threads, job);
        }
        shared.left.0.fetch_add(1, Ordering::Release);
    }
}

impl Pool {
    /// Starts `threads - 1` workers.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            threads,
            epoch: Line(AtomicUsize::new(0)),
            arrived: Line(AtomicUsize::new(0)),
            generation: Line(AtomicUsize::new(0)),
            taken: [const { Line(AtomicUsize::new(0)) }; SPANS],
            left: Line(AtomicUsize::new(0)),
            cores: (0..threads).map(|_| AtomicUsize::new(NOWHERE)).collect(),
            poisoned: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            sleepers: Mutex::new(0),
            bell: Condvar::new(),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let builder = std::thread::Builder::new().name(format!("ponder-cpu-{index}"));
            pool.workers.push(builder.spawn(move || worker_loop(&shared, index))?);
        }
        Ok(pool)
    }
    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }
    /// Runs `job` on all threads at once and waits for all. The error is the message of the first panic.
    pub fn run(&mut self, job: &(dyn Fn(&Worker<'_>) + Sync)) -> Result<(), String> {
        self.run_on(self.shared.threads, job)
    }
    /// As [`Pool::run`], on the first `threads` of them; on one, no other hears of it.
    pub fn run_on(&mut self, threads: usize, job: &(dyn Fn(&Worker<'_>) + Sync)) -> Result<(), String> {
        let shared = &*self.shared;
        let threads = threads.clamp(1, shared.threads);
        if threads == 1 {
            shared.work(0, 1, job);
            return self.outcome();
        }
        // SAFETY: only the lifetime changes; this function returns after every worker has left the job.
        let erased: Job = unsafe { std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync + '_), Job>(job) };
        // SAFETY: no launch is running (`&mut self`, and the last `run` waited for all workers).
        unsafe { *shared.job.get() = Some((erased, threads)) };
        shared.left.0.store(0, Ordering::Relaxed);
        shared.take_place(0);
        shared.ring();
        shared.work(0, threads, job);
        let mut spins = 0;
        while shared.left.0.load(Ordering::Acquire) + 1 < shared.threads {
            relax(&mut spins);
        }
        self.outcome()
    }
    /// What came of the launch that all have left; the pool is as new after it.
    fn outcome(&self) -> Result<(), String> {
        let shared = &*self.shared;
        if !shared.poisoned.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        shared.arrived.0.store(0, Ordering::Relaxed);
        shared.taken.iter().for_each(|taken| taken.0.store(0, Ordering::Relaxed));
        let mut first = shared.panic.lock().unwrap_or_else(PoisonError::into_inner);
        Err(first.take().unwrap_or_else(|| "a worker stopped".into()))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ring();
        for worker in self.workers.drain(..) {
            // A worker catches its jobs' panics, so there is nothing left to report here.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_cover_every_item_once_and_in_order() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            let items: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            for turn in 0..20 {
                // Some of the launches on fewer threads.
                pool.run_on(threads - turn % threads, &|w| {
                    assert_eq!(w.threads, threads - turn % threads);
                    for round in 0..10 {
                        w.phase(items.len(), 7, |range| {
                            range.for_each(|i| {
                                assert_eq!(items[i].fetch_add(1, Ordering::Relaxed) % 10, round);
                            })
                        });
                    }
                })
                .unwrap();
            }
            assert!(items.iter().all(|i| i.load(Ordering::Relaxed) == 200));
        }
    }

    #[test]
    fn every_thread_begins_with_its_own_items() {
        for threads in [1, 2, 5, 2 * SPANS + 3] {
            let mut pool = Pool::new(threads).unwrap();
            let firsts: Mutex<Vec<usize>> = Mutex::default();
            pool.run(&|w| firsts.lock().unwrap().push(w.first(100 * threads, 3, 1))).unwrap();
            let mut firsts = firsts.into_inner().unwrap();
            firsts.sort();
            firsts.dedup();
            assert_eq!((firsts.len(), firsts[0]), (threads, 0));
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives_on() {
        for threads in [1, 3] {
            let mut pool = Pool::new(threads).unwrap();
            for _ in 0..3 {
                let failed = pool.run(&|w| {
                    w.phase(100, 1, |range| assert!(range.start != 57, "item 57 is bad"));
                    w.phase(100, 1, |_| {});
                });
                assert!(failed.unwrap_err().contains("item 57 is bad"));
                let sum = AtomicUsize::new(0);
                pool.run(&|w| {
                    w.phase(10, 3, |r| {
                        sum.fetch_add(r.len(), Ordering::Relaxed);
                    })
                })
                .unwrap();
                assert_eq!(sum.load(Ordering::Relaxed), 10);
            }
        }
    }
}
