//! A plain quantiser for every format: round to nearest, no search for better scales.
//!
//! It exists so that tests and problem generators can make blocks of any format from known values;
//! it is not what one would publish a model with. Scales are rounded to their stored precision
//! *before* the elements are, so a block is as good as its format allows.

use super::{Format, decode::scale_min_k4, f8::E4M3, int4};
use half::{bf16, f16};

impl Format {
    /// Appends the encoding of `x` to `out`.
    ///
    /// # Panics
    /// If `x.len()` is no multiple of [`Format::block_len`].
    pub fn encode(self, x: &[f32], out: &mut Vec<u8>) {
        assert_eq!(x.len() % self.block_len(), 0, "{self}: {} elements", x.len());
        let encode_block: fn(&[f32], &mut Vec<u8>) = match self {
            Format::F32 => |x, out| out.extend(x[0].to_le_bytes()),
            Format::F16 => |x, out| out.extend(f16::from_f32(x[0]).to_le_bytes()),
            Format::BF16 => |x, out| out.extend(bf16::from_f32(x[0]).to_le_bytes()),
            Format::Q8_0 => q8_0,
            Format::Q4_0 => |x, out| symmetric(x, 4, out),
            Format::Q5_0 => |x, out| symmetric(x, 5, out),
            Format::Q4_1 => |x, out| affine(x, 4, out),
            Format::Q5_1 => |x, out| affine(x, 5, out),
            Format::Q4K => |x, out| k_affine(x, 4, out),
            Format::Q5K => |x, out| k_affine(x, 5, out),
            Format::Q6K => q6_k,
            Format::F8 => f8,
            Format::I4G32 | Format::I4G128 => i4,
        };
        for block in x.chunks_exact(self.block_len()) {
            encode_block(block, out);
        }
    }
}

/// Appends `v` as f16 and returns the value that a reader will see.
fn put_half(v: f32, out: &mut Vec<u8>) -> f32 {
    let v = f16::from_f32(v);
    out.extend(v.to_le_bytes());
    v.to_f32()
}

/// The integer nearest to `x / d`, within `lo..=hi`; 0 where `d` is 0.
fn level(x: f32, d: f32, lo: i32, hi: i32) -> i32 {
    if d == 0.0 { 0.clamp(lo, hi) } else { ((x / d).round() as i32).clamp(lo, hi) }
}

/// The element of largest magnitude, with its sign.
fn peak(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m: f32, &v| if v.abs() > m.abs() { v } else { m })
}

fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| (lo.min(v), hi.max(v)))
}

fn f8(x: &[f32], out: &mut Vec<u8>) {
    let d = peak(x).abs() / E4M3::MAX;
    out.extend(d.to_le_bytes());
    out.extend(x.iter().map(|&v| if d == 0.0 { 0 } else { E4M3::encode(v / d) }));
}

/// A zero among the levels, so that 0 is exact; the scale has the bits of an f16.
fn i4(x: &[f32], out: &mut Vec<u8>) {
    let (lo, hi) = range(x);
    let (lo, hi) = (lo.min(0.0), hi.max(0.0));
    let d = f16::from_f32((hi - lo) / 15.0).to_f32();
    let zero = level(-lo, d, 0, 15);
    out.extend(int4::word(d, zero as u8).to_le_bytes());
    for run in x.chunks_exact(32) {
        let q: Vec<u8> = run.iter().map(|&v| (level(v, d, -zero, 15 - zero) + zero) as u8).collect();
        put_levels(&q, 4, out);
    }
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let d = put_half(peak(x).abs() / 127.0, out);
    out.extend(x.iter().map(|&v| level(v, d, -127, 127) as i8 as u8));
}

/// Q4_0 and Q5_0: the peak becomes the most negative level, as in ggml.
fn symmetric(x: &[f32], bits: u32, out: &mut Vec<u8>) {
    let zero = 1 << (bits - 1);
    let d = put_half(peak(x) / -(zero as f32), out);
    let q: Vec<u8> = x.iter().map(|&v| (level(v, d, -zero, zero - 1) + zero) as u8).collect();
    put_levels(&q, bits, out);
}

/// Q4_1 and Q5_1.
fn affine(x: &[f32], bits: u32, out: &mut Vec<u8>) {
    let (lo, hi) = range(x);
    let top = (1 << bits) - 1;
    let d = put_half((hi - lo) / top as f32, out);
    let m = put_half(lo, out);
    let q: Vec<u8> = x.iter().map(|&v| level(v - m, d, 0, top) as u8).collect();
    put_levels(&q, bits, out);
}

/// 32 levels: the fifth bits first if there are any, then low nibbles of element `j` and `j + 16` together.
fn put_levels(q: &[u8], bits: u32, out: &mut Vec<u8>) {
    if bits == 5 {
        let high = q.iter().enumerate().fold(0u32, |h, (j, &q)| h | u32::from(q >> 4) << j);
        out.extend(high.to_le_bytes());
    }
    out.extend((0..16).map(|j| (q[j] & 15) | (q[j + 16] & 15) << 4));
}

