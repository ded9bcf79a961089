//! Token ids to vectors: one lane of one panel per token.

use super::memory::Ptr;
use super::panel::Panels;
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use crate::op;
use crate::program::RowSpace;

/// `out[r] = scale * table[tokens[r]]`.
pub struct Embed {
    tokens: Ptr<u32>,
    table: Ptr<u8>,
    shape: Panels,
    out: Ptr<f32>,
    scale: f32,
}

impl Embed {
    /// From the op.
    pub fn new(b: &Builder<'_>, o: &op::Embed) -> Self {
        let shape = b.panels(o.table);
        Self { tokens: b.ptr(o.tokens), table: b.ptr(o.table), shape, out: b.ptr(o.out), scale: o.scale }
    }
}

impl Step for Embed {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let rows = live.rows(RowSpace::Batch);
        let hidden = self.shape.k;
        w.phase(rows, w.chunk(rows), |range| {
            for row in range {
                // SAFETY: a live row; the table is read only, and as long as its shape says.
                unsafe {
                    let token = *self.tokens.at(row) as usize;
                    assert!(token < self.shape.n, "token {token} of {}", self.shape.n);
                    let out = self.out.slice_mut(row * hidden, hidden);
                    self.shape.decode_row(self.table.slice(0, self.shape.bytes()), token, out);
                    out.iter_mut().for_each(|v| *v *= self.scale);
                }
            }
        });
    }
}
