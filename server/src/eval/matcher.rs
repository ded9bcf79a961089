//! Whether an answer is the known one.
//!
//! First the part of the text that gives the answer is found: the last `\boxed{…}`, else what follows the last
//! `Answer:` (or `answer is`), else the whole text. Then that is compared.

use std::str::FromStr;

/// How an answer is compared with the known one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matcher {
    /// As numbers: the last number of the answer; `1,234`, `$5` and `40%` are read as people write them.
    Number,
    /// As text, without case, outer white space and a final full stop.
    Exact,
    /// As one of few words or letters: the answer's first word counts, without brackets: `(B) because…` is B.
    Choice,
}

impl FromStr for Matcher {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "number" => Ok(Matcher::Number),
            "exact" => Ok(Matcher::Exact),
            "choice" => Ok(Matcher::Choice),
            _ => Err(format!("unknown matcher {word:?}: it is none of number, exact, choice")),
        }
    }
}

impl Matcher {
    /// What suits an answer if the set does not say.
    pub fn for_answer(answer: &str) -> Matcher {
        if number(answer).is_some() { Matcher::Number } else { Matcher::Exact }
    }

    /// Whether `text`, a model's whole answer, gives `known`.
    pub fn matches(self, text: &str, known: &str) -> bool {
        let given = given_answer(text);
        match self {
            Matcher::Number => match (last_number(given), number(known)) {
                (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs(),
                _ => false,
            },
            Matcher::Exact => plain(given) == plain(known),
            Matcher::Choice => {
                let (given, known) = (plain(given), plain(known));
                let first = given.split_whitespace().next().unwrap_or("");
                let bare = first.trim_matches(|c: char| !c.is_alphanumeric());
                given == known || bare == known
            }
        }
    }
}

/// The part of the text that gives the answer.
fn given_answer(text: &str) -> &str {
    if let Some(at) = text.rfind("\\boxed{") {
        let inner = &text[at + "\\boxed{".len()..];
        let mut depth = 1;
        let end = inner.char_indices().find(|(_, c)| {
            depth += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            depth == 0
        });
        return end.map_or(inner, |(end, _)| &inner[..end]);
    }
    let lower = text.to_lowercase();
    let after = |mark: &str| lower.rfind(mark).map(|at| at + mark.len());
    let at = after("answer:").into_iter().chain(after("answer is")).max();
    // Lower case may be longer than the text itself in a few languages: then the whole text counts.
    at.and_then(|at| text.get(at..)).unwrap_or(text).trim()
}

/// Without case, outer white space, emphasis, and a final full stop.
fn plain(text: &str) -> String {
    text.trim().trim_matches(['*', '`', '$']).trim_end_matches('.').trim().to_lowercase()
}

/// A text that is one number.
fn number(text: &str) -> Option<f64> {
    let digits: String = plain(text).chars().filter(|c| !matches!(c, ',' | '$' | '%' | '_' | ' ')).collect();
    let plain_form = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e'));
    digits.parse().ok().filter(|n: &f64| plain_form && n.is_finite())
}

/// The last number in a text; a `-` before it is its sign if no digit stands before that.
fn last_number(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let of_number = |at: usize| match bytes[at] {
        b'0'..=b'9' => true,
        // A separator stands between digits.
        b',' | b'.' => at > 0 && bytes[at - 1].is_ascii_digit() && bytes.get(at + 1).is_some_and(u8::is_ascii_digit),
        _ => false,
    };
    let start = (0..end).rev().take_while(|at| of_number(*at)).last()?;
    let value: f64 = text[start..end].replace(',', "").parse().ok()?;
    let signed = start > 0 && bytes[start - 1] == b'-' && !(start > 1 && bytes[start - 2].is_ascii_digit());
    Some(if signed { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_write_them() {
        let right = |text: &str, known: &str| Matcher::Number.matches(text, known);
        assert!(right("Answer: 42", "42") && right("Answer: 42.", "42") && right("42", "42.0"));
        assert!(right("It costs $1,234 in all.", "1234") && right("Answer: -7", "-7"));
        assert!(right("First 12, then \\boxed{40\\%}", "40%") && right("The answer is 3.5 m.", "3.5"));
        assert!(right("Answer: 12\n\nAnswer: 13", "13"));
        assert!(!right("Answer: 420", "42") && !right("no number", "0") && !right("", "1") && !right("7-5", "-5"));
        assert!(!right("Answer: 1.2.3", "3"), "no number as people write it");
    }

    #[test]
    fn texts_and_choices() {
        assert!(Matcher::Exact.matches("Answer: 12:30", "12:30"));
        assert!(Matcher::Exact.matches("So the Answer: Odd.", "odd"));
        assert!(!Matcher::Exact.matches("Answer: 12:30 or so", "12:30"));
        assert!(Matcher::Choice.matches("Answer: (B) because of that", "B"));
        assert!(Matcher::Choice.matches("**b**", "B") && !Matcher::Choice.matches("Bad", "B"));
        assert_eq!(given_answer("\\boxed{\\frac{1}{2}} done"), "\\frac{1}{2}");
        assert_eq!(given_answer("\\boxed{open"), "open");
        assert_eq!(given_answer("İİİ answer: x"), given_answer("İİİ answer: x"), "no panic inside a character");
    }

    #[test]
    fn what_suits_an_answer() {
        for (answer, matcher) in [("12", Matcher::Number), ("-1,200", Matcher::Number), ("12:30", Matcher::Exact)] {
            assert_eq!(Matcher::for_answer(answer), matcher, "{answer}");
        }
        assert!("no".parse::<Matcher>().unwrap_err().contains("number, exact, choice"));
    }
}
