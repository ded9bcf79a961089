//! FP8 weights of Hugging Face files: codes in one tensor, their scales in another, as DeepSeek and Qwen publish
//! them (`weight_scale_inv`, a factor in spite of its name) and as compressed-tensors does (`weight_scale`).

use std::borrow::Cow;
use std::ops::Range;

use crate::format::{F8_BLOCK, Format};

/// What a weight's name is followed by in the name of its scales.
pub(crate) const SUFFIXES: [&str; 2] = ["_scale_inv", "_scale"];

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// All codes.
    Tensor,
    /// A row: `[rows]` or `[rows, 1]`.
    Row,
    /// 128 rows by 128 columns: `[rows / 128, cols / 128]`, rounded up.
    Block,
}

impl By {
    /// Of scales of this shape for codes `[rows, cols]`.
    pub(crate) fn of(shape: &[usize], rows: usize, cols: usize) -> Option<By> {
        match *shape {
            [] | [1] | [1, 1] => Some(By::Tensor),
            [r, c] if r == rows.div_ceil(F8_BLOCK) && c == cols.div_ceil(F8_BLOCK) => Some(By::Block),
            [r] | [r, 1] if r == rows => Some(By::Row),
            _ => None,
        }
    }
}

/// Where the scales of a weight lie.
#[derive(Clone, Debug)]
pub(crate) struct Scales {
    pub file: usize,
    pub format: Format,
    pub range: Range<usize>,
    pub by: By,
}

/// The scales of a weight in its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub format: Format,
    pub by: By,
    pub bytes: &'a [u8],
}

/// Codes `[rows, cols]` and their scales as blocks of [`Format::F8`].
pub(crate) fn blocks<'a>(codes: &[u8], rows: usize, scales: View<'_>) -> Cow<'a, [u8]> {
    let mut values = vec![0f32; scales.bytes.len() / scales.format.block_bytes()];
    scales.format.decode(scales.bytes, &mut values);
    let (cols, mut out) = (codes.len() / rows, Vec::with_capacity(Format::F8.bytes_for(codes.len()).unwrap_or(0)));
    for (i, block) in codes.chunks_exact(F8_BLOCK).enumerate() {
        let (row, column) = (i * F8_BLOCK / cols, i * F8_BLOCK % cols);
        let scale = match scales.by {
            By::Tensor => values[0],
            By::Row => values[row],
            By::Block => values[row / F8_BLOCK * cols.div_ceil(F8_BLOCK) + column / F8_BLOCK],
        };
        out.extend(scale.to_le_bytes());
        out.extend(block);
    }
    out.into()
}
