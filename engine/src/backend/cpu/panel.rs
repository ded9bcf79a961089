//! Weights as the kernels want them: panels of 16 output rows, one lane per row.
//!
//! The numbers are the stored ones, bit for bit; only their order changes at load. A 64-byte vector
//! holds 4 consecutive elements of each of 16 rows (for nibbles: 4 low and 4 high), so a kernel
//! broadcasts 4 activations and never sums across lanes. A group is 32 elements along K:
//!
//! ```text
//! group  = [4 vectors of nibbles: byte b of lane r of vector i = element 4i+b | element 16+4i+b << 4]
//!          [1 vector of fifth bits: bit i of byte b = element 4i+b]                       (5-bit formats)
//!          [2 vectors of bit pairs: field i of byte b of vector h = element 16h+4i+b]     (Q6_K)
//!          [16 scales][16 minima]
//! Q8_0   = [8 vectors: byte b of lane r of vector i = element 4i+b, plus 128][16 scales]
//! Q4_K, Q5_K: a header [16 d][16 dmin] before each 8 groups, scales and minima as bytes
//! Q6_K:       a header [16 d] before each 8 groups, scales as int8, 16 for each half group
//! I4_G32: [4 vectors of nibbles][16 words of scale and zero]; I4_G128: the words before each 4 groups
//! floats: one vector of 16 rows per element of K
//! BF16:   one vector of 16 words per pair of elements of K, the first in the lower half; an odd last one alone
//! F8:     for each 128 of K [16 scales], then one vector of 16 codes per element of K
//! ```

use half::f16;

use crate::format::decode::scale_min_k4;
use crate::format::{F8_BLOCK, Format, int4};

/// Output rows of a panel.
pub const LANES: usize = 16;
/// Elements of a group along K.
pub const GROUP: usize = 32;

/// How a weight matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Panels {
    /// Stored format.
    pub format: Format,
    /// Output rows.
    pub n: usize,
    /// Width.
    pub k: usize,
}

/// Sizes of a quantised format's groups.
struct Shape {
    /// Bytes of quants of a group.
    quants: usize,
    /// Bytes of a group, scales included.
    group: usize,
    /// Bytes before the groups of each block, where a block is several.
    header: usize,
}

fn shape(format: Format) -> Shape {
    let (quants, scales, header) = match format {
        Format::Q4_0 => (256, 32, 0),
        Format::Q4_1 => (256, 64, 0),
        Format::Q5_0 => (320, 32, 0),
        Format::Q5_1 => (320, 64, 0),
        Format::Q8_0 => (512, 32, 0),
        Format::Q4K => (256, 32, 64),
        Format::Q5K => (320, 32, 64),
        Format::Q6K => (384, 32, 32),
        Format::I4G32 => (256, 64, 0),
        Format::I4G128 => (256, 0, 64),
        Format::F32 | Format::F16 | Format::BF16 | Format::F8 => unreachable!("floats have no groups"),
    };
    Shape { quants, group: quants + scales, header }
}

