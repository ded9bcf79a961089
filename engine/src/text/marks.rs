//! Scaffold and content: who wrote which part of a rendered chat.
//!
//! A template is a program over strings; it concatenates, trims and splits what it is given. So content
//! goes in between two marks (Unicode noncharacters), the string methods that templates use treat marks
//! as air ([`Marked`]), and whatever comes out is cut at the marks into [`Piece`]s. A user who types the
//! marks gains nothing: they are escaped on the way in and restored on the way out.

use std::borrow::Cow;

const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';
const BREAK: char = '\u{fdd2}';
const ESCAPE: char = '\u{fdd3}';
/// What follows [`ESCAPE`] for each of these when a user typed it.
const ESCAPED: [(char, char); 4] = [(OPEN, '\u{fdd4}'), (CLOSE, '\u{fdd5}'), (BREAK, '\u{fdd6}'), (ESCAPE, '\u{fdd7}')];

/// A part of a rendered chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The template's own text: special tokens count.
    Scaffold(String),
    /// Text from a message: special tokens do not count.
    Content(String),
}

impl Piece {
    /// The text, whoever wrote it.
    pub fn text(&self) -> &str {
        match self {
            Piece::Scaffold(text) | Piece::Content(text) => text,
        }
    }
}

/// How content is protected while a template handles it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Not at all: what the template gives for innocent text.
    None,
    /// Between marks.
    Marks,
    /// Broken after every sign, so that no special token can be seen in it: for templates that slice strings.
    Broken,
}

impl Protection {
    /// `text` as it enters the template. Empty text stays empty, so that "if content" holds.
    pub fn apply(self, text: &str) -> String {
        let text = escape(text);
        match self {
            _ if text.is_empty() => return String::new(),
            Protection::None => return text.into_owned(),
            Protection::Marks => return format!("{OPEN}{text}{CLOSE}"),
            Protection::Broken => {}
        }
        let mut out = String::with_capacity(text.len() * 2);
        for c in text.chars() {
            out.push(c);
            if !c.is_alphanumeric() && !c.is_whitespace() && c != ESCAPE {
                out.push(BREAK);
            }
        }
        out
    }

    /// The pieces of a rendered text; `None` if the template cut through the marks.
    pub fn pieces(self, rendered: &str) -> Option<Vec<Piece>> {
        match self {
            Protection::None => Some(vec![Piece::Scaffold(unescape(rendered).into_owned())]),
            Protection::Marks => marked_pieces(rendered),
            // A border between two pieces is where no special token is found.
            Protection::Broken => {
                let parts = rendered.split(BREAK).filter(|p| !p.is_empty());
                Some(parts.map(|p| Piece::Scaffold(unescape(p).into_owned())).collect())
            }
        }
    }
}

fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(ESCAPED.map(|(mark, _)| mark)) {
        return text.into();
    }
    let mut out = String::new();
    for c in text.chars() {
        match ESCAPED.iter().find(|(from, _)| *from == c) {
            Some((_, to)) => out.extend([ESCAPE, *to]),
            None => out.push(c),
        }
    }
    out.into()
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains(ESCAPE) {
        return text.into();
    }
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let restored = (c == ESCAPE).then(|| chars.next()).flatten();
        match ESCAPED.iter().find(|(_, to)| Some(*to) == restored) {
            Some((from, _)) => out.push(*from),
            None => out.extend([c].into_iter().chain(restored)),
        }
    }
    out.into()
}

fn marked_pieces(rendered: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = rendered;
    loop {
        let (scaffold, after) = rest.split_once(OPEN).map_or((rest, None), |(s, a)| (s, Some(a)));
        if scaffold.contains(CLOSE) {
            return None;
        }
        if !scaffold.is_empty() {
            pieces.push(Piece::Scaffold(scaffold.to_string()));
        }
        let Some(after) = after else { return Some(pieces) };
        let (content, after) = after.split_once(CLOSE)?;
        if content.contains(OPEN) {
            return None;
        }
        // Empty content still parts the scaffold on its two sides.
        pieces.push(Piece::Content(unescape(content).into_owned()));
        rest = after;
    }
}

/// A string whose characters know whether they are content: what trimming and splitting work on.
#[derive(Clone, Debug, Default)]
pub struct Marked {
    chars: Vec<(char, bool)>,
}

