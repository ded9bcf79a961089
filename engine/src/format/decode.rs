//! Reference decoding of every weight format, in the order of operations of ggml's `dequantize_row_*`.
//!
//! This is what a stored weight *means*: the op oracle, the loaders and the tests of fast kernels all
//! call it. It is f32 arithmetic with one rounding per operation (no fused multiply-add), so its values
//! are those that llama.cpp gets when it widens a file to F32.

use super::f8::{self, E4M3};
use super::{Format, int4};
use half::{bf16, f16};

/// Elements of a K-quant superblock.
const SUPER: usize = 256;

impl Format {
    /// Decodes `bytes` into `out`.
    ///
    /// # Panics
    /// If `out.len()` is no multiple of [`Format::block_len`], or `bytes` is not exactly its encoding's length.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(
            self.bytes_for(out.len()),
            Some(bytes.len()),
            "{self}: {} bytes for {} elements",
            bytes.len(),
            out.len()
        );
        let decode_block: fn(&[u8], &mut [f32]) = match self {
            Format::F32 => |b, y| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Format::F16 => |b, y| y[0] = half_at(b, 0),
            Format::BF16 => |b, y| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Format::Q8_0 => q8_0,
            Format::Q4_0 => q4_0,
            Format::Q4_1 => q4_1,
            Format::Q5_0 => q5_0,
            Format::Q5_1 => q5_1,
            Format::Q4K => q4_k,
            Format::Q5K => q5_k,
            Format::Q6K => q6_k,
            Format::F8 => f8,
            Format::I4G32 | Format::I4G128 => i4,
        };
        for (block, y) in bytes.chunks_exact(self.block_bytes()).zip(out.chunks_exact_mut(self.block_len())) {
            decode_block(block, y);
        }
    }

    /// Whether every number in `bytes` is finite. For quantised formats only the scales need a look.
    ///
    /// # Panics
    /// If `bytes` is no whole number of blocks.
    pub fn all_finite(self, bytes: &[u8]) -> bool {
        assert_eq!(bytes.len() % self.block_bytes(), 0, "{self}: {} bytes", bytes.len());
        // Where the f16 scales of a block stand.
        let scales: &[usize] = match self {
            Format::F32 => {
                return bytes.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite());
            }
            Format::BF16 => return bytes.chunks_exact(2).all(|b| b[1] & 0x7f != 0x7f || b[0] & 0x80 == 0),
            Format::F16 | Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => &[0],
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q6K => &[208],
            Format::F8 => {
                let fine = |b: &[u8]| {
                    let codes = b[4..].iter().all(|c| c & 0x7f != f8::NAN);
                    codes && f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()
                };
                return bytes.chunks_exact(self.block_bytes()).all(fine);
            }
            Format::I4G32 | Format::I4G128 => {
                return bytes.chunks_exact(self.block_bytes()).all(|b| int4::scale_and_zero(b).0.is_finite());
            }
        };
        // The exponent of an f16 is all ones for infinities and NaN.
        bytes.chunks_exact(self.block_bytes()).all(|b| scales.iter().all(|&at| b[at + 1] & 0x7c != 0x7c))
    }
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// d f32, then 128 codes.
fn f8(b: &[u8], y: &mut [f32]) {
    let d = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    for (y, &code) in y.iter_mut().zip(&b[4..]) {
        *y = E4M3::decode(code) * d;
    }
}

/// A word of scale and zero, then 16 bytes for each 32 elements, nibbles as in Q4_0.
fn i4(b: &[u8], y: &mut [f32]) {
    let (d, zero) = int4::scale_and_zero(b);
    for (y, q) in y.chunks_exact_mut(32).zip(b[4..].chunks_exact(16)) {
        for (j, &q) in q.iter().enumerate() {
            y[j] = (f32::from(q & 15) - f32::from(zero)) * d;
            y[j + 16] = (f32::from(q >> 4) - f32::from(zero)) * d;
        }
    }
}

/// d f16, then 32 int8.
fn q8_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (y, &q) in y.iter_mut().zip(&b[2..]) {
        *y = f32::from(q as i8) * d;
    }
}

/// d f16, then 16 bytes: low nibbles are elements 0..16, high nibbles 16..32.
fn q4_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    for (j, &q) in b[2..18].iter().enumerate() {
        y[j] = (f32::from(q & 15) - 8.0) * d;
        y[j + 16] = (f32::from(q >> 4) - 8.0) * d;
    }
}

