//! The softmax of attention within a split, and the sum of splits.

use super::attention::SPLIT;
use super::math::{exp, exp1};
use super::simd::Isa;

/// What a query has seen: the maximum of its scores, the sum of its weights, its weighted values, as
/// `[max, sum, pad to 16, values]`.
#[derive(Clone, Copy)]
pub struct State {
    at: *mut f32,
    dim: usize,
}

/// A width in whole vectors.
pub fn padded(dim: usize) -> usize {
    dim.next_multiple_of(16)
}

impl State {
    /// Floats of a state.
    pub fn floats(dim: usize) -> usize {
        16 + padded(dim)
    }
    /// A state kept at `at`.
    pub fn new(at: *mut f32, dim: usize) -> Self {
        Self { at, dim: padded(dim) }
    }
    /// The weighted values.
    pub fn values(self) -> *mut f32 {
        self.at.wrapping_add(16)
    }
    /// (maximum, sum).
    fn head(self) -> (f32, f32) {
        // SAFETY: a state has `floats` floats, and one thread works on it (here and below).
        unsafe { (*self.at, *self.at.add(1)) }
    }
    fn set_head(self, max: f32, sum: f32) {
        // SAFETY: see `head`.
        unsafe { (*self.at, *self.at.add(1)) = (max, sum) }
    }
    /// Turns scaled scores of tokens `from..to` of a split, of which there are some, into weights relative to their
    /// maximum. The state is a new one of these weights, whose values are yet to be added.
    #[inline(always)]
    pub fn begin<S: Isa>(self, s: S, (from, to): (usize, usize), scores: &mut Weights) {
        let vectors = from / 16..to.div_ceil(16);
        let visible = (u128::MAX >> (SPLIT - to)) & (u128::MAX << from);
        let at = scores.0.as_mut_ptr();
        let mut most = s.splat(f32::NEG_INFINITY);
        // SAFETY: vectors of the scores, and of the state (see `head`).
        unsafe {
            for i in vectors.clone() {
                let x = s.load(at.add(16 * i));
                most = s.max(s.select((visible >> (16 * i)) as u16, x, most), most);
            }
            let max = s.max_lane(most);
            let (largest, none) = (s.splat(max), s.splat(0.0));
            let mut sum = none;
            for i in vectors {
                let x = s.load(at.add(16 * i));
                let weight = s.select((visible >> (16 * i)) as u16, exp(s, s.sub(x, largest)), none);
                s.store(at.add(16 * i), weight);
                sum = s.add(sum, weight);
            }
            self.set_head(max, s.sum(sum));
            for i in (0..self.dim).step_by(16) {
                s.store(self.values().add(i), none);
            }
        }
    }
    /// Copies it to another of its size.
    #[inline(always)]
    pub fn copy_to(self, to: State) {
        // SAFETY: two states of one size.
        unsafe { std::ptr::copy_nonoverlapping(self.at, to.at, 16 + self.dim) };
    }
    /// Takes in the next split.
    #[inline(always)]
    pub fn merge<S: Isa>(self, s: S, next: State) {
        let ((max, sum), (next_max, next_sum)) = (self.head(), next.head());
        let largest = if next_max > max { next_max } else { max };
        let (a, b) = (exp1(s, max - largest), exp1(s, next_max - largest));
        self.set_head(largest, next_sum.mul_add(b, sum * a));
        for i in (0..self.dim).step_by(16) {
            // SAFETY: see `head`.
            unsafe {
                let at = self.values().add(i);
                s.store(at, s.fma(s.load(next.values().add(i)), s.splat(b), s.mul(s.load(at), s.splat(a))));
            }
        }
    }
    /// Weighted values over their sum.
    #[inline(always)]
    pub fn finish(self, out: &mut [f32]) {
        let scale = 1.0 / self.head().1;
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: see `head`.
            *out = unsafe { *self.values().add(i) } * scale;
        }
    }
}

/// The scores of a split's tokens, then their weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Weights(pub [f32; SPLIT]);
