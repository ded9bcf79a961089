//! The inner loops of every matrix product: a tile of rows against panels of weights.
//!
//! One function per (level, format, rows in the tile), found once per call of a product. Whatever the
//! tile, an output is made of the same operations in the same order: groups in ascending K, in each an
//! exact integer sum and one fused multiply-add (two where the format has minima). So a row's result
//! does not depend on the tile, the panel split or the level.

use std::marker::PhantomData;

use super::activation::RowGroup;
use super::panel::{GROUP, LANES, Panels};
use super::simd::{Isa, Kernel, Level, array};
use crate::format::Format;

/// Panels times a tile: `out[t * stride + panel * 16 + lane]`.
#[derive(Clone, Copy)]
pub struct TileArgs {
    /// The first panel.
    pub panels: *const u8,
    /// Bytes between panels.
    pub panel_bytes: usize,
    /// Panels to do; each writes 16 outputs per row.
    pub count: usize,
    /// The tile: [`RowGroup`]s `[k / 32][rows]`, or f32 `[k][rows]` for float weights.
    pub x: *const u8,
    /// Width.
    pub k: usize,
    /// Where the first panel's outputs of the tile's first row go.
    pub out: *mut f32,
    /// Elements between rows of `out`.
    pub stride: usize,
}

/// A kernel. Safe to call where its level is available and the arguments describe valid memory.
pub type TileFn = unsafe fn(TileArgs);

/// The kernel for a format and a number of rows (1, 2, 4, ..., up to the level's largest tile).
pub fn tile_fn(level: Level, format: Format, rows: usize) -> TileFn {
    struct Pick(Format, usize);
    impl Kernel for Pick {
        type Out = TileFn;
        #[inline(always)]
        fn run<S: Isa>(self, s: S) -> TileFn {
            pick(s, self.0, self.1)
        }
    }
    level.run(Pick(format, rows))
}

/// The largest tile of a level.
pub fn max_tile(level: Level) -> usize {
    struct Most;
    impl Kernel for Most {
        type Out = usize;
        #[inline(always)]
        fn run<S: Isa>(self, _: S) -> usize {
            S::MAX_TILE
        }
    }
    level.run(Most)
}

#[inline(always)]
fn pick<S: Isa>(_: S, format: Format, rows: usize) -> TileFn {
    macro_rules! table {
        ($($format:ident => $kernel:ident<$quant:ty>),*) => {
            match (format, rows) {
                $((Format::$format, 1) => enter::<S, $kernel<$quant, 1>>,
                  (Format::$format, 2) => enter::<S, $kernel<$quant, 2>>,
                  (Format::$format, 4) => enter::<S, $kernel<$quant, 4>>,
                  (Format::$format, 8) => enter::<S, $kernel<$quant, 8>>,)*
                (_, rows) => panic!("no tile of {rows} rows"),
            }
        };
    }
    table!(
        Q4_0 => Integer<super::quant::Q4_0>, Q4_1 => Integer<super::quant::Q4_1>,
        Q5_0 => Integer<super::quant::Q5_0>, Q5_1 => Integer<super::quant::Q5_1>,
        Q8_0 => Integer<super::quant::Q8_0>, Q4K => Integer<super::quant::Q4K>,
        Q5K => Integer<super::quant::Q5K>, Q6K => Integer<super::quant::Q6K>,
        F32 => Float<super::quant::F32>, F16 => Float<super::quant::F16>, BF16 => Float<super::quant::Bf16>
    )
}

/// A tile kernel: `run` on an instruction set.
trait Tile {
    /// # Safety
    /// As [`TileFn`].
    unsafe fn run<S: Isa>(s: S, args: TileArgs);
}

/// # Safety
/// The level of `S` is available (it was when the function was picked), and `args` are valid.
unsafe fn enter<S: Isa, T: Tile>(args: TileArgs) {
    struct Run<T>(TileArgs, PhantomData<T>);
    impl<T: Tile> Kernel for Run<T> {
        type Out = ();
        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            // SAFETY: the caller of `enter` promises the arguments.
            unsafe { T::run(s, self.0) }
        }
    }
    // SAFETY: a zero-sized proof; `pick` was given one of the same type.
    let s: S = unsafe { std::mem::MaybeUninit::zeroed().assume_init() };
    s.call(Run::<T>(args, PhantomData));
}

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
    /// Bytes of the header before every 8 groups; 0 for none.
    const HEADER: usize;
    /// Way of summing.
    const SUM: Sum;
    /// Log2 of what is subtracted from unsigned quants.
    const CENTRE: u32;
    /// Quants may exceed 63.
    const WIDE: bool;
    /// The format has minima: the second of `scales` is added per unit of x.
    const MINIMUM: bool;
    /// The superblock's scales.
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
struct Integer<Q, const T: usize>(PhantomData<Q>);

