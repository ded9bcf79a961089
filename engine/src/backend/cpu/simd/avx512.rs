//! AVX-512 with VNNI: one register is the whole vector.

use std::arch::x86_64::*;

use super::{Detected, Isa, Kernel, planes_in_turn, power};
use crate::format::f8::F8;

/// Proof that the processor has AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// The proof, if the processor has the instructions.
    #[inline]
    pub fn new() -> Option<Self> {
        static DETECTED: Detected = Detected::new();
        let has = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        };
        DETECTED.get(has).then_some(Self(()))
    }
}

/// Compiles `kernel` with the level's instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn entry<K: Kernel>(s: Avx512, kernel: K) -> K::Out {
    kernel.run(s)
}

/// Methods that are one intrinsic on values: safe, because `Avx512` proves the feature.
macro_rules! lanewise {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => { $(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: `self` proves that the processor has the instruction.
            unsafe { $body }
        }
    )* };
}

/// Methods that read or write memory: the caller promises the pointer.
macro_rules! memory {
    ($($name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? = $body:expr;)*) => { $(
        #[inline(always)]
        unsafe fn $name(self, $($arg: $ty),*) $(-> $out)? {
            // SAFETY: `self` proves the instruction, the caller promises the lanes behind the pointer.
            unsafe { $body }
        }
    )* };
}

// SAFETY: `Avx512` values exist only after detection.
unsafe impl Isa for Avx512 {
    type F = __m512;
    type I = __m512i;
    const MAX_TILE: usize = 8;
    const SUMS: usize = 12;
    const PLANE_ROWS: usize = 4;

    #[inline]
    fn call<K: Kernel>(self, kernel: K) -> K::Out {
        // SAFETY: `self` proves that the processor has the features of `entry`.
        unsafe { entry(self, kernel) }
    }

    memory! {
        load(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
        store(p: *mut f32, x: __m512) = _mm512_storeu_ps(p, x);
        // Not `_mm512_cvtph_ps`: that one suppresses exceptions, which the instruction cannot do while it reads memory.
        load_f16(p: *const u16) -> __m512 = _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(_mm256_loadu_si256(p.cast()));
        store_f16(p: *mut u16, x: __m512) = _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        load_i(p: *const u8) -> __m512i = _mm512_loadu_si512(p.cast());
        store_i(p: *mut u8, x: __m512i) = _mm512_storeu_si512(p.cast(), x);
        load_u8(p: *const u8) -> __m512i = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        load_i8(p: *const u8) -> __m512i = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()));
        load_u16(p: *const u16) -> __m512i = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        store_u8(p: *mut u8, x: __m512i) = _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x));
        store_u16(p: *mut u16, x: __m512i) = _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(x));
    }
    lanewise! {
        splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        greater(a: __m512, b: __m512) -> u16 = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b);
        select(mask: u16, a: __m512, b: __m512) -> __m512 = _mm512_mask_blend_ps(mask, b, a);
        splat_i(x: i32) -> __m512i = _mm512_set1_epi32(x);
        and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        xor(a: __m512i, b: __m512i) -> __m512i = _mm512_xor_si512(a, b);
        add_i(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        max_i(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epi32(a, b);
        sum_i(x: __m512i) -> i32 = _mm512_reduce_add_epi32(x);
        max_lane_i(x: __m512i) -> i32 = _mm512_reduce_max_epi32(x);
        to_f(x: __m512i) -> __m512 = _mm512_cvtepi32_ps(x);
        round(x: __m512) -> __m512i = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        bits(x: __m512) -> __m512i = _mm512_castps_si512(x);
        as_float(x: __m512i) -> __m512 = _mm512_castsi512_ps(x);
        sum(x: __m512) -> f32 = {
            let half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        };
        max_lane(x: __m512) -> f32 = {
            let half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        };
    }
    #[inline(always)]
    fn transpose(self, x: &[__m512; 16]) -> [__m512; 16] {
        macro_rules! pairs {
            ($unpack:ident, $a:expr, $b:expr) => {
                _mm512_castpd_ps($unpack(_mm512_castps_pd($a), _mm512_castps_pd($b)))
            };
        }
        // SAFETY: `self` proves the instructions.
        unsafe {
            // Four by four within each quarter, then the quarters.
            let fours = array!([x[0]; 4], 4, i => {
                let (a, b, c, d) = (x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                [pairs!(_mm512_unpacklo_pd, ab, cd), pairs!(_mm512_unpackhi_pd, ab, cd),
                 pairs!(_mm512_unpacklo_pd, ab_high, cd_high), pairs!(_mm512_unpackhi_pd, ab_high, cd_high)]
            });
            let mut out = [x[0]; 16];
            for i in 0..4 {
                let (a, b, c, d) = (fours[0][i], fours[1][i], fours[2][i], fours[3][i]);
                let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
                let (ab_high, cd_high) = (_mm512_shuffle_f32x4::<0xEE>(a, b), _mm512_shuffle_f32x4::<0xEE>(c, d));
                out[i] = _mm512_shuffle_f32x4::<0x88>(ab, cd);
                out[4 + i] = _mm512_shuffle_f32x4::<0xDD>(ab, cd);
                out[8 + i] = _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high);
                out[12 + i] = _mm512_shuffle_f32x4::<0xDD>(ab_high, cd_high);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn load_f8<const M: u32>(self, p: *const u8, scale: f32) -> __m512 {
        const { assert!(M == 3 || M == 5) };
        // By way of f16, which has more mantissa bits and a bias that is 112 lower than an f32's: no subnormal f32 arises.
        // SAFETY: `self` proves the instructions, the caller promises 16 bytes behind the pointer.
        unsafe {
            let code = _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()));
            let wide = if M == 3 { _mm256_slli_epi16::<7>(code) } else { _mm256_slli_epi16::<5>(code) };
            let half = _mm256_and_si256(wide, _mm256_set1_epi16((1 << 15 | 0x7f << (10 - M)) as i16));
            _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(scale * power(F8::<M>::REBIAS - 112)))
        }
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: `self` proves the instruction (here and below).
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn sra<const N: u32>(self, a: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srai_epi32::<N>(a) }
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_dpbusd_epi32(acc, w, a) }
    }
    #[inline(always)]
    unsafe fn plane_dots<const T: usize, const STRIDE: usize>(
        self,
        acc: &mut [[__m512i; T]; 3],
        w: &[__m512i; 8],
        most: u32,
        x: *const i32,
    ) {
        // SAFETY: the caller's promise; of four rows there are four accumulators a plane.
        unsafe {
            if T == 4 {
                return dots_of_four::<STRIDE>(&mut *(&raw mut *acc).cast(), w, x);
            }
            planes_in_turn::<Self, T, STRIDE>(self, acc, w, most, x)
        }
    }
}