impl Panels {
    /// Panels, the last one perhaps partly empty.
    pub fn count(&self) -> usize {
        self.n.div_ceil(LANES)
    }
    /// Bytes of one panel.
    pub fn panel_bytes(&self) -> usize {
        if !self.format.is_quantised() {
            let k = if self.format == Format::BF16 { self.k.next_multiple_of(2) } else { self.k };
            return k / self.format.block_len() * self.format.block_bytes() * LANES;
        }
        let shape = shape(self.format);
        self.k / GROUP * shape.group + self.k / self.format.block_len() * shape.header
    }
    /// Bytes of all panels.
    pub fn bytes(&self) -> usize {
        self.count() * self.panel_bytes()
    }
    /// Where group `g` of a panel lies: (its block's header, the group).
    fn group_at(&self, g: usize) -> (usize, usize) {
        let shape = shape(self.format);
        if shape.header == 0 {
            return (0, g * shape.group);
        }
        let groups = self.format.block_len() / GROUP;
        let header = g / groups * (shape.header + groups * shape.group);
        (header, header + shape.header + g % groups * shape.group)
    }
    /// Lays stored bytes out in panels; `out` is zeroed before.
    pub fn pack(&self, stored: &[u8], out: &mut [u8]) {
        let row_bytes = self.k / self.format.block_len() * self.format.block_bytes();
        let panels = out.chunks_exact_mut(self.panel_bytes());
        for (panel, rows) in panels.zip(stored.chunks(row_bytes * LANES)) {
            for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
                match self.format {
                    Format::F8 => pack_f8(panel, lane, row),
                    Format::BF16 => pack_pairs(panel, lane, row),
                    f if f.is_quantised() => self.pack_row(panel, lane, row),
                    f => pack_floats(panel, lane, row, f.block_bytes()),
                }
            }
        }
    }
    fn pack_row(&self, panel: &mut [u8], lane: usize, row: &[u8]) {
        let shape = shape(self.format);
        let block_groups = self.format.block_len() / GROUP;
        for (b, block) in row.chunks_exact(self.format.block_bytes()).enumerate() {
            for j in 0..block_groups {
                let (header, at) = self.group_at(b * block_groups + j);
                if j == 0 {
                    pack_header(self.format, &mut panel[header..], lane, block);
                }
                let group = &mut panel[at..at + shape.group];
                let (quants, scales) = group.split_at_mut(shape.quants);
                pack_quants(self.format, quants, lane, &stored_quants(self.format, block, j));
                pack_scales(self.format, scales, lane, block, j);
            }
        }
    }
    /// Decodes one row into `out`, by the formulas of [`crate::format::decode`].
    pub fn decode_row(&self, panels: &[u8], row: usize, out: &mut [f32]) {
        let panel = &panels[row / LANES * self.panel_bytes()..][..self.panel_bytes()];
        let lane = row % LANES;
        if self.format == Format::F8 {
            for (block, out) in panel.chunks_exact(F8_BYTES).zip(out.chunks_exact_mut(F8_BLOCK)) {
                let scale = &block[4 * lane..][..4];
                let codes = block[4 * LANES..].iter().skip(lane).step_by(LANES).copied();
                let stored: Vec<u8> = scale.iter().copied().chain(codes).collect();
                self.format.decode(&stored, out);
            }
            return;
        }
        if self.format == Format::BF16 {
            for (words, out) in panel.chunks_exact(4 * LANES).zip(out.chunks_mut(2)) {
                self.format.decode(&words[4 * lane..][..2 * out.len()], out);
            }
            return;
        }
        if !self.format.is_quantised() {
            let width = self.format.block_bytes();
            for (element, out) in panel.chunks_exact(LANES * width).zip(out) {
                self.format.decode(&element[lane * width..][..width], std::slice::from_mut(out));
            }
            return;
        }
        let shape = shape(self.format);
        for (g, out) in out.chunks_exact_mut(GROUP).enumerate() {
            let (header, at) = self.group_at(g);
            let (quants, scales) = panel[at..at + shape.group].split_at(shape.quants);
            let q = unpack_quants(self.format, quants, lane);
            decode_group(self.format, &panel[header..], scales, lane, &q, out);
        }
    }
}

/// Bytes of an FP8 block of a panel.
const F8_BYTES: usize = LANES * (4 + F8_BLOCK);

fn pack_f8(panel: &mut [u8], lane: usize, row: &[u8]) {
    for (to, from) in panel.chunks_exact_mut(F8_BYTES).zip(row.chunks_exact(4 + F8_BLOCK)) {
        to[4 * lane..][..4].copy_from_slice(&from[..4]);
        let codes = to[4 * LANES..].iter_mut().skip(lane).step_by(LANES);
        codes.zip(&from[4..]).for_each(|(to, code)| *to = *code);
    }
}

