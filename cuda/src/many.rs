//! How a product of many token rows is cut into blocks: what `kernels/many.cuh` expects. Nothing of it changes a bit of
//! the result.

use ponder_engine::format::Format;

use crate::weight::TILE_K;

/// Token rows from which `many.cuh` serves.
const MANY_ROWS: usize = 64;
/// Blocks below which each class of k tiles gets blocks of its own: what fills a large device.
const ENOUGH_BLOCKS: usize = 128;
/// Classes of k tiles, and weight rows of a block.
const CLASSES: usize = 8;
const BLOCK_N: usize = 256;
/// Rows and bytes of a tile of activations in bf16 terms.
const TERM_ROWS: usize = 32;
pub const TERM_BYTES: usize = 24 * 512 + 2 * TERM_ROWS * 4;

/// Tiles of `rows` activations along the rows.
pub fn term_tiles(rows: usize) -> usize {
    rows.next_multiple_of(2 * TERM_ROWS) / TERM_ROWS
}

/// A product of many rows.
pub struct Many {
    /// Tiles of k.
    pub chunks: usize,
    /// Blocks along the token rows.
    pub row_blocks: usize,
    /// Blocks along the weight rows.
    pub parts: usize,
    /// 1, or as many as there are classes of k tiles: their sums are then added by a kernel of their own.
    pub classes: usize,
    /// Columns of all results.
    pub columns: usize,
    /// Token rows of a block.
    block_rows: usize,
}

impl Many {
    /// Of products with weights of `[n, k]` for each n.
    pub fn linear(rows: usize, format: Format, k: usize, n: &[usize]) -> Option<Self> {
        let parts = n.iter().map(|n| n.div_ceil(BLOCK_N)).sum();
        Self::of(rows, format, k, parts, n.iter().sum())
    }
    /// Of a gate and an up of `[n, k]`, which share a block.
    pub fn gate_up(rows: usize, format: Format, k: usize, n: usize) -> Option<Self> {
        Self::of(rows, format, k, (2 * n).div_ceil(BLOCK_N), 2 * n)
    }
    /// None where `product.cuh` serves.
    fn of(rows: usize, format: Format, k: usize, parts: usize, columns: usize) -> Option<Self> {
        if rows < MANY_ROWS || format == Format::F32 {
            return None;
        }
        let chunks = k.div_ceil(TILE_K);
        // Beside scales the sums of half as many rows fit the registers.
        let wide = matches!(format, Format::F16 | Format::BF16);
        let block_rows = if wide { 2 * TERM_ROWS } else { TERM_ROWS };
        let row_blocks = rows.div_ceil(block_rows);
        let classes = if row_blocks * parts < ENOUGH_BLOCKS { chunks.min(CLASSES) } else { 1 };
        Some(Self { chunks, row_blocks, parts, classes, columns, block_rows })
    }
    /// Token rows of all blocks.
    pub fn rows(&self) -> usize {
        self.row_blocks * self.block_rows
    }
    /// Bytes of the sums of single classes.
    pub fn sum_bytes(&self) -> usize {
        if self.classes > 1 { self.classes * self.rows() * self.columns * 4 } else { 0 }
    }
}
