//! How each weight format's panels are read in registers. The layouts are those of [`super::panel`].

use super::simd::Isa;
use super::tile::{Floats, Quant, Sum};

/// 8 vectors from 4 of nibbles.
///
/// # Safety
/// 256 readable bytes.
#[inline(always)]
unsafe fn nibbles<S: Isa>(s: S, p: *const u8) -> [S::I; 8] {
    let low = s.splat_i(0x0f0f_0f0f);
    // SAFETY: the caller's promise.
    let packed: [S::I; 4] = std::array::from_fn(|i| unsafe { s.load_i(p.add(64 * i)) });
    std::array::from_fn(|i| s.and(if i < 4 { packed[i] } else { s.shr::<4>(packed[i - 4]) }, low))
}

/// Nibbles and a fifth bit.
///
/// # Safety
/// 320 readable bytes.
#[inline(always)]
unsafe fn fives<S: Isa>(s: S, p: *const u8) -> [S::I; 8] {
    // SAFETY: the caller's promise.
    let (low, high) = unsafe { (nibbles(s, p), s.load_i(p.add(256))) };
    let bit = |x| s.and(x, s.splat_i(0x1010_1010));
    [
        s.or(low[0], bit(s.shl::<4>(high))),
        s.or(low[1], bit(s.shl::<3>(high))),
        s.or(low[2], bit(s.shl::<2>(high))),
        s.or(low[3], bit(s.shl::<1>(high))),
        s.or(low[4], bit(high)),
        s.or(low[5], bit(s.shr::<1>(high))),
        s.or(low[6], bit(s.shr::<2>(high))),
        s.or(low[7], bit(s.shr::<3>(high))),
    ]
}

/// Nibbles and two more bits.
///
/// # Safety
/// 384 readable bytes.
#[inline(always)]
unsafe fn sixes<S: Isa>(s: S, p: *const u8) -> [S::I; 8] {
    // SAFETY: the caller's promise.
    let (low, high) = unsafe { (nibbles(s, p), [s.load_i(p.add(256)), s.load_i(p.add(320))]) };
    let bits = |x| s.and(x, s.splat_i(0x3030_3030));
    std::array::from_fn(|i| {
        let high = high[i / 4];
        let shifted = match i % 4 {
            0 => s.shl::<4>(high),
            1 => s.shl::<2>(high),
            2 => high,
            _ => s.shr::<2>(high),
        };
        s.or(low[i], bits(shifted))
    })
}

/// `d`, and `m + 2^CENTRE * d` where there are minima: what centred quants need added per unit of x.
///
/// # Safety
/// `p` points at the scales.
#[inline(always)]
unsafe fn half_scales<S: Isa, Q: Quant>(s: S, p: *const u8) -> [S::F; 2] {
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
    ($name:ident, $group:expr, $header:expr, $sum:ident, centre $centre:expr, wide $wide:expr, minimum $minimum:expr,
     $quants:expr, $scales:expr, $head:expr) => {
        /// The format of this name.
        pub struct $name;
        impl Quant for $name {
            const GROUP_BYTES: usize = $group;
            const HEADER: usize = $header;
            const SUM: Sum = Sum::$sum;
            const CENTRE: u32 = $centre;
            const WIDE: bool = $wide;
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
                unsafe { $scales(s, header, p) }
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
    std::array::from_fn(|i| unsafe { s.load_i(p.add(64 * i)) })
}

/// `d * scale` of each half group.
///
/// # Safety
/// `p` points at the scales.
#[inline(always)]
unsafe fn signed_scales<S: Isa>(s: S, header: [S::F; 2], p: *const u8) -> [S::F; 2] {
    // SAFETY: the caller's promise.
    unsafe { [s.mul(header[0], s.to_f(s.load_i8(p))), s.mul(header[0], s.to_f(s.load_i8(p.add(16))))] }
}

quant!(Q4_0, 288, 0, Chain, centre 3, wide false, minimum false, nibbles, |s, _, p: *const u8| half_scales::<S, Self>(s, p.add(256)), no_header);
quant!(Q4_1, 320, 0, Chain, centre 3, wide false, minimum true, nibbles, |s, _, p: *const u8| half_scales::<S, Self>(s, p.add(256)), no_header);
quant!(Q5_0, 352, 0, Split, centre 4, wide false, minimum false, fives, |s, _, p: *const u8| half_scales::<S, Self>(s, p.add(320)), no_header);
quant!(Q5_1, 384, 0, Split, centre 4, wide false, minimum true, fives, |s, _, p: *const u8| half_scales::<S, Self>(s, p.add(320)), no_header);
quant!(Q8_0, 544, 0, Split, centre 7, wide true, minimum false, bytes, |s, _, p: *const u8| half_scales::<S, Self>(s, p.add(512)), no_header);
quant!(Q4K, 288, 64, Chain, centre 3, wide false, minimum true, nibbles, |s, h, p: *const u8| byte_scales::<S, Self>(s, h, p.add(256)), two_halves);
quant!(Q5K, 352, 64, Split, centre 4, wide false, minimum true, fives, |s, h, p: *const u8| byte_scales::<S, Self>(s, h, p.add(320)), two_halves);
quant!(Q6K, 416, 32, Halves, centre 5, wide false, minimum false, sixes, |s, h, p: *const u8| signed_scales(s, h, p.add(384)), one_half);

macro_rules! floats {
    ($name:ident, $width:expr, $load:ident) => {
        /// The format of this name.
        pub struct $name;
        impl Floats for $name {
            const WIDTH: usize = $width;
            #[inline(always)]
            unsafe fn load<S: Isa>(s: S, p: *const u8) -> S::F {
                // SAFETY: the caller's promise.
                unsafe { s.$load(p.cast()) }
            }
        }
    };
}

floats!(F32, 4, load);
floats!(F16, 2, load_f16);
floats!(Bf16, 2, load_bf16);
