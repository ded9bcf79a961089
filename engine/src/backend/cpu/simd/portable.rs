//! The portable level: arrays of 16, in plain Rust. What it computes is the definition for the others.

use half::f16;

use super::{Isa, Kernel};

/// Runs everywhere. Fused multiply-add is `f32::mul_add`, which is exact even where it is slow.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

type F = [f32; 16];
type I = [i32; 16];

#[inline(always)]
fn map<A: Copy, R>(a: [A; 16], f: impl Fn(A) -> R) -> [R; 16] {
    a.map(f)
}

#[inline(always)]
fn zip<A: Copy, B: Copy, R>(a: [A; 16], b: [B; 16], f: impl Fn(A, B) -> R) -> [R; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Folds lanes as a tree: 8 apart, then 4, 2, 1.
#[inline(always)]
pub(super) fn tree<A: Copy>(mut x: [A; 16], f: impl Fn(A, A) -> A) -> A {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
    }
    x[0]
}

// SAFETY: uses no special instructions.
unsafe impl Isa for Portable {
    type F = F;
    type I = I;
    const MAX_TILE: usize = 4;
    const SUMS: usize = 4;

    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        kernel.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller promises 16 readable lanes (here and below).
        unsafe { p.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: F) {
        // SAFETY: the caller promises 16 writable lanes (here and below).
        unsafe { p.cast::<F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> F {
        // SAFETY: see `load`.
        map(unsafe { p.cast::<[u16; 16]>().read_unaligned() }, |h| f16::from_bits(h).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: F) {
        // SAFETY: see `store`.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(map(x, |x| f16::from_f32(x).to_bits())) }
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn greater(self, a: F, b: F) -> u16 {
        (0..16).fold(0, |mask, i| mask | u16::from(a[i] > b[i]) << i)
    }
    #[inline(always)]
    fn select(self, mask: u16, a: F, b: F) -> F {
        std::array::from_fn(|i| if mask >> i & 1 == 1 { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        tree(x, |a, b| a + b)
    }
    #[inline(always)]
    fn max_lane(self, x: F) -> f32 {
        tree(x, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load_i(self, p: *const u8) -> I {
        // SAFETY: the caller promises 64 readable bytes.
        unsafe { p.cast::<I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i(self, p: *mut u8, x: I) {
        // SAFETY: the caller promises 64 writable bytes.
        unsafe { p.cast::<I>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> I {
        // SAFETY: see `load`.
        map(unsafe { p.cast::<[u8; 16]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(self, p: *const u8) -> I {
        // SAFETY: see `load`.
        map(unsafe { p.cast::<[i8; 16]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn load_u16(self, p: *const u16) -> I {
        // SAFETY: see `load`.
        map(unsafe { p.cast::<[u16; 16]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn store_u8(self, p: *mut u8, x: I) {
        // SAFETY: see `store`.
        unsafe { p.cast::<[u8; 16]>().write_unaligned(map(x, |x| x as u8)) }
    }
    #[inline(always)]
    unsafe fn store_u16(self, p: *mut u16, x: I) {
        // SAFETY: see `store`.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(map(x, |x| x as u16)) }
    }
    #[inline(always)]
    fn and(self, a: I, b: I) -> I {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: I, b: I) -> I {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn xor(self, a: I, b: I) -> I {
        zip(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn max_i(self, a: I, b: I) -> I {
        zip(a, b, i32::max)
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: I) -> I {
        map(a, |a| a << N)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: I) -> I {
        map(a, |a| (a as u32 >> N) as i32)
    }
    #[inline(always)]
    fn sra<const N: u32>(self, a: I) -> I {
        map(a, |a| a >> N)
    }
    #[inline(always)]
    fn dot(self, acc: I, w: I, a: I) -> I {
        std::array::from_fn(|i| {
            let (w, a) = (w[i].to_le_bytes(), a[i].to_le_bytes());
            (0..4).fold(acc[i], |sum, j| sum.wrapping_add(i32::from(w[j]) * i32::from(a[j] as i8)))
        })
    }
    #[inline(always)]
    fn sum_i(self, x: I) -> i32 {
        tree(x, i32::wrapping_add)
    }
    #[inline(always)]
    fn max_lane_i(self, x: I) -> i32 {
        tree(x, i32::max)
    }
    #[inline(always)]
    fn to_f(self, x: I) -> F {
        map(x, |x| x as f32)
    }
    #[inline(always)]
    fn round(self, x: F) -> I {
        map(x, |x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn bits(self, x: F) -> I {
        map(x, |x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn as_float(self, x: I) -> F {
        map(x, |x| f32::from_bits(x as u32))
    }
}
