//! How much is taken at once: bounded by answers and by tokens. What is over is refused at once, with a
//! time after which another try makes sense.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::auth::KeyId;
use super::error::ApiError;
use super::options::Limits;

/// Counts what is in flight.
pub struct Admission {
    /// Answers that run at once.
    seats: usize,
    queued: usize,
    tokens: usize,
    per_key: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    answers: usize,
    tokens: usize,
    keys: HashMap<KeyId, usize>,
    /// Smoothed time of an answer, for `retry-after`.
    answer_time: Duration,
}

/// What one request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Answers.
    pub answers: usize,
    /// Tokens of prompts and of the longest possible answers.
    pub tokens: usize,
}

/// A request's share; dropping it gives the share back.
pub struct Permit {
    admission: Arc<Admission>,
    load: Load,
    key: KeyId,
    since: Instant,
}

impl Admission {
    /// An engine with `seats`.
    pub fn new(seats: usize, limits: &Limits) -> Arc<Self> {
        let (queued, tokens, per_key) = (limits.queued, limits.tokens, limits.per_key);
        Arc::new(Self { seats, queued, tokens, per_key, counts: Mutex::default() })
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        // Numbers only: a panic elsewhere cannot leave them half-changed.
        self.counts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes a share.
    ///
    /// # Errors
    /// 400 for what can never be taken, 429 for more than a key's share, 503 where all is taken.
    pub fn take(self: &Arc<Self>, load: Load, key: KeyId) -> Result<Permit, ApiError> {
        if load.answers > self.seats + self.queued || load.tokens > self.tokens {
            let most = self.seats + self.queued;
            let message = format!(
                "{} answers with up to {} tokens in all; this server takes {most} answers and {} tokens at once",
                load.answers, load.tokens, self.tokens
            );
            return Err(ApiError::invalid("n", message));
        }
        let mut counts = self.counts();
        let mine = counts.keys.get(&key).copied().unwrap_or_default();
        if self.per_key > 0 && mine + load.answers > self.per_key {
            let message = format!("{mine} answers of this key are in flight, of {} at most", self.per_key);
            return Err(ApiError::over_share(message, self.wait(&counts, load.answers)));
        }
        if counts.answers + load.answers > self.seats + self.queued || counts.tokens + load.tokens > self.tokens {
            let message = format!("the queue is full: {} answers are in flight", counts.answers);
            return Err(ApiError::unavailable("overloaded", message, self.wait(&counts, load.answers)));
        }
        counts.answers += load.answers;
        counts.tokens += load.tokens;
        *counts.keys.entry(key).or_default() += load.answers;
        drop(counts);
        Ok(Permit { admission: self.clone(), load, key, since: Instant::now() })
    }

    /// Seconds until so many answers have left, at the rate at which they leave now.
    fn wait(&self, counts: &Counts, answers: usize) -> u64 {
        let seconds = counts.answer_time.as_secs_f64() * answers as f64 / self.seats.max(1) as f64;
        (seconds.ceil() as u64).clamp(1, 120)
    }

    /// Answers and tokens in flight.
    pub fn in_flight(&self) -> Load {
        let counts = self.counts();
        Load { answers: counts.answers, tokens: counts.tokens }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.admission.counts();
        counts.answers -= self.load.answers;
        counts.tokens -= self.load.tokens;
        if let Some(mine) = counts.keys.get_mut(&self.key) {
            *mine -= self.load.answers;
            if *mine == 0 {
                counts.keys.remove(&self.key);
            }
        }
        let took = self.since.elapsed();
        counts.answer_time = if counts.answer_time.is_zero() { took } else { (counts.answer_time * 7 + took) / 8 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_and_shares_come_back() {
        let limits = Limits { queued: 2, tokens: 1000, per_key: 3, ..Limits::default() };
        let admission = Admission::new(2, &limits);
        let take = |answers, tokens, key| {
            admission
                .take(Load { answers, tokens }, KeyId(key))
                .map_err(|e| (e.status.as_u16(), e.retry_after.is_some()))
        };
        assert_eq!(take(5, 1, 0).err(), Some((400, false)), "never");
        assert_eq!(take(1, 1001, 0).err(), Some((400, false)));
        let first = take(2, 500, 0).unwrap();
        assert_eq!(take(2, 1, 0).err(), Some((429, true)), "its share");
        assert_eq!(take(3, 1, 1).err(), Some((503, true)), "full");
        assert_eq!(take(1, 501, 1).err(), Some((503, true)), "full of tokens");
        let second = take(2, 500, 1).unwrap();
        assert_eq!(take(1, 0, 2).err(), Some((503, true)));
        drop((first, second));
        assert_eq!(admission.in_flight(), Load { answers: 0, tokens: 0 });
        assert!(admission.counts().keys.is_empty());
        assert_eq!(take(4, 1000, 2).err(), Some((429, true)), "more than its share, even alone");
    }
}
