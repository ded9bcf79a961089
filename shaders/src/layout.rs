//! Weights as the kernels read them: blocks cut into planes of u32, without a change to any number.
//!
//! Rows go in panels of 8, K in groups of 32. A group's quantised values are `quads` vec4 of u32, its
//! scales, minima and odd bits `words` u32; both planes are `[panels, groups, quads or words, 8 rows]`, so
//! that eight lanes (rows of a panel) read one run of memory. Rows and columns are padded with zeros.

use ponder_engine::format::Format;
use ponder_engine::format::decode::scale_min_k4;

/// Rows of a panel.
pub const PANEL: usize = 8;
/// Columns of a group.
pub const GROUP: usize = 32;

/// How kernels see a format; the WGSL side is `format_{file}.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layout {
    /// Stem of the decode file after `format_`.
    pub file: &'static str,
    /// vec4<u32> of values per row and group.
    pub quads: usize,
    /// u32 of scales and odd bits per row and group; 0: there is no scale plane.
    pub words: usize,
    /// Scales per group.
    pub halves: usize,
    /// Whether a minimum (times the sum of x) is added per group.
    pub min: bool,
}

/// The table.
pub const fn layout(format: Format) -> Layout {
    const fn row(file: &'static str, quads: usize, words: usize, halves: usize, min: bool) -> Layout {
        Layout { file, quads, words, halves, min }
    }
    match format {
        Format::F32 => row("F32", 8, 0, 1, false),
        Format::F16 => row("F16", 4, 0, 1, false),
        Format::BF16 => row("BF16", 4, 0, 1, false),
        Format::Q8_0 => row("Q8", 2, 1, 1, false),
        Format::Q4_0 => row("Q4", 1, 1, 1, false),
        Format::Q4_1 => row("Q4", 1, 1, 1, true),
        Format::Q5_0 => row("Q5", 1, 2, 1, false),
        Format::Q5_1 => row("Q5", 1, 2, 1, true),
        Format::Q4K => row("Q4K", 1, 2, 1, true),
        Format::Q5K => row("Q5K", 1, 3, 1, true),
        Format::Q6K => row("Q6K", 1, 3, 2, false),
        Format::F8 => row("F8", 2, 1, 1, false),
        Format::I4G32 | Format::I4G128 => row("I4", 1, 1, 1, false),
    }
}

impl Layout {
    /// Bytes of a row in the wider plane, padded as stored.
    pub const fn widest_row_bytes(&self, k: usize) -> usize {
        let words = if 4 * self.quads > self.words { 4 * self.quads } else { self.words };
        k.div_ceil(GROUP) * words * 4
    }
}

/// Both planes of some rows of a weight.
pub struct Planes {
    /// `[panels, groups, quads, 8 rows]` of vec4<u32>.
    pub quants: Vec<u32>,
    /// `[panels, groups, words, 8 rows]` of u32.
    pub scales: Vec<u32>,
}

/// Rearranges `rows` rows of `k` columns from their stored bytes.
pub fn planes(format: Format, bytes: &[u8], rows: usize, k: usize) -> Planes {
    let l = layout(format);
    let (panels, groups) = (rows.div_ceil(PANEL), k.div_ceil(GROUP));
    let mut out = Planes {
        quants: vec![0; panels * groups * l.quads * PANEL * 4],
        scales: vec![0; panels * groups * l.words * PANEL],
    };
    let row_bytes = k / format.block_len() * format.block_bytes();
    for row in 0..rows {
        let stored = &bytes[row * row_bytes..][..row_bytes];
        for group in 0..groups {
            let (mut q, mut s) = ([0u32; 32], [0u32; 3]);
            split_group(format, stored, group, &mut q, &mut s);
            let at = (row / PANEL * groups + group) * PANEL;
            for (i, quad) in q[..4 * l.quads].chunks_exact(4).enumerate() {
                let to = (at * l.quads + i * PANEL + row % PANEL) * 4;
                out.quants[to..to + 4].copy_from_slice(quad);
            }
            for (i, word) in s[..l.words].iter().enumerate() {
                out.scales[at * l.words + i * PANEL + row % PANEL] = *word;
            }
        }
    }
    out
}

