//! One answer while it is generated: its token log and what follows from it.
//!
//! Every token enters the log by [`Sequence::push`], chosen by the model or forced after it. Forced tokens are
//! simply more log that is not cached yet: the next step takes them all through the model at once.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::Cost;
use super::policy::Rank;
use crate::grammar::{GrammarSource, Guide};
use crate::kv::Parts;
use crate::op::{Adjust, SEEN};
use crate::reason::{
    CloseReason, Decision, Label, Part, Phase, Progress, Reasoning, Span, Spans, Thinking, ThinkingReport,
};
use crate::request::{Finish, Request, SamplingParams, SeqId};
use crate::step::{Opening, SamplePlan, SeqPlan, Tokens};

/// Finds the end of an answer in its text, for requests with stop strings.
pub trait StopText: Send {
    /// Takes the next token; returns the stop string that is complete now.
    fn push(&mut self, token: u32) -> Option<String>;
}

/// What follows from a token.
enum Pushed {
    /// The model goes on.
    Next,
    /// Tokens were forced behind it: later ones of the same step are void.
    Cut,
    /// Others took its place.
    Replaced,
    /// The answer is over.
    End(Finish),
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
    /// Tokens of the prompt that were in the cache when it started; `None` before that.
    pub hit: Option<usize>,
    /// Most tokens that were ever cached.
    computed: usize,
    /// Positions of its thinking, as far as decided.
    thought: Option<Range<usize>>,
    /// Whose request it is: nobody else finds its blocks in the cache or its tokens among guesses.
    pub tenant: Arc<str>,
    /// What it took so far.
    pub cost: Cost,
    /// Its place among others.
    pub(super) rank: Rank,
    /// Tokens that it will probably still choose.
    pub(super) expected: f64,
    pub(super) started: bool,
    /// What the survival curves know of it: bins of thinking and answer that are counted.
    pub(super) passed: [usize; 2],
    /// Tokens that were guessed for it, and those of them that were right.
    pub drafted: usize,
    /// See `drafted`.
    pub accepted: usize,
    params: Arc<SamplingParams>,
    /// Tokens that end the answer.
    ends: Arc<[u32]>,
    thinking: Option<Arc<Thinking>>,
    reasoning: Option<Reasoning>,
    /// Tokens that must not be chosen next.
    forbid: Vec<u32>,
    /// Tokens that clients were told of, and labels of those after them that are decided.
    told: usize,
    spans: Spans,
    max_tokens: usize,
    adjust: Vec<Adjust>,
    adjust_index: HashMap<u32, usize>,
    stop_text: Option<Box<dyn StopText>>,
    /// What the answer keeps to, and how many tokens it has taken.
    guide: Option<Guide>,
    guided: usize,
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
        let max_tokens = request.params.max_tokens.map_or(room, |m| m.min(room));
        let eos: &[u32] = if request.params.ignore_eos { &[] } else { &request.eos };
        let ends: Arc<[u32]> = [eos, &request.params.stop_token_ids].concat().into();
        let thinking = request.thinking.clone().filter(|t| t.markers.thinks() || t.phase.tools);
        let reasoning =
            thinking.as_ref().map(|t| Reasoning::new(t, t.budget(&request.params, max_tokens), ends.clone()));
        let mut seq = Self {
            id: SeqId { request: request.id, choice },
            tokens: request.prompt.clone(),
            prompt_len: request.prompt.len(),
            cached: 0,
            arrived: now,
            recomputed: 0,
            hit: None,
            computed: 0,
            thought: None,
            tenant: request.tenant(),
            cost: Cost::default(),
            rank: Rank::new(SeqId { request: request.id, choice }, now),
            expected: 0.0,
            started: false,
            passed: [0; 2],
            drafted: 0,
            accepted: 0,
            params: Arc::new(request.params.clone()),
            ends,
            thinking,
            reasoning,
            forbid: Vec::new(),
            told: request.prompt.len(),
            spans: Spans::new(),
            max_tokens,
            adjust: Vec::new(),
            adjust_index: HashMap::new(),
            stop_text,
            guide: request.grammar.as_ref().map(GrammarSource::start),
            guided: 0,
        };
        for (token, bias) in &request.params.logit_bias {
            seq.adjust_of(*token).bias += bias;
        }
        if request.params.repetition_penalty != 1.0 {
            request.prompt.iter().for_each(|t| seq.adjust_of(*t).count |= SEEN);
        }
        seq.force();
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
    /// Most tokens that may be generated.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
    /// Cap on the thinking; `None` is none.
    pub fn thinking_budget(&self) -> Option<usize> {
        let decision = self.thinking.as_ref().and_then(|t| t.decision.as_ref());
        decision.map_or_else(|| self.params.thinking_cap().unwrap_or(Some(0)), |d| d.budget)
    }
    /// Tokens that its thinking leaves to the answer.
    pub fn answer_reserve(&self) -> usize {
        self.reasoning.as_ref().map_or(0, Reasoning::answer_reserve)
    }
    /// Most tokens that this answer may still need in the cache.
    pub fn longest(&self) -> usize {
        self.prompt_len + self.max_tokens
    }

