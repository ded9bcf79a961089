//! How each weight format's panels are read in registers. The layouts are those of [`super::panel`].

use super::float::Floats;
use super::integer::{Quant, Sum};
use super::simd::{Isa, array};
use crate::format::int4;

/// 8 vectors from 4 of nibbles.
///
/// # Safety
/// 256 readable bytes.
#[inline(always)]
unsafe fn nibbles<S: Isa>(s: S, p: *const u8) -> [S::I; 8] {
    let low = s.splat_i(0x0f0f_0f0f);
    // SAFETY: the caller's promise.
    let packed = array!(low, 4, i => unsafe { s.load_i(p.add(64 * i)) });
    array!(low, 8, i => s.and(if i < 4 { packed[i] } else { s.shr::<4>(packed[i - 4]) }, low))
}

/// Nibbles and a fifth bit.
///
/// # Safety
/// 320 readable bytes.
#[inline(always)]
unsafe fn fives<S: Isa>(s: S, p: *const u8) -> [S::I; 8] {
    // SAFETY: the caller's promise.
    let (low, high) = unsafe { (nibbles(s, p), s.load_i(p.add(256))) };
    let bit = s.splat_i(0x1010_1010);
    let high = [
        s.shl::<4>(high),
        s.shl::<3>(high),
        s.shl::<2>(high),
        s.shl::<1>(high),
        high,
        s.shr::<1>(high),
        s.shr::<2>(high),
        s.shr::<3>(high),
    ];
    array!(bit, 8, i => s.or(low[i], s.and(high[i], bit)))
}

/// Nibbles and two more bits.
///
/// # Safety
/// 384 readable bytes.
#[inline(always)]
unsafe fn sixes<S: Isa>(s: S, p: *const u8) -> [S::I; 8] {
    // SAFETY: the caller's promise.
    let (low, high) = unsafe { (nibbles(s, p), [s.load_i(p.add(256)), s.load_i(p.add(320))]) };
    let bits = s.splat_i(0x3030_3030);
    array!(bits, 8, i => {
        let high = high[i / 4];
        let shifted = match i % 4 {
            0 => s.shl::<4>(high),
            1 => s.shl::<2>(high),
            2 => high,
            _ => s.shr::<2>(high),
        };
        s.or(low[i], s.and(shifted, bits))
    })
}

/// `d`, and `m + 2^CENTRE * d` where there are minima: what centred quants need added per unit of x.
///
/// # Safety
/// `p` points at the scales.
#[inline(always)]
unsafe fn half_scales<S: Isa, Q: Quant>(s: S, _: [S::F; 2], p: *const u8) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let d = s.load_f16(p.cast());
        if !Q::MINIMUM {
            return [d, d];
        }
        let m = s.load_f16(p.add(32).cast());
        [d, s.fma(d, s.splat((1u32 << Q::CENTRE) as f32), m)]
    }
}

/// K-quants: `d * scale`, and `-(dmin * min) + 2^CENTRE * d * scale`.
///
/// # Safety
/// `p` points at the scales.
#[inline(always)]
unsafe fn byte_scales<S: Isa, Q: Quant>(s: S, header: [S::F; 2], p: *const u8) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let d = s.mul(header[0], s.to_f(s.load_u8(p)));
        let m = s.mul(header[1], s.to_f(s.load_u8(p.add(16))));
        [d, s.sub(s.mul(d, s.splat((1u32 << Q::CENTRE) as f32)), m)]
    }
}

macro_rules! quant {
    ($name:ident, $group:expr, $header:expr, per $block:expr, $sum:ident, centre $centre:expr, most $most:expr, minimum $minimum:expr,
     $quants:ident, $scales:ident at $at:expr, $head:ident) => {
        /// The format of this name.
        pub struct $name;
        impl Quant for $name {
            const GROUP_BYTES: usize = $group;
            const HEADER: usize = $header;
            const BLOCK_GROUPS: usize = $block;
            const SUM: Sum = Sum::$sum;
            const CENTRE: u32 = $centre;
            const MOST: u32 = $most;
            const MINIMUM: bool = $minimum;
            #[inline(always)]
            unsafe fn header<S: Isa>(s: S, p: *const u8) -> [S::F; 2] {
                // SAFETY: the caller's promise (here and below).
                unsafe { $head(s, p) }
            }
            #[inline(always)]
            unsafe fn quants<S: Isa>(s: S, p: *const u8) -> [S::I; 8] {
                // SAFETY: as above.
                unsafe { $quants(s, p) }
            }
            #[inline(always)]
            unsafe fn scales<S: Isa>(s: S, header: [S::F; 2], p: *const u8) -> [S::F; 2] {
                // SAFETY: as above; scales stand at the end of a group.
                unsafe { $scales::<S, Self>(s, header, p.add($at)) }
            }
        }
    };
}

/// # Safety
/// None: reads nothing.
#[inline(always)]
unsafe fn no_header<S: Isa>(s: S, _: *const u8) -> [S::F; 2] {
    [s.splat(0.0); 2]
}

