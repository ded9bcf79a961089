//! Text to tokens and back.
//!
//! The rule that shapes this folder: *what a user typed never becomes a special token*. A chat template
//! renders to [`Piece`]s, scaffold (the template's own text) and content (everyone else's); special tokens
//! are looked for in scaffold only. Between special tokens, scaffold and content are joined again before
//! they are split into words, so innocent text gets the very ids that other engines give it.
//!
//! The `tokenizers` crate panics on crafted files and its regular expressions can be slow on crafted
//! text; every call goes through [`guard`], and inputs are bounded ([`MAX_INPUT`]).

mod alphabet;
mod detokenizer;
mod gguf_vocab;
mod guard;
mod hub;
mod marks;
mod pre_tokenizer;
mod python;
mod special;
mod spm;
mod stop;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use marks::Piece;
pub use stop::StopStrings;
pub use template::{ChatTemplate, Message, RenderOptions};
pub use tokenizer::{MAX_INPUT, Tokenizer};
