//! AVX2 with FMA and F16C: two registers make the vector, lanes 0..8 and 8..16.

use std::arch::x86_64::*;

use super::{Detected, Isa, Kernel, power};
use crate::format::f8::F8;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The proof, if the processor has the instructions.
    #[inline]
    pub fn new() -> Option<Self> {
        static DETECTED: Detected = Detected::new();
        let has =
            || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        DETECTED.get(has).then_some(Self(()))
    }
}

/// Compiles `kernel` with the level's instructions.
#[target_feature(enable = "avx2,fma,f16c")]
fn entry<K: Kernel>(s: Avx2, kernel: K) -> K::Out {
    kernel.run(s)
}

type F = [__m256; 2];
type I = [__m256i; 2];

/// Methods on values: safe, because `Avx2` proves the features.
macro_rules! lanewise {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => { $(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: `self` proves that the processor has the instructions.
            unsafe { $body }
        }
    )* };
}

/// Methods that read or write memory: the caller promises the pointer.
macro_rules! memory {
    ($($name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? = $body:expr;)*) => { $(
        #[inline(always)]
        unsafe fn $name(self, $($arg: $ty),*) $(-> $out)? {
            // SAFETY: `self` proves the instructions, the caller promises the lanes behind the pointer.
            unsafe { $body }
        }
    )* };
}

/// Both halves through one two-operand intrinsic.
macro_rules! both {
    ($op:ident, $a:expr, $b:expr) => {
        [$op($a[0], $b[0]), $op($a[1], $b[1])]
    };
}

/// The low 16 bits of each lane, in order.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn narrow(x: I) -> __m256i {
    // SAFETY: the caller's promise. `packus` works within 128-bit parts, so quarters are put in order after it.
    unsafe {
        let low = _mm256_set1_epi32(0xffff);
        let packed = _mm256_packus_epi32(_mm256_and_si256(x[0], low), _mm256_and_si256(x[1], low));
        _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
    }
}

// SAFETY: `Avx2` values exist only after detection.
unsafe impl Isa for Avx2 {
    type F = F;
    type I = I;
    const MAX_TILE: usize = 4;
    const SUMS: usize = 4;

