//! Parts thinking from answer in the text that a model generates.
//!
//! Only what the model says goes through here, never a prompt, so text that a user typed cannot move it.

/// What opens and closes thinking in the text of the models that we know.
const MARKS: (&str, &str) = ("<think>", "</think>");

/// Which part of an answer a piece of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Before the answer.
    Thinking,
    /// The answer.
    Answer,
}

/// The state of one answer.
#[derive(Clone, Debug)]
pub struct Splitter {
    part: Part,
    marks: bool,
    /// Text that may be the beginning of a mark, or white space at a border.
    held: String,
    /// White space is dropped until the first other character of the part.
    fresh: bool,
    reasoning_tokens: usize,
}

impl Splitter {
    /// For a model that does not think, or where its marks shall stay: all text is answer, as it comes.
    pub fn plain() -> Self {
        Self { part: Part::Answer, marks: false, held: String::new(), fresh: false, reasoning_tokens: 0 }
    }

    /// For a model that thinks between marks; `prompt` is the rendered prompt, which may open the thinking.
    pub fn new(prompt: &str) -> Self {
        let opened = prompt.trim_end().ends_with(MARKS.0);
        let part = if opened { Part::Thinking } else { Part::Answer };
        Self { part, marks: true, held: String::new(), fresh: opened, reasoning_tokens: 0 }
    }

    /// Whether a model with this chat template thinks between marks.
    pub fn suits(template: &str) -> bool {
        template.contains(MARKS.1)
    }

    /// Takes new text and the number of tokens behind it; returns what is certain of it.
    pub fn push(&mut self, text: &str, tokens: usize) -> Vec<(Part, String)> {
        if !self.marks {
            return if text.is_empty() { Vec::new() } else { vec![(Part::Answer, text.to_string())] };
        }
        let mut out = Vec::new();
        let mut thought = self.part == Part::Thinking;
        self.held.push_str(text);
        while let Some(at) = self.held.find(self.mark()) {
            let before = self.held[..at].trim_end().to_string();
            self.held.drain(..at + self.mark().len());
            self.emit(before, &mut out);
            self.part = if self.part == Part::Thinking { Part::Answer } else { Part::Thinking };
            self.fresh = true;
            thought = true;
        }
        // The tokens of the marks count as thinking.
        self.reasoning_tokens += if thought { tokens } else { 0 };
        let certain = self.held.len() - self.uncertain();
        let rest = self.held.split_off(certain);
        let shown = std::mem::replace(&mut self.held, rest);
        self.emit(shown, &mut out);
        out
    }

    /// The text has ended: what was held back is text after all.
    pub fn finish(&mut self) -> Vec<(Part, String)> {
        let mut out = Vec::new();
        let held = std::mem::take(&mut self.held);
        self.emit(held, &mut out);
        out
    }

    /// Tokens of the thinking so far, its marks included.
    pub fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
    }

    /// The mark that would end the present part.
    fn mark(&self) -> &'static str {
        if self.part == Part::Thinking { MARKS.1 } else { MARKS.0 }
    }

    /// Bytes at the end that could belong to a mark, or to the white space before one.
    fn uncertain(&self) -> usize {
        let mark = self.mark();
        let partial = (1..mark.len()).rev().find(|n| self.held.ends_with(&mark[..*n])).unwrap_or(0);
        let before = &self.held[..self.held.len() - partial];
        partial + before.len() - before.trim_end().len()
    }

    fn emit(&mut self, text: String, out: &mut Vec<(Part, String)>) {
        let text = if self.fresh { text.trim_start().to_string() } else { text };
        if !text.is_empty() {
            self.fresh = false;
            out.push((self.part, text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thinking and answer of a text that comes in the given pieces.
    fn split(mut splitter: Splitter, pieces: &[&str]) -> (String, String, usize) {
        let mut parts: Vec<(Part, String)> = pieces.iter().flat_map(|p| splitter.push(p, 1)).collect();
        parts.extend(splitter.finish());
        let of = |part| parts.iter().filter(|p| p.0 == part).map(|p| p.1.as_str()).collect();
        (of(Part::Thinking), of(Part::Answer), splitter.reasoning_tokens())
    }

    #[test]
    fn cuts_do_not_matter() {
        let text = "<think>\nSo, a < b.\nWait.\n</think>\n\nIt is 12.\n";
        for a in 0..=text.len() {
            for b in a..=text.len() {
                let (thinking, answer, _) = split(Splitter::new("Q"), &[&text[..a], &text[a..b], &text[b..]]);
                assert_eq!(
                    (thinking.as_str(), answer.as_str()),
                    ("So, a < b.\nWait.", "It is 12.\n"),
                    "cut at {a}, {b}"
                );
            }
        }
    }

    #[test]
    fn a_prompt_may_open_the_thinking() {
        let pieces = ["Hm", "m", "</think>", "\n\n", "12"];
        assert_eq!(split(Splitter::new("Q<think>\n"), &pieces), ("Hmm".into(), "12".into(), 3));
        assert_eq!(split(Splitter::new("Q"), &["No", " need"]), (String::new(), "No need".into(), 0));
        let raw = split(Splitter::plain(), &["<think>", "x</think>"]);
        assert_eq!(raw, (String::new(), "<think>x</think>".into(), 0));
    }

    #[test]
    fn thinking_that_is_cut_off_stays_thinking() {
        assert_eq!(split(Splitter::new("<think>"), &["So", " </thi"]), ("So </thi".into(), String::new(), 2));
    }
}
