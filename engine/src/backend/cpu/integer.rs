//! The tile kernel for quantised weights: exact integer dot products of unsigned quants with the three
//! digit planes of [`RowGroup`]s, one float operation per group (two where the format has minima).

use std::marker::PhantomData;

use super::activation::{Factors, RowGroup};
use super::panel::{GROUP, LANES};
use super::simd::{Isa, array, prefetch};
use super::tile::{Form, Tile, TileArgs};

/// How the integer sums of a group become a float.
#[derive(Clone, Copy, PartialEq)]
pub enum Sum {
    /// 4 bits: `sum((q - 8) * X)` fits an i32, digits shifted in.
    Chain,
    /// Wider: the upper two digits and the lowest apart, joined in f32.
    Split,
    /// As `Split`, for each half of the group, each with its own scale.
    Halves,
}

/// A quantised format in panels.
pub trait Quant {
    /// Bytes of a group.
    const GROUP_BYTES: usize;
    /// Bytes of the header before every block of groups; 0 for none.
    const HEADER: usize;
    /// Groups of a block.
    const BLOCK_GROUPS: usize;
    /// Way of summing.
    const SUM: Sum;
    /// Log2 of what is subtracted from unsigned quants.
    const CENTRE: u32;
    /// The largest quant.
    const MOST: u32;
    /// The format has minima: the second of `scales` is added per unit of x.
    const MINIMUM: bool;
    /// The block's scales.
    ///
    /// # Safety
    /// `p` points at a header (nothing is read where there is none).
    unsafe fn header<S: Isa>(s: S, p: *const u8) -> [S::F; 2];
    /// The quants: 8 vectors of 4 elements of each row.
    ///
    /// # Safety
    /// `p` points at a group (here and below).
    unsafe fn quants<S: Isa>(s: S, p: *const u8) -> [S::I; 8];
    /// Scale, and addend per unit of x for centred quants; or the scales of the two halves.
    ///
    /// # Safety
    /// As above.
    unsafe fn scales<S: Isa>(s: S, header: [S::F; 2], p: *const u8) -> [S::F; 2];
}

/// Integer kernel for `T` rows.
pub(super) struct Integer<Q, const T: usize>(PhantomData<Q>);

impl<Q: Quant, const T: usize> Tile for Integer<Q, T> {
    const ROWS: usize = T;
    const FORM: Form = Form::Planes;
    #[inline(always)]
    unsafe fn run<S: Isa>(s: S, a: TileArgs) {
        for panel in 0..a.count {
            // SAFETY: the arguments describe `count` panels, a tile of `T` rows and their outputs.
            unsafe {
                let totals = panel_sums::<S, Q, T>(s, a.panels.add(panel * a.panel_bytes), a.x.cast(), a.k / GROUP);
                for (t, total) in totals.into_iter().enumerate() {
                    s.store(a.out.add(t * a.stride + panel * LANES), total);
                }
            }
        }
    }
}

/// Bytes that a stream of weights is asked for before they are needed.
const AHEAD: usize = 8192;

/// Asks for the first weights at `w`, as many as nobody asks for later ([`fetch_ahead`]).
pub(super) fn fetch_first(w: *const u8, bytes: usize) {
    (0..bytes.min(AHEAD)).step_by(64).for_each(|at| prefetch(w.wrapping_add(at)));
}

/// Asks for the group that is needed [`AHEAD`] bytes later. The processor's own prefetcher follows a stream too, but it
/// stops at the end of a page, and with many rows a group takes so long that no out-of-order window reaches the next.
#[inline(always)]
pub(super) fn fetch_ahead(w: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        prefetch(w.wrapping_add(AHEAD + 64 * line));
    }
}

/// One panel times the tile.
///
/// # Safety
/// `w` is a panel of `groups` groups, `x` a tile `[groups][T]`.
#[inline(always)]
unsafe fn panel_sums<S: Isa, Q: Quant, const T: usize>(
    s: S,
    mut w: *const u8,
    mut x: *const RowGroup,
    groups: usize,
) -> [S::F; T] {
    let mut totals = [s.splat(0.0); T];
    let mut header = [s.splat(0.0); 2];
    for g in 0..groups {
        // SAFETY: the caller's promise; every step advances by what the layout says.
        unsafe {
            if Q::HEADER > 0 && g % Q::BLOCK_GROUPS == 0 {
                header = Q::header(s, w);
                w = w.add(Q::HEADER);
            }
            fetch_ahead(w, Q::GROUP_BYTES);
            let q = Q::quants(s, w);
            let scales = Q::scales(s, header, w);
            match Q::SUM {
                Sum::Chain => chain::<S, Q, T>(s, &q, scales, x, &mut totals),
                Sum::Split => split::<S, Q, T>(s, &q, scales, x, &mut totals),
                Sum::Halves => halves::<S, Q, T>(s, &q, scales, x, &mut totals),
            }
            w = w.add(Q::GROUP_BYTES);
            x = x.add(T);
        }
    }
    totals
}

