//! FP8 E4M3 (OCP 8-bit Floating Point Specification 1.0): sign, four exponent bits of bias 7, three mantissa
//! bits; 448 is the largest number, 2^-9 the smallest step, and there are no infinities.
//!
//! Cached keys and values are `code * scale`, one scale for each block and head. A scale is a power of
//! two, so that it changes no rounding, wherever a kernel applies it; and it follows from the first token
//! of the block alone, so that what a block holds does not depend on how its tokens were cut into steps.

/// The largest number.
pub const MAX: f32 = 448.0;
/// Not a number. Written for every value of a head that has one which is not finite, and never otherwise.
pub const NAN: u8 = 0x7f;

/// The scale where the first token of a block says nothing: all zero, or not finite.
pub const DEFAULT_SCALE: f32 = 0.0625;
/// How many binary orders the first token's largest value stays below the middle of the normal range: it
/// becomes 1/4 to 1/2, so later tokens may be 896 times larger before they saturate.
pub const LEVEL: u32 = 2;
/// Exponents of scales, biased as in f32: far inside its range, so that a scale and its inverse are normal.
const SCALE_EXPONENTS: std::ops::RangeInclusive<u32> = 127 - 60..=127 + 60;

/// The scale of a block and head whose first token's largest magnitude is `largest`.
pub fn scale(largest: f32) -> f32 {
    if largest == 0.0 || !largest.is_finite() {
        return DEFAULT_SCALE;
    }
    let exponent = (largest.to_bits() >> 23 & 0xff) + LEVEL;
    f32::from_bits(exponent.clamp(*SCALE_EXPONENTS.start(), *SCALE_EXPONENTS.end()) << 23)
}

/// The largest magnitude of a head: infinite or NaN if one of its values is.
pub fn largest(x: &[f32]) -> f32 {
    // Magnitudes order as their bits do, NaN above all.
    f32::from_bits(x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0))
}

/// The nearest code, ties to even; beyond 448 it saturates. NaN is not for it.
pub fn encode(x: f32) -> u8 {
    let magnitude = x.abs().min(MAX);
    let bits = magnitude.to_bits();
    let code = if magnitude < 0.015625 {
        // Subnormal: steps of 2^-9, which is what an f32 of 2^14 has.
        (magnitude + 16384.0).to_bits() - 16384f32.to_bits()
    } else {
        (bits - 0x3c00_0000 + 0x7_ffff + (bits >> 20 & 1)) >> 20
    };
    code as u8 | (x.to_bits() >> 24 & 0x80) as u8
}

/// The number of a code.
pub fn decode(code: u8) -> f32 {
    if code & 0x7f == NAN {
        return f32::NAN;
    }
    // The same mantissa as an f16, whose bias is 8 higher.
    half::f16::from_bits(((i16::from(code as i8) << 7) as u16) & 0xbfff).to_f32() * 256.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the specification.
    fn value(code: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = match exponent {
            0 => mantissa / 8.0 * 2f64.powi(-6),
            e => (1.0 + mantissa / 8.0) * 2f64.powi(e - 7),
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_code_is_what_the_specification_says_and_comes_back() {
        for code in (0..=255u8).filter(|c| c & 0x7f != NAN) {
            assert_eq!(f64::from(decode(code)), value(code), "{code:#x}");
            assert_eq!(encode(decode(code)), code, "{code:#x}");
        }
        assert!(decode(NAN).is_nan() && decode(0xff).is_nan());
        assert_eq!((decode(0x7e), decode(0x01)), (448.0, 2f32.powi(-9)));
    }

    #[test]
    fn rounds_to_the_nearest_and_ties_to_even() {
        for code in 0..0x7eu8 {
            let (low, high) = (decode(code), decode(code + 1));
            let middle = (low + high) / 2.0; // exact in f32
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!(encode(middle), even, "{middle}");
            assert_eq!(encode(-middle), even | 0x80, "{middle}");
            assert_eq!(encode(f32::from_bits(middle.to_bits() - 1)), code);
            assert_eq!(encode(f32::from_bits(middle.to_bits() + 1)), code + 1);
        }
        assert_eq!((encode(464.1), encode(1e30), encode(f32::INFINITY), encode(-1e9)), (0x7e, 0x7e, 0x7e, 0xfe));
        assert_eq!((encode(0.0), encode(-0.0), encode(1e-30)), (0, 0x80, 0));
    }

    #[test]
    fn scales_are_powers_of_two_with_room_above() {
        for largest in [1e-3f32, 0.7, 1.0, 1.99, 2.0, 37.5, 1e6] {
            let scale = scale(largest);
            let level = largest / scale;
            assert!((0.25..0.5).contains(&level), "{largest}: {level}");
            assert_eq!(scale.to_bits() & 0x7f_ffff, 0);
            assert!(MAX * scale >= 896.0 * largest);
        }
        for nothing in [0.0, f32::INFINITY, f32::NAN] {
            assert_eq!(scale(nothing), DEFAULT_SCALE);
        }
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
