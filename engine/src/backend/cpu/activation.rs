//! Activations for the integer kernels: 24-bit block fixed point, cut into three planes of int8.
//!
//! A group of 32 values of a row becomes `s * X`: `s` is a power of two chosen from the group's
//! largest magnitude, `X` a signed integer of up to 23 bits and sign, so the largest values keep the
//! precision of f32 itself (error at most 2^-24 to 2^-23 of the group's maximum, the size of one f32
//! rounding, of which a chain of f32 fused multiply-adds makes one per product). `X` is split into
//! balanced digits, `X = a2 * 65536 + a1 * 256 + a0` with digits in -128..=127, and integer dot
//! products with the weights' unsigned quants are exact: no order of summation can change a bit.
//! That is not the 8-bit activation quantisation of other engines, which rounds to 2^-8.

use super::panel::GROUP;
use super::simd::{Isa, array};

/// What products with 32 activations of one row are multiplied with, and what is added to them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    /// `s`; NaN where a value is not finite.
    pub scale: f32,
    /// `s * sum(X)`.
    pub sum: f32,
    /// `-8 * sum(X)`: what centres unsigned 4-bit quants.
    pub centre8: i32,
}

/// 32 activations of one row.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct RowGroup {
    /// The digits, most significant plane first.
    pub planes: [[i8; GROUP]; 3],
    /// Scale and sums.
    pub factors: Factors,
    /// `-sum(a2 * 256 + a1)` of each half.
    pub negated_high: [i32; 2],
    /// `-sum(a0)` of each half.
    pub negated_low: [i32; 2],
    pad: i32,
}

/// Largest tile of rows that a kernel works on at once.
pub const TILE: usize = 8;

/// 32 activations of up to [`TILE`] rows, for tile registers and quants of 4 bits. Such a quant times 16 is a byte too, so
/// one product of bytes sums two digits: `X = high * 4096 + low`, each of them a word of 12 bits `d1 * 16 + d0`, with
/// balanced digits of 8 and 4 bits.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct WordGroup {
    /// Of each row the high word, then the low one: 32 digits `d1`, then 32 `d0`.
    pub words: [[[[i8; GROUP]; 2]; 2]; TILE],
    /// Of each row.
    pub factors: [Factors; TILE],
}

/// Cuts `rows` into tiles of `most` rows; the last has what is left.
/// Tile `(start, len)` of a buffer with `width` elements per row lies at `start * width`,
/// as `[width][len]`.
pub fn tiles(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(most).map(move |start| (start, most.min(rows - start)))
}

/// `X` of 32 values, and `s`; none where a value is not finite.
///
/// # Safety
/// `x` has 32 readable values.
#[inline(always)]
unsafe fn fixed_point<S: Isa>(s: S, x: *const f32) -> Option<([S::I; 2], f32)> {
    // SAFETY: the caller's promise.
    let halves = unsafe { [s.load(x), s.load(x.add(16))] };
    let magnitude = array!(s.splat_i(0), 2, i => s.and(s.bits(halves[i]), s.splat_i(0x7fff_ffff)));
    let largest = s.max_lane_i(s.max_i(magnitude[0], magnitude[1])) as u32;
    if largest >= 0x7f80_0000 {
        return None;
    }
    // The exponent of the largest value, one up if it would round to more than 127 * 65536.
    // From 23 on both `s` and `1 / s` are normal numbers; smaller groups just use fewer bits.
    let exponent = ((largest + 0x2_0000) >> 23).max(23);
    let inverse = s.splat(f32::from_bits((276 - exponent) << 23));
    let value = array!(s.splat_i(0), 2, i => s.round(s.mul(halves[i], inverse)));
    Some((value, f32::from_bits((exponent - 22) << 23)))
}

impl Factors {
    /// Of values with scale `scale` that sum to `total`.
    #[inline(always)]
    fn new(scale: f32, total: i32) -> Self {
        Self { scale, sum: scale * total as f32, centre8: total.wrapping_mul(-8) }
    }
    /// Of a group with a value that is not finite: every product with it is NaN.
    const POISON: Self = Self { scale: f32::NAN, sum: f32::NAN, centre8: 0 };
}

/// Converts 32 values.
///
/// # Safety
/// `x` has 32 readable values, `out` is writable.
#[inline(always)]
pub unsafe fn quantise<S: Isa>(s: S, x: *const f32, out: *mut RowGroup) {
    // SAFETY: the caller's promise; `RowGroup` has 32 bytes per plane.
    unsafe {
        let Some((value, scale)) = fixed_point(s, x) else { return out.write(poison()) };
        let bias = s.splat_i(0x0080_8080);
        let mut total = 0;
        for (half, x) in value.into_iter().enumerate() {
            let digits = s.xor(s.add_i(x, bias), bias);
            let plane = |p: usize| (&raw mut (*out).planes[p]).cast::<u8>().add(16 * half);
            s.store_u8(plane(2), digits);
            s.store_u8(plane(1), s.shr::<8>(digits));
            s.store_u8(plane(0), s.shr::<16>(digits));
            let low = s.sum_i(s.sra::<24>(s.shl::<24>(digits)));
            let sum = s.sum_i(x);
            (*out).negated_low[half] = -low;
            (*out).negated_high[half] = -((sum - low) >> 8);
            total += sum;
        }
        (*out).factors = Factors::new(scale, total);
    }
}