/// `acc[t] += dot` of vectors `FROM..TO` of quants with one plane of each row.
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn plane<S: Isa, Q: Quant, const T: usize>(
    s: S,
    acc: &mut [S::I; T],
    q: &[S::I; 8],
    x: *const RowGroup,
    plane: usize,
    from: usize,
    to: usize,
) {
    // SAFETY: the caller's promise; vector `i` covers bytes `4i..4i+4` of a plane of 32.
    unsafe {
        let digits = (&raw const (*x).planes[plane]).cast::<i32>().add(from);
        s.dots(acc, &q[from..to], Q::MOST, digits, size_of::<RowGroup>());
    }
}

/// `total + scale * x.scale * sum`: the product of scales is exact, the rest rounded once.
#[inline(always)]
fn finish<S: Isa>(s: S, sum: S::F, scale: S::F, x: &Factors, total: S::F) -> S::F {
    s.fma(s.mul(scale, s.splat(x.scale)), sum, total)
}

/// [`finish`] with the first of `scales`, then the second times the sum of x where there are minima.
#[inline(always)]
pub(super) fn add_up<S: Isa, Q: Quant>(s: S, sum: S::F, scales: [S::F; 2], x: &Factors, total: S::F) -> S::F {
    let total = finish(s, sum, scales[0], x, total);
    if Q::MINIMUM { s.fma(scales[1], s.splat(x.sum), total) } else { total }
}

/// Runs a piece of code for each four rows of a tile of more than four, then for what is left, `$rows` of them.
macro_rules! by_fours {
    ($tile:ident, $from:ident, $rows:ident => $work:block) => {
        for $from in (0..$tile).step_by(4) {
            match $tile - $from {
                1 => by_fours!(@ $rows = 1, $work),
                2 => by_fours!(@ $rows = 2, $work),
                3 => by_fours!(@ $rows = 3, $work),
                _ => by_fours!(@ $rows = 4, $work),
            }
        }
    };
    (@ $rows:ident = $n:literal, $work:block) => {{
        const $rows: usize = $n;
        $work
    }};
}

/// See [`Sum::Chain`].
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn chain<S: Isa, Q: Quant, const T: usize>(
    s: S,
    q: &[S::I; 8],
    scales: [S::F; 2],
    x: *const RowGroup,
    totals: &mut [S::F; T],
) {
    // SAFETY: the caller's promise.
    unsafe {
        if T > 4 && S::PLANE_ROWS == 4 {
            by_fours!(T, from, N => {
                let part = totals[from..].first_chunk_mut::<N>().expect("these rows are in the tile");
                chain::<S, Q, N>(s, q, scales, x.add(from), part);
            });
            return;
        }
        let short = T <= S::PLANE_ROWS;
        let sums = if short { short_chains::<S, Q, T>(s, q, x) } else { long_chains::<S, Q, T>(s, q, x) };
        let sums = array!(s.splat(0.0), T, t => s.to_f(sums[t]));
        add_up_rows::<S, Q, T>(s, sums, scales, x, totals);
    }
}

/// Centred integer sums with one accumulator a row: where registers are few.
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn long_chains<S: Isa, Q: Quant, const T: usize>(s: S, q: &[S::I; 8], x: *const RowGroup) -> [S::I; T] {
    let mut acc = [s.splat_i(0); T];
    // SAFETY: the caller's promise.
    unsafe {
        plane::<S, Q, T>(s, &mut acc, q, x, 0, 0, 8);
        acc = array!(acc[0], T, t => s.shl::<8>(acc[t]));
        plane::<S, Q, T>(s, &mut acc, q, x, 1, 0, 8);
        for (t, acc) in acc.iter_mut().enumerate() {
            *acc = s.add_i(s.shl::<8>(*acc), s.splat_i((*x.add(t)).factors.centre8));
        }
        plane::<S, Q, T>(s, &mut acc, q, x, 2, 0, 8);
    }
    acc
}

/// The same integers with one accumulator a plane: a dot product waits for eight before it, not for 24.
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn short_chains<S: Isa, Q: Quant, const T: usize>(s: S, q: &[S::I; 8], x: *const RowGroup) -> [S::I; T] {
    let mut acc = [[s.splat_i(0); T]; 3];
    // SAFETY: the caller's promise.
    unsafe {
        acc[2] = array!(acc[2][0], T, t => s.splat_i((*x.add(t)).factors.centre8));
        s.plane_dots::<T, { size_of::<RowGroup>() }>(&mut acc, q, Q::MOST, (&raw const (*x).planes).cast());
    }
    array!(acc[0][0], T, t => s.add_i(s.shl::<8>(s.add_i(s.shl::<8>(acc[0][t]), acc[1][t])), acc[2][t]))
}