    /// The request's importance: the smaller number goes first.
    pub fn priority(&self) -> i32 {
        self.params.priority
    }
    /// It runs: the first time ends its wait.
    pub(super) fn starts(&mut self, now: Duration) {
        if !std::mem::replace(&mut self.started, true) {
            self.cost.queue_time = now.saturating_sub(self.arrived);
        }
    }
    /// How far it is, for the survival curves.
    pub fn progress(&self) -> Progress {
        let depth = self.decision().and_then(Decision::depth);
        let room = self.max_tokens.saturating_sub(self.output_len());
        match self.reasoning.as_ref().and_then(Reasoning::thinking) {
            Some((so_far, thinking_cap)) => Progress { depth, part: Part::Thinking, so_far, thinking_cap, room },
            None => {
                let said = self.report().map_or(self.output_len(), |r| r.counts.content + r.counts.tool_call);
                Progress { depth, part: Part::Answer, so_far: said, thinking_cap: 0, room }
            }
        }
    }

    /// Whether an answer may still be written.
    pub fn has_room(&self) -> bool {
        self.output_len() < self.max_tokens
    }
    /// What became of the thinking so far; `None` if the model does not think.
    pub fn report(&self) -> Option<ThinkingReport> {
        self.reasoning.as_ref().map(Reasoning::report)
    }
    /// What was decided for its request.
    pub fn decision(&self) -> Option<&Decision> {
        self.thinking.as_ref()?.decision.as_ref()
    }
    /// Whether its next token is one of thinking.
    pub fn is_thinking(&self) -> bool {
        self.reasoning.as_ref().is_some_and(|r| matches!(r.phase().phase(), Phase::Thinking | Phase::Closing))
    }
    /// Tokens that the model may choose before any is forced: more drafts are in vain.
    pub fn free_tokens(&self) -> usize {
        let free = self.reasoning.as_ref().map_or(usize::MAX, Reasoning::free_tokens);
        free.min(self.max_tokens - self.output_len())
    }
    /// The answer is wanted now.
    pub fn close_thinking(&mut self, why: CloseReason) {
        self.reasoning.iter_mut().for_each(|r| r.close_thinking(why));
    }
    /// Why its thinking was closed, or will be after the next token.
    pub fn closing(&self) -> Option<CloseReason> {
        self.reasoning.as_ref().and_then(Reasoning::closing)
    }

    /// Its share of a step, at most `budget` tokens.
    pub fn plan(&self, budget: usize) -> SeqPlan {
        let take = self.pending().min(budget);
        let end = self.cached + take;
        let sample = (end == self.tokens.len()).then(|| self.sample());
        SeqPlan {
            seq: self.id,
            start: self.cached,
            tokens: Tokens::from_slice(&self.tokens[self.cached..end]),
            max_drafts: 0,
            sample,
            parts: Parts { prompt: self.prompt_len, thinking: self.thought.clone().unwrap_or(0..0) },
        }
    }