/// The u32 words of one group of a stored row: values into `q`, scales and odd bits into `s`.
fn split_group(format: Format, row: &[u8], group: usize, q: &mut [u32; 32], s: &mut [u32; 3]) {
    let pair = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let single = |b: &[u8]| u32::from(u16::from_le_bytes([b[0], b[1]]));
    let block = |per: usize| &row[group / per * format.block_bytes()..][..format.block_bytes()];
    match format {
        Format::F32 => words(&row[group * 128..], q),
        Format::F16 | Format::BF16 => words(&row[group * 64..], q),
        Format::Q8_0 => {
            let b = block(1);
            s[0] = single(b);
            words(&b[2..], q);
        }
        Format::Q4_0 => {
            let b = block(1);
            s[0] = single(b);
            pack(q, 4, |j| nibble(&b[2..], j));
        }
        Format::Q4_1 => {
            let b = block(1);
            s[0] = pair(b);
            pack(q, 4, |j| nibble(&b[4..], j));
        }
        Format::Q5_0 => {
            let b = block(1);
            (s[0], s[1]) = (single(b), pair(&b[2..]));
            pack(q, 4, |j| nibble(&b[6..], j));
        }
        Format::Q5_1 => {
            let b = block(1);
            (s[0], s[1]) = (pair(b), pair(&b[4..]));
            pack(q, 4, |j| nibble(&b[8..], j));
        }
        Format::Q4K | Format::Q5K => {
            let (b, g) = (block(8), group % 8);
            let (scale, min) = scale_min_k4(&b[4..16], g);
            (s[0], s[1]) = (pair(b), u32::from(scale) | u32::from(min) << 8);
            let nibbles = if format == Format::Q4K { &b[16..] } else { &b[48..] };
            pack(q, 4, |j| u32::from(nibbles[g / 2 * 32 + j] >> (g % 2 * 4) & 15));
            if format == Format::Q5K {
                s[2] = (0..32).map(|j| u32::from(b[16 + j] >> g & 1) << j).sum();
            }
        }
        Format::F8 => {
            let b = block(4);
            s[0] = pair(b);
            words(&b[4 + group % 4 * 32..][..32], q);
        }
        Format::I4G32 => {
            let b = block(1);
            s[0] = pair(b);
            pack(q, 4, |j| nibble(&b[4..], j));
        }
        Format::I4G128 => {
            let b = block(4);
            s[0] = pair(b);
            pack(q, 4, |j| nibble(&b[4 + group % 4 * 16..], j));
        }
        Format::Q6K => {
            let (b, half, run) = (block(8), group % 8 / 4, group % 4);
            let (low, high, scales) = (&b[half * 64..], &b[128 + half * 32..], &b[192 + half * 8..]);
            s[0] = single(&b[208..]) | u32::from(scales[run * 2]) << 16 | u32::from(scales[run * 2 + 1]) << 24;
            pack(q, 4, |j| u32::from(low[run % 2 * 32 + j] >> (run / 2 * 4) & 15));
            let mut bits = [0u32; 32];
            pack(&mut bits, 2, |j| u32::from(high[j] >> (run * 2) & 3));
            (s[1], s[2]) = (bits[0], bits[1]);
        }
    }
}

/// Element `j` of 16 bytes of nibbles: low ones are 0..16, high ones 16..32.
fn nibble(b: &[u8], j: usize) -> u32 {
    u32::from(if j < 16 { b[j] & 15 } else { b[j - 16] >> 4 })
}

/// Packs 32 small values of `bits` bits in order, the first lowest.
fn pack(q: &mut [u32; 32], bits: usize, value: impl Fn(usize) -> u32) {
    let per = 32 / bits;
    for j in 0..32 {
        q[j / per] |= value(j) << (j % per * bits);
    }
}

/// Bytes as words, as many as there are of both.
fn words(bytes: &[u8], q: &mut [u32; 32]) {
    for (word, b) in q.iter_mut().zip(bytes.chunks(4)) {
        let mut padded = [0u8; 4];
        padded[..b.len()].copy_from_slice(b);
        *word = u32::from_le_bytes(padded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_float_row_is_padded_with_zeros() {
        let bytes: Vec<u8> = (1..=20).flat_map(|i: u32| (i as f32).to_le_bytes()).collect();
        let planes = planes(Format::F32, &bytes, 1, 20);
        // vec4 `i` of row 0 stands at i * 8.
        assert_eq!(f32::from_bits(planes.quants[0]), 1.0);
        assert_eq!(f32::from_bits(planes.quants[4 * 8 * 4 + 3]), 20.0);
        assert!(planes.quants[5 * 8 * 4..].iter().all(|w| *w == 0));
        assert!(planes.scales.is_empty());
    }

    #[test]
    fn nibbles_keep_their_order() {
        let mut block = vec![0x00, 0x38];
        block.extend((0..16u8).map(|i| i | (15 - i) << 4));
        let planes = planes(Format::Q4_0, &block, 1, 32);
        assert_eq!(planes.quants[..4], [0x7654_3210, 0xfedc_ba98, 0x89ab_cdef, 0x0123_4567]);
        assert_eq!(planes.scales[0], 0x3800);
    }
}
