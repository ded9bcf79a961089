//! Ops that only move or add rows.

use super::memory::Ptr;
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use crate::op;
use crate::program::RowSpace;

/// `residual += delta`.
pub struct Add {
    residual: Ptr<f32>,
    delta: Ptr<f32>,
    width: usize,
}

impl Add {
    /// From the op.
    pub fn new(b: &Builder<'_>, o: &op::Add) -> Self {
        Self { residual: b.ptr(o.residual), delta: b.ptr(o.delta), width: b.width(o.residual) }
    }
}

impl Step for Add {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let total = live.rows(RowSpace::Batch) * self.width;
        w.phase(total, w.chunk(total), |range| {
            // SAFETY: elements of live rows; ranges are disjoint.
            unsafe {
                let residual = self.residual.slice_mut(range.start, range.len());
                let delta = self.delta.slice(range.start, range.len());
                residual.iter_mut().zip(delta).for_each(|(r, d)| *r += d);
            }
        });
    }
}

/// `out[l] = x[index[l]]`.
pub struct Gather {
    x: Ptr<f32>,
    rows: usize,
    index: Ptr<u32>,
    out: Ptr<f32>,
    width: usize,
}

impl Gather {
    /// From the op.
    pub fn new(b: &Builder<'_>, o: &op::GatherRows) -> Self {
        let rows = b.shape(o.x)[0];
        Self { x: b.ptr(o.x), rows, index: b.ptr(o.index), out: b.ptr(o.out), width: b.width(o.x) }
    }
}

impl Step for Gather {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let rows = live.rows(RowSpace::Logits);
        w.phase(rows, w.chunk(rows), |range| {
            for row in range {
                // SAFETY: live rows; the source row is checked; `out` is not `x`.
                unsafe {
                    let from = *self.index.at(row) as usize;
                    assert!(from < self.rows, "row {from} of {} gathered", self.rows);
                    let out = self.out.slice_mut(row * self.width, self.width);
                    out.copy_from_slice(self.x.slice(from * self.width, self.width));
                }
            }
        });
    }
}
