//! The tile kernels for float weights, plain or scaled in blocks: chains of fused multiply-adds over K, one
//! lane per output row.

use std::marker::PhantomData;

use super::panel::LANES;
use super::simd::Isa;
use super::tile::{Tile, TileArgs};
use crate::format::F8_BLOCK;

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
pub(super) struct Float<W, const T: usize>(PhantomData<W>);

impl<W: Floats, const T: usize> Tile for Float<W, T> {
    #[inline(always)]
    unsafe fn run<S: Isa>(s: S, a: TileArgs) {
        // SAFETY: the arguments describe `count` panels, a tile of `T` rows and their outputs.
        unsafe { float_tile::<S, W, T, false>(s, a) }
    }
}

/// Kernel for `T` rows of floats with a scale in front of each [`F8_BLOCK`] of K, which its sum is multiplied with.
pub(super) struct Scaled<W, const T: usize>(PhantomData<W>);

impl<W: Floats, const T: usize> Tile for Scaled<W, T> {
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
        while k < end {
            for (p, sums) in sums.iter_mut().enumerate() {
                // SAFETY: element `k` of panel `p` and of each row of the tile.
                unsafe {
                    let w = W::load(s, a.panels.add(p * a.panel_bytes + heads + k * LANES * W::WIDTH));
                    for (t, sum) in sums.iter_mut().enumerate() {
                        *sum = s.fma(w, s.splat(*x.add(k * T + t)), *sum);
                    }
                }
            }
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
