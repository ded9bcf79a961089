//! The gated half of the MLP: gate and up products side by side, their activation applied while both
//! are in cache.

use std::mem::MaybeUninit;

use super::activation::TILE;
use super::linear::{Input, Matrix, Work, share};
use super::math::{gelu_tanh, silu};
use super::memory::Ptr;
use super::panel::LANES;
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use super::simd::{Isa, Kernel, Level};
use crate::model::Activation;
use crate::op;
use crate::program::RowSpace;

/// Panels whose products wait for their activation.
const STRIP: usize = 16;

/// `gated = act(x gate) * (x up)`.
pub struct GateUp {
    input: Input,
    gate: Matrix,
    up: Matrix,
    work: Work,
    gated: Ptr<f32>,
    activation: Activation,
    level: Level,
}

impl GateUp {
    /// The first half of a [`op::GatedMlp`].
    pub fn new(b: &Builder<'_>, o: &op::GatedMlp) -> Self {
        let (gate, up) = (Matrix::new(b, o.gate), Matrix::new(b, o.up));
        Self {
            input: Input::new(b, o.x, &[o.gate, o.up]),
            work: Work::side_by_side(&gate, &up),
            gate,
            up,
            gated: b.ptr(o.gated),
            activation: o.activation,
            level: b.level,
        }
    }
    /// Up to [`STRIP`] panels for one tile.
    ///
    /// # Safety
    /// The input was prepared; these columns of these rows are this item's own.
    unsafe fn strip(&self, tile: (usize, usize), (from, to): (usize, usize)) {
        let n = self.gate.shape.n;
        let (start, end) = (from * LANES, n.min(to * LANES));
        // Not zeroed: for one row that would take as long as the products of a panel.
        let mut buffers = [const { MaybeUninit::<[f32; TILE * STRIP * LANES]>::uninit() }; 2];
        let stride = STRIP * LANES;
        for (matrix, buffer) in [&self.gate, &self.up].into_iter().zip(&mut buffers) {
            // The kernels address columns from panel 0; `wrapping_sub` because that is before the buffer.
            let out = buffer.as_mut_ptr().cast::<f32>().wrapping_sub(start);
            // SAFETY: columns `start..` of up to `TILE` rows lie in the buffer.
            unsafe { matrix.run(&self.input, tile, (from, to), out, stride) };
        }
        for t in 0..tile.1 {
            // SAFETY: the kernels wrote columns `start..end` of each row; the caller promises the output.
            let ([gate, up], out) = unsafe {
                let row = |i: usize| {
                    std::slice::from_raw_parts(buffers[i].as_ptr().cast::<f32>().add(t * stride), end - start)
                };
                ([row(0), row(1)], self.gated.slice_mut((tile.0 + t) * n + start, end - start))
            };
            self.level.run(Gated { gate, up, out: out.as_mut_ptr(), activation: self.activation });
        }
    }
}

impl Step for GateUp {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let rows = live.rows(RowSpace::Batch);
        let first = self.work.first(w, rows);
        [&self.gate, &self.up].into_iter().for_each(|matrix| matrix.fetch(first));
        self.input.prepare(w, rows);
        share(w, &self.input, rows, &self.work, |(from, to), tiles| {
            for tile in tiles {
                for at in (from..to).step_by(STRIP) {
                    // SAFETY: prepared above; items are disjoint in panels or rows.
                    unsafe { self.strip(tile, (at, to.min(at + STRIP))) }
                }
            }
        });
    }
}

/// `out = act(gate) * up` for one run of elements; `out` may be `gate`.
struct Gated<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: *mut f32,
    activation: Activation,
}

impl Gated<'_> {
    /// Sixteen elements.
    ///
    /// # Safety
    /// All three have them.
    #[inline(always)]
    unsafe fn lanes<S: Isa>(s: S, gate: *const f32, up: *const f32, out: *mut f32, activation: Activation) {
        // SAFETY: the caller's promise.
        unsafe {
            let (gate, up) = (s.load(gate), s.load(up));
            let act = match activation {
                Activation::Silu => silu(s, gate),
                Activation::GeluTanh => gelu_tanh(s, gate),
            };
            s.store(out, s.mul(act, up));
        }
    }
}

impl Kernel for Gated<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let (whole, rest) = (self.gate.len() / LANES * LANES, self.gate.len() % LANES);
        // SAFETY: there are so many elements in all three; the last go through a copy.
        unsafe {
            for i in (0..whole).step_by(LANES) {
                Self::lanes(s, self.gate.as_ptr().add(i), self.up.as_ptr().add(i), self.out.add(i), self.activation);
            }
            if rest > 0 {
                let mut padded = [[0f32; LANES]; 3];
                padded[0][..rest].copy_from_slice(&self.gate[whole..]);
                padded[1][..rest].copy_from_slice(&self.up[whole..]);
                let [gate, up, out] = &mut padded;
                Self::lanes(s, gate.as_ptr(), up.as_ptr(), out.as_mut_ptr(), self.activation);
                std::ptr::copy_nonoverlapping(padded[2].as_ptr(), self.out.add(whole), rest);
            }
        }
    }
}

/// [`op::GatedAct`] on its own.
pub struct Act {
    gate: Ptr<f32>,
    up: Ptr<f32>,
    out: Ptr<f32>,
    width: usize,
    activation: Activation,
    level: Level,
}

impl Act {
    /// From the op.
    pub fn new(b: &Builder<'_>, o: &op::GatedAct) -> Self {
        let (gate, up, out) = (b.ptr(o.gate), b.ptr(o.up), b.ptr(o.out));
        Self { gate, up, out, width: b.width(o.gate), activation: o.activation, level: b.level }
    }
}

impl Step for Act {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let total = live.rows(RowSpace::Batch) * self.width;
        w.phase(total, w.chunk(total).next_multiple_of(LANES), |range| {
            // SAFETY: elements of live rows; ranges are disjoint. `out` may be `gate`: it is only written
            // through the pointer, after the lanes were read.
            unsafe {
                let (gate, up) = (self.gate.slice(range.start, range.len()), self.up.slice(range.start, range.len()));
                self.level.run(Gated { gate, up, out: self.out.at(range.start), activation: self.activation });
            }
        });
    }
}