/// d, m f16, then nibbles as in Q4_0.
fn q4_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (j, &q) in b[4..20].iter().enumerate() {
        y[j] = f32::from(q & 15) * d + m;
        y[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// d f16, 32 high bits, then nibbles as in Q4_0.
fn q5_0(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 0);
    five_bits(&b[2..6], &b[6..22], |j, q| y[j] = (q - 16.0) * d);
}

/// d, m f16, 32 high bits, then nibbles as in Q4_0.
fn q5_1(b: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    five_bits(&b[4..8], &b[8..24], |j, q| y[j] = q * d + m);
}

/// Bit `j` of `high` is the fifth bit of element `j`.
fn five_bits(high: &[u8], low: &[u8], mut put: impl FnMut(usize, f32)) {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    for (j, &q) in low.iter().enumerate() {
        put(j, f32::from((q & 15) | ((high >> j & 1) << 4) as u8));
        put(j + 16, f32::from((q >> 4) | ((high >> (j + 16) & 1) << 4) as u8));
    }
}

/// The 6-bit (scale, minimum) of group `j` of 8, from the 12 packed bytes of Q4_K and Q5_K.
///
/// Groups 0..4 lie in the low 6 bits of bytes `j` and `j+4`; groups 4..8 have their low nibbles in
/// byte `j+4` and their high two bits on top of the first eight bytes.
pub fn scale_min_k4(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4), (packed[j + 4] >> 4) | (packed[j] >> 6 << 4))
    }
}

/// d, dmin f16, 12 bytes of scales, 128 bytes of nibbles: 64 elements per 32 bytes, low nibbles first.
fn q4_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for group in 0..8 {
        let (sc, m) = scale_min_k4(&b[4..16], group);
        let (d, m) = (d * f32::from(sc), dmin * f32::from(m));
        let q = &b[16 + group / 2 * 32..][..32];
        for (y, &q) in y[group * 32..][..32].iter_mut().zip(q) {
            *y = d * f32::from(q >> (group % 2 * 4) & 15) - m;
        }
    }
}

