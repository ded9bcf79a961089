//! Sampling: one row of logits to one token.
//!
//! Every filter is a bound on the value, so a row needs a maximum, perhaps a bound, and one last pass
//! that adds noise to what is kept. Bounds come from candidates gathered near the maximum; nothing
//! sorts the vocabulary.

use super::math::{exp, ln};
use super::memory::Ptr;
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use super::simd::{Isa, Kernel, Level};
use crate::op::{self, Adjust, ERROR_TOKEN, SEEN, SampleRow};
use crate::program::RowSpace;

/// [`op::Sample`].
pub struct Sample {
    logits: Ptr<f32>,
    vocab: usize,
    params: Ptr<SampleRow>,
    offsets: Ptr<u32>,
    adjust: Ptr<Adjust>,
    adjusts: usize,
    masks: Ptr<u32>,
    mask_rows: usize,
    out: Ptr<u32>,
    level: Level,
}

impl Sample {
    /// From the op.
    pub fn new(b: &Builder<'_>, o: &op::Sample) -> Self {
        Self {
            logits: b.ptr(o.logits),
            vocab: b.width(o.logits),
            params: b.ptr(o.params),
            offsets: b.ptr(o.offsets),
            adjust: b.ptr(o.adjust),
            adjusts: b.shape(o.adjust)[0],
            masks: b.ptr(o.masks),
            mask_rows: b.shape(o.masks)[0],
            out: b.ptr(o.out),
            level: b.level,
        }
    }
}

impl Step for Sample {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        w.phase(live.rows(RowSpace::Logits), 1, |range| {
            for row in range {
                // SAFETY: a live row, this item's own; the rest is read only and checked.
                unsafe {
                    let [from, to] = [0, 1].map(|i| *self.offsets.at(row + i) as usize);
                    assert!(from <= to && to <= self.adjusts, "adjustments {from}..{to} of {}", self.adjusts);
                    let logits = self.logits.slice_mut(row * self.vocab, self.vocab);
                    let row_params = &*self.params.at(row);
                    adjust(logits, row_params, self.adjust.slice(from, to - from));
                    if let Some(mask) = row_params.mask.checked_sub(1).map(|m| m as usize) {
                        assert!(mask < self.mask_rows, "mask {mask} of {}", self.mask_rows);
                        let words = self.vocab.div_ceil(32);
                        forbid(logits, self.masks.slice(mask * words, words));
                    }
                    *self.out.at(row) = self.level.run(Choose { z: logits, row: row_params });
                }
            }
        });
    }
}

/// Penalties and biases, as [`crate::op::Sample`] defines them.
fn adjust(logits: &mut [f32], row: &SampleRow, list: &[Adjust]) {
    for a in list {
        let l = &mut logits[a.token as usize];
        *l += a.bias;
        if a.count & SEEN != 0 {
            *l = if *l > 0.0 { *l / row.repetition } else { *l * row.repetition };
        }
        let count = a.count & !SEEN;
        if count > 0 {
            *l -= row.presence + row.frequency * count as f32;
        }
    }
}

/// What the mask does not allow becomes minus infinity; faults stay what they are.
fn forbid(logits: &mut [f32], mask: &[u32]) {
    for (logits, word) in logits.chunks_mut(32).zip(mask) {
        for (bit, l) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 && *l < f32::INFINITY {
                *l = f32::NEG_INFINITY;
            }
        }
    }
}

/// Chooses a token; `z` is overwritten.
struct Choose<'a> {
    z: &'a mut [f32],
    row: &'a SampleRow,
}

impl Kernel for Choose<'_> {
    type Out = u32;
    #[inline(always)]
    fn run<S: Isa>(self, s: S) -> u32 {
        let Choose { z, row } = self;
        let max = maximum(s, z);
        if max.is_nan() || max == f32::NEG_INFINITY {
            return ERROR_TOKEN;
        }
        if row.temperature == 0.0 {
            return first_at_least(s, z, max);
        }
        divide(s, z, row.temperature);
        let max = max / row.temperature;
        let bound = if row.min_p > 0.0 { max + row.min_p.ln() } else { f32::NEG_INFINITY };
        let bound = bound.max(filtered(s, z, max, row));
        noisy_maximum(s, z, max, bound, row)
    }
}

/// Runs a body on every 16 values, with the index of the first; the tail is filled up with -infinity.
/// A macro, because a closure might not be inlined into the level's instructions.
macro_rules! each {
    ($s:expr, $z:expr, |$i:ident, $x:ident| $body:block) => {
        let (s, z): (_, &[f32]) = ($s, $z);
        for $i in (0..z.len()).step_by(16) {
            let $x = if z.len() - $i >= 16 {
                // SAFETY: 16 values.
                unsafe { s.load(z.as_ptr().add($i)) }
            } else {
                let mut lanes = [f32::NEG_INFINITY; 16];
                lanes[..z.len() - $i].copy_from_slice(&z[$i..]);
                // SAFETY: 16 values.
                unsafe { s.load(lanes.as_ptr()) }
            };
            $body
        }
    };
}

