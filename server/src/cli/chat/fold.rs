//! An answer on the screen: thinking folded into one line that counts, the answer below it.
//!
//! A state machine over what happens; each event gives the bytes to print. It owns no terminal and no clock,
//! so that a test can say what a person would see.

use std::time::Duration;

/// What the output can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// A line can be written over: it is a terminal.
    pub live: bool,
    /// It may be dimmed.
    pub colour: bool,
    /// Columns.
    pub width: usize,
    /// Ctrl-C is heard, and may be offered.
    pub keys: bool,
}

impl Look {
    /// A file or a pipe: no control codes at all.
    pub const PLAIN: Look = Look { live: false, colour: false, width: 80, keys: false };
}

/// How a reply ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// The model had said everything.
    Done,
    /// It was stopped.
    Stopped,
    /// It had no tokens left, after so many.
    CutOff(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Waiting,
    Thinking,
    Answering,
}

/// Shows one reply.
pub struct Fold {
    look: Look,
    /// Thinking is shown whole, not folded.
    open: bool,
    /// Most tokens of thinking, if there is a bound.
    budget: Option<usize>,
    state: State,
    /// A live line stands where the cursor is.
    drawn: bool,
    /// The answer was asked for before the thinking had ended.
    hurried: bool,
    tokens: usize,
    at: Duration,
    answered: bool,
}

const ERASE: &str = "\r\x1b[K";
const DIM: &str = "\x1b[2m";
const BRIGHT: &str = "\x1b[0m";
/// A reply that starts at once needs no line that says that it will.
const PATIENCE: Duration = Duration::from_millis(400);

impl Fold {
    /// A reply that has not begun.
    pub fn new(look: Look, open: bool, budget: Option<usize>) -> Self {
        let (state, at) = (State::Waiting, Duration::ZERO);
        Self { look, open, budget, state, drawn: false, hurried: false, tokens: 0, at, answered: false }
    }

    /// Whether it thinks.
    pub fn is_thinking(&self) -> bool {
        self.state == State::Thinking
    }

    /// The bound on the thinking became known.
    pub fn set_budget(&mut self, budget: Option<usize>) {
        self.budget = budget;
    }

    /// More of the thinking; `tokens` of it so far, `at` after the question.
    pub fn thinking(&mut self, text: &str, tokens: usize, at: Duration) -> String {
        let first = self.state == State::Waiting;
        (self.state, self.tokens, self.at) = (State::Thinking, tokens, at);
        if !self.open {
            return self.draw();
        }
        let mut out = self.erase();
        if first {
            out += if self.look.colour { DIM } else { "[thinking]\n" };
        }
        out + &self.shown(text)
    }

    /// Time went by.
    pub fn tick(&mut self, tokens: usize, at: Duration) -> String {
        match self.state {
            State::Waiting if at >= PATIENCE => self.at = at,
            State::Thinking if !self.open => (self.tokens, self.at) = (tokens, at),
            _ => return String::new(),
        }
        self.draw()
    }

    /// The answer was asked for.
    pub fn hurry(&mut self) -> String {
        self.hurried = true;
        if self.state == State::Thinking && !self.open { self.draw() } else { String::new() }
    }

    /// More of the answer.
    pub fn answer(&mut self, text: &str) -> String {
        let before = self.leave();
        self.answered = true;
        before + &self.shown(text)
    }

    /// The reply is over.
    pub fn end(&mut self, how: End) -> String {
        let mut out = self.leave();
        if self.answered {
            out.push('\n');
        }
        let note = match how {
            End::Stopped => "[stopped]".to_string(),
            End::CutOff(tokens) if self.answered => format!("[cut off after {tokens} tokens]"),
            End::CutOff(tokens) => format!("[cut off after {tokens} tokens, while it still thought]"),
            End::Done => String::new(),
        };
        // A script that reads the answer reads nothing else.
        if self.look.live && !note.is_empty() {
            out += &format!("{}\n", self.dimmed(&note));
        } else if !self.answered {
            out.push('\n');
        }
        out
    }

