//! RMS norm, with or without the residual add.

use super::memory::Ptr;
use super::panel::LANES;
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use super::simd::{Isa, Kernel, Level};
use crate::op;
use crate::program::RowSpace;

/// Norms of groups of `n` values.
pub struct Norm {
    /// Read; with `delta`, also written.
    x: Ptr<f32>,
    delta: Option<Ptr<f32>>,
    weight: Ptr<f32>,
    out: Ptr<f32>,
    n: usize,
    /// Groups in a row.
    groups: usize,
    eps: f32,
    level: Level,
}

impl Norm {
    /// From [`op::AddRmsNorm`].
    pub fn add(b: &Builder<'_>, o: &op::AddRmsNorm) -> Self {
        let delta = Some(b.ptr(o.delta));
        Self { delta, ..Self::plain(b, &op::RmsNorm { x: o.residual, weight: o.weight, out: o.out, eps: o.eps }) }
    }
    /// From [`op::RmsNorm`].
    pub fn plain(b: &Builder<'_>, o: &op::RmsNorm) -> Self {
        let n = b.shape(o.weight)[0];
        let groups = b.width(o.x) / n;
        let (x, weight, out) = (b.ptr(o.x), b.ptr(o.weight), b.ptr(o.out));
        Self { x, delta: None, weight, out, n, groups, eps: o.eps, level: b.level }
    }
}

impl Step for Norm {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let total = live.rows(RowSpace::Batch) * self.groups;
        w.phase(total, w.chunk(total), |range| {
            for group in range {
                // SAFETY: group `group` of live rows; items are disjoint.
                let (x, out) = unsafe { (self.x.at(group * self.n), self.out.at(group * self.n)) };
                // SAFETY: as above.
                let delta = self.delta.map(|d| unsafe { d.slice(group * self.n, self.n) });
                // SAFETY: weights are read only.
                let weight = unsafe { self.weight.slice(0, self.n) };
                self.level.run(Group { x, delta, weight, out, eps: self.eps });
            }
        });
    }
}

/// One group: `x += delta; out = x / sqrt(mean(x^2) + eps) * weight`; `out` may be `x`.
pub struct Group<'a> {
    /// `weight.len()` values.
    pub x: *mut f32,
    /// Added first.
    pub delta: Option<&'a [f32]>,
    /// Factors.
    pub weight: &'a [f32],
    /// Result.
    pub out: *mut f32,
    /// Inside the root.
    pub eps: f32,
}

impl Kernel for Group<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let n = self.weight.len();
        let whole = n / LANES * LANES;
        let mut squares = [s.splat(0.0); 2];
        // SAFETY: all pointers are to `n` values; the loops stay below it.
        unsafe {
            for i in (0..whole).step_by(LANES) {
                let mut x = s.load(self.x.add(i));
                if let Some(delta) = self.delta {
                    x = s.add(x, s.load(delta.as_ptr().add(i)));
                    s.store(self.x.add(i), x);
                }
                let square = &mut squares[i / LANES % 2];
                *square = s.fma(x, x, *square);
            }
            let mut sum = s.sum(s.add(squares[0], squares[1]));
            for i in whole..n {
                let x = &mut *self.x.add(i);
                *x += self.delta.map_or(0.0, |d| d[i]);
                sum = x.mul_add(*x, sum);
            }
            let scale = 1.0 / (sum / n as f32 + self.eps).sqrt();
            for i in (0..whole).step_by(LANES) {
                let x = s.mul(s.load(self.x.add(i)), s.splat(scale));
                s.store(self.out.add(i), s.mul(x, s.load(self.weight.as_ptr().add(i))));
            }
            for i in whole..n {
                *self.out.add(i) = *self.x.add(i) * scale * self.weight[i];
            }
        }
    }
}
