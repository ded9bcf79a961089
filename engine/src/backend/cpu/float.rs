//! The tile kernels for float weights, plain or scaled in blocks: chains of fused multiply-adds over K, one
//! lane per output row.

use std::marker::PhantomData;

use super::panel::LANES;
use super::simd::{Isa, array};
use super::tile::{Form, Tile, TileArgs};
use crate::format::F8_BLOCK;

/// A float format in panels.
pub trait Floats {
    /// Bytes of one element.
    const WIDTH: usize;
    /// Neighbouring elements of K that share words: 1 or 2.
    const SHARE: usize = 1;
    /// 16 rows of one element of K, the `WHICH`th of those that share words.
    ///
    /// # Safety
    /// `p` points at these words.
    unsafe fn load<S: Isa, const WHICH: usize>(s: S, p: *const u8) -> S::F;
}

/// Elements of K summed on their own before they join the total: keeps rounding small for wide K.
const SEGMENT: usize = 256;

/// Float kernel for `T` rows.
pub(super) struct Float<W, const T: usize>(PhantomData<W>);

impl<W: Floats, const T: usize> Tile for Float<W, T> {
    const ROWS: usize = T;
    const FORM: Form = Form::Floats;
    #[inline(always)]
    unsafe fn run<S: Isa>(s: S, a: TileArgs) {
        // SAFETY: the arguments describe `count` panels, a tile of `T` rows and their outputs.
        unsafe { float_tile::<S, W, T, false>(s, a) }
    }
}

/// Kernel for `T` rows of floats with a scale in front of each [`F8_BLOCK`] of K, which its sum is multiplied with.
pub(super) struct Scaled<W, const T: usize>(PhantomData<W>);

impl<W: Floats, const T: usize> Tile for Scaled<W, T> {
    const ROWS: usize = T;
    const FORM: Form = Form::Floats;
    #[inline(always)]
    unsafe fn run<S: Isa>(s: S, a: TileArgs) {
        // SAFETY: as for [`Float`].
        unsafe { float_tile::<S, W, T, true>(s, a) }
    }
}

/// A fused multiply-add takes four cycles, so few rows take several panels at once: as many as leave all sums in
/// registers.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
unsafe fn float_tile<S: Isa, W: Floats, const T: usize, const SCALED: bool>(s: S, a: TileArgs) {
    // SAFETY: the caller's promise.
    unsafe {
        match S::SUMS / T {
            4.. => float_panels::<S, W, T, 4, SCALED>(s, a),
            2 | 3 => float_panels::<S, W, T, 2, SCALED>(s, a),
            _ => float_panels::<S, W, T, 1, SCALED>(s, a),
        }
    }
}

/// # Safety
/// As [`TileFn`].
#[inline(always)]
unsafe fn float_panels<S: Isa, W: Floats, const T: usize, const P: usize, const SCALED: bool>(s: S, mut a: TileArgs) {
    // SAFETY: as for the caller; after each turn the arguments describe the panels left.
    unsafe {
        while a.count >= P {
            float_sums::<S, W, T, P, SCALED>(s, a);
            a.panels = a.panels.add(P * a.panel_bytes);
            a.out = a.out.add(P * LANES);
            a.count -= P;
        }
        while a.count > 0 {
            float_sums::<S, W, T, 1, SCALED>(s, a);
            a.panels = a.panels.add(a.panel_bytes);
            a.out = a.out.add(LANES);
            a.count -= 1;
        }
    }
}

/// `sums += weights * x`, for one element of K of each panel and row, the `WHICH`th in the words at `words(panel)`.
///
/// # Safety
/// There are such words, and `x` points at `T` elements.
#[inline(always)]
unsafe fn add_products<S: Isa, W: Floats, const T: usize, const P: usize, const WHICH: usize>(
    s: S,
    words: impl Fn(usize) -> *const u8,
    x: *const f32,
    sums: &mut [[S::F; T]; P],
) {
    // SAFETY: the caller's promise.
    let x = array!(s.splat(0.0), T, t => s.splat(unsafe { *x.add(t) }));
    for (p, sums) in sums.iter_mut().enumerate() {
        // SAFETY: as above.
        let weight = unsafe { W::load::<S, WHICH>(s, words(p)) };
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = s.fma(weight, x, *sum);
        }
    }
}

/// `P` panels times `T` rows.
///
/// # Safety
/// As [`TileFn`], with at least `P` panels.
#[inline(always)]
unsafe fn float_sums<S: Isa, W: Floats, const T: usize, const P: usize, const SCALED: bool>(s: S, a: TileArgs) {
    let x = a.x.cast::<f32>();
    let mut totals = [[s.splat(0.0); T]; P];
    let (segment, head) = if SCALED { (F8_BLOCK, 4 * LANES) } else { (SEGMENT, 0) };
    let mut k = 0;
    while k < a.k {
        let end = a.k.min(k + segment);
        // Bytes of scales up to the elements of this segment.
        let heads = (k / segment + 1) * head;
        let mut sums = [[s.splat(0.0); T]; P];
        let at = |p: usize, k: usize| a.panels.wrapping_add(p * a.panel_bytes + heads + k * LANES * W::WIDTH);
        while k + W::SHARE <= end {
            // SAFETY: element `k`, and the one it shares words with, of each panel and of each row of the tile.
            unsafe {
                add_products::<S, W, T, P, 0>(s, |p| at(p, k), x.add(k * T), &mut sums);
                if W::SHARE == 2 {
                    add_products::<S, W, T, P, 1>(s, |p| at(p, k), x.add((k + 1) * T), &mut sums);
                }
            }
            k += W::SHARE;
        }
        if k < end {
            // SAFETY: element `k` of each panel and of each row of the tile.
            unsafe { add_products::<S, W, T, P, 0>(s, |p| at(p, k), x.add(k * T), &mut sums) };
            k += 1;
        }
        for p in 0..P {
            for t in 0..T {
                totals[p][t] = if SCALED {
                    // SAFETY: the 16 scales stand before the segment's first element.
                    let scales = unsafe {
                        s.load(
                            a.panels.add(p * a.panel_bytes + heads - head + (end - segment) * LANES * W::WIDTH).cast(),
                        )
                    };
                    s.fma(scales, sums[p][t], totals[p][t])
                } else {
                    s.add(totals[p][t], sums[p][t])
                };
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