    #[inline]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        // SAFETY: `self` proves that the processor has the features of `entry`.
        unsafe { entry(self, kernel) }
    }

    memory! {
        load(p: *const f32) -> F = [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))];
        store(p: *mut f32, x: F) = { _mm256_storeu_ps(p, x[0]); _mm256_storeu_ps(p.add(8), x[1]) };
        load_f16(p: *const u16) -> F = [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))];
        store_f16(p: *mut u16, x: F) = {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]))
        };
        load_i(p: *const u8) -> I = [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())];
        store_i(p: *mut u8, x: I) = { _mm256_storeu_si256(p.cast(), x[0]); _mm256_storeu_si256(p.add(32).cast(), x[1]) };
        load_u8(p: *const u8) -> I = [_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast())), _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8).cast()))];
        load_i8(p: *const u8) -> I = [_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())), _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()))];
        load_u16(p: *const u16) -> I = [_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()))];
        store_u16(p: *mut u16, x: I) = _mm256_storeu_si256(p.cast(), narrow(x));
        store_u8(p: *mut u8, x: I) = {
            let words = _mm256_and_si256(narrow(x), _mm256_set1_epi16(0xff));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), bytes)
        };
    }
    lanewise! {
        splat(x: f32) -> F = [_mm256_set1_ps(x); 2];
        add(a: F, b: F) -> F = both!(_mm256_add_ps, a, b);
        sub(a: F, b: F) -> F = both!(_mm256_sub_ps, a, b);
        mul(a: F, b: F) -> F = both!(_mm256_mul_ps, a, b);
        div(a: F, b: F) -> F = both!(_mm256_div_ps, a, b);
        fma(a: F, b: F, c: F) -> F = [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])];
        max(a: F, b: F) -> F = both!(_mm256_max_ps, a, b);
        min(a: F, b: F) -> F = both!(_mm256_min_ps, a, b);
        greater(a: F, b: F) -> u16 = {
            let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0])) as u16;
            let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1])) as u16;
            low | high << 8
        };
        select(mask: u16, a: F, b: F) -> F = {
            let bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let bits = [_mm256_set1_epi32((mask & 0xff).into()), _mm256_set1_epi32((mask >> 8).into())];
            let low = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(bits[0], bit), bit));
            let high = _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(bits[1], bit), bit));
            [_mm256_blendv_ps(b[0], a[0], low), _mm256_blendv_ps(b[1], a[1], high)]
        };
        sum(x: F) -> f32 = {
            let half = _mm256_add_ps(x[0], x[1]);
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        };
        max_lane(x: F) -> f32 = {
            let half = _mm256_max_ps(x[0], x[1]);
            let quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        };
        splat_i(x: i32) -> I = [_mm256_set1_epi32(x); 2];
        and(a: I, b: I) -> I = both!(_mm256_and_si256, a, b);
        or(a: I, b: I) -> I = both!(_mm256_or_si256, a, b);
        xor(a: I, b: I) -> I = both!(_mm256_xor_si256, a, b);
        add_i(a: I, b: I) -> I = both!(_mm256_add_epi32, a, b);
        max_i(a: I, b: I) -> I = both!(_mm256_max_epi32, a, b);
        sum_i(x: I) -> i32 = {
            let half = _mm256_add_epi32(x[0], x[1]);
            let quarter = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            let pair = _mm_add_epi32(quarter, _mm_unpackhi_epi64(quarter, quarter));
            _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32::<1>(pair)))
        };
        max_lane_i(x: I) -> i32 = {
            let half = _mm256_max_epi32(x[0], x[1]);
            let quarter = _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            let pair = _mm_max_epi32(quarter, _mm_unpackhi_epi64(quarter, quarter));
            _mm_cvtsi128_si32(_mm_max_epi32(pair, _mm_shuffle_epi32::<1>(pair)))
        };
        to_f(x: I) -> F = [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])];
        round(x: F) -> I = [_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1])];
        bits(x: F) -> I = [_mm256_castps_si256(x[0]), _mm256_castps_si256(x[1])];
        as_float(x: I) -> F = [_mm256_castsi256_ps(x[0]), _mm256_castsi256_ps(x[1])];
    }
    #[inline(always)]
    unsafe fn load_f8<const M: u32>(self, p: *const u8, scale: f32) -> F {
        const { assert!(M == 3 || M == 5) };
        // By way of f16, which has more mantissa bits and a bias that is 112 lower than an f32's: no subnormal f32 arises.
        // SAFETY: `self` proves the instructions, the caller promises 16 bytes behind the pointer.
        unsafe {
            let code = _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()));
            let wide = if M == 3 { _mm256_slli_epi16::<7>(code) } else { _mm256_slli_epi16::<5>(code) };
            let half = _mm256_and_si256(wide, _mm256_set1_epi16((1 << 15 | 0x7f << (10 - M)) as i16));
            let scale = _mm256_set1_ps(scale * power(F8::<M>::REBIAS - 112));
            let low = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
            let high = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(half));
            [_mm256_mul_ps(low, scale), _mm256_mul_ps(high, scale)]
        }
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: I) -> I {
        // SAFETY: `self` proves the instructions (here and below).
        unsafe {
            [_mm256_sll_epi32(a[0], _mm_cvtsi32_si128(N as i32)), _mm256_sll_epi32(a[1], _mm_cvtsi32_si128(N as i32))]
        }
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: I) -> I {
        // SAFETY: as above.
        unsafe {
            [_mm256_srl_epi32(a[0], _mm_cvtsi32_si128(N as i32)), _mm256_srl_epi32(a[1], _mm_cvtsi32_si128(N as i32))]
        }
    }
    #[inline(always)]
    fn sra<const N: u32>(self, a: I) -> I {
        // SAFETY: as above.
        unsafe {
            [_mm256_sra_epi32(a[0], _mm_cvtsi32_si128(N as i32)), _mm256_sra_epi32(a[1], _mm_cvtsi32_si128(N as i32))]
        }
    }
    #[inline(always)]
    fn dot(self, acc: I, w: I, a: I) -> I {
        // `maddubs` adds pairs of products in 16 bits, where 2 * 255 * 128 does not fit: bytes go as two nibbles.
        // SAFETY: as above.
        unsafe {
            let mut out = acc;
            for i in 0..2 {
                let low = _mm256_maddubs_epi16(_mm256_and_si256(w[i], _mm256_set1_epi8(15)), a[i]);
                let high = _mm256_maddubs_epi16(high_nibbles(w[i]), a[i]);
                out[i] = _mm256_add_epi32(acc[i], _mm256_add_epi32(pairs(low), _mm256_slli_epi32::<4>(pairs(high))));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn dots<const T: usize>(self, acc: &mut [I; T], w: &[I], most: u32, x: *const i32, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if most <= 63 {
                short_dots::<T, 0>(acc, w, most, x, stride);
            } else {
                let low = _mm256_set1_epi8(15);
                let mut nibbles = [[_mm256_setzero_si256(); 2]; 8];
                for (i, w) in w.iter().enumerate() {
                    nibbles[i] = [_mm256_and_si256(w[0], low), _mm256_and_si256(w[1], low)];
                }
                short_dots::<T, 0>(acc, &nibbles[..w.len()], 15, x, stride);
                for (i, w) in w.iter().enumerate() {
                    nibbles[i] = [high_nibbles(w[0]), high_nibbles(w[1])];
                }
                short_dots::<T, 4>(acc, &nibbles[..w.len()], 15, x, stride);
            }
        }
    }
}

/// # Safety
/// AVX2 (here and below).
#[inline(always)]
unsafe fn high_nibbles(w: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(w), _mm256_set1_epi8(15)) }
}

/// The sums of pairs of i16, as i32.
#[inline(always)]
unsafe fn pairs(x: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_madd_epi16(x, _mm256_set1_epi16(1)) }
}

/// [`Isa::dots`], times `2^SHIFT`, for bytes of at most 63. Products are summed in 16 bits for as many vectors as surely
/// fit, `2 * most * 128` each: widening them once a run spares nearly half of the multiplications.
///
/// # Safety
/// As [`Isa::dots`].
#[inline(always)]
unsafe fn short_dots<const T: usize, const SHIFT: i32>(
    acc: &mut [I; T],
    w: &[I],
    most: u32,
    x: *const i32,
    stride: usize,
) {
    let run = (i16::MAX as u32 / (2 * most * 128)) as usize;
    for (r, w) in w.chunks(run).enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let mut short = [[_mm256_setzero_si256(); 2]; T];
            for (i, w) in w.iter().enumerate() {
                for (t, short) in short.iter_mut().enumerate() {
                    let four = _mm256_set1_epi32(x.byte_add(t * stride).add(r * run + i).read());
                    for (short, w) in short.iter_mut().zip(w) {
                        *short = _mm256_add_epi16(*short, _mm256_maddubs_epi16(*w, four));
                    }
                }
            }
            for (acc, short) in acc.iter_mut().zip(&short) {
                for (acc, short) in acc.iter_mut().zip(short) {
                    *acc = _mm256_add_epi32(*acc, _mm256_slli_epi32::<SHIFT>(pairs(*short)));
                }
            }
        }
    }
}