impl<Q: Quant, const T: usize> Tile for Integer<Q, T> {
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

/// One panel times the tile.
///
/// # Safety
/// `w` is a panel of `groups` groups, `x` a tile `[groups][T]`.
#[inline(always)]
unsafe fn panel_sums<S: Isa, Q: Quant, const T: usize>(s: S, mut w: *const u8, mut x: *const RowGroup, groups: usize) -> [S::F; T] {
    let mut totals = [s.splat(0.0); T];
    let mut header = [s.splat(0.0); 2];
    for g in 0..groups {
        // SAFETY: the caller's promise; every step advances by what the layout says.
        unsafe {
            if Q::HEADER > 0 && g % 8 == 0 {
                header = Q::header(s, w);
                w = w.add(Q::HEADER);
            }
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
unsafe fn plane<S: Isa, Q: Quant, const T: usize>(s: S, acc: &mut [S::I; T], q: &[S::I; 8], x: *const RowGroup, plane: usize, from: usize, to: usize) {
    for i in from..to {
        for (t, acc) in acc.iter_mut().enumerate() {
            // SAFETY: vector `i` covers bytes `4i..4i+4` of a plane of 32.
            let four = unsafe { (&raw const (*x.add(t)).planes[plane]).cast::<i32>().add(i).read() };
            *acc = if Q::WIDE { s.dot::<true>(*acc, q[i], s.splat_i(four)) } else { s.dot::<false>(*acc, q[i], s.splat_i(four)) };
        }
    }
}

/// `total + scale * x.scale * sum`: the product of scales is exact, the rest rounded once.
#[inline(always)]
fn finish<S: Isa>(s: S, sum: S::F, scale: S::F, x: &RowGroup, total: S::F) -> S::F {
    s.fma(s.mul(scale, s.splat(x.scale)), sum, total)
}

/// See [`Sum::Chain`].
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn chain<S: Isa, Q: Quant, const T: usize>(s: S, q: &[S::I; 8], scales: [S::F; 2], x: *const RowGroup, totals: &mut [S::F; T]) {
    // SAFETY: the caller's promise.
    unsafe {
        let sums: [S::I; T] = if T <= 2 {
            // Few rows: three short chains instead of one long. Integers, so the sum is the same.
            let mut acc = [[s.splat_i(0); T]; 3];
            for t in 0..T {
                acc[2][t] = s.splat_i((*x.add(t)).centre8);
            }
            for (p, acc) in acc.iter_mut().enumerate() {
                plane::<S, Q, T>(s, acc, q, x, p, 0, 8);
            }
            array!(acc[0][0], T, t => s.add_i(s.add_i(s.shl::<16>(acc[0][t]), s.shl::<8>(acc[1][t])), acc[2][t]))
        } else {
            let mut acc = [s.splat_i(0); T];
            plane::<S, Q, T>(s, &mut acc, q, x, 0, 0, 8);
            acc = array!(acc[0], T, t => s.shl::<8>(acc[t]));
            plane::<S, Q, T>(s, &mut acc, q, x, 1, 0, 8);
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = s.add_i(s.shl::<8>(*acc), s.splat_i((*x.add(t)).centre8));
            }
            plane::<S, Q, T>(s, &mut acc, q, x, 2, 0, 8);
            acc
        };
        for (t, total) in totals.iter_mut().enumerate() {
            let x = &*x.add(t);
            *total = finish(s, s.to_f(sums[t]), scales[0], x, *total);
            if Q::MINIMUM {
                *total = s.fma(scales[1], s.splat(x.sum), *total);
            }
        }
    }
}

/// What centres the quants of vectors `from..to`: the negated sums of digits times `2^CENTRE`.
#[inline(always)]
fn centre<S: Isa, Q: Quant>(s: S, halves: &[i32; 2], from: usize, to: usize) -> S::I {
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
unsafe fn joined<S: Isa, Q: Quant, const T: usize>(s: S, q: &[S::I; 8], x: *const RowGroup, from: usize, to: usize) -> [S::F; T] {
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
unsafe fn split<S: Isa, Q: Quant, const T: usize>(s: S, q: &[S::I; 8], scales: [S::F; 2], x: *const RowGroup, totals: &mut [S::F; T]) {
    // SAFETY: the caller's promise.
    unsafe {
        let sums = joined::<S, Q, T>(s, q, x, 0, 8);
        for (t, total) in totals.iter_mut().enumerate() {
            let x = &*x.add(t);
            *total = finish(s, sums[t], scales[0], x, *total);
            if Q::MINIMUM {
                *total = s.fma(scales[1], s.splat(x.sum), *total);
            }
        }
    }
}

/// See [`Sum::Halves`].
///
/// # Safety
/// `x` points at `T` row groups.
#[inline(always)]
unsafe fn halves<S: Isa, Q: Quant, const T: usize>(s: S, q: &[S::I; 8], scales: [S::F; 2], x: *const RowGroup, totals: &mut [S::F; T]) {
    for (half, scale) in scales.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let sums = joined::<S, Q, T>(s, q, x, 4 * half, 4 * half + 4);
            for (t, total) in totals.iter_mut().enumerate() {
                *total = finish(s, sums[t], scale, &*x.add(t), *total);
            }
        }
    }
}

/// A float format in panels.
pub trait Floats {
    /// Bytes of one element.
    const WIDTH: usize;
    /// 16 rows of one element of K.
    ///
    /// # Safety
    /// `p` points at 16 elements.
    unsafe fn load<S: Isa>(s: S, p: *const u8) -> S::F;
}

/// Elements of K summed on their own before they join the total: keeps rounding small for wide K.
const SEGMENT: usize = 256;

/// Float kernel for `T` rows.
struct Float<W, const T: usize>(PhantomData<W>);

impl<W: Floats, const T: usize> Tile for Float<W, T> {
    #[inline(always)]
    unsafe fn run<S: Isa>(s: S, a: TileArgs) {
        // A fused multiply-add takes four cycles, so few rows take several panels at once.
        // SAFETY: the arguments describe `count` panels, a tile of `T` rows and their outputs.
        unsafe {
            match T {
                1 | 2 => float_panels::<S, W, T, 4>(s, a),
                4 => float_panels::<S, W, T, 2>(s, a),
                _ => float_panels::<S, W, T, 1>(s, a),
            }
        }
    }
}

/// # Safety
/// As [`TileFn`].
#[inline(always)]
unsafe fn float_panels<S: Isa, W: Floats, const T: usize, const P: usize>(s: S, mut a: TileArgs) {
    // SAFETY: as for the caller; after each turn the arguments describe the panels left.
    unsafe {
        while a.count >= P {
            float_sums::<S, W, T, P>(s, a);
            a.panels = a.panels.add(P * a.panel_bytes);
            a.out = a.out.add(P * LANES);
            a.count -= P;
        }
        while a.count > 0 {
            float_sums::<S, W, T, 1>(s, a);
            a.panels = a.panels.add(a.panel_bytes);
            a.out = a.out.add(LANES);
            a.count -= 1;
        }
    }
}

/// `P` panels times `T` rows.
///
/// # Safety
/// As [`TileFn`], with at least `P` panels.
#[inline(always)]
unsafe fn float_sums<S: Isa, W: Floats, const T: usize, const P: usize>(s: S, a: TileArgs) {
    let x = a.x.cast::<f32>();
    let mut totals = [[s.splat(0.0); T]; P];
    let mut k = 0;
    while k < a.k {
        let end = a.k.min(k + SEGMENT);
        let mut sums = [[s.splat(0.0); T]; P];
        while k < end {
            for (p, sums) in sums.iter_mut().enumerate() {
                // SAFETY: element `k` of panel `p` and of each row of the tile.
                unsafe {
                    let w = W::load(s, a.panels.add(p * a.panel_bytes + k * LANES * W::WIDTH));
                    for (t, sum) in sums.iter_mut().enumerate() {
                        *sum = s.fma(w, s.splat(*x.add(k * T + t)), *sum);
                    }
                }
            }
            k += 1;
        }
        for p in 0..P {
            for t in 0..T {
                totals[p][t] = s.add(totals[p][t], sums[p][t]);
            }
        }
    }
    for (p, totals) in totals.into_iter().enumerate() {
        for (t, total) in totals.into_iter().enumerate() {
            // SAFETY: 16 outputs of panel `p` for row `t`.
            unsafe { s.store(a.out.add(t * a.stride + p * LANES), total) }
        }
    }
}

/// Runs `tile` over panels `from..to` of a matrix, sparing the columns past its last row.
///
/// # Safety
/// `weights` are the panels of `shape`, `x` a tile of `rows` rows of its width, `out` the tile's rows.
pub unsafe fn run_panels(
    tile: TileFn,
    shape: &Panels,
    weights: *const u8,
    (from, to): (usize, usize),
    x: *const u8,
    rows: usize,
    out: *mut f32,
    stride: usize,
) {
    let panel_bytes = shape.panel_bytes();
    let whole = to.min(shape.n / LANES);
    // SAFETY: the caller's promise; whole panels write 16 columns of `out` each, the last writes a copy.
    unsafe {
        let args = TileArgs { panels: weights.add(from * panel_bytes), panel_bytes, count: 0, x, k: shape.k, out, stride };
        if from < whole {
            tile(TileArgs { count: whole - from, out: out.add(from * LANES), ..args });
        }
        if whole < to {
            let mut padded = [0f32; super::activation::TILE * LANES];
            let panels = weights.add(whole * panel_bytes);
            tile(TileArgs { panels, count: 1, out: padded.as_mut_ptr(), stride: LANES, ..args });
            for t in 0..rows {
                let columns = shape.n - whole * LANES;
                std::ptr::copy_nonoverlapping(padded.as_ptr().add(t * LANES), out.add(t * stride + whole * LANES), columns);
            }
        }
    }
}
