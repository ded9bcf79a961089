//! Several engines behind one door: each request goes to the instance that suits its expected length.
//!
//! The rules are [`ponder_engine::schedule::route`]'s; here they meet prompts, engines and callers. A caller takes a
//! [`Seat`] (it may have to wait for one), and starts its request on the seat's engine. The seat is free again when
//! the request's [`Choices`](crate::Choices) are dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use futures::channel::oneshot;
use ponder_engine::reason::{Classifier, Depth, Lengths, Part, Progress};
use ponder_engine::request::SamplingParams;
use ponder_engine::schedule::route::{Ask, Place, Router, Ticket};
use ponder_engine::{Error, Result};

use crate::config::FleetConfig;
use crate::{Choices, Completion, Engine, LoadProgress, Opened, Prompt};

/// Engines, and who of them answers what.
pub struct Fleet {
    engines: Vec<(String, Engine)>,
    classifier: Classifier,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
}

struct State {
    router: Router,
    waiting: HashMap<Ticket, oneshot::Sender<usize>>,
    lengths: Lengths,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn leave(&self, ticket: Ticket) {
        let mut state = self.lock();
        state.waiting.remove(&ticket);
        for (next, instance) in state.router.leave(ticket) {
            // Whoever waits no more gives its seat back itself.
            let _ = state.waiting.remove(&next).map(|tell| tell.send(instance));
        }
    }
}

/// A request's place on an instance; dropping it makes room for the next.
pub struct Seat {
    shared: Arc<Shared>,
    ticket: Ticket,
    instance: usize,
    depth: Option<Depth>,
}

impl Seat {
    /// Learns from an answer how long such answers are.
    pub(crate) fn learn(&self, done: &Completion) {
        let mut state = self.shared.lock();
        let ended = done.finish_reason() == "stop";
        if done.reasoning_tokens > 0 {
            state.lengths.end(self.depth, Part::Thinking, done.reasoning_tokens, ended, 0);
        }
        if done.answer_tokens() > 0 {
            state.lengths.end(self.depth, Part::Answer, done.answer_tokens(), ended, 0);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.leave(self.ticket);
    }
}

impl Fleet {
    /// Loads every instance, one after the other; `progress` hears of each by its name.
    ///
    /// # Errors
    /// If the configuration contradicts itself, and those of [`Engine::load`], with the instance's name.
    pub fn load(config: FleetConfig, mut progress: impl FnMut(&str, LoadProgress)) -> Result<Self> {
        let (mut engines, mut places) = (Vec::new(), Vec::new());
        for instance in config.instances {
            let (name, options) = (instance.name.clone(), instance.options()?);
            let engine = Opened::open(options)?.load(|p| progress(&name, p))?;
            places.push(Place {
                name: name.clone(),
                up_to: instance.up_to,
                max_model_len: engine.max_model_len(),
                slots: instance.slots.unwrap_or(2 * engine.seats()),
            });
            engines.push((name, engine));
        }
        let state = State { router: Router::new(places)?, waiting: HashMap::new(), lengths: Lengths::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state) });
        Ok(Self { engines, classifier: Classifier::default(), shared })
    }

    /// The instances by name, in the order of the configuration.
    pub fn engines(&self) -> impl Iterator<Item = (&str, &Engine)> {
        self.engines.iter().map(|(name, engine)| (name.as_str(), engine))
    }

    /// Requests that run on each instance, and that wait for it.
    pub fn counts(&self) -> Vec<(String, usize, usize)> {
        let state = self.shared.lock();
        state.router.counts().into_iter().map(|(name, runs, waits)| (name.to_string(), runs, waits)).collect()
    }

    /// The engine of a seat, and its name.
    pub fn engine(&self, seat: &Seat) -> (&str, &Engine) {
        let (name, engine) = &self.engines[seat.instance];
        (name, engine)
    }

    /// A seat for a request, on the instance of that name if one is given. It waits where all that suit are full;
    /// a caller that goes away meanwhile loses its place in the queue.
    ///
    /// # Errors
    /// If there is no such instance, none is long enough, or the prompt cannot be rendered.
    pub async fn seat(
        &self,
        named: Option<&str>,
        prompt: &Prompt,
        max_tokens: Option<usize>,
        salt: u64,
    ) -> Result<Seat> {
        let rendered = self.engines.iter().map(|(_, engine)| engine.prompter().render(prompt));
        let rendered = rendered.collect::<Result<Vec<_>>>()?;
        let thinks = rendered.iter().any(|r| r.thinking.is_some());
        let prompts: Vec<Vec<u32>> = rendered.into_iter().map(|r| r.tokens).collect();
        let depth = question(prompt).map(|text| self.classifier.predict(text).depth);
        let (mut seat, told) = {
            let mut state = self.shared.lock();
            let part = if thinks { Part::Thinking } else { Part::Answer };
            let room = max_tokens.unwrap_or(usize::MAX / 2);
            let progress = Progress { depth, part, so_far: 0, thinking_cap: usize::MAX, room };
            let (expected, _) = state.lengths.remaining(&progress, 0.5);
            let (ticket, instance) =
                state.router.route(&Ask { named, prompts: &prompts, expected, max_tokens, salt })?;
            let seat = Seat { shared: self.shared.clone(), ticket, instance: instance.unwrap_or(0), depth };
            let told = instance.is_none().then(|| {
                let (tell, told) = oneshot::channel();
                state.waiting.insert(ticket, tell);
                told
            });
            (seat, told)
        };
        if let Some(told) = told {
            seat.instance = told.await.map_err(|_| Error::invalid("engine", "is shutting down"))?;
        }
        Ok(seat)
    }

    /// Starts a request where it belongs; returns the instance's name too. `params` is asked once that is known.
    ///
    /// # Errors
    /// As [`Fleet::seat`] and [`Engine::generate`].
    pub fn generate(
        &self,
        named: Option<&str>,
        prompt: Prompt,
        max_tokens: Option<usize>,
        params: impl FnOnce(&Engine) -> SamplingParams,
    ) -> Result<(&str, Choices)> {
        let started = Instant::now();
        let seat = futures::executor::block_on(self.seat(named, &prompt, max_tokens, 0))?;
        let (name, engine) = self.engine(&seat);
        let rendered = engine.prompter().render(&prompt)?;
        let choices = futures::executor::block_on(engine.submit(rendered, params(engine), started))?;
        Ok((name, choices.on(seat)))
    }
}

/// What is asked: the last message of the user, or the whole text.
fn question(prompt: &Prompt) -> Option<&str> {
    match prompt {
        Prompt::Raw(text) => Some(text),
        Prompt::Chat(messages, _) => messages.iter().rev().find(|m| m.role == "user").map(|m| m.content.as_str()),
        Prompt::Tokens(_) => None,
    }
}