    /// Ends what stands before the answer.
    fn leave(&mut self) -> String {
        let state = std::mem::replace(&mut self.state, State::Answering);
        let erased = self.erase();
        match (state, self.open) {
            (State::Thinking, true) if self.look.colour => format!("{erased}{BRIGHT}\n\n"),
            (State::Thinking, true) => format!("{erased}\n[answer]\n"),
            (State::Thinking, false) if self.look.live => {
                let line = format!("thought · {}", self.counted());
                format!("{erased}{}\n", self.dimmed(&line))
            }
            _ => erased,
        }
    }

    fn counted(&self) -> String {
        let of = self.budget.map_or(String::new(), |b| format!(" of {b}"));
        // The marks around the thinking came along with it; they are no part of what was allowed.
        let tokens = self.tokens.min(self.budget.unwrap_or(usize::MAX));
        let unit = if tokens == 1 && of.is_empty() { "token" } else { "tokens" };
        format!("{tokens}{of} {unit} · {:.1} s", self.at.as_secs_f64())
    }

    /// The live line, over the last one.
    fn draw(&mut self) -> String {
        if !self.look.live {
            return String::new();
        }
        let line = match self.state {
            State::Thinking if self.hurried => format!("answering now · {}", self.counted()),
            State::Thinking if self.look.keys => format!("thinking · {} · Ctrl-C: answer now", self.counted()),
            State::Thinking => format!("thinking · {}", self.counted()),
            _ => format!("waiting · {:.1} s", self.at.as_secs_f64()),
        };
        let erased = self.erase();
        self.drawn = true;
        erased + &self.dimmed(&line)
    }

    fn erase(&mut self) -> String {
        if std::mem::take(&mut self.drawn) { ERASE.into() } else { String::new() }
    }

    /// A line of ours, never longer than a line of the screen: one that wraps cannot be written over.
    fn dimmed(&self, line: &str) -> String {
        let cut: String = line.chars().take(self.look.width.saturating_sub(1)).collect();
        if self.look.colour { format!("{DIM}{cut}{BRIGHT}") } else { cut }
    }

    fn shown(&self, text: &str) -> String {
        if self.look.live { harmless(text) } else { text.into() }
    }
}