/// Converts 32 values of row `row` of a tile.
///
/// # Safety
/// `x` has 32 readable values, `out` is writable and has such a row.
#[inline(always)]
pub unsafe fn quantise_words<S: Isa>(s: S, x: *const f32, out: *mut WordGroup, row: usize) {
    // SAFETY: the caller's promise; a word has twice 32 digits.
    unsafe {
        let (words, factors) = (&raw mut (*out).words[row], &raw mut (*out).factors[row]);
        let Some((value, scale)) = fixed_point(s, x) else {
            words.write([[[0; GROUP]; 2]; 2]);
            return factors.write(Factors::POISON);
        };
        // A word is at most 127 * 16 + 7, at least -128 * 16 - 8.
        let (least, mask) = (128 * 16 + 8, 4095);
        for (half, x) in value.into_iter().enumerate() {
            let low = s.add_i(s.and(s.add_i(x, s.splat_i(least)), s.splat_i(mask)), s.splat_i(-least));
            let high = s.sra::<12>(s.add_i(x, s.splat_i(least)));
            for (which, word) in [high, low].into_iter().enumerate() {
                let raised = s.add_i(word, s.splat_i(8));
                let digit = |d: usize| (&raw mut (*words)[which][d]).cast::<u8>().add(16 * half);
                s.store_u8(digit(0), s.sra::<4>(raised));
                s.store_u8(digit(1), s.add_i(s.and(raised, s.splat_i(15)), s.splat_i(-8)));
            }
        }
        factors.write(Factors::new(scale, s.sum_i(s.add_i(value[0], value[1]))));
    }
}

/// A group with a value that is not finite.
fn poison() -> RowGroup {
    let zeros = [0; 2];
    RowGroup { planes: [[0; GROUP]; 3], factors: Factors::POISON, negated_high: zeros, negated_low: zeros, pad: 0 }
}

#[cfg(test)]
mod tests {
    use super::super::simd::{Kernel, Level};
    use super::*;

    struct Quantise([f32; GROUP]);
    impl Kernel for Quantise {
        type Out = (RowGroup, WordGroup);
        #[inline(always)]
        fn run<S: Isa>(self, s: S) -> Self::Out {
            let mut group = poison();
            let mut words = WordGroup { words: [[[[1; GROUP]; 2]; 2]; TILE], factors: [Factors::POISON; TILE] };
            // SAFETY: 32 values in, one group or one row of a group out.
            unsafe {
                quantise(s, self.0.as_ptr(), &mut group);
                quantise_words(s, self.0.as_ptr(), &mut words, ROW);
            }
            (group, words)
        }
    }
    /// A row of a tile.
    const ROW: usize = 5;

    fn bits(f: &Factors) -> (u32, u32, i32) {
        (f.scale.to_bits(), f.sum.to_bits(), f.centre8)
    }

    fn value(g: &RowGroup, i: usize) -> f64 {
        let x = g.planes[0][i] as i64 * 65536 + g.planes[1][i] as i64 * 256 + g.planes[2][i] as i64;
        x as f64 * g.factors.scale as f64
    }

    #[test]
    fn values_are_kept_to_the_rounding_of_f32() {
        let mut seed = 1u32;
        let mut uniform = || {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            seed as f32 / u32::MAX as f32 * 2.0 - 1.0
        };
        for trial in 0..400 {
            let size = 2f32.powi(trial % 250 - 125);
            let mut x: [f32; GROUP] = std::array::from_fn(|_| uniform() * size);
            match trial % 5 {
                0 => x[3] = size * 1.999_999_9,
                1 => x[7] = -size * 1.984_375,
                2 => x = x.map(|v| v * v * v * v / (size * size * size)),
                _ => {}
            }
            let x = x.map(|v| if v.is_finite() { v } else { 0.0 });
            let max = x.iter().fold(0f32, |m, v| m.max(v.abs())) as f64;
            let all: Vec<(RowGroup, WordGroup)> = Level::available().iter().map(|l| l.run(Quantise(x))).collect();
            let first = &all[0].0;
            for (g, words) in &all {
                for (i, v) in x.iter().enumerate() {
                    let error = (value(g, i) - *v as f64).abs();
                    assert!(error <= max * 2f64.powi(-22) / 1.9 + 2f64.powi(-126), "{v:e} became {:e}", value(g, i));
                }
                let sum: i64 = (0..GROUP).map(|i| (value(g, i) / g.factors.scale as f64) as i64).sum();
                assert_eq!(g.factors.centre8, (sum * -8) as i32);
                let both = |halves: [i32; 2]| halves[0] as i64 + halves[1] as i64;
                assert_eq!(both(g.negated_high) * 256 + both(g.negated_low), -sum);
                assert_eq!((g.planes, bits(&g.factors)), (first.planes, bits(&first.factors)));
                for i in 0..GROUP {
                    let word = |which: usize| words.words[ROW][which].iter().fold(0, |x, d| 16 * x + d[i] as i32);
                    assert_eq!((word(0) * 4096 + word(1)) as f64 * g.factors.scale as f64, value(g, i));
                    assert!((0..2).all(|which| (-8..8).contains(&words.words[ROW][which][1][i])));
                }
                assert_eq!(bits(&words.factors[ROW]), bits(&g.factors));
                assert!(words.words[ROW - 1] == [[[1; GROUP]; 2]; 2], "another row was written");
            }
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; GROUP];
            x[31] = bad;
            for level in Level::available() {
                let (group, words) = level.run(Quantise(x));
                assert!(group.factors.scale.is_nan() && words.factors[ROW].scale.is_nan());
            }
        }
    }

    #[test]
    fn every_row_has_a_place() {
        for rows in 1..40 {
            let mut row = 0;
            for (start, len) in tiles(rows, TILE) {
                assert_eq!(start, row);
                assert!((1..=TILE).contains(&len));
                row += len;
            }
            assert_eq!(row, rows);
        }
    }
}