fn pack_pairs(panel: &mut [u8], lane: usize, row: &[u8]) {
    for (to, from) in panel.chunks_exact_mut(4 * LANES).zip(row.chunks(4)) {
        to[4 * lane..][..from.len()].copy_from_slice(from);
    }
}

fn pack_floats(panel: &mut [u8], lane: usize, row: &[u8], width: usize) {
    for (to, from) in panel.chunks_exact_mut(LANES * width).zip(row.chunks_exact(width)) {
        to[lane * width..][..width].copy_from_slice(from);
    }
}

/// The unsigned quants of group `j` of a stored block.
fn stored_quants(format: Format, block: &[u8], j: usize) -> [u8; GROUP] {
    let nibbles = |bytes: &[u8]| -> [u8; GROUP] {
        std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
    };
    let fives = |high: &[u8], low: &[u8]| -> [u8; GROUP] {
        let q = nibbles(low);
        std::array::from_fn(|i| q[i] | (high[i / 8] >> (i % 8) & 1) << 4)
    };
    match format {
        Format::Q8_0 => std::array::from_fn(|i| block[2 + i] ^ 0x80),
        Format::Q4_0 => nibbles(&block[2..]),
        Format::Q4_1 => nibbles(&block[4..]),
        Format::I4G32 | Format::I4G128 => nibbles(&block[4 + 16 * j..]),
        Format::Q5_0 => fives(&block[2..6], &block[6..]),
        Format::Q5_1 => fives(&block[4..8], &block[8..]),
        Format::Q4K => std::array::from_fn(|i| block[16 + j / 2 * 32 + i] >> (j % 2 * 4) & 15),
        Format::Q5K => {
            std::array::from_fn(|i| (block[48 + j / 2 * 32 + i] >> (j % 2 * 4) & 15) | (block[16 + i] >> j & 1) << 4)
        }
        Format::Q6K => {
            let (half, run) = (j / 4, j % 4);
            std::array::from_fn(|i| {
                let low = block[half * 64 + run % 2 * 32 + i] >> (run / 2 * 4) & 15;
                low | (block[128 + half * 32 + i] >> (run * 2) & 3) << 4
            })
        }
        Format::F32 | Format::F16 | Format::BF16 | Format::F8 => unreachable!("floats have no quants"),
    }
}

fn pack_quants(format: Format, to: &mut [u8], lane: usize, q: &[u8; GROUP]) {
    if format == Format::Q8_0 {
        for (i, quad) in q.chunks_exact(4).enumerate() {
            to[i * 64 + lane * 4..][..4].copy_from_slice(quad);
        }
        return;
    }
    for i in 0..16 {
        to[i / 4 * 64 + lane * 4 + i % 4] = (q[i] & 15) | (q[i + 16] & 15) << 4;
    }
    let high = &mut to[256..];
    match high.len() {
        64 => (0..GROUP).for_each(|i| high[lane * 4 + i % 4] |= (q[i] >> 4) << (i / 4)),
        128 => (0..GROUP).for_each(|i| high[i / 16 * 64 + lane * 4 + i % 4] |= (q[i] >> 4) << (i % 16 / 4 * 2)),
        _ => {}
    }
}

/// The inverse of [`pack_quants`].
fn unpack_quants(format: Format, from: &[u8], lane: usize) -> [u8; GROUP] {
    if format == Format::Q8_0 {
        return std::array::from_fn(|i| from[i / 4 * 64 + lane * 4 + i % 4]);
    }
    let high = &from[256..];
    std::array::from_fn(|i| {
        let low = from[i % 16 / 4 * 64 + lane * 4 + i % 4] >> (i / 16 * 4) & 15;
        let high = match high.len() {
            64 => high[lane * 4 + i % 4] >> (i / 4) & 1,
            128 => high[i / 16 * 64 + lane * 4 + i % 4] >> (i % 16 / 4 * 2) & 3,
            _ => 0,
        };
        low | high << 4
    })
}