/// d, dmin f16, 12 bytes of scales, 32 bytes of high bits (bit `group`), 128 bytes of nibbles as in Q4_K.
fn q5_k(b: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let high = &b[16..48];
    for group in 0..8 {
        let (sc, m) = scale_min_k4(&b[4..16], group);
        let (d, m) = (d * f32::from(sc), dmin * f32::from(m));
        let q = &b[48 + group / 2 * 32..][..32];
        for (l, y) in y[group * 32..][..32].iter_mut().enumerate() {
            let q = (q[l] >> (group % 2 * 4) & 15) | ((high[l] >> group & 1) << 4);
            *y = d * f32::from(q) - m;
        }
    }
}

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, d f16.
/// Each half of 128 elements has four runs of 32: (nibble half, bit pair) = (0,0) (1,0) (0,1) (1,1) low bytes.
fn q6_k(b: &[u8], y: &mut [f32]) {
    let d = half_at(b, 208);
    for half in 0..SUPER / 128 {
        let (low, high, scales) = (&b[half * 64..][..64], &b[128 + half * 32..][..32], &b[192 + half * 8..][..8]);
        for run in 0..4 {
            for l in 0..32 {
                let nibble = low[run % 2 * 32 + l] >> (run / 2 * 4) & 15;
                let q = (nibble | ((high[l] >> (run * 2) & 3) << 4)) as i8 - 32;
                let scale = scales[run * 2 + l / 16] as i8;
                y[half * 128 + run * 32 + l] = d * f32::from(scale) * f32::from(q);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats() {
        let mut y = [0.0; 2];
        Format::F32.decode(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0], &mut y);
        assert_eq!(y, [1.0, -2.0]);
        Format::F16.decode(&[0, 0x3c, 0, 0xc0], &mut y);
        assert_eq!(y, [1.0, -2.0]);
        Format::BF16.decode(&[0x80, 0x3f, 0, 0xc0], &mut y);
        assert_eq!(y, [1.0, -2.0]);
    }

    /// f16 0.5 and 0.25, little-endian.
    const HALF: [u8; 2] = [0, 0x38];
    const QUARTER: [u8; 2] = [0, 0x34];

    #[test]
    fn legacy_blocks_by_hand() {
        let mut y = [0.0; 32];
        let mut b = HALF.to_vec();
        b.extend((0..32u8).map(|i| i.wrapping_sub(16)));
        Format::Q8_0.decode(&b, &mut y);
        assert_eq!((y[0], y[16], y[31]), (-8.0, 0.0, 7.5));

        let nibbles: Vec<u8> = (0..16u8).map(|i| i | (15 - i) << 4).collect();
        Format::Q4_0.decode(&[&HALF[..], &nibbles].concat(), &mut y);
        assert_eq!((y[0], y[15], y[16], y[31]), (-4.0, 3.5, 3.5, -4.0));
        Format::Q4_1.decode(&[&HALF[..], &QUARTER, &nibbles].concat(), &mut y);
        assert_eq!((y[0], y[15], y[16], y[31]), (0.25, 7.75, 7.75, 0.25));
        // High bits: element 0 and element 31.
        let high = [1, 0, 0, 0x80];
        Format::Q5_0.decode(&[&HALF[..], &high, &nibbles].concat(), &mut y);
        assert_eq!((y[0], y[15], y[16], y[31]), (0.0, -0.5, -0.5, 0.0));
        Format::Q5_1.decode(&[&HALF[..], &QUARTER, &high, &nibbles].concat(), &mut y);
        assert_eq!((y[0], y[15], y[16], y[31]), (8.25, 7.75, 7.75, 8.25));
    }

    #[test]
    fn k_scales_by_hand() {
        // Byte 0: scale 0 = 5, and two high bits (0b10) for scale 4. Byte 4: minimum 0 = 7, high bits 0b01 of minimum 4.
        // Byte 8: low nibbles: scale 4 = 3, minimum 4 = 9.
        let mut packed = [0u8; 12];
        packed[0] = 5 | 0b10 << 6;
        packed[4] = 7 | 0b01 << 6;
        packed[8] = 3 | 9 << 4;
        assert_eq!(scale_min_k4(&packed, 0), (5, 7));
        assert_eq!(scale_min_k4(&packed, 4), (3 | 0b10 << 4, 9 | 0b01 << 4));
    }

    #[test]
    fn k_blocks_by_hand() {
        let mut y = [0.0; 256];
        let mut b = vec![0u8; 144];
        b[..2].copy_from_slice(&HALF);
        b[2..4].copy_from_slice(&QUARTER);
        b[4 + 1] = 2; // scale of group 1
        b[4 + 5] = 4; // minimum of group 1
        b[16 + 3] = 0xd0; // group 1, element 3: high nibble 13
        Format::Q4K.decode(&b, &mut y);
        assert_eq!((y[32 + 3], y[32], y[0]), (0.5 * 2.0 * 13.0 - 1.0, -1.0, 0.0));

        b.splice(16..16, [0u8; 32]);
        b[16 + 3] = 1 << 1; // fifth bit of group 1, element 3
        Format::Q5K.decode(&b, &mut y);
        assert_eq!(y[32 + 3], 0.5 * 2.0 * 29.0 - 1.0);

        let mut b = vec![0u8; 210];
        b[208..].copy_from_slice(&HALF);
        b[64 + 32 + 1] = 0x50; // half 1, run 3, element 1: nibble 5
        b[128 + 32 + 1] = 0b11 << 6; // its bit pair: 3
        b[192 + 8 + 6] = (-3i8) as u8; // its scale
        Format::Q6K.decode(&b, &mut y);
        assert_eq!(y[128 + 96 + 1], 0.5 * -3.0 * (53.0 - 32.0));
    }

    #[test]
    fn fp8_by_hand() {
        let mut y = [0.0; 128];
        let mut b = 0.5f32.to_le_bytes().to_vec();
        b.extend([0; 128]);
        (b[4], b[5], b[131]) = (0x38, 0xfe, 0x01); // 1, -448, 2^-9
        Format::F8.decode(&b, &mut y);
        assert_eq!((y[0], y[1], y[2], y[127]), (0.5, -224.0, 0.0, 2f32.powi(-10)));
        assert!(Format::F8.all_finite(&b));
        b[60] = 0xff;
        assert!(!Format::F8.all_finite(&b));
    }

    #[test]
    fn int4_by_hand() {
        let nibbles: Vec<u8> = (0..16u8).map(|i| i | (15 - i) << 4).collect();
        let word = int4::word(0.5, 3).to_le_bytes();
        let mut y = [0.0; 128];
        Format::I4G32.decode(&[&word[..], &nibbles].concat(), &mut y[..32]);
        assert_eq!((y[0], y[15], y[16], y[31]), (-1.5, 6.0, 6.0, -1.5));
        Format::I4G128.decode(&[&word[..], &[0x33; 48], &nibbles].concat(), &mut y);
        assert_eq!((y[0], y[95], y[96], y[97], y[127]), (0.0, 0.0, -1.5, -1.0, -1.5));
        assert!(!Format::I4G32.all_finite(&[&int4::word(f32::INFINITY, 3).to_le_bytes()[..], &nibbles].concat()));
    }

    #[test]
    fn finite() {
        assert!(Format::Q4_1.all_finite(&[&HALF[..], &QUARTER, &[255; 16]].concat()));
        assert!(!Format::Q4_1.all_finite(&[&HALF[..], &[0, 0x7e], &[255; 16]].concat()));
        assert!(!Format::BF16.all_finite(&[0xc0, 0x7f]));
        assert!(Format::BF16.all_finite(&[0x7f, 0x7f]));
        assert!(!Format::F32.all_finite(&f32::INFINITY.to_le_bytes()));
    }
}
