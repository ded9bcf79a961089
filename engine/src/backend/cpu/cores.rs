//! A processor for each thread.
//!
//! Threads that meet at a hundred barriers a launch must run at the same time. A scheduler that wakes one on the
//! processor of another leaves both there for some milliseconds, and meanwhile each barrier costs a spin and a switch:
//! launches of a fifth of a millisecond took five. So a thread that finds itself beside another of its launch goes
//! elsewhere. It is not bound to any processor afterwards: who else runs on this machine is none of our business.

/// The processor that the calling thread is on; `None` where that cannot be asked.
#[cfg(target_os = "linux")]
pub fn here() -> Option<usize> {
    Some(rustix::thread::sched_getcpu())
}

/// Moves the calling thread off the processors `taken`, if it is allowed any others.
#[cfg(target_os = "linux")]
pub fn leave(taken: impl Iterator<Item = usize>) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let mut others = allowed;
    taken.filter(|cpu| *cpu < CpuSet::MAX_CPU).for_each(|cpu| others.unset(cpu));
    if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
        // It is there. If it may not be let go again, it stays allowed on most.
        let _ = sched_setaffinity(None, &allowed);
    }
}

/// The processor that the calling thread is on; `None` where that cannot be asked.
#[cfg(not(target_os = "linux"))]
pub fn here() -> Option<usize> {
    None
}

/// Moves the calling thread off the processors `taken`, if it is allowed any others.
#[cfg(not(target_os = "linux"))]
pub fn leave(_: impl Iterator<Item = usize>) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::thread::sched_getaffinity;

    #[test]
    fn a_thread_leaves_and_is_bound_to_nothing() {
        let allowed = sched_getaffinity(None).unwrap();
        if allowed.count() < 2 {
            println!("SKIP: a_thread_leaves_and_is_bound_to_nothing: one processor is allowed");
            return;
        }
        // It may be brought back between the two calls, but not always.
        let moved = (0..100).any(|_| {
            let before = here().unwrap();
            leave([before].into_iter());
            here() != Some(before)
        });
        assert!(moved);
        leave((0..2048).filter(|cpu| *cpu >= 1024 || allowed.is_set(*cpu)));
        assert_eq!(sched_getaffinity(None).unwrap(), allowed, "with nowhere to go it stays");
    }
}