    /// Whether the next token is one of the answer, which keeps to a grammar.
    fn is_guided(&self) -> bool {
        let answers = |r: &Reasoning| r.phase().phase() == Phase::Answering;
        self.guide.is_some() && self.reasoning.as_ref().is_none_or(answers)
    }

    /// Tokens with which thinking may still begin.
    fn may_open(&self) -> Vec<u32> {
        let mut tokens = self.reasoning.as_ref().map(|r| r.phase().opening()).unwrap_or_default();
        tokens.retain(|t| !self.forbid.contains(t));
        tokens
    }

    fn guide_here(&self) -> Option<Guide> {
        self.guide.as_ref().filter(|_| self.is_guided()).map(|g| g.or(&self.may_open()))
    }

    /// Moves the grammar by a token of the answer. What was written before thinking began was no answer.
    fn follow(&mut self, token: u32, step: &[Span]) {
        let thinks = self.reasoning.as_ref().is_some_and(|r| r.phase().phase() == Phase::Thinking);
        let Some(guide) = &self.guide else { return };
        if thinks {
            guide.rollback(std::mem::take(&mut self.guided));
        } else if !step.iter().any(|s| s.label == Label::Marker && s.len > 0) {
            self.guided += usize::from(guide.push(token));
        }
    }

    /// What must be known of it when it starts, or starts over.
    pub fn opening(&self) -> Opening {
        let (log, tenant) = (self.tokens.clone(), self.tenant.clone());
        Opening { seq: self.id, log, prompt_len: self.prompt_len, tenant, sample: Some(self.sample()) }
    }

    fn sample(&self) -> SamplePlan {
        let params = self.params.row(self.id.choice, self.tokens.len());
        SamplePlan { params, adjust: self.adjusted(), guide: self.guide_here() }
    }

    /// A step computed the tokens from `start` to `end`; what is before them was cached.
    pub fn computed(&mut self, start: usize, end: usize) {
        self.hit.get_or_insert(start.min(self.prompt_len));
        self.recomputed += self.computed.min(end).saturating_sub(start);
        self.computed = self.computed.max(end);
    }

    /// Penalties and biases, and minus infinity for what is forbidden.
    fn adjusted(&self) -> Vec<Adjust> {
        let mut adjust = self.adjust.clone();
        for token in &self.forbid {
            match self.adjust_index.get(token) {
                Some(index) => adjust[*index].bias = f32::NEG_INFINITY,
                None => adjust.push(Adjust { token: *token, count: 0, bias: f32::NEG_INFINITY }),
            }
        }
        adjust
    }

    /// Takes the tokens that a step chose, which was planned for the log as it is; `cached` counts what is cached
    /// with them. Returns why the answer ends, if it does.
    ///
    /// The step forbade at every place what was forbidden at its first, and kept to the grammar everywhere or
    /// nowhere. Where that differs at a later place, the choice there is void and made again: slower by a step,
    /// never different.
    pub fn take(&mut self, chosen: &[u32], cached: usize) -> Option<Finish> {
        let (forbidden, guided) = (self.forbid.clone(), self.is_guided());
        // The first chosen token's place; those before the last one are cached.
        let first = cached - chosen.len().saturating_sub(1);
        let (mut end, mut taken) = (None, 0);
        for (i, token) in chosen.iter().enumerate() {
            let grammar_differs = self.guide.is_some() && (self.is_guided() != guided || !self.may_open().is_empty());
            if i > 0 && (self.forbid != forbidden || grammar_differs) {
                break;
            }
            let pushed = self.push(*token);
            taken += usize::from(!matches!(pushed, Pushed::Replaced));
            match pushed {
                Pushed::Next => continue,
                Pushed::Cut | Pushed::Replaced => break,
                Pushed::End(finish) => end = Some(finish),
            }
            break;
        }
        // The last token is always an input once more: what follows it is chosen from its row.
        self.cached = cached.min(first + taken).min(self.tokens.len() - 1);
        end
    }

