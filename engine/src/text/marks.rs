//! Scaffold and content: who wrote which part of a rendered chat.

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
