//! Several instances behind one name: each request goes to the one that suits its length.
//!
//! The rules are [`Router`]'s; here are the waiting, and the seats that give themselves back.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ponder_engine::request::SamplingParams;
use ponder_engine::schedule::route::{Ask, Place, Router, Ticket};
use tokio::sync::oneshot;

use super::error::ApiError;
use super::options::Limits;
use super::state::Served;
use crate::prompt::Rendered;

/// Instances that answer to the same names.
pub struct Group {
    /// What requests call it; the first is told first.
    pub names: Vec<String>,
    /// Its instances.
    pub members: Vec<Arc<Served>>,
    desk: Mutex<Desk>,
    /// Most requests that wait for an instance.
    queued: usize,
    /// Longest wait; zero is no bound.
    longest: Duration,
}

/// Who is where, and whom to tell.
struct Desk {
    router: Router,
    waiting: HashMap<Ticket, oneshot::Sender<usize>>,
}

/// A request's place in an instance, or in the queue for one. Dropping it lets the next one in.
pub struct Seat {
    group: Arc<Group>,
    ticket: Ticket,
}

impl Group {
    /// `up_to`, for each member: it is meant for requests of so many tokens at most, prompt and expected answer.
    ///
    /// # Errors
    /// If there is no member, or two have the same name.
    pub fn new(
        names: Vec<String>,
        members: Vec<Arc<Served>>,
        up_to: &[Option<usize>],
        limits: &Limits,
    ) -> ponder_engine::Result<Self> {
        let places = members.iter().zip(up_to).map(|(member, up_to)| Place {
            name: member.names[0].clone(),
            up_to: *up_to,
            max_model_len: member.engine.max_model_len(),
            slots: member.engine.seats(),
        });
        let desk = Desk { router: Router::new(places.collect())?, waiting: HashMap::new() };
        Ok(Self { names, members, desk: Mutex::new(desk), queued: limits.queued, longest: limits.queue_wait })
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // The router's own steps do not panic half-way.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place; which member it is, and the place.
    ///
    /// # Errors
    /// 400 if no member is long enough, 503 if too many wait or it took too long.
    pub async fn seat(self: &Arc<Self>, ask: &Ask<'_>) -> Result<(Arc<Served>, Seat, usize), ApiError> {
        let (seat, called) = {
            let mut desk = self.desk();
            let (ticket, chosen) = desk.router.route(ask)?;
            let seat = Seat { group: self.clone(), ticket };
            if let Some(index) = chosen {
                return Ok((self.members[index].clone(), seat, index));
            }
            let full = desk.waiting.len() >= self.queued;
            let (call, called) = oneshot::channel();
            desk.waiting.insert(ticket, call);
            drop(desk);
            if full {
                let message = format!("the queue is full: {} requests wait for an instance", self.queued);
                return Err(ApiError::unavailable("overloaded", message, 5));
            }
            (seat, called)
        };
        let called = if self.longest.is_zero() {
            called.await
        } else {
            let late = |_| ApiError::unavailable("queue_timeout", "no instance became free in time", 5);
            tokio::time::timeout(self.longest, called).await.map_err(late)?
        };
        let index = called.map_err(|_| ApiError::internal("the queue for an instance was dropped"))?;
        Ok((self.members[index].clone(), seat, index))
    }
}

/// Which of `members` answers, its place, and its index: the only one, or the one that their group chooses.
/// `read`: the prompt as each member reads it.
///
/// # Errors
/// As [`Group::seat`].
pub async fn place(
    group: Option<&Arc<Group>>,
    members: &[Arc<Served>],
    read: &[&Rendered],
    params: &SamplingParams,
) -> Result<(Arc<Served>, Option<Seat>, usize), ApiError> {
    let Some(group) = group else { return Ok((members[0].clone(), None, 0)) };
    let prompts: Vec<Vec<u32>> = read.iter().map(|r| r.tokens.clone()).collect();
    let expected = members[0].engine.prompter().expected_tokens(read[0], params);
    let mut salt = DefaultHasher::new();
    params.cache_salt.hash(&mut salt);
    // As in an engine alone: who asks for more than there is room for gets what there is.
    let room = members.iter().zip(read).map(|(m, r)| m.engine.max_model_len().saturating_sub(r.tokens.len())).max();
    let max_tokens = params.max_tokens.map(|most| most.min(room.unwrap_or(0)).max(1));
    let salt = salt.finish();
    let (model, seat, index) = group.seat(&Ask { named: None, prompts: &prompts, expected, max_tokens, salt }).await?;
    Ok((model, Some(seat), index))
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut desk = self.group.desk();
        desk.waiting.remove(&self.ticket);
        for (ticket, index) in desk.router.leave(self.ticket) {
            // One that has just given up hears nothing: its own seat, when dropped, gives the place on.
            let call = desk.waiting.remove(&ticket);
            let _ = call.map(|call| call.send(index));
        }
    }
}
