//! FP8 codes: sign, exponent, mantissa, no infinities, and all ones for what is not a number. [`E4M3`] is that of
//! the OCP 8-bit Floating Point Specification 1.0: 448 is the largest number, 2^-9 the smallest step. [`E2M5`] is
//! made the same way with two bits moved from the exponent to the mantissa: 7.75 and 2^-5.
//!
//! Cached keys and values are `code * scale` with codes of E2M5 and a scale for each token and head, which follows from
//! the token's own largest magnitude there ([`scale`]). So nothing saturates, whatever came before, what is cached of a
//! token does not depend on how tokens were cut into steps, and a narrow range suffices: bits are worth more in the
//! mantissa. Sharing a scale among the tokens of a block was tried. Tokens differ too much for that (values of a
//! sequence's first token are hundreds of times smaller than others, keys after it up to 12 times larger), and range for
//! them took one or two bits of precision from all.
//!
//! A scale is a power of two, so that it changes no rounding, wherever a kernel applies it. That of a head with an
//! element that is not finite is NaN, which makes the token's score NaN, and all that attends to its value.

use std::ops::RangeInclusive;

/// The code of what is not a number; no cached element has it.
pub const NAN: u8 = 0x7f;

/// Exponents of scales, biased as in f32: far inside its range, so that a scale and its inverse are normal.
const SCALE_EXPONENTS: RangeInclusive<u32> = 127 - 60..=127 + 60;

/// The largest magnitude of a head: infinite or NaN if one of its values is.
pub fn largest(x: &[f32]) -> f32 {
    // Magnitudes order as their bits do, NaN above all.
    f32::from_bits(x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0))
}

/// The scale of a token's head, by its [`largest`] magnitude, which lies between 3.9 and 7.8 times the scale, so that it
/// rounds to 7.75 at most.
pub fn scale(largest: f32) -> f32 {
    if largest == 0.0 {
        return 1.0;
    }
    if !largest.is_finite() {
        return f32::NAN;
    }
    // What would round to more counts as 8.
    let exponent = ((largest.to_bits() + (3 << (E2M5::SHIFT - 1))) >> 23).saturating_sub(2);
    f32::from_bits(exponent.clamp(*SCALE_EXPONENTS.start(), *SCALE_EXPONENTS.end()) << 23)
}

/// Codes of `M` mantissa bits and `7 - M` exponent bits.
pub struct F8<const M: u32>;

/// Four exponent bits of bias 7, three mantissa bits.
pub type E4M3 = F8<3>;
/// Two exponent bits of bias 1, five mantissa bits.
pub type E2M5 = F8<5>;

impl<const M: u32> F8<M> {
    /// Mantissa bits.
    pub const MANTISSA: u32 = M;
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
        every_code_comes_back::<5>();
        assert_eq!((E4M3::decode(0x7e), E4M3::decode(0x01), E4M3::MAX), (448.0, 2f32.powi(-9), 448.0));
        assert_eq!((E2M5::decode(0x7e), E2M5::decode(0x01), E2M5::MAX), (7.75, 2f32.powi(-5), 7.75));
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
        rounds::<5>();
    }

    #[test]
    fn scales_are_powers_of_two_and_nothing_saturates() {
        let just_below = |x: f32| f32::from_bits(x.to_bits() - 1);
        for largest in [1e-3f32, 0.7, 1.0, 1.99, 2.0, 37.5, 1e6, just_below(3.90625), 3.90625, just_below(4.0)] {
            let scale = scale(largest);
            assert_eq!(scale.to_bits() & 0x7f_ffff, 0);
            let scaled = largest / scale;
            assert!((3.90625..7.8125).contains(&scaled), "{largest}: {scaled}");
            let error = E2M5::decode(E2M5::encode(scaled)) - scaled;
            assert!(error.abs() <= 0.0625, "{largest}: {scaled} is off by {error}");
        }
        assert_eq!((scale(0.0), scale(4.0), scale(7.8125)), (1.0, 1.0, 2.0));
        assert!(scale(f32::INFINITY).is_nan() && scale(f32::NAN).is_nan());
        let (smallest, greatest) = (scale(f32::from_bits(1)), scale(f32::MAX));
        assert_eq!((smallest, greatest), (2f32.powi(-60), 2f32.powi(60)));
    }

    #[test]
    fn the_largest_is_found_among_broken_numbers() {
        assert_eq!(largest(&[1.0, -3.0, 2.0]), 3.0);
        assert_eq!(largest(&[0.0, -0.0]), 0.0);
        assert!(largest(&[f32::INFINITY, f32::NAN, 1.0]).is_nan());
        assert_eq!(largest(&[f32::NEG_INFINITY, 1.0]), f32::INFINITY);
    }
}
