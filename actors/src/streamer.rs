//! From tokens to what a client reads: detokenises, stops at stop strings, and notices who went away.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::prelude::*;
use ponder_engine::reason::Label;
use ponder_engine::request::{Finish, RequestId, SeqId, SeqMap};
use ponder_engine::schedule::{Event, Finished, StopText};
use ponder_engine::text::{Detokenizer, StopStrings, Tokenizer};
use tokio::sync::mpsc::UnboundedSender;

use crate::message::{Deliver, Forget, Listen};
use crate::port::Sent;
use crate::trace::Tracer;

/// New text of one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Which of the request's answers.
    pub choice: u8,
    /// Tokens behind the text (and behind text that is held back), markers too.
    pub tokens: Vec<u32>,
    /// Whole characters of thinking; markers are not among them.
    pub reasoning: String,
    /// Whole characters of the answer.
    pub text: String,
    /// Whole characters of tool calls, the call's markers included unless they are control tokens.
    pub tool_call: String,
    /// The end of this answer, once.
    pub finish: Option<Box<Finished>>,
}

/// Where a client's updates go. Its receiver's end is the cancellation.
pub type Sink = UnboundedSender<Update>;

/// The text of one answer.
struct Answer {
    detokenizer: Detokenizer,
    stop: StopStrings,
}

/// Turns events into updates. Lives on a thread of its own, beside the step.
pub struct Streamer {
    tokenizer: Arc<Tokenizer>,
    answers: SeqMap<(Answer, Sink)>,
    tracer: Arc<Tracer>,
}

impl Streamer {
    /// Nobody listens yet.
    pub fn new(tokenizer: Arc<Tokenizer>, tracer: Arc<Tracer>) -> Self {
        Self { tokenizer, answers: SeqMap::default(), tracer }
    }

    fn deliver_one(&mut self, event: Event) {
        let Some((answer, sink)) = self.answers.get_mut(&event.seq) else { return };
        let (mut reasoning, mut text, mut tool_call) = (String::new(), String::new(), String::new());
        let mut tokens = event.tokens.iter();
        for span in &event.spans {
            let more: String = tokens.by_ref().take(span.len).map(|t| answer.detokenizer.push(*t)).collect();
            match span.label {
                Label::Reasoning => reasoning += &more,
                Label::Content => text += &more,
                Label::ToolCall => tool_call += &more,
                Label::Marker => {}
            }
        }
        let ended = event.finish.is_some();
        if ended {
            text += &answer.detokenizer.finish();
        }
        let (mut shown, _) = answer.stop.push(&text);
        if event.finish.as_ref().is_some_and(|f| !matches!(f.why, Finish::StopString { .. })) {
            shown += &answer.stop.finish();
        }
        let (choice, tokens, finish) = (event.seq.choice, event.tokens.into_vec(), event.finish);
        let update = Update { choice, tokens, reasoning, text: shown, tool_call, finish };
        // A client that is gone is found below, with all the others.
        let _ = sink.send(update);
        if ended {
            self.answers.remove(&event.seq);
        }
    }
}

impl Actor for Streamer {
    type Context = Context<Self>;
}

impl Handler<Sent<Listen>> for Streamer {
    type Result = MessageResult<Sent<Listen>>;
    fn handle(&mut self, sent: Sent<Listen>, _: &mut Context<Self>) -> Self::Result {
        let (Listen { request, choices, stop, sink }, _span) = sent.open("streamer", &self.tracer);
        for choice in 0..choices {
            let answer =
                Answer { detokenizer: self.tokenizer.detokenizer(false), stop: StopStrings::new(stop.clone()) };
            self.answers.insert(SeqId { request, choice }, (answer, sink.clone()));
        }
        MessageResult(())
    }
}

impl Handler<Sent<Forget>> for Streamer {
    type Result = MessageResult<Sent<Forget>>;
    fn handle(&mut self, sent: Sent<Forget>, _: &mut Context<Self>) -> Self::Result {
        let (Forget { request }, _span) = sent.open("streamer", &self.tracer);
        self.answers.retain(|seq, _| seq.request != request);
        MessageResult(())
    }
}

impl Handler<Sent<Deliver>> for Streamer {
    type Result = MessageResult<Sent<Deliver>>;
    fn handle(&mut self, sent: Sent<Deliver>, _: &mut Context<Self>) -> Self::Result {
        let (Deliver { events }, _span) = sent.open("streamer", &self.tracer);
        events.into_iter().for_each(|event| self.deliver_one(event));
        // Also those whose requests still wait: they get no events.
        let gone = self.answers.iter().filter(|(_, (_, sink))| sink.is_closed()).map(|(seq, _)| seq.request);
        let gone: BTreeSet<RequestId> = gone.collect();
        self.answers.retain(|seq, _| !gone.contains(&seq.request));
        MessageResult(gone.into_iter().collect())
    }
}

/// Finds stop strings in the tokens of one answer, for the scheduler.
pub struct TokenStop {
    answer: Answer,
}

impl TokenStop {
    /// Watches for `stop`.
    pub fn new(tokenizer: &Tokenizer, stop: Vec<String>) -> Self {
        Self { answer: Answer { detokenizer: tokenizer.detokenizer(false), stop: StopStrings::new(stop) } }
    }
}

impl StopText for TokenStop {
    fn push(&mut self, token: u32) -> Option<String> {
        let text = self.answer.detokenizer.push(token);
        self.answer.stop.push(&text).1
    }
}