impl Marked {
    /// Whether a string has marks at all.
    pub fn is_marked(text: &str) -> bool {
        text.contains([OPEN, CLOSE])
    }
    /// Reads a string with marks.
    pub fn read(text: &str) -> Marked {
        let mut inside = false;
        let mut chars = Vec::new();
        for c in text.chars() {
            match c {
                OPEN => inside = true,
                CLOSE => inside = false,
                _ => chars.push((c, inside)),
            }
        }
        Marked { chars }
    }
    /// The string with marks again.
    pub fn write(&self) -> String {
        let mut out = String::new();
        let mut inside = false;
        for &(c, content) in &self.chars {
            if content != inside {
                out.push(if content { OPEN } else { CLOSE });
                inside = content;
            }
            out.push(c);
        }
        if inside {
            out.push(CLOSE);
        }
        out
    }
    /// The string without marks.
    pub fn plain(&self) -> String {
        self.chars.iter().map(|(c, _)| *c).collect()
    }
    fn part(&self, range: std::ops::Range<usize>) -> Marked {
        Marked { chars: self.chars[range].to_vec() }
    }
    /// Without the characters that `strips` on the left and on the right.
    pub fn trim(&self, left: bool, right: bool, strips: impl Fn(char) -> bool) -> Marked {
        let keeps = |&(c, _): &(char, bool)| !strips(c);
        let start = if left { self.chars.iter().position(keeps).unwrap_or(self.chars.len()) } else { 0 };
        let end = if right { self.chars.iter().rposition(keeps).map_or(start, |i| i + 1) } else { self.chars.len() };
        self.part(start..end.max(start))
    }
    /// The character positions at which `what` begins, not overlapping.
    pub fn find_all(&self, what: &str) -> Vec<usize> {
        let what: Vec<char> = what.chars().collect();
        let mut found = Vec::new();
        let mut at = 0;
        while !what.is_empty() && at + what.len() <= self.chars.len() {
            if self.chars[at..].iter().zip(&what).all(|((a, _), b)| a == b) {
                found.push(at);
                at += what.len();
            } else {
                at += 1;
            }
        }
        found
    }
    /// Parts between `separator`, at most `most` cuts.
    pub fn split(&self, separator: &str, most: usize) -> Vec<Marked> {
        let width = separator.chars().count();
        let mut parts = Vec::new();
        let mut start = 0;
        for at in self.find_all(separator).into_iter().take(most) {
            parts.push(self.part(start..at));
            start = at + width;
        }
        parts.push(self.part(start..self.chars.len()));
        parts
    }
    /// Words between whitespace.
    pub fn words(&self) -> Vec<Marked> {
        let words = self.chars.split(|(c, _)| c.is_whitespace()).filter(|w| !w.is_empty());
        words.map(|w| Marked { chars: w.to_vec() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_goes_in_comes_out() {
        for text in ["hi", "a\u{fdd0}<b>\u{fdd1}\u{fdd2}\u{fdd3}"] {
            let rendered = format!("<s>{}</s>", Protection::Marks.apply(text));
            let want = ["<s>", text, "</s>"].map(str::to_string);
            let [a, b, c] = want;
            let want = vec![Piece::Scaffold(a), Piece::Content(b), Piece::Scaffold(c)];
            assert_eq!(Protection::Marks.pieces(&rendered), Some(want));
        }
        assert_eq!(Protection::Marks.apply(""), "");
        assert_eq!(Protection::Marks.pieces("a\u{fdd0}b"), None);
        assert_eq!(Protection::Marks.pieces("a\u{fdd1}b"), None);
    }

    #[test]
    fn splitting_and_trimming_keep_marks_apart() {
        let s = Marked::read(&Protection::Marks.apply("<think>\nwhy\n</think>\n\nbecause"));
        let parts = s.split("</think>", usize::MAX);
        let thought = parts[0].split("<think>", usize::MAX)[1].trim(true, true, |c| c == '\n').write();
        assert_eq!(thought, Protection::Marks.apply("why"));
        assert_eq!(parts[1].trim(true, false, |c| c == '\n').write(), Protection::Marks.apply("because"));
        assert_eq!(Marked::read("\u{fdd0}  \u{fdd1}").trim(true, true, char::is_whitespace).write(), "");
    }

    proptest! {
        #[test]
        fn broken_text_is_the_same_text(text in any::<String>()) {
            let pieces = Protection::Broken.pieces(&Protection::Broken.apply(&text)).unwrap_or_default();
            prop_assert_eq!(pieces.iter().map(Piece::text).collect::<String>(), text);
        }
        #[test]
        fn split_as_python(text in "[ab ]{0,20}", sep in "[ab]{1,2}") {
            let marked = Marked::read(&Protection::Marks.apply(&text));
            let parts: Vec<String> = marked.split(&sep, usize::MAX).iter().map(Marked::plain).collect();
            prop_assert_eq!(parts, text.split(&sep).collect::<Vec<_>>());
            let trimmed = marked.trim(true, true, char::is_whitespace).plain();
            prop_assert_eq!(trimmed, text.trim());
        }
    }
}
