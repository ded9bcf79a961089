//! The phase of one answer: a finite-state machine over token ids.
//!
//! It alone says what a token is: thinking, answer, tool call, or a marker that belongs to neither. Text is
//! never parsed for tags afterwards. A token that may be the beginning of a marker is *held* until the next
//! ones decide. The whole state is one small `Copy` value, so rolling back k tokens puts an older one back.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::kmp;
use super::markers::{Markers, Role, Start};

/// What the model is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Writing the answer, or about to open the thinking.
    Answering,
    /// Thinking.
    Thinking,
    /// A forced close is being written.
    Closing,
    /// Writing a tool call.
    ToolCall,
    /// The answer is over.
    Done,
}

/// Which stream a token belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// `reasoning_content`.
    Reasoning,
    /// `content`.
    Content,
    /// For the tool parser, markers of the call included.
    ToolCall,
    /// Nobody's: a think marker, and the newline that follows a close.
    Marker,
}

/// Consecutive tokens with one label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Whose they are.
    pub label: Label,
    /// How many.
    pub len: usize,
}

/// Spans that follow each other; of one step's tokens mostly one, for which nothing is allocated.
pub type Spans = SmallVec<[Span; 1]>;

/// The next undecided tokens that a push decided, in order; spans may be empty.
pub type Step = [Span; 2];

const NOTHING: Span = Span { label: Label::Marker, len: 0 };

/// What the machine allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseOptions {
    /// The model may open its thinking.
    pub think: bool,
    /// It may open it again after a close (interleaved thinking).
    pub reopen: bool,
    /// Tool markers mean something: the request has tools.
    pub tools: bool,
    /// A tool call that begins inside thinking ends it; else it is thinking.
    pub tool_ends_thinking: bool,
}

impl Default for PhaseOptions {
    fn default() -> Self {
        Self { think: true, reopen: false, tools: false, tool_ends_thinking: true }
    }
}

/// Tokens decided so far, by label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Thinking.
    pub reasoning: usize,
    /// Answer.
    pub content: usize,
    /// Tool calls.
    pub tool_call: usize,
    /// Markers.
    pub marker: usize,
}

impl Counts {
    fn add(&mut self, span: Span) {
        *match span.label {
            Label::Reasoning => &mut self.reasoning,
            Label::Content => &mut self.content,
            Label::ToolCall => &mut self.tool_call,
            Label::Marker => &mut self.marker,
        } += span.len;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    phase: Phase,
    matcher: kmp::State,
    /// Blank tokens at the very start, held until it is known whether thinking opens.
    lead: u32,
    /// Forced tokens of a close that are still to come.
    left: u32,
    /// Held tokens that the forced close completes, and those before them that are thinking after all.
    begun: u32,
    freed: u32,
    closed: bool,
    /// Something that is not blank was answered (since the close, if there was one).
    answered: bool,
    /// The next token belongs to the close marker if it is blank.
    swallow: bool,
    counts: Counts,
}

/// Tokens that can be rolled back.
pub const HISTORY: usize = 64;

/// The machine of one answer.
#[derive(Clone, Debug)]
pub struct PhaseMachine {
    markers: Arc<Markers>,
    options: PhaseOptions,
    state: State,
    history: VecDeque<State>,
}

/// Equal states go on equally, however they were reached.
impl PartialEq for PhaseMachine {
    fn eq(&self, other: &Self) -> bool {
        self.state == other.state && self.options == other.options && self.markers == other.markers
    }
}

impl PhaseMachine {
    /// The machine of an answer that starts as the prompt's scaffold left it.
    pub fn new(markers: Arc<Markers>, start: Start, options: PhaseOptions) -> Self {
        let state = State {
            phase: if start == Start::Thinking { Phase::Thinking } else { Phase::Answering },
            matcher: kmp::State::ROOT,
            lead: 0,
            left: 0,
            begun: 0,
            freed: 0,
            closed: start == Start::Closed,
            answered: false,
            swallow: start == Start::Closed,
            counts: Counts::default(),
        };
        Self { markers, options, state, history: VecDeque::new() }
    }

