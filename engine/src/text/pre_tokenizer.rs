//! How each byte-level BPE splits text into words before it merges: the rows of one table.
//!
//! A GGUF file names its pre-tokeniser (`tokenizer.ggml.pre`); the expressions are those that the
//! models' own tokenizer.json files carry. They are applied one after the other, each to the parts
//! that the one before left; what an expression does not match is a part of its own.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// One pre-tokeniser.
pub struct PreTokenizer {
    /// Its names in `tokenizer.ggml.pre`.
    pub names: &'static [&'static str],
    expressions: &'static [&'static str],
    /// A word that is a token as it stands is not merged.
    pub ignore_merges: bool,
}

/// GPT-2's expression.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The expression of cl100k and its kin, with `$digits` for how many digits stay together.
macro_rules! cl100k {
    ($digits:literal) => {
        concat!(
            r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

static TABLE: [PreTokenizer; 6] = [
    PreTokenizer { names: &["gpt-2", "phi-2", "mpt"], expressions: &[GPT2], ignore_merges: false },
    // Digits one by one.
    PreTokenizer {
        names: &["smollm", "starcoder", "codeshell", "command-r", "refact"],
        expressions: &[r"\p{N}", GPT2],
        ignore_merges: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        expressions: &[cl100k!(r"\p{N}{1,3}")],
        ignore_merges: true,
    },
    PreTokenizer { names: &["qwen2", "deepseek-r1-qwen"], expressions: &[cl100k!(r"\p{N}")], ignore_merges: false },
    PreTokenizer {
        names: &["deepseek-v3"],
        expressions: &[
            r"\p{N}{1,3}",
            r"[一-龥\x{3040}-ゟ゠-ヿ]+",
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
        ignore_merges: false,
    },
    // What llama.cpp does where the file does not say.
    PreTokenizer {
        names: &["default"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
        ignore_merges: false,
    },
];

impl PreTokenizer {
    /// By its name in a GGUF file.
    pub fn by_name(name: &str) -> Option<&'static PreTokenizer> {
        TABLE.iter().find(|row| row.names.contains(&name))
    }
    /// Every name that is known.
    pub fn known() -> String {
        TABLE.iter().flat_map(|row| row.names).copied().collect::<Vec<_>>().join(", ")
    }
    /// As the `tokenizers` crate wants it.
    pub fn build(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut steps = Vec::new();
        for expression in self.expressions {
            let pattern = SplitPattern::Regex((*expression).to_string());
            steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
        }
        steps.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(steps).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::alphabet::from_alphabet;
    use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    /// The words that a pre-tokeniser makes of `text`.
    fn words(name: &str, text: &str) -> Vec<String> {
        let row = PreTokenizer::by_name(name).expect("in the table");
        let mut text = PreTokenizedString::from(text);
        row.build().expect("expressions compile").pre_tokenize(&mut text).expect("runs");
        let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let bytes = splits.into_iter().map(|(word, _, _)| from_alphabet(word).expect("byte-level"));
        bytes.map(|b| String::from_utf8(b).expect("whole characters")).collect()
    }

    #[test]
    fn by_hand() {
        assert_eq!(words("gpt-2", "I'm  12 é!\n\nx"), ["I", "'m", " ", " 12", " é", "!", "\n", "\n", "x"]);
        assert_eq!(words("smollm", "in 1998 x"), ["in", " ", "1", "9", "9", "8", " x"]);
        assert_eq!(words("llama-bpe", "I'M 12345, (so)\n\n"), ["I", "'M", " ", "123", "45", ",", " (", "so", ")\n\n"]);
        assert_eq!(words("qwen2", "a 42\n\n  b"), ["a", " ", "4", "2", "\n\n", " ", " b"]);
        assert_eq!(words("deepseek-v3", "x=1234 日本 y"), ["x", "=", "123", "4", " ", "日本", " y"]);
        assert_eq!(words("default", "a... 1234"), ["a", "...", " ", "123", "4"]);
    }

    #[test]
    fn every_row_builds() {
        for row in &TABLE {
            assert!(row.build().is_ok(), "{:?}", row.names);
        }
    }
}
