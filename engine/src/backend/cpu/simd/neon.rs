//! NEON: four registers make the vector, lanes 0..4, 4..8, 8..12 and 12..16.
//!
//! Every aarch64 processor has it, so there is nothing to detect. Integer dot products widen to 16
//! bits: the dot-product extension would halve that, and is not in every core.

#![allow(unused_unsafe)] // which intrinsics are safe to call changes between compilers

use std::arch::aarch64::*;

use half::f16;

use super::{Isa, Kernel};

/// Advanced SIMD, which aarch64 always has.
#[derive(Clone, Copy, Debug)]
pub struct Neon;

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];

/// All four registers through one intrinsic.
macro_rules! all {
    ($op:ident, $($x:expr),*) => {
        // SAFETY: aarch64 has Advanced SIMD.
        unsafe { [$op($($x[0]),*), $op($($x[1]),*), $op($($x[2]),*), $op($($x[3]),*)] }
    };
}

/// Methods that are one intrinsic on each register.
macro_rules! lanewise {
    ($($name:ident($($arg:ident),+) $ty:ty = $op:ident;)*) => { $(
        #[inline(always)]
        fn $name(self, $($arg: $ty),+) -> $ty {
            all!($op, $($arg),+)
        }
    )* };
}

#[inline(always)]
fn lanes(x: F) -> [f32; 16] {
    // SAFETY: both are 16 f32.
    unsafe { std::mem::transmute(x) }
}

#[inline(always)]
fn floats(x: [f32; 16]) -> F {
    // SAFETY: both are 16 f32.
    unsafe { std::mem::transmute(x) }
}

#[inline(always)]
fn ints(x: I) -> [i32; 16] {
    // SAFETY: both are 16 i32.
    unsafe { std::mem::transmute(x) }
}

#[inline(always)]
fn from_ints(x: [i32; 16]) -> I {
    // SAFETY: both are 16 i32.
    unsafe { std::mem::transmute(x) }
}

/// Mask bits as lanes of ones and zeros.
#[inline(always)]
fn spread(mask: u16) -> [uint32x4_t; 4] {
    const BITS: [u32; 16] = {
        let mut bits = [0; 16];
        let mut i = 0;
        while i < 16 {
            bits[i] = 1 << i;
            i += 1;
        }
        bits
    };
    // SAFETY: 16 readable u32; aarch64 has Advanced SIMD.
    unsafe {
        let mask = vdupq_n_u32(mask.into());
        let bits = BITS.as_ptr();
        [
            vtstq_u32(mask, vld1q_u32(bits)),
            vtstq_u32(mask, vld1q_u32(bits.add(4))),
            vtstq_u32(mask, vld1q_u32(bits.add(8))),
            vtstq_u32(mask, vld1q_u32(bits.add(12))),
        ]
    }
}

