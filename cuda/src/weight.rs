//! Weights in the layout of `kernels/weight.cuh`: tiles of 16 rows by 64 columns in the order in which the
//! lanes of a warp want them, scales behind all tiles. Written once, at load; the numbers stay the stored
//! ones, bit for bit.

use ponder_engine::format::Format;
use ponder_engine::format::decode::scale_min_k4;

/// Rows of a tile.
pub const TILE_N: usize = 16;
/// Columns of a tile.
pub const TILE_K: usize = 64;

/// Sizes of a format's layout.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Bits of a level: 16 for floats, 8 for int8 and FP8, 4 to 6 for packed levels.
    bits: usize,
    tile_bytes: usize,
    /// Bytes of scales for one row and `scale_chunks` tiles.
    scale_bytes: usize,
    scale_chunks: usize,
}

fn layout(format: Format) -> Layout {
    let (bits, scale_bytes, scale_chunks) = match format {
        Format::F32 => panic!("F32 weights stay row-major"),
        Format::F16 | Format::BF16 => (16, 0, 1),
        Format::Q8_0 => (8, 4, 1),
        Format::Q4_0 => (4, 4, 1),
        Format::Q4_1 => (4, 8, 1),
        Format::Q5_0 => (5, 4, 1),
        Format::Q5_1 => (5, 8, 1),
        Format::Q4K => (4, 20, 4),
        Format::Q5K => (5, 20, 4),
        Format::Q6K => (6, 20, 4),
        Format::F8 => (8, 4, 2),
        Format::I4G32 => (4, 8, 1),
        Format::I4G128 => (4, 4, 2),
    };
    Layout { bits, tile_bytes: bits * 128, scale_bytes, scale_chunks }
}

/// The matrix `[n, k]` stored in `bytes`, tiled. F32 stays as it is.
///
/// # Panics
/// If `bytes` is not the encoding of `n * k` elements.
pub fn pack(format: Format, n: usize, k: usize, bytes: &[u8]) -> Vec<u8> {
    assert_eq!(format.bytes_for(n * k), Some(bytes.len()), "{format} [{n}, {k}]");
    if format == Format::F32 {
        return bytes.to_vec();
    }
    let layout = layout(format);
    let (tiles, chunks) = (n.div_ceil(TILE_N), k.div_ceil(TILE_K));
    let tile_row = chunks * layout.tile_bytes;
    let scale_row = chunks.div_ceil(layout.scale_chunks) * layout.scale_bytes * TILE_N;
    let mut out = vec![0u8; tiles * (tile_row + scale_row)];
    let (tile_part, scale_part) = out.split_at_mut(tiles * tile_row);
    let row_bytes = bytes.len() / n;
    // A stretch of tile rows per thread; a small matrix is not worth threads.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(bytes.len() >> 20).max(1);
    let stretch = tiles.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let mut scales = scale_part;
        for (i, tile_rows) in tile_part.chunks_mut(stretch * tile_row).enumerate() {
            let (mine, rest) = scales.split_at_mut((tile_rows.len() / tile_row * scale_row).min(scales.len()));
            scales = rest;
            let first = i * stretch * TILE_N;
            let mut work = move || {
                let last = n.min(first + tile_rows.len() / tile_row * TILE_N);
                for row in first..last {
                    let (tile, r) = ((row - first) / TILE_N, row % TILE_N);
                    let source = &bytes[row * row_bytes..][..row_bytes];
                    let tiles = &mut tile_rows[tile * tile_row..][..tile_row];
                    pack_row(format, layout, source, r, tiles, &mut mine[tile * scale_row..][..scale_row]);
                }
            };
            if threads == 1 { work() } else { drop(scope.spawn(work)) }
        }
    });
    out
}

/// Row `r` of 16 into its tiles and scales.
fn pack_row(format: Format, layout: Layout, row: &[u8], r: usize, tiles: &mut [u8], scales: &mut [u8]) {
    if layout.bits == 16 {
        for (column, pair) in row.chunks_exact(2).enumerate() {
            let at = place(r, column);
            let to =
                column / TILE_K * layout.tile_bytes + (at.step * 32 + at.lane) * 16 + at.register * 4 + at.half * 2;
            tiles[to..to + 2].copy_from_slice(pair);
        }
        return;
    }
    let mut column = 0;
    for (index, block) in row.chunks_exact(format.block_bytes()).enumerate() {
        each_level(format, block, |q| {
            let tile = &mut tiles[column / TILE_K * layout.tile_bytes..][..layout.tile_bytes];
            put_level(tile, layout.bits, place(r, column), q);
            column += 1;
        });
        put_scales(format, layout, block, index, r, scales);
    }
}

