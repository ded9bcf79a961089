//! What the depth classifier looks at: a few counts, and which words occur. Readable on purpose.

use std::collections::BTreeSet;

/// Bytes of a query that are looked at: half from its beginning, half from its end. Bounds the time.
const MAX_BYTES: usize = 8192;

/// Names of [`Facts::numbers`], in order; `ln_` is the logarithm of one plus a count.
pub const NUMBERS: [&str; 12] = [
    "ln_chars",
    "ln_words",
    "ln_numbers",
    "ln_digits",
    "ln_longest_number",
    "ln_magnitude",
    "ln_sentences",
    "ln_questions",
    "ln_operators",
    "ln_lines",
    "ln_commas",
    "code",
];
const MAGNITUDE: usize = 5;
const SENTENCES: usize = 6;

/// What a query looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Values of [`NUMBERS`].
    pub numbers: [f32; NUMBERS.len()],
    /// Lower-case words and operator signs that occur, each once.
    pub words: BTreeSet<String>,
}

impl Facts {
    /// Decimal digits in all numbers together, finely: the words' weights grow with it.
    pub fn magnitude(&self) -> f32 {
        self.numbers[MAGNITUDE]
    }
    /// Sentences.
    pub fn sentences(&self) -> f32 {
        self.numbers[SENTENCES]
    }

    /// Looks at a query.
    pub fn of(query: &str) -> Facts {
        let text = ends_of(query);
        let ln = |n: f32| (1.0 + n).ln();
        let count = |signs: &[char]| text.matches(signs).count() as f32;
        let (mut words, mut all_words) = (BTreeSet::new(), 0f32);
        let (mut numbers, mut digits, mut longest, mut magnitude) = (0f32, 0f32, 0f32, 0f32);
        for run in text.split(|c: char| !c.is_alphanumeric()).filter(|r| !r.is_empty()) {
            if run.bytes().all(|b| b.is_ascii_digit()) {
                numbers += 1.0;
                digits += run.len() as f32;
                longest = longest.max(run.len() as f32);
                magnitude += run.parse::<u32>().map_or(run.len() as f32, |n| (1.0 + n as f32).log10());
            } else {
                all_words += 1.0;
                words.insert(run.to_lowercase());
            }
        }
        const OPERATORS: [char; 9] = ['+', '-', '*', '/', '=', '^', '%', '<', '>'];
        for sign in OPERATORS.into_iter().filter(|s| text.contains(*s)) {
            words.insert(sign.to_string());
        }
        let code = if text.contains("```") || text.contains("fn ") || text.contains("def ") { 1.0 } else { 0.0 };
        let values = [
            ln(text.len() as f32),
            ln(all_words),
            ln(numbers),
            ln(digits),
            ln(longest),
            ln(magnitude),
            ln(count(&['.', '!', '?'])),
            ln(count(&['?'])),
            ln(count(&OPERATORS)),
            ln(count(&['\n'])),
            ln(count(&[',', ';'])),
            code,
        ];
        Facts { numbers: values, words }
    }
}

/// The beginning and the end of a long text.
fn ends_of(text: &str) -> String {
    if text.len() <= MAX_BYTES {
        return text.to_string();
    }
    let (mut head, mut tail) = (MAX_BYTES / 2, text.len() - MAX_BYTES / 2);
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{} {}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_words() {
        let f = Facts::of("What is 12 * 345? Be quick.");
        let of = |name: &str| f.numbers[NUMBERS.iter().position(|n| *n == name).unwrap()];
        assert_eq!((of("ln_numbers"), of("ln_digits")), (3f32.ln(), 6f32.ln()));
        assert_eq!(of("ln_longest_number"), 4f32.ln());
        assert!((f.magnitude() - (1.0 + 13f32.log10() + 346f32.log10()).ln()).abs() < 1e-5);
        assert_eq!(f.sentences(), 3f32.ln());
        assert_eq!(f.words.iter().map(String::as_str).collect::<Vec<_>>(), ["*", "be", "is", "quick", "what"]);
    }

    #[test]
    fn anything_is_a_query() {
        for text in ["", "\u{fffd}", &"é".repeat(9000), &"9".repeat(9000), "１２"] {
            assert!(Facts::of(text).numbers.iter().all(|n| n.is_finite()), "{} bytes", text.len());
        }
    }
}
