//! The word in front of an INT4 group: its scale and its zero, of GPTQ and AWQ checkpoints.
//!
//! Files hold scales as F16 or BF16, which as an f32 leave the lowest 13 bits of the mantissa empty; the
//! zero, 0 to 15, stands in the lowest four. So a group costs 4 bytes, and no weight is rounded: a stored
//! minimum `-scale * zero` would be.

/// The bits of the zero.
pub const ZERO: u32 = 15;

/// The word of a scale that was an F16 or BF16, and a zero below 16.
pub fn word(scale: f32, zero: u8) -> u32 {
    debug_assert!(scale.to_bits() & ZERO == 0 && u32::from(zero) <= ZERO, "{scale} and {zero} do not fit one word");
    scale.to_bits() | u32::from(zero)
}

/// Scale and zero of a word's four bytes, which begin `b`.
pub fn scale_and_zero(b: &[u8]) -> (f32, u8) {
    let word = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    (f32::from_bits(word & !ZERO), (word & ZERO) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_scale_of_16_bits_comes_back_with_every_zero() {
        for bits in 0..=u16::MAX {
            for scale in [f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32()] {
                if scale.is_nan() {
                    continue;
                }
                let zero = (bits % 16) as u8;
                let (s, z) = scale_and_zero(&word(scale, zero).to_le_bytes());
                assert_eq!((s.to_bits(), z), (scale.to_bits(), zero));
            }
        }
    }
}