/// [`Isa::plane_dots`] of four rows. A dot product has a latency of four or five cycles and two can begin in each, so ten
/// sums must be under way at once. The compiler puts those of one sum behind each other, and the window of the processor
/// does not reach over that: hence the order is fixed here, twelve sums side by side.
///
/// # Safety
/// `x` points at four rows, `STRIDE` bytes apart, of three planes of 32 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dots_of_four<const STRIDE: usize>(acc: &mut [[__m512i; 4]; 3], w: &[__m512i; 8], x: *const i32) {
    macro_rules! dot {
        ($i:literal, $p:literal, $t:literal) => {
            concat!(
                "vpdpbusd {a",
                $p,
                $t,
                "}, {w",
                $i,
                "}, dword ptr [{x} + ",
                $t,
                "*{stride} + 32*",
                $p,
                " + 4*",
                $i,
                "]{{1to16}}\n"
            )
        };
    }
    macro_rules! plane {
        ($i:literal, $p:literal) => {
            concat!(dot!($i, $p, 0), dot!($i, $p, 1), dot!($i, $p, 2), dot!($i, $p, 3))
        };
    }
    macro_rules! vector {
        ($i:literal) => {
            concat!(plane!($i, 0), plane!($i, 1), plane!($i, 2))
        };
    }
    let [[a00, a01, a02, a03], [a10, a11, a12, a13], [a20, a21, a22, a23]] = acc;
    // SAFETY: reads the rows that the caller promises, changes the accumulators.
    unsafe {
        std::arch::asm!(
            vector!(0), vector!(1), vector!(2), vector!(3), vector!(4), vector!(5), vector!(6), vector!(7),
            a00 = inout(zmm_reg) *a00, a01 = inout(zmm_reg) *a01, a02 = inout(zmm_reg) *a02, a03 = inout(zmm_reg) *a03,
            a10 = inout(zmm_reg) *a10, a11 = inout(zmm_reg) *a11, a12 = inout(zmm_reg) *a12, a13 = inout(zmm_reg) *a13,
            a20 = inout(zmm_reg) *a20, a21 = inout(zmm_reg) *a21, a22 = inout(zmm_reg) *a22, a23 = inout(zmm_reg) *a23,
            w0 = in(zmm_reg) w[0], w1 = in(zmm_reg) w[1], w2 = in(zmm_reg) w[2], w3 = in(zmm_reg) w[3],
            w4 = in(zmm_reg) w[4], w5 = in(zmm_reg) w[5], w6 = in(zmm_reg) w[6], w7 = in(zmm_reg) w[7],
            x = in(reg) x, stride = const STRIDE,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}
