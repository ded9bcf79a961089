//! One answer while it is generated: its token log and what follows from it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::op::{Adjust, SEEN};
use crate::request::{Finish, Request, SamplingParams, SeqId};
use crate::step::{SamplePlan, SeqPlan};

/// Finds the end of an answer in its text, for requests with stop strings.
pub trait StopText: Send {
    /// Takes the next token; returns the stop string that is complete now.
    fn push(&mut self, token: u32) -> Option<String>;
}

/// The token log of one answer, and its place in the cache.
pub struct Sequence {
    /// Its id.
    pub id: SeqId,
    /// Prompt, then output.
    pub tokens: Vec<u32>,
    /// Length of the prompt.
    pub prompt_len: usize,
    /// Tokens whose keys and values are cached.
    pub cached: usize,
    /// When it arrived.
    pub arrived: Duration,
    /// Tokens computed again after a preemption or a lost device.
    pub recomputed: usize,
    params: Arc<SamplingParams>,
    eos: Arc<[u32]>,
    max_tokens: usize,
    adjust: Vec<Adjust>,
    adjust_index: HashMap<u32, usize>,
    stop_text: Option<Box<dyn StopText>>,
}

impl Sequence {
    /// Answer `choice` of `request`; `max_model_len` bounds prompt and output together.
    pub fn new(
        request: &Request,
        choice: u8,
        max_model_len: usize,
        now: Duration,
        stop_text: Option<Box<dyn StopText>>,
    ) -> Self {
        let room = max_model_len - request.prompt.len();
        let mut seq = Self {
            id: SeqId { request: request.id, choice },
            tokens: request.prompt.clone(),
            prompt_len: request.prompt.len(),
            cached: 0,
            arrived: now,
            recomputed: 0,
            params: Arc::new(request.params.clone()),
            eos: request.eos.clone().into(),
            max_tokens: request.params.max_tokens.map_or(room, |m| m.min(room)),
            adjust: Vec::new(),
            adjust_index: HashMap::new(),
            stop_text,
        };
        for (token, bias) in &request.params.logit_bias {
            seq.adjust_of(*token).bias += bias;
        }
        if request.params.repetition_penalty != 1.0 {
            request.prompt.iter().for_each(|t| seq.adjust_of(*t).count |= SEEN);
        }
        seq
    }

    fn adjust_of(&mut self, token: u32) -> &mut Adjust {
        let next = self.adjust.len();
        let index = *self.adjust_index.entry(token).or_insert(next);
        if index == next {
            self.adjust.push(Adjust { token, count: 0, bias: 0.0 });
        }
        &mut self.adjust[index]
    }

    /// Generated tokens.
    pub fn output_len(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }
    /// Tokens not cached yet: 1 while decoding.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.cached
    }
    /// Most tokens that this answer may still need in the cache.
    pub fn longest(&self) -> usize {
        self.prompt_len + self.max_tokens
    }

    /// Its share of a step, at most `budget` tokens.
    pub fn plan(&self, budget: usize) -> SeqPlan {
        let take = self.pending().min(budget);
        let end = self.cached + take;
        let sample = (end == self.tokens.len())
            .then(|| SamplePlan { params: self.params.row(self.id.choice, end), adjust: self.adjust.clone() });
        SeqPlan {
            seq: self.id,
            start: self.cached,
            tokens: self.tokens[self.cached..end].to_vec(),
            max_drafts: 0,
            sample,
        }
    }

    /// Appends a generated token; returns why the answer ends with it.
    pub fn push(&mut self, token: u32) -> Option<Finish> {
        self.tokens.push(token);
        let ends = self.eos.contains(&token) && !self.params.ignore_eos;
        if ends || self.params.stop_token_ids.contains(&token) {
            return Some(Finish::Stop { token });
        }
        if self.params.adjusts() {
            let entry = self.adjust_of(token);
            entry.count = (entry.count | SEEN) + 1;
        }
        if let Some(text) = self.stop_text.as_mut().and_then(|s| s.push(token)) {
            return Some(Finish::StopString { text });
        }
        (self.output_len() >= self.max_tokens).then_some(Finish::Length)
    }

    /// Its cache is gone: everything is computed again from the log.
    pub fn restart(&mut self) {
        self.recomputed += self.cached;
        self.cached = 0;
    }
}