/// Where an element of a tile lies in the warp: see `kernels/weight.cuh`.
#[derive(Clone, Copy)]
struct Place {
    lane: usize,
    step: usize,
    register: usize,
    half: usize,
}

fn place(r: usize, column: usize) -> Place {
    let (step, within) = (column % TILE_K / 16, column % 16);
    let (t, j) = (within / 4, within % 4);
    Place { lane: r % 8 * 4 + t, step, register: r / 8 + 2 * (j / 2), half: j % 2 }
}

/// Ors level `q` into a zeroed tile.
fn put_level(tile: &mut [u8], bits: usize, at: Place, q: u8) {
    let mut or = |word: usize, bit: usize, value: u8| tile[word + bit / 8] |= value << (bit % 8);
    if bits == 8 {
        let word = (at.step / 2 * 32 + at.lane) * 16 + (at.step % 2 * 2 + at.register / 2) * 4;
        return or(word, 16 * (at.register % 2) + 8 * at.half, q);
    }
    or(at.lane * 16 + at.step * 4, 4 * at.register + 16 * at.half, q & 15);
    match bits {
        5 => or(512 + at.lane * 4, 4 * at.step + at.register + 16 * at.half, q >> 4),
        6 => or(512 + (at.step / 2 * 32 + at.lane) * 4, 8 * (at.step % 2) + 2 * at.register + 16 * at.half, q >> 4),
        _ => {}
    }
}

/// Calls `put` with the stored level of each element of a block, in order, before any zero point.
fn each_level(format: Format, b: &[u8], mut put: impl FnMut(u8)) {
    let nibble = |low: &[u8], i: usize| low[i % 16] >> (i / 16 * 4) & 15;
    match format {
        Format::Q8_0 => b[2..].iter().for_each(|q| put(*q)),
        Format::Q4_0 => (0..32).for_each(|i| put(nibble(&b[2..], i))),
        Format::Q4_1 => (0..32).for_each(|i| put(nibble(&b[4..], i))),
        Format::Q5_0 | Format::Q5_1 => {
            let at = if format == Format::Q5_0 { 2 } else { 4 };
            let bit = |i: usize| b[at + i / 8] >> (i % 8) & 1;
            (0..32).for_each(|i| put(nibble(&b[at + 4..], i) | bit(i) << 4));
        }
        Format::Q4K | Format::Q5K => {
            let low = if format == Format::Q4K { 16 } else { 48 };
            for i in 0..256 {
                let (group, l) = (i / 32, i % 32);
                let high = if format == Format::Q5K { b[16 + l] >> group & 1 } else { 0 };
                put(b[low + group / 2 * 32 + l] >> (group % 2 * 4) & 15 | high << 4);
            }
        }
        Format::Q6K => {
            for i in 0..256 {
                let (half, run, l) = (i / 128, i / 32 % 4, i % 32);
                let low = b[half * 64 + run % 2 * 32 + l] >> (run / 2 * 4) & 15;
                put(low | (b[128 + half * 32 + l] >> (run * 2) & 3) << 4);
            }
        }
        Format::F8 => b[4..].iter().for_each(|code| put(*code)),
        Format::I4G32 | Format::I4G128 => {
            (0..format.block_len()).for_each(|i| put(nibble(&b[4 + i / 32 * 16..], i % 32)));
        }
        Format::F32 | Format::F16 | Format::BF16 => unreachable!("floats have no levels"),
    }
}

/// The scales of block `index` of row `r`.
fn put_scales(format: Format, layout: Layout, b: &[u8], index: usize, r: usize, scales: &mut [u8]) {
    let chunk = index * format.block_len() / (TILE_K * layout.scale_chunks);
    let row = &mut scales[(chunk * TILE_N + r) * layout.scale_bytes..][..layout.scale_bytes];
    match format {
        Format::Q6K => {
            row[..16].copy_from_slice(&b[192..208]);
            row[16..18].copy_from_slice(&b[208..210]);
        }
        Format::F8 | Format::I4G128 => row.copy_from_slice(&b[..4]),
        Format::I4G32 => row[index % 2 * 4..][..4].copy_from_slice(&b[..4]),
        Format::Q4K | Format::Q5K => {
            row[..4].copy_from_slice(&b[..4]);
            for group in 0..8 {
                let (scale, minimum) = scale_min_k4(&b[4..16], group);
                row[4 + group / 2 * 4 + group % 2] = scale;
                row[4 + group / 2 * 4 + 2 + group % 2] = minimum;
            }
        }
        _ => {
            row[index % 2 * 2..][..2].copy_from_slice(&b[..2]);
            if layout.scale_bytes == 8 {
                row[4 + index % 2 * 2..][..2].copy_from_slice(&b[2..4]);
            }
        }
    }
}