    /// What the model is doing.
    pub fn phase(&self) -> Phase {
        self.state.phase
    }
    /// Tokens decided so far.
    pub fn counts(&self) -> Counts {
        self.state.counts
    }
    /// Tokens that no push has decided yet.
    pub fn held(&self) -> usize {
        let s = &self.state;
        if s.phase == Phase::Done { 0 } else { (s.lead + s.begun + s.freed) as usize + self.partial() }
    }
    /// Thinking has ended, by the model, by force or by the template.
    pub fn closed(&self) -> bool {
        self.state.closed
    }
    /// The model's markers.
    pub fn markers(&self) -> &Markers {
        &self.markers
    }

    fn partial(&self) -> usize {
        self.markers.patterns().partial(self.state.matcher)
    }
    fn may_open(&self) -> bool {
        let s = &self.state;
        self.options.think && (self.options.reopen || (!s.closed && s.counts.content + s.counts.tool_call == 0))
    }

    /// Tokens with which thinking may begin, or go on to begin, now.
    pub fn opening(&self) -> Vec<u32> {
        if self.state.phase != Phase::Answering || !self.may_open() {
            return Vec::new();
        }
        let patterns = self.markers.patterns();
        let next = |i: usize| match patterns.rest(self.state.matcher, |p| p == i) {
            Some((_, rest)) => rest[0],
            None => patterns.pattern(i)[0],
        };
        (0..patterns.len()).filter(|i| self.markers.role(*i) == Role::Open).map(next).collect()
    }

    /// Takes the next token; returns what it decided.
    ///
    /// # Panics
    /// After [`PhaseMachine::finish`].
    pub fn push(&mut self, token: u32) -> Step {
        assert!(self.state.phase != Phase::Done, "no token follows the end");
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(self.state);
        if self.state.phase == Phase::Closing {
            return self.push_close();
        }
        let before = self.partial();
        let matcher = self.markers.patterns().step(self.state.matcher, token);
        match self.markers.patterns().found(matcher, |p| self.acts(p)) {
            Some(pattern) => self.push_marker(pattern, before),
            None => self.push_text(token, self.markers.patterns().settle(matcher), before),
        }
    }

    /// Whether a pattern means something in this phase; else it is text.
    fn acts(&self, pattern: usize) -> bool {
        let PhaseOptions { tools, tool_ends_thinking, .. } = self.options;
        match (self.state.phase, self.markers.role(pattern)) {
            (Phase::Thinking | Phase::Answering, Role::Open | Role::Close) => true,
            (Phase::Thinking, Role::ToolOpen) => tools && tool_ends_thinking,
            (Phase::Answering, Role::ToolOpen) => tools,
            (Phase::ToolCall, Role::ToolClose) => true,
            _ => false,
        }
    }

    /// Takes back the last `k` tokens: the state is what it was before them.
    ///
    /// # Panics
    /// If more than [`HISTORY`] tokens, or more than were pushed, are taken back.
    pub fn rollback(&mut self, k: usize) {
        for _ in 0..k {
            self.state = self.history.pop_back().expect("rolled back at most HISTORY tokens");
        }
    }

    fn push_close(&mut self) -> Step {
        let freed = std::mem::take(&mut self.state.freed) as usize;
        let len = 1 + std::mem::take(&mut self.state.begun) as usize;
        self.state.left -= 1;
        if self.state.left == 0 {
            self.answer();
        }
        self.decide(Span { label: Label::Reasoning, len: freed }, Span { label: Label::Marker, len })
    }

    /// The answer begins.
    fn answer(&mut self) {
        let s = &mut self.state;
        (s.phase, s.closed, s.answered, s.swallow, s.matcher) = (Phase::Answering, true, false, true, kmp::State::ROOT);
    }

    /// `before` tokens were held, and this one completes a pattern.
    fn push_marker(&mut self, pattern: usize, before: usize) -> Step {
        let len = self.markers.patterns().pattern(pattern).len();
        let (phase, stream, opens) = (self.state.phase, self.stream(), self.may_open() && before + 1 == len);
        let text = before + 1 - len + std::mem::take(&mut self.state.lead) as usize;
        let mut text_label = stream;
        let label = match (phase, self.markers.role(pattern)) {
            (Phase::Answering, Role::Open) if opens => {
                self.state.phase = Phase::Thinking;
                text_label = Label::Marker; // blanks before the marker
                Label::Marker
            }
            (Phase::Thinking, Role::Close) => {
                self.answer();
                Label::Marker
            }
            (_, Role::Open | Role::Close) => Label::Marker,
            (_, Role::ToolOpen) => {
                self.state.closed |= phase == Phase::Thinking;
                self.state.phase = Phase::ToolCall;
                Label::ToolCall
            }
            (_, Role::ToolClose) => {
                self.state.phase = Phase::Answering;
                Label::ToolCall
            }
        };
        self.state.matcher = kmp::State::ROOT;
        let says = |label, len| len > 0 && matches!(label, Label::Content | Label::ToolCall);
        self.state.answered |= says(text_label, text) || says(label, len);
        self.decide(Span { label: text_label, len: text }, Span { label, len })
    }