/// [`add_up`] of each row.
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn add_up_rows<S: Isa, Q: Quant, const T: usize>(
    s: S,
    sums: [S::F; T],
    scales: [S::F; 2],
    x: *const RowGroup,
    totals: &mut [S::F; T],
) {
    for (t, total) in totals.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        let factors = unsafe { &(*x.add(t)).factors };
        *total = add_up::<S, Q>(s, sums[t], scales, factors, *total);
    }
}

/// What centres the quants of vectors `from..to`: the negated sums of digits times `2^CENTRE`.
#[inline(always)]
pub(super) fn centre<S: Isa, Q: Quant>(s: S, halves: &[i32; 2], from: usize, to: usize) -> S::I {
    let sum = match (from, to) {
        (0, 4) => s.splat_i(halves[0]),
        (4, 8) => s.splat_i(halves[1]),
        _ => s.add_i(s.splat_i(halves[0]), s.splat_i(halves[1])),
    };
    match Q::CENTRE {
        7 => s.shl::<7>(sum),
        5 => s.shl::<5>(sum),
        _ => s.shl::<4>(sum),
    }
}

/// The centred sum of vectors `from..to` as `256 * high + low`, rounded once.
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn joined<S: Isa, Q: Quant, const T: usize>(
    s: S,
    q: &[S::I; 8],
    x: *const RowGroup,
    from: usize,
    to: usize,
) -> [S::F; T] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut high = [s.splat_i(0); T];
        plane::<S, Q, T>(s, &mut high, q, x, 0, from, to);
        for (t, high) in high.iter_mut().enumerate() {
            *high = s.add_i(s.shl::<8>(*high), centre::<S, Q>(s, &(*x.add(t)).negated_high, from, to));
        }
        plane::<S, Q, T>(s, &mut high, q, x, 1, from, to);
        let mut low = array!(high[0], T, t => centre::<S, Q>(s, &(*x.add(t)).negated_low, from, to));
        plane::<S, Q, T>(s, &mut low, q, x, 2, from, to);
        array!(s.splat(0.0), T, t => s.fma(s.to_f(high[t]), s.splat(256.0), s.to_f(low[t])))
    }
}

/// See [`Sum::Split`].
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn split<S: Isa, Q: Quant, const T: usize>(
    s: S,
    q: &[S::I; 8],
    scales: [S::F; 2],
    x: *const RowGroup,
    totals: &mut [S::F; T],
) {
    // SAFETY: the caller's promise.
    unsafe {
        if T > 4 && S::PLANE_ROWS == 4 {
            by_fours!(T, from, N => {
                let part = totals[from..].first_chunk_mut::<N>().expect("these rows are in the tile");
                split::<S, Q, N>(s, q, scales, x.add(from), part);
            });
            return;
        }
        let at_once = T == 4 && S::PLANE_ROWS == 4;
        let sums = if at_once { joined_at_once::<S, Q, T>(s, q, x) } else { joined::<S, Q, T>(s, q, x, 0, 8) };
        add_up_rows::<S, Q, T>(s, sums, scales, x, totals);
    }
}

/// [`joined`] of a whole group, with one accumulator a plane: the same integers.
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn joined_at_once<S: Isa, Q: Quant, const T: usize>(s: S, q: &[S::I; 8], x: *const RowGroup) -> [S::F; T] {
    let mut acc = [[s.splat_i(0); T]; 3];
    // SAFETY: the caller's promise.
    unsafe {
        acc[1] = array!(acc[1][0], T, t => centre::<S, Q>(s, &(*x.add(t)).negated_high, 0, 8));
        acc[2] = array!(acc[2][0], T, t => centre::<S, Q>(s, &(*x.add(t)).negated_low, 0, 8));
        s.plane_dots::<T, { size_of::<RowGroup>() }>(&mut acc, q, Q::MOST, (&raw const (*x).planes).cast());
    }
    array!(s.splat(0.0), T, t => {
        let high = s.add_i(s.shl::<8>(acc[0][t]), acc[1][t]);
        s.fma(s.to_f(high), s.splat(256.0), s.to_f(acc[2][t]))
    })
}

/// See [`Sum::Halves`].
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn halves<S: Isa, Q: Quant, const T: usize>(
    s: S,
    q: &[S::I; 8],
    scales: [S::F; 2],
    x: *const RowGroup,
    totals: &mut [S::F; T],
) {
    for (half, scale) in scales.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let sums = joined::<S, Q, T>(s, q, x, 4 * half, 4 * half + 4);
            for (t, total) in totals.iter_mut().enumerate() {
                *total = finish(s, sums[t], scale, &(*x.add(t)).factors, *total);
            }
        }
    }
}
