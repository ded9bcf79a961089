//! FP8 codes: sign, exponent, mantissa, no infinities, and all ones for what is not a number. [`E4M3`] is that of
//! the OCP 8-bit Floating Point Specification 1.0: 448 is the largest number, 2^-9 the smallest step. [`E3M4`] is
//! made the same way with one bit moved from the exponent to the mantissa: 30 and 2^-6.
//!
//! Cached keys and values are `code * scale`, one scale for each block and head. A scale is a power of
//! two, so that it changes no rounding, wherever a kernel applies it; and it follows from the first token
//! of the block alone, so that what a block holds does not depend on how its tokens were cut into steps.
//!
//! Values are E4M3, keys E3M4: an error in a key moves a score by itself, and is what costs accuracy; an error in a
//! value is averaged over the tokens attended to. Values need the range of E4M3 (those of a sequence's first token
//! are tiny), keys do not once [`super::hadamard`] has spread a head's outliers over all of it.

/// Not a number. Written for every element of a head that has one which is not finite, and never otherwise.
pub const NAN: u8 = 0x7f;

/// Exponents of scales, biased as in f32: far inside its range, so that a scale and its inverse are normal.
const SCALE_EXPONENTS: std::ops::RangeInclusive<u32> = 127 - 60..=127 + 60;

/// The largest magnitude of a head: infinite or NaN if one of its values is.
pub fn largest(x: &[f32]) -> f32 {
    // Magnitudes order as their bits do, NaN above all.
    f32::from_bits(x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0))
}

/// Codes of `M` mantissa bits and `7 - M` exponent bits.
pub struct F8<const M: u32>;

/// Four exponent bits of bias 7, three mantissa bits.
pub type E4M3 = F8<3>;
/// Three exponent bits of bias 3, four mantissa bits.
pub type E3M4 = F8<4>;

impl<const M: u32> F8<M> {
    /// Mantissa bits that an f32 has more.
    pub const SHIFT: u32 = 23 - M;
    /// By how much the bias of an f32 is higher.
    pub const REBIAS: u32 = 128 - (1 << (6 - M));
    /// The largest number.
    pub const MAX: f32 = f32::from_bits((Self::REBIAS << 23) + (0x7e << Self::SHIFT));
    /// The smallest number that is not subnormal.
    pub const NORMAL: f32 = f32::from_bits((Self::REBIAS + 1) << 23);
    /// A power of two whose f32 neighbours are as far away as subnormal codes are from each other.
    pub const STEPS: f32 = f32::from_bits((Self::REBIAS + 1 + Self::SHIFT) << 23);
    /// By how many binary orders a scale exceeds the largest value of the first token. E4M3: it becomes 1/4 to 1/2,
    /// later tokens may be 896 times larger before they saturate. E3M4: it becomes 1 to 2, later ones may be 15
    /// times larger; of rotated keys, those after a sequence's first token are up to 12 times as large as it.
    pub const LEVEL: u32 = if M == 3 { 2 } else { 0 };
    /// The scale where the first token of a block says nothing: all zero, or not finite.
    pub const DEFAULT_SCALE: f32 = if M == 3 { 0.0625 } else { 1.0 };

    /// The scale of a block and head whose first token's largest magnitude is `largest`.
    pub fn scale(largest: f32) -> f32 {
        if largest == 0.0 || !largest.is_finite() {
            return Self::DEFAULT_SCALE;
        }
        let exponent = (largest.to_bits() >> 23 & 0xff) + Self::LEVEL;
        f32::from_bits(exponent.clamp(*SCALE_EXPONENTS.start(), *SCALE_EXPONENTS.end()) << 23)
    }

    /// The nearest code, ties to even; beyond the largest number it saturates. NaN is not for it.
    pub fn encode(x: f32) -> u8 {
        let magnitude = x.abs().min(Self::MAX);
        let bits = magnitude.to_bits();
        let code = if magnitude < Self::NORMAL {
            (magnitude + Self::STEPS).to_bits() - Self::STEPS.to_bits()
        } else {
            let half = (1 << (Self::SHIFT - 1)) - 1 + (bits >> Self::SHIFT & 1);
            (bits - (Self::REBIAS << 23) + half) >> Self::SHIFT
        };
        code as u8 | (x.to_bits() >> 24 & 0x80) as u8
    }