/// Text of a model for a terminal, which would obey the control characters in it.
pub fn harmless(text: &str) -> String {
    let told = text.chars().filter(|c| *c != '\r');
    told.map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{FFFD}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCREEN: Look = Look { live: true, colour: true, width: 80, keys: true };
    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// What a terminal shows after these bytes: lines, the last one where the cursor is.
    fn seen(bytes: &str) -> String {
        let mut screen = String::new();
        let mut rest = bytes;
        while let Some(c) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix(ERASE) {
                screen.truncate(screen.rfind('\n').map_or(0, |at| at + 1));
                rest = after;
            } else if let Some(after) = rest.strip_prefix(DIM).or(rest.strip_prefix(BRIGHT)) {
                rest = after;
            } else {
                assert!(!c.is_control() || c == '\n', "{bytes:?}");
                screen.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        screen
    }

    /// A reply with two pieces of thinking and two of an answer.
    fn reply(fold: &mut Fold, end: End) -> String {
        fold.thinking("Well, ", 2, MS(100))
            + &fold.tick(5, MS(1200))
            + &fold.thinking("so.", 7, MS(2300))
            + &fold.answer("It is ")
            + &fold.answer("12.")
            + &fold.end(end)
    }

    #[test]
    fn thinking_is_one_line_that_counts() {
        let mut fold = Fold::new(SCREEN, false, Some(64));
        let first = fold.thinking("Well, ", 2, MS(100));
        assert_eq!(seen(&first), "thinking · 2 of 64 tokens · 0.1 s · Ctrl-C: answer now");
        assert_eq!(seen(&fold.tick(66, MS(100))), "thinking · 64 of 64 tokens · 0.1 s · Ctrl-C: answer now");
        let second = first + &fold.tick(5, MS(1200));
        assert_eq!(seen(&second), "thinking · 5 of 64 tokens · 1.2 s · Ctrl-C: answer now");
        let hurried = second + &fold.hurry();
        assert_eq!(seen(&hurried), "answering now · 5 of 64 tokens · 1.2 s");
        let all = reply(&mut Fold::new(SCREEN, false, None), End::Done);
        assert_eq!(seen(&all), "thought · 7 tokens · 2.3 s\nIt is 12.\n");
        assert!(all.contains(DIM) && all.matches(DIM).count() == all.matches(BRIGHT).count());
    }

    #[test]
    fn or_shown_whole() {
        let all = reply(&mut Fold::new(SCREEN, true, None), End::Done);
        assert_eq!(all, "\x1b[2mWell, so.\x1b[0m\n\nIt is 12.\n");
        let look = Look { colour: false, ..SCREEN };
        assert_eq!(reply(&mut Fold::new(look, true, None), End::Done), "[thinking]\nWell, so.\n[answer]\nIt is 12.\n");
    }

    #[test]
    fn a_pipe_gets_the_answer_and_no_codes() {
        for end in [End::Done, End::Stopped, End::CutOff(9)] {
            assert_eq!(reply(&mut Fold::new(Look::PLAIN, false, Some(5)), end), "It is 12.\n");
        }
        let all = reply(&mut Fold::new(Look::PLAIN, true, None), End::Done);
        assert_eq!(all, "[thinking]\nWell, so.\n[answer]\nIt is 12.\n");
        assert_eq!(Fold::new(Look::PLAIN, false, None).end(End::Done), "\n", "a line for every answer");
    }

    #[test]
    fn no_colour_is_no_colour() {
        let all = reply(&mut Fold::new(Look { colour: false, ..SCREEN }, false, None), End::Stopped);
        assert!(all.contains(ERASE) && !all.contains("\x1b[2m") && !all.contains("\x1b[0m"), "{all:?}");
        assert_eq!(seen(&all), "thought · 7 tokens · 2.3 s\nIt is 12.\n[stopped]\n");
    }

    #[test]
    fn waiting_is_said_if_it_takes_long() {
        let mut fold = Fold::new(SCREEN, false, None);
        assert_eq!(fold.tick(0, MS(200)), "");
        let waited = fold.tick(0, MS(900));
        assert_eq!(seen(&waited), "waiting · 0.9 s");
        let all = waited + &fold.answer("Yes") + &fold.tick(1, MS(2000)) + &fold.end(End::CutOff(3));
        assert_eq!(seen(&all), "Yes\n[cut off after 3 tokens]\n");
    }

    #[test]
    fn what_ends_while_it_thinks_leaves_a_whole_line() {
        let mut fold = Fold::new(SCREEN, false, None);
        let all = fold.thinking("Hm", 1, MS(100)) + &fold.end(End::Stopped);
        assert_eq!(seen(&all), "thought · 1 token · 0.1 s\n[stopped]\n");
        let mut open = Fold::new(SCREEN, true, None);
        let all = open.thinking("Hm", 1, MS(100)) + &open.end(End::CutOff(1));
        assert_eq!(seen(&all), "Hm\n\n[cut off after 1 tokens, while it still thought]\n");
    }

    #[test]
    fn keys_that_nobody_hears_are_not_offered() {
        let mut fold = Fold::new(Look { keys: false, ..SCREEN }, false, None);
        assert_eq!(seen(&fold.thinking("a", 2, MS(100))), "thinking · 2 tokens · 0.1 s");
    }

    #[test]
    fn a_narrow_screen_is_not_wrapped() {
        let mut fold = Fold::new(Look { width: 20, ..SCREEN }, false, Some(64));
        assert_eq!(seen(&fold.thinking("a", 1, MS(100))).chars().count(), 19);
    }

    #[test]
    fn a_model_does_not_command_the_terminal() {
        let hostile = "a\x1b]0;title\x07b\x1b[2J\rc\u{9b}31m\td\n";
        let mut fold = Fold::new(SCREEN, true, None);
        let shown = fold.thinking(hostile, 1, MS(1)) + &fold.answer(hostile);
        let left = shown.replace(DIM, "").replace(BRIGHT, "");
        assert!(left.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t')), "{left:?}");
        assert_eq!(Fold::new(Look::PLAIN, false, None).answer(hostile), hostile, "a file gets what was said");
    }
}