/// `z /= divisor`.
#[inline(always)]
fn divide<S: Isa>(s: S, z: &mut [f32], divisor: f32) {
    let mut chunks = z.chunks_exact_mut(16);
    for chunk in &mut chunks {
        // SAFETY: 16 values.
        unsafe { s.store(chunk.as_mut_ptr(), s.div(s.load(chunk.as_ptr()), s.splat(divisor))) };
    }
    chunks.into_remainder().iter_mut().for_each(|v| *v /= divisor);
}

/// The maximum; NaN if a value is NaN or +infinity.
#[inline(always)]
fn maximum<S: Isa>(s: S, z: &[f32]) -> f32 {
    let mut max = s.splat(f32::NEG_INFINITY);
    let mut below = u16::MAX;
    each!(s, z, |_i, x| {
        below &= s.greater(s.splat(f32::INFINITY), x);
        max = s.max(x, max);
    });
    if below == u16::MAX { s.max_lane(max) } else { f32::NAN }
}

#[inline(always)]
fn first_at_least<S: Isa>(s: S, z: &[f32], bound: f32) -> u32 {
    each!(s, z, |i, x| {
        let reached = !s.greater(s.splat(bound), x);
        if reached != 0 {
            return i as u32 + reached.trailing_zeros();
        }
    });
    ERROR_TOKEN
}

/// Values of at least `bound`, largest first.
#[inline(always)]
fn gather<S: Isa>(s: S, z: &[f32], bound: f32) -> Vec<f32> {
    let mut kept: Vec<f32> = Vec::new();
    each!(s, z, |i, x| {
        let mut reached = !s.greater(s.splat(bound), x);
        while reached != 0 {
            let lane = reached.trailing_zeros() as usize;
            // Lanes beyond the end are -infinity, and reach only that bound.
            kept.extend(z.get(i + lane).filter(|v| **v > f32::NEG_INFINITY));
            reached &= reached - 1;
        }
    });
    kept.sort_unstable_by(|a, b| b.total_cmp(a));
    kept
}

/// The bound that top-k and top-p set: the smallest value kept.
#[inline(always)]
fn filtered<S: Isa>(s: S, z: &[f32], max: f32, row: &SampleRow) -> f32 {
    let top_k = row.top_k as usize;
    let mut bound = f32::NEG_INFINITY;
    let mut candidates = None;
    if top_k > 0 && top_k < z.len() {
        let mut kept = gather(s, z, at_most_kth(s, z, top_k));
        if let Some(kth) = kept.get(top_k - 1) {
            bound = *kth;
            kept.retain(|v| *v >= bound);
        }
        candidates = Some(kept);
    }
    if row.top_p >= 1.0 {
        return bound;
    }
    if let Some(kept) = candidates {
        let total = mass(max, &kept, |_| true).0;
        return mass(max, &kept, |larger| larger < row.top_p as f64 * total).1;
    }
    let limit = row.top_p as f64 * total_mass(s, z, max);
    for depth in [6.0, 12.0, f32::INFINITY] {
        let kept = gather(s, z, max - depth);
        let (reached, smallest) = mass(max, &kept, |larger| larger < limit);
        if reached >= limit || depth == f32::INFINITY {
            return smallest;
        }
    }
    unreachable!("the last depth gathers everything")
}

/// Walks values from the largest while `keep(mass of all larger)`; returns the mass walked over (that of
/// every value seen, equal ones together) and the smallest value kept.
fn mass(max: f32, sorted: &[f32], keep: impl Fn(f64) -> bool) -> (f64, f32) {
    let (mut larger, mut smallest) = (0.0, max);
    for equal in sorted.chunk_by(|a, b| a == b) {
        if !keep(larger) {
            break;
        }
        smallest = equal[0];
        larger += equal.len() as f64 * (equal[0] as f64 - max as f64).exp();
    }
    (larger, smallest)
}

/// `sum(exp(z - max))`.
#[inline(always)]
fn total_mass<S: Isa>(s: S, z: &[f32], max: f32) -> f64 {
    let mut total = 0f64;
    for part in z.chunks(2048) {
        let mut sum = s.splat(0.0);
        each!(s, part, |_i, x| {
            let shifted = s.sub(x, s.splat(max));
            let alive = s.greater(shifted, s.splat(-80.0));
            sum = s.add(sum, s.select(alive, exp(s, shifted), s.splat(0.0)));
        });
        total += s.sum(sum) as f64;
    }
    total
}