    /// Appends a chosen token and what is forced after it. An end inside the thinking becomes its close.
    fn push(&mut self, token: u32) -> Pushed {
        let ends = self.ends.contains(&token);
        let replaced = ends && self.reasoning.as_mut().is_some_and(Reasoning::end_becomes_close);
        if ends && !replaced {
            self.tokens.push(token);
            return Pushed::End(Finish::Stop { token });
        }
        if !replaced && let Some(text) = self.append(token) {
            return Pushed::End(Finish::StopString { text });
        }
        let (stopped, forced) = self.force();
        match stopped {
            Some(text) => Pushed::End(Finish::StopString { text }),
            None if !self.has_room() => Pushed::End(Finish::Length),
            None if replaced => Pushed::Replaced,
            None if forced => Pushed::Cut,
            None => Pushed::Next,
        }
    }

    /// Appends one token, whoever chose it; returns a stop string that is complete now.
    fn append(&mut self, token: u32) -> Option<String> {
        self.tokens.push(token);
        if self.params.adjusts() {
            let entry = self.adjust_of(token);
            entry.count = (entry.count | SEEN) + 1;
        }
        let plain = [Span { label: Label::Content, len: 1 }, Span { label: Label::Content, len: 0 }];
        let guided = self.is_guided();
        let step = self.reasoning.as_mut().map_or(plain, |r| r.push(token));
        if guided {
            self.follow(token, &step);
        }
        self.decide(&step)
    }

    /// Appends what must come next, and learns what must not. Returns a completed stop string, and whether there
    /// was anything.
    fn force(&mut self) -> (Option<String>, bool) {
        let mut any = false;
        loop {
            let Some(steer) = self.reasoning.as_mut().map(Reasoning::steer) else { return (None, false) };
            self.forbid = steer.forbid;
            if steer.forced.is_empty() {
                return (None, any);
            }
            any = true;
            for token in steer.forced {
                if let Some(text) = self.append(token) {
                    return (Some(text), true);
                }
            }
        }
    }

    /// Notes the labels of tokens; stop strings are looked for in the answer only. Behind one nothing counts.
    fn decide(&mut self, step: &[Span]) -> Option<String> {
        for span in step.iter().filter(|s| s.len > 0) {
            for _ in 0..span.len {
                let at = self.told + self.spans.iter().map(|s| s.len).sum::<usize>();
                match self.spans.last_mut() {
                    Some(last) if last.label == span.label => last.len += 1,
                    _ => self.spans.push(Span { label: span.label, len: 1 }),
                }
                match (&mut self.thought, span.label) {
                    (None, Label::Reasoning) => self.thought = Some(at..usize::MAX),
                    (Some(thought), Label::Content | Label::ToolCall) => thought.end = thought.end.min(at),
                    _ => {}
                }
                let watched = self.stop_text.as_mut().filter(|_| span.label == Label::Content);
                if let Some(text) = watched.and_then(|s| s.push(self.tokens[at])) {
                    self.stop_text = None;
                    return Some(text);
                }
            }
        }
        None
    }

    /// Tokens that are decided since the last call, with their labels.
    pub fn tell(&mut self) -> (Tokens, Spans) {
        let spans = std::mem::take(&mut self.spans);
        let from = self.told;
        self.told += spans.iter().map(|s| s.len).sum::<usize>();
        (Tokens::from_slice(&self.tokens[from..self.told]), spans)
    }

    /// The answer is over: tokens that were held are decided, unless a stop string ended the text before them.
    pub fn close(&mut self, why: Finish) -> Finish {
        let Some(step) = self.reasoning.as_mut().map(Reasoning::finish) else { return why };
        if matches!(why, Finish::StopString { .. }) {
            return why;
        }
        match self.decide(&step) {
            Some(text) if matches!(why, Finish::Stop { .. } | Finish::Length) => Finish::StopString { text },
            _ => why,
        }
    }

    /// Its cache is gone: everything is computed again from the log.
    pub fn restart(&mut self) {
        self.cached = 0;
    }
}
