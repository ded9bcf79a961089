//! The rules of what happens when a device fails, behind a mailbox.

use std::sync::Arc;

use actix::prelude::*;
pub use ponder_engine::schedule::{Supervision, Verdict};

use crate::message::{Failed, Succeeded};
use crate::port::Sent;
use crate::trace::Tracer;

/// The rules behind a mailbox.
pub struct Supervisor {
    /// The rules.
    pub rules: Supervision,
    /// Where spans go.
    pub tracer: Arc<Tracer>,
}

impl Actor for Supervisor {
    type Context = Context<Self>;
}

impl Handler<Sent<Failed>> for Supervisor {
    type Result = MessageResult<Sent<Failed>>;
    fn handle(&mut self, sent: Sent<Failed>, _: &mut Context<Self>) -> Self::Result {
        let (message, _span) = sent.open("supervisor", &self.tracer);
        MessageResult(self.rules.failed(&message.fault.to_string(), &message.suspects, message.now))
    }
}

impl Handler<Sent<Succeeded>> for Supervisor {
    type Result = MessageResult<Sent<Succeeded>>;
    fn handle(&mut self, sent: Sent<Succeeded>, _: &mut Context<Self>) -> Self::Result {
        let (message, _span) = sent.open("supervisor", &self.tracer);
        MessageResult(self.rules.succeeded(&message.seqs, message.chose))
    }
}
