//! After a turn: where the chat template strips the thinking from history, the next prompt is another than what is
//! cached. It is computed as far as it is known while nobody waits.

use std::sync::Arc;

use ponder_actors::Handle;
use ponder_engine::Result;
use ponder_engine::text::{Message, RenderOptions};

use crate::prompt::Prompter;

/// A conversation that waits for an answer.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) messages: Vec<Message>,
    pub(crate) options: RenderOptions,
}

/// What is done when the answer has ended.
pub(crate) struct AfterTurn {
    pub handle: Handle,
    pub prompter: Arc<Prompter>,
    pub turn: Turn,
    /// The prompt as it was computed.
    pub prompt: Vec<u32>,
    pub tenant: Arc<str>,
}

impl AfterTurn {
    /// The answer was `text`, of these tokens, thinking included. Works on a thread of its own: the caller reads on.
    pub fn ended(self, generated: &[u32], text: &str) {
        let cached = [&self.prompt[..], generated].concat();
        let text = text.to_owned();
        let work = move || {
            // A history that cannot be rendered is no next turn.
            let Ok(next) = self.prompter.next_turn(&self.turn, &text) else { return };
            if !cached.starts_with(&next) {
                futures::executor::block_on(self.handle.warm_up(next, self.tenant.clone()));
            }
        };
        // Without a thread to spare the next turn takes a little longer.
        let _ = std::thread::Builder::new().name("after turn".into()).spawn(work);
    }
}

impl Prompter {
    /// The tokens that a next turn begins with, whatever is asked: the history as the template shows it then.
    ///
    /// # Errors
    /// As those of [`Prompter::render`].
    pub(crate) fn next_turn(&self, turn: &Turn, answer: &str) -> Result<Vec<u32>> {
        let render = |question: &str| {
            let mut messages = turn.messages.clone();
            messages.extend([Message::new("assistant", answer), Message::new("user", question)]);
            self.chat_tokens(&messages, &turn.options)
        };
        // What two different questions have in common does not depend on the question.
        let (mut one, other) = (render("0")?, render("A")?);
        one.truncate(one.iter().zip(&other).take_while(|(a, b)| a == b).count());
        Ok(one)
    }
}
