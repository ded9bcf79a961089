//! What tokens are to the cache, and what moves before a step.

use std::ops::Range;

/// Whose tokens a block holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// Asked.
    #[default]
    Prompt,
    /// Thought: chat templates strip it from later turns, so it goes first.
    Thinking,
    /// Answered.
    Answer,
}

/// Where the parts of a log lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Positions of the thinking; ends nowhere while it goes on, empty where there is none.
    pub thinking: Range<usize>,
}

impl Parts {
    /// Whose the token at `position` is.
    pub fn at(&self, position: usize) -> Part {
        match position {
            p if p < self.prompt => Part::Prompt,
            p if self.thinking.contains(&p) => Part::Thinking,
            _ => Part::Answer,
        }
    }
}

/// Blocks that move before a step's first op, in this order, in every cache that is indexed by the same tables:
/// the target's, and a draft model's. Within each list sources and targets are disjoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copies {
    /// `(block, place)`: saved to host memory.
    pub save: Vec<(u32, u32)>,
    /// `(place, block)`: brought back.
    pub load: Vec<(u32, u32)>,
    /// `(from, to)`: copied, because what follows will differ.
    pub copy: Vec<(u32, u32)>,
}

impl Copies {
    /// Nothing moves.
    pub fn is_empty(&self) -> bool {
        self.save.is_empty() && self.load.is_empty() && self.copy.is_empty()
    }
    /// Blocks that go over the bus.
    pub fn swapped(&self) -> usize {
        self.save.len() + self.load.len()
    }
}
