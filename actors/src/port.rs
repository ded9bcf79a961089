//! How one part asks another: an actor's address behind a call that measures queue and busy time.

use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;

use crate::message::Named;
use crate::trace::{Span, Tracer};

/// The other side is gone: the system is shutting down, or that actor panicked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{actor} does not answer {message}")]
pub struct PortClosed {
    /// Who.
    pub actor: &'static str,
    /// What was asked.
    pub message: &'static str,
}

/// A message on its way, with the time it was sent.
pub struct Sent<M> {
    /// The message itself.
    pub message: M,
    sent: Instant,
}

impl<M: Named> Message for Sent<M>
where
    M::Result: Send,
{
    type Result = M::Result;
}

impl<M: Named> Sent<M> {
    /// Unpacks it at the receiver; the span ends when the guard is dropped.
    pub fn open(self, actor: &'static str, tracer: &Arc<Tracer>) -> (M, OpenSpan) {
        let step = self.message.step();
        let span =
            OpenSpan { tracer: tracer.clone(), actor, name: M::NAME, step, sent: self.sent, taken: Instant::now() };
        (self.message, span)
    }
}

/// A message being handled.
pub struct OpenSpan {
    tracer: Arc<Tracer>,
    actor: &'static str,
    name: &'static str,
    step: u64,
    sent: Instant,
    taken: Instant,
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        self.tracer.message(Span {
            actor: self.actor,
            name: self.name,
            step: self.step,
            sent: self.sent,
            taken: self.taken,
            done: Instant::now(),
        });
    }
}

/// A typed way to an actor.
pub struct Port<A: Actor> {
    address: Addr<A>,
    name: &'static str,
}

impl<A: Actor> Clone for Port<A> {
    fn clone(&self) -> Self {
        Self { address: self.address.clone(), name: self.name }
    }
}

impl<A: Actor> Port<A> {
    /// A port to `address`, called `name` in traces and errors.
    pub fn new(name: &'static str, address: Addr<A>) -> Self {
        Self { address, name }
    }

    /// Asks and waits. Messages that change state are awaited by the step loop alone, which is never
    /// cancelled: a queued message whose caller went away may be skipped.
    pub async fn call<M>(&self, message: M) -> Result<M::Result, PortClosed>
    where
        M: Named + Send + 'static,
        M::Result: Send,
        A: Handler<Sent<M>>,
        A::Context: actix::dev::ToEnvelope<A, Sent<M>>,
    {
        let closed = PortClosed { actor: self.name, message: M::NAME };
        self.address.send(Sent { message, sent: Instant::now() }).await.map_err(|_| closed)
    }
}