/// A value that at least `k` others reach: the k-th largest among maxima of 16 neighbours.
#[inline(always)]
fn at_most_kth<S: Isa>(s: S, z: &[f32], k: usize) -> f32 {
    let mut maxima = Vec::with_capacity(z.len() / 16 + 1);
    each!(s, z, |_i, x| {
        maxima.push(s.max_lane(x));
    });
    if k > maxima.len() {
        return f32::NEG_INFINITY;
    }
    *maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

/// More than the largest noise: `-ln(-ln(1 - 2^-24))` is 16.64.
const MOST_NOISE: f32 = 16.7;

/// The first maximum of `z + gumbel` among values of at least `bound`; `max` is the largest `z`.
///
/// What lies so far below the largest value with its noise that no noise could lift it above is
/// skipped: of a real model's logits, nearly all.
#[inline(always)]
fn noisy_maximum<S: Isa>(s: S, z: &[f32], max: f32, bound: f32, row: &SampleRow) -> u32 {
    let lane = s.bits(s.splat(0.0));
    let mut indices = [0u8; 64];
    (0..16).for_each(|i| indices[4 * i] = i as u8);
    // SAFETY: 64 bytes.
    let lane = s.or(lane, unsafe { s.load_i(indices.as_ptr()) });
    let (mut best, mut best_at) = (s.splat(f32::NEG_INFINITY), s.splat_i(0));
    let mut noise = [0f32; 16];
    let top = first_at_least(s, z, max) as i32;
    // SAFETY: 16 values.
    unsafe { s.store(noise.as_mut_ptr(), gumbel(s, s.splat_i(top), row)) };
    let floor = f32::MIN.max(bound).max(max + noise[0] - MOST_NOISE);
    each!(s, z, |i, x| {
        let kept = !s.greater(s.splat(floor), x);
        if kept == 0 {
            continue;
        }
        let token = s.add_i(lane, s.splat_i(i as i32));
        let noisy = s.select(kept, s.add(x, gumbel(s, token, row)), s.splat(f32::NEG_INFINITY));
        let better = s.greater(noisy, best);
        best = s.select(better, noisy, best);
        best_at = s.bits(s.select(better, s.as_float(token), s.as_float(best_at)));
    });
    let (mut values, mut tokens) = ([0f32; 16], [0i32; 16]);
    // SAFETY: 16 lanes each.
    unsafe {
        s.store(values.as_mut_ptr(), best);
        s.store_i(tokens.as_mut_ptr().cast(), best_at);
    }
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let first = values.iter().zip(tokens).filter(|(v, _)| **v == max).map(|(_, t)| t as u32).min();
    first.unwrap_or(ERROR_TOKEN)
}

/// Standard Gumbel noise of 16 tokens: [`crate::op::gumbel`] in f32.
#[inline(always)]
fn gumbel<S: Isa>(s: S, token: S::I, row: &SampleRow) -> S::F {
    let bits = s.shr::<9>(threefry(s, [row.seed_lo, row.seed_hi], token, row.position | row.choice << 24));
    let u = s.mul(s.add(s.to_f(bits), s.splat(0.5)), s.splat(1.0 / (1u32 << 23) as f32));
    let zero = s.splat(0.0);
    let inner = s.sub(zero, ln(s, u));
    s.sub(zero, ln(s, inner))
}

/// The first word of [`crate::op::threefry2x32`] for 16 counters.
#[inline(always)]
fn threefry<S: Isa>(s: S, key: [u32; 2], low: S::I, high: u32) -> S::I {
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let mut a = s.add_i(low, s.splat_i(keys[0] as i32));
    let mut b = s.splat_i(high.wrapping_add(keys[1]) as i32);
    macro_rules! rounds {
        ($i:expr, $($left:literal $right:literal),*) => { $(
            a = s.add_i(a, b);
            b = s.xor(s.or(s.shl::<$left>(b), s.shr::<$right>(b)), a);
        )*
            a = s.add_i(a, s.splat_i(keys[$i % 3] as i32));
            b = s.add_i(b, s.splat_i(keys[($i + 1) % 3].wrapping_add($i as u32) as i32));
        };
    }
    rounds!(1usize, 13 19, 15 17, 26 6, 6 26);
    rounds!(2usize, 17 15, 29 3, 16 16, 24 8);
    rounds!(3usize, 13 19, 15 17, 26 6, 6 26);
    rounds!(4usize, 17 15, 29 3, 16 16, 24 8);
    rounds!(5usize, 13 19, 15 17, 26 6, 6 26);
    let _ = b;
    a
}