    /// `before` tokens were held, and this one completes nothing.
    fn push_text(&mut self, token: u32, matcher: kmp::State, before: usize) -> Step {
        let held = self.markers.patterns().partial(matcher);
        self.state.matcher = matcher;
        let freed = before + 1 - held;
        if freed == 0 {
            return [NOTHING; 2];
        }
        if self.state.phase == Phase::Answering {
            let blank = freed == 1 && before == 0 && self.markers.is_blank(token);
            if blank && std::mem::take(&mut self.state.swallow) {
                return self.decide(NOTHING, Span { label: Label::Marker, len: 1 });
            }
            if blank && !self.state.closed && self.may_open() {
                self.state.lead += 1;
                return [NOTHING; 2];
            }
            self.state.swallow = false;
            self.state.answered |= !blank;
        }
        let len = freed + std::mem::take(&mut self.state.lead) as usize;
        self.decide(Span { label: self.stream(), len }, NOTHING)
    }

    /// Where plain text goes now.
    fn stream(&self) -> Label {
        match self.state.phase {
            Phase::Thinking => Label::Reasoning,
            Phase::ToolCall => Label::ToolCall,
            Phase::Closing => Label::Marker,
            Phase::Answering | Phase::Done => Label::Content,
        }
    }

    fn decide(&mut self, first: Span, second: Span) -> Step {
        self.state.counts.add(first);
        self.state.counts.add(second);
        [first, second]
    }

    /// Ends the thinking here: returns the tokens that must be pushed next. A close that the model has begun is
    /// completed, not doubled.
    ///
    /// # Panics
    /// If the model is not thinking.
    pub fn begin_close(&mut self) -> Vec<u32> {
        assert!(self.state.phase == Phase::Thinking, "only thinking is closed");
        let (begun, forced) = self.rest_of_close();
        let (freed, forced) = (self.partial() - begun, forced.to_vec());
        let s = &mut self.state;
        (s.phase, s.left, s.matcher) = (Phase::Closing, forced.len() as u32, kmp::State::ROOT);
        (s.begun, s.freed) = (begun as u32, freed as u32);
        forced
    }

    /// Tokens of a close that are there, and those that it still needs.
    fn rest_of_close(&self) -> (usize, &[u32]) {
        let is_close = |pattern: usize| self.markers.role(pattern) == Role::Close;
        let begun = self.markers.patterns().rest(self.state.matcher, is_close);
        begun.unwrap_or((0, self.markers.close()))
    }

    /// Nothing more comes: what was held is text after all.
    pub fn finish(&mut self) -> Step {
        let (held, stream) = (self.held(), self.stream());
        let freed = std::mem::take(&mut self.state.freed) as usize;
        (self.state.lead, self.state.begun, self.state.phase) = (0, 0, Phase::Done);
        self.decide(Span { label: Label::Reasoning, len: freed }, Span { label: stream, len: held - freed })
    }

    /// Tokens that must not come next: markers out of place, and one of `ends` before an answer that follows
    /// thinking has begun. `open`: whether there is room to open thinking.
    pub fn forbidden(&self, ends: &[u32], open: bool) -> Vec<u32> {
        let s = &self.state;
        let out_of_place = |role: Role| match (s.phase, role) {
            (Phase::Answering, Role::Open) => !(open && self.may_open()),
            (Phase::Answering, Role::Close) | (Phase::Thinking, Role::Open) => true,
            _ => false,
        };
        let mut tokens: Vec<u32> = Vec::new();
        for (token, pattern) in self.markers.patterns().completions(s.matcher, |p| self.acts(p)) {
            tokens.extend(out_of_place(self.markers.role(pattern)).then_some(token));
        }
        if s.phase == Phase::Answering && s.closed && !s.answered && self.partial() == 0 {
            tokens.extend(ends);
        }
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
}