    /// The number of a code.
    pub fn decode(code: u8) -> f32 {
        if code & 0x7f == NAN {
            return f32::NAN;
        }
        // The same mantissa as an f16, whose bias is higher; that of f32 is 112 more.
        let half = u16::from(code & 0x7f) << (10 - M) | u16::from(code & 0x80) << 8;
        half::f16::from_bits(half).to_f32() * (1u32 << (Self::REBIAS - 112)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the specification, for any split of the bits.
    fn value<const M: u32>(code: u8) -> f64 {
        let bias = (1 << (6 - M)) - 1;
        let (exponent, mantissa) = (i32::from(code & 0x7f) >> M, f64::from(code & ((1 << M) - 1)));
        let part = mantissa / f64::from(1 << M);
        let magnitude = match exponent {
            0 => part * 2f64.powi(1 - bias),
            e => (1.0 + part) * 2f64.powi(e - bias),
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    }

    fn every_code_comes_back<const M: u32>() {
        for code in (0..=255u8).filter(|c| c & 0x7f != NAN) {
            assert_eq!(f64::from(F8::<M>::decode(code)), value::<M>(code), "{code:#x}");
            assert_eq!(F8::<M>::encode(F8::<M>::decode(code)), code, "{code:#x}");
        }
        assert!(F8::<M>::decode(NAN).is_nan() && F8::<M>::decode(0xff).is_nan());
    }

    #[test]
    fn every_code_is_what_the_specification_says_and_comes_back() {
        every_code_comes_back::<3>();
        every_code_comes_back::<4>();
        assert_eq!((E4M3::decode(0x7e), E4M3::decode(0x01), E4M3::MAX), (448.0, 2f32.powi(-9), 448.0));
        assert_eq!((E3M4::decode(0x7e), E3M4::decode(0x01), E3M4::MAX), (30.0, 2f32.powi(-6), 30.0));
    }

    fn rounds<const M: u32>() {
        for code in 0..0x7eu8 {
            let (low, high) = (F8::<M>::decode(code), F8::<M>::decode(code + 1));
            let middle = (low + high) / 2.0; // exact in f32
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(F8::<M>::encode(middle), even, "{middle}");
            assert_eq!(F8::<M>::encode(-middle), even | 0x80, "{middle}");
            assert_eq!(F8::<M>::encode(f32::from_bits(middle.to_bits() - 1)), code);
            assert_eq!(F8::<M>::encode(f32::from_bits(middle.to_bits() + 1)), code + 1);
        }
        let beyond = [F8::<M>::MAX * 1.04, 1e30, f32::INFINITY, -1e9].map(F8::<M>::encode);
        assert_eq!(beyond, [0x7e, 0x7e, 0x7e, 0xfe]);
        assert_eq!([0.0, -0.0, 1e-30].map(F8::<M>::encode), [0, 0x80, 0]);
    }

    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        rounds::<3>();
        rounds::<4>();
    }

    fn scales<const M: u32>(level: std::ops::Range<f32>, room: f32) {
        for largest in [1e-3f32, 0.7, 1.0, 1.99, 2.0, 37.5, 1e6] {
            let scale = F8::<M>::scale(largest);
            assert!(level.contains(&(largest / scale)), "{largest}: {}", largest / scale);
            assert_eq!(scale.to_bits() & 0x7f_ffff, 0);
            assert!(F8::<M>::MAX * scale >= room * largest);
        }
        for nothing in [0.0, f32::INFINITY, f32::NAN] {
            assert_eq!(F8::<M>::scale(nothing), F8::<M>::DEFAULT_SCALE);
        }
        let (smallest, greatest) = (F8::<M>::scale(f32::from_bits(1)), F8::<M>::scale(f32::MAX));
        assert_eq!((smallest, greatest), (2f32.powi(-60), 2f32.powi(60)));
    }

    #[test]
    fn scales_are_powers_of_two_with_room_above() {
        scales::<3>(0.25..0.5, 896.0);
        scales::<4>(1.0..2.0, 15.0);
    }

    #[test]
    fn the_largest_is_found_among_broken_numbers() {
        assert_eq!(largest(&[1.0, -3.0, 2.0]), 3.0);
        assert_eq!(largest(&[0.0, -0.0]), 0.0);
        assert!(largest(&[f32::INFINITY, f32::NAN, 1.0]).is_nan());
        assert_eq!(largest(&[f32::NEG_INFINITY, 1.0]), f32::INFINITY);
    }
}