fn pack_header(format: Format, to: &mut [u8], lane: usize, block: &[u8]) {
    match format {
        Format::Q4K | Format::Q5K => {
            to[2 * lane..][..2].copy_from_slice(&block[..2]);
            to[32 + 2 * lane..][..2].copy_from_slice(&block[2..4]);
        }
        Format::Q6K => to[2 * lane..][..2].copy_from_slice(&block[208..210]),
        Format::I4G128 => to[4 * lane..][..4].copy_from_slice(&block[..4]),
        _ => {}
    }
}

fn pack_scales(format: Format, to: &mut [u8], lane: usize, block: &[u8], j: usize) {
    match format {
        Format::Q4K | Format::Q5K => (to[lane], to[16 + lane]) = scale_min_k4(&block[4..16], j),
        Format::Q6K => {
            to[lane] = block[192 + 2 * j];
            to[16 + lane] = block[192 + 2 * j + 1];
        }
        Format::I4G32 => to[4 * lane..][..4].copy_from_slice(&block[..4]),
        Format::I4G128 => {}
        _ => {
            to[2 * lane..][..2].copy_from_slice(&block[..2]);
            if to.len() == 64 {
                to[32 + 2 * lane..][..2].copy_from_slice(&block[2..4]);
            }
        }
    }
}

fn decode_group(format: Format, header: &[u8], scales: &[u8], lane: usize, q: &[u8; GROUP], out: &mut [f32]) {
    let half = |b: &[u8]| f16::from_le_bytes([b[2 * lane], b[2 * lane + 1]]).to_f32();
    let mut put = |f: &dyn Fn(f32) -> f32| out.iter_mut().zip(q).for_each(|(o, q)| *o = f(f32::from(*q)));
    match format {
        Format::Q8_0 => put(&|q| (q - 128.0) * half(scales)),
        Format::Q4_0 => put(&|q| (q - 8.0) * half(scales)),
        Format::Q5_0 => put(&|q| (q - 16.0) * half(scales)),
        Format::Q4_1 | Format::Q5_1 => put(&|q| q * half(scales) + half(&scales[32..])),
        Format::Q4K | Format::Q5K => {
            let d = half(header) * f32::from(scales[lane]);
            let m = half(&header[32..]) * f32::from(scales[16 + lane]);
            put(&|q| d * q - m);
        }
        Format::Q6K => {
            let d = half(header);
            let scale = |i: usize| d * f32::from(scales[i / 16 * 16 + lane] as i8);
            out.iter_mut().zip(q).enumerate().for_each(|(i, (o, q))| *o = scale(i) * (f32::from(*q) - 32.0));
        }
        Format::I4G32 | Format::I4G128 => {
            let words = if format == Format::I4G32 { scales } else { header };
            let (d, zero) = int4::scale_and_zero(&words[4 * lane..]);
            put(&|q| (q - f32::from(zero)) * d);
        }
        Format::F32 | Format::F16 | Format::BF16 | Format::F8 => unreachable!("floats have no groups"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::problem::noise;

    #[test]
    fn rows_survive_the_panels_bit_by_bit() {
        for format in Format::ALL {
            let (n, k) = (37, if format.block_len() > 1 { 512 } else { 201 });
            let mut stored = Vec::new();
            for row in 0..n {
                let x: Vec<f32> = (0..k).map(|c| noise(1, "w", row, c)).collect();
                format.encode(&x, &mut stored);
            }
            let panels = Panels { format, n, k };
            let mut packed = vec![0; panels.bytes()];
            panels.pack(&stored, &mut packed);
            let mut want = vec![0f32; n * k];
            format.decode(&stored, &mut want);
            let mut got = vec![0f32; k];
            for row in 0..n {
                panels.decode_row(&packed, row, &mut got);
                assert_eq!(got, want[row * k..][..k], "{format} row {row}");
            }
            let padded = stored.len() * n.next_multiple_of(LANES) / n;
            assert!(panels.bytes() as f64 <= padded as f64 * 1.03, "{format}: {} bytes", panels.bytes());
        }
    }
}