/// Q4_K and Q5_K: eight groups of 32, each `d * scale * q - dmin * min` with 6-bit scale and min.
fn k_affine(x: &[f32], bits: u32, out: &mut Vec<u8>) {
    let top = (1 << bits) - 1;
    let groups: Vec<(f32, f32)> = x
        .chunks_exact(32)
        .map(|g| {
            let (lo, hi) = range(g);
            let lo = lo.min(0.0);
            ((hi - lo).max(0.0) / top as f32, -lo)
        })
        .collect();
    let max_of = |f: fn(&(f32, f32)) -> f32| groups.iter().map(f).fold(0.0, f32::max);
    let d = put_half(max_of(|g| g.0) / 63.0, out);
    let dmin = put_half(max_of(|g| g.1) / 63.0, out);
    let packed = pack_k4(
        &groups.iter().map(|g| (level(g.0, d, 0, 63) as u8, level(g.1, dmin, 0, 63) as u8)).collect::<Vec<_>>(),
    );
    out.extend(packed);
    let q: Vec<u8> = (0..256)
        .map(|i| {
            let (sc, m) = scale_min_k4(&packed, i / 32);
            level(x[i] + dmin * f32::from(m), d * f32::from(sc), 0, top) as u8
        })
        .collect();
    if bits == 5 {
        out.extend((0..32).map(|l| (0..8).fold(0u8, |h, g| h | (q[g * 32 + l] >> 4) << g)));
    }
    for pair in q.chunks_exact(64) {
        out.extend((0..32).map(|l| (pair[l] & 15) | (pair[l + 32] & 15) << 4));
    }
}

/// The inverse of [`scale_min_k4`].
fn pack_k4(groups: &[(u8, u8)]) -> [u8; 12] {
    let mut packed = [0u8; 12];
    for (j, &(sc, m)) in groups.iter().enumerate() {
        if j < 4 {
            packed[j] |= sc;
            packed[j + 4] |= m;
        } else {
            packed[j + 4] = (sc & 15) | (m & 15) << 4;
            packed[j - 4] |= (sc >> 4) << 6;
            packed[j] |= (m >> 4) << 6;
        }
    }
    packed
}

/// Sixteen groups of 16, each `d * scale * (q - 32)` with an int8 scale.
fn q6_k(x: &[f32], out: &mut Vec<u8>) {
    let peaks: Vec<f32> = x.chunks_exact(16).map(|g| peak(g) / -32.0).collect();
    let start = out.len();
    out.resize(start + 208, 0);
    let d = put_half(peak(&peaks).abs() / 127.0, out);
    let b = &mut out[start..start + 208];
    for (g, &p) in peaks.iter().enumerate() {
        b[192 + g] = level(p, d, -127, 127) as i8 as u8;
    }
    for (i, &v) in x.iter().enumerate() {
        let scale = d * f32::from(b[192 + i / 16] as i8);
        let q = (level(v, scale, -32, 31) + 32) as u8;
        let (half, run, l) = (i / 128, i / 32 % 4, i % 32);
        b[half * 64 + run % 2 * 32 + l] |= (q & 15) << (run / 2 * 4);
        b[128 + half * 32 + l] |= (q >> 4) << (run * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Largest error of a round trip, as a fraction of the block's range.
    fn tolerance(format: Format) -> f32 {
        match format {
            Format::F32 => 0.0,
            Format::F16 => 1e-3,
            Format::BF16 | Format::Q8_0 => 5e-3,
            Format::Q4_0 | Format::Q4_1 | Format::Q4K | Format::I4G32 | Format::I4G128 => 0.08,
            Format::Q5_0 | Format::Q5_1 | Format::Q5K => 0.04,
            Format::Q6K => 0.02,
            Format::F8 => 0.04,
        }
    }

    proptest! {
        #[test]
        fn round_trip(x in proptest::collection::vec(-4.0f32..4.0, 512)) {
            for format in Format::ALL {
                let mut bytes = Vec::new();
                format.encode(&x, &mut bytes);
                prop_assert_eq!(Some(bytes.len()), format.bytes_for(x.len()));
                let mut y = vec![0.0; x.len()];
                format.decode(&bytes, &mut y);
                for (i, (x, y)) in x.iter().zip(&y).enumerate() {
                    prop_assert!((x - y).abs() <= 8.0 * tolerance(format), "{} [{}]: {} became {}", format, i, x, y);
                }
            }
        }
    }

    #[test]
    fn zeros_and_constants_are_exact() {
        for format in Format::ALL {
            for value in [0.0, 1.0] {
                let x = vec![value; 256];
                let mut bytes = Vec::new();
                format.encode(&x, &mut bytes);
                assert!(format.all_finite(&bytes));
                let mut y = vec![f32::NAN; 256];
                format.decode(&bytes, &mut y);
                let worst = y.iter().map(|y| (y - value).abs()).fold(0.0, f32::max);
                assert!(worst <= 0.01, "{format}: {value} became {:?}", &y[..4]);
            }
        }
    }
}