/// `d` and `dmin`.
///
/// # Safety
/// 64 readable bytes.
#[inline(always)]
unsafe fn two_halves<S: Isa>(s: S, p: *const u8) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    unsafe { [s.load_f16(p.cast()), s.load_f16(p.add(32).cast())] }
}

/// `d` alone.
///
/// # Safety
/// 32 readable bytes.
#[inline(always)]
unsafe fn one_half<S: Isa>(s: S, p: *const u8) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    unsafe { [s.load_f16(p.cast()); 2] }
}

/// Bytes plus 128.
///
/// # Safety
/// 512 readable bytes.
#[inline(always)]
unsafe fn bytes<S: Isa>(s: S, p: *const u8) -> [S::I; 8] {
    // SAFETY: the caller's promise.
    array!(s.splat_i(0), 8, i => unsafe { s.load_i(p.add(64 * i)) })
}

/// `d * scale` of each half group. Takes a format only to be called like the others.
///
/// # Safety
/// `p` points at the scales.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters)]
unsafe fn signed_scales<S: Isa, Q>(s: S, header: [S::F; 2], p: *const u8) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    unsafe { [s.mul(header[0], s.to_f(s.load_i8(p))), s.mul(header[0], s.to_f(s.load_i8(p.add(16))))] }
}

/// Of words of scale and zero: `d`, and `(8 - zero) * d`, which centred quants need added per unit of x.
///
/// # Safety
/// 64 readable bytes.
#[inline(always)]
unsafe fn words<S: Isa>(s: S, p: *const u8) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    let words = unsafe { s.load_i(p) };
    let d = s.as_float(s.and(words, s.splat_i(!(int4::ZERO as i32))));
    let zero = s.to_f(s.and(words, s.splat_i(int4::ZERO as i32)));
    [d, s.mul(d, s.sub(s.splat(8.0), zero))]
}

/// [`words`] at the scales.
///
/// # Safety
/// `p` points at the scales.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters)] // called like the others
unsafe fn word_scales<S: Isa, Q>(s: S, _: [S::F; 2], p: *const u8) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    unsafe { words(s, p) }
}

/// What the header says.
///
/// # Safety
/// None: reads nothing.
#[inline(always)]
#[allow(clippy::extra_unused_type_parameters)] // called like the others
unsafe fn header_scales<S: Isa, Q>(_: S, header: [S::F; 2], _: *const u8) -> [S::F; 2] {
    header
}

quant!(Q4_0, 288, 0, per 1, Chain, centre 3, most 15, minimum false, nibbles, half_scales at 256, no_header);
quant!(Q4_1, 320, 0, per 1, Chain, centre 3, most 15, minimum true, nibbles, half_scales at 256, no_header);
quant!(Q5_0, 352, 0, per 1, Split, centre 4, most 31, minimum false, fives, half_scales at 320, no_header);
quant!(Q5_1, 384, 0, per 1, Split, centre 4, most 31, minimum true, fives, half_scales at 320, no_header);
quant!(Q8_0, 544, 0, per 1, Split, centre 7, most 255, minimum false, bytes, half_scales at 512, no_header);
quant!(Q4K, 288, 64, per 8, Chain, centre 3, most 15, minimum true, nibbles, byte_scales at 256, two_halves);
quant!(Q5K, 352, 64, per 8, Split, centre 4, most 31, minimum true, fives, byte_scales at 320, two_halves);
quant!(Q6K, 416, 32, per 8, Halves, centre 5, most 63, minimum false, sixes, signed_scales at 384, one_half);
quant!(I4G32, 320, 0, per 1, Chain, centre 3, most 15, minimum true, nibbles, word_scales at 256, no_header);
quant!(I4G128, 256, 64, per 4, Chain, centre 3, most 15, minimum true, nibbles, header_scales at 0, words);

macro_rules! floats {
    ($name:ident, $width:expr, $load:ident) => {
        /// The format of this name.
        pub struct $name;
        impl Floats for $name {
            const WIDTH: usize = $width;
            #[inline(always)]
            unsafe fn load<S: Isa, const WHICH: usize>(s: S, p: *const u8) -> S::F {
                // SAFETY: the caller's promise.
                unsafe { s.$load(p.cast()) }
            }
        }
    };
}

floats!(F32, 4, load);
floats!(F16, 2, load_f16);

/// Words of two neighbouring elements of a row: each half becomes an f32 by one operation.
pub struct Bf16;
impl Floats for Bf16 {
    const WIDTH: usize = 2;
    const SHARE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Isa, const WHICH: usize>(s: S, p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        let words = unsafe { s.load_i(p) };
        s.as_float(if WHICH == 0 { s.shl::<16>(words) } else { s.and(words, s.splat_i(!0xffff)) })
    }
}

/// Codes of [`crate::format::f8::E4M3`], before their scale.
pub struct F8;
impl Floats for F8 {
    const WIDTH: usize = 1;
    #[inline(always)]
    unsafe fn load<S: Isa, const WHICH: usize>(s: S, p: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f8::<3>(p, 1.0) }
    }
}