// SAFETY: aarch64 has Advanced SIMD.
unsafe impl Isa for Neon {
    type F = F;
    type I = I;
    const MAX_TILE: usize = 4;
    const SUMS: usize = 4;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F {
        floats([x; 16])
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller promises the lanes behind the pointer (here and below).
        floats(unsafe { p.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: F) {
        // SAFETY: see `load`.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(lanes(x)) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F {
        // SAFETY: see `load`.
        let halves = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        floats(halves.map(|h| f16::from_bits(h).to_f32()))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: F) {
        let halves = lanes(x).map(|x| f16::from_f32(x).to_bits());
        // SAFETY: see `load`.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(halves) }
    }
    lanewise! {
        add(a, b) F = vaddq_f32;
        sub(a, b) F = vsubq_f32;
        mul(a, b) F = vmulq_f32;
        div(a, b) F = vdivq_f32;
        and(a, b) I = vandq_s32;
        or(a, b) I = vorrq_s32;
        xor(a, b) I = veorq_s32;
        add_i(a, b) I = vaddq_s32;
        max_i(a, b) I = vmaxq_s32;
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        all!(vfmaq_f32, c, a, b)
    }
    // Not `vmaxq_f32`, which returns NaN where one operand is NaN.
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        let mask = all!(vcgtq_f32, a, b);
        all!(vbslq_f32, mask, a, b)
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        let mask = all!(vcltq_f32, a, b);
        all!(vbslq_f32, mask, a, b)
    }
    #[inline(always)]
    fn greater(self, a: F, b: F) -> u16 {
        let (a, b) = (lanes(a), lanes(b));
        let mut mask = 0;
        for i in 0..16 {
            mask |= u16::from(a[i] > b[i]) << i;
        }
        mask
    }
    #[inline(always)]
    fn select(self, mask: u16, a: F, b: F) -> F {
        let mask = spread(mask);
        all!(vbslq_f32, mask, a, b)
    }
    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        super::portable::tree(lanes(x), |a, b| a + b)
    }
    #[inline(always)]
    fn max_lane(self, x: F) -> f32 {
        super::portable::tree(lanes(x), |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        from_ints([x; 16])
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const u8) -> I {
        // SAFETY: see `load`.
        from_ints(unsafe { p.cast::<[i32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut u8, x: I) {
        // SAFETY: see `load`.
        unsafe { p.cast::<[i32; 16]>().write_unaligned(ints(x)) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> I {
        // SAFETY: see `load`.
        from_ints(unsafe { p.cast::<[u8; 16]>().read_unaligned() }.map(i32::from))
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> I {
        // SAFETY: see `load`.
        from_ints(unsafe { p.cast::<[i8; 16]>().read_unaligned() }.map(i32::from))
    }
    #[inline(always)]
    unsafe fn load_u16(self, p: *const u16) -> I {
        // SAFETY: see `load`.
        from_ints(unsafe { p.cast::<[u16; 16]>().read_unaligned() }.map(i32::from))
    }
    #[inline(always)]
    unsafe fn store_u8(self, p: *mut u8, x: I) {
        // SAFETY: see `load`.
        unsafe { p.cast::<[u8; 16]>().write_unaligned(ints(x).map(|x| x as u8)) }
    }
    #[inline(always)]
    unsafe fn store_u16(self, p: *mut u16, x: I) {
        // SAFETY: see `load`.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(ints(x).map(|x| x as u16)) }
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: I) -> I {
        from_ints(ints(a).map(|a| a << N))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: I) -> I {
        from_ints(ints(a).map(|a| (a as u32 >> N) as i32))
    }
    #[inline(always)]
    fn sra<const N: u32>(self, a: I) -> I {
        from_ints(ints(a).map(|a| a >> N))
    }
    #[inline(always)]
    fn dot(self, acc: I, w: I, a: I) -> I {
        let mut out = acc;
        for i in 0..4 {
            // SAFETY: aarch64 has Advanced SIMD. A product is at most 255 * 128, which fits 16 bits.
            unsafe {
                let (w, a) = (vreinterpretq_u8_s32(w[i]), vreinterpretq_s8_s32(a[i]));
                let wide = |w| vreinterpretq_s16_u16(vmovl_u8(w));
                let low = vmulq_s16(wide(vget_low_u8(w)), vmovl_s8(vget_low_s8(a)));
                let high = vmulq_s16(wide(vget_high_u8(w)), vmovl_s8(vget_high_s8(a)));
                out[i] = vaddq_s32(acc[i], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
            }
        }
        out
    }
    #[inline(always)]
    fn sum_i(self, x: I) -> i32 {
        super::portable::tree(ints(x), i32::wrapping_add)
    }
    #[inline(always)]
    fn max_lane_i(self, x: I) -> i32 {
        super::portable::tree(ints(x), i32::max)
    }
    #[inline(always)]
    fn to_f(self, x: I) -> F {
        all!(vcvtq_f32_s32, x)
    }
    #[inline(always)]
    fn round(self, x: F) -> I {
        all!(vcvtnq_s32_f32, x)
    }
    #[inline(always)]
    fn bits(self, x: F) -> I {
        all!(vreinterpretq_s32_f32, x)
    }
    #[inline(always)]
    fn as_float(self, x: I) -> F {
        all!(vreinterpretq_f32_s32, x)
    }
}
