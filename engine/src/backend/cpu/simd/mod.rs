//! One vector type for every instruction set: 16 lanes of 32 bits.
//!
//! Kernels are written once, over [`Isa`], and compiled for each level. Sixteen lanes are one
//! AVX-512 register, two AVX2 registers, four NEON registers or a plain array, and every operation is
//! defined lane by lane (or as a fixed tree), so all levels give the same bits. Tile registers ([`amx`]) come on top of
//! AVX-512: kernels that use them are written for them.
//!
//! A value of an [`Isa`] type is a proof that the processor has the instructions: it can only be had
//! from [`Level::detect`]-checked constructors, so the operations themselves are safe to call.

/// An array from an expression of its index. Not `array::from_fn`: a closure is compiled without the
/// level's instructions wherever the compiler does not inline it, and then every lane operation in it
/// is a call. So kernels hold no closures over vectors.
macro_rules! array {
    ($first:expr, $len:expr, $i:ident => $element:expr) => {{
        let mut out = [$first; $len];
        #[allow(clippy::needless_range_loop)] // the index is what the expression is about
        for $i in 0..$len {
            out[$i] = $element;
        }
        out
    }};
}
pub(super) use array;

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod portable;

use crate::format::f8::{E2M5, F8};

/// Work that can run on any level. `run` must be `#[inline(always)]` so that it is compiled with the
/// level's instructions.
pub trait Kernel {
    /// What it gives back.
    type Out;
    /// Does it.
    fn run<S: Isa>(self, s: S) -> Self::Out;
}

/// Instructions chosen at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust: every machine.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// The same, and tile registers for products with many rows.
    Amx,
    /// Arm's Advanced SIMD.
    Neon,
}

impl Level {
    /// Every level this machine runs, slowest first.
    pub fn available() -> Vec<Level> {
        let all = [Level::Portable, Level::Avx2, Level::Avx512, Level::Amx, Level::Neon];
        all.into_iter().filter(|level| level.is_available()).collect()
    }
    /// The fastest level of this machine.
    pub fn detect() -> Level {
        *Self::available().last().expect("portable code runs everywhere")
    }
    /// Whether this machine has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Level::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::Avx2::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::Avx512::new().is_some(),
            #[cfg(target_arch = "x86_64")]
            Level::Amx => amx::is_available(),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => true,
            #[allow(unreachable_patterns)] // which levels exist depends on the target
            _ => false,
        }
    }
    /// Its name, as `PONDER_CPU` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Amx => "amx",
            Level::Neon => "neon",
        }
    }
    /// Runs `kernel` with this level's instructions.
    ///
    /// # Panics
    /// If this machine lacks them.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self {
            Level::Portable => kernel.run(portable::Portable),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::Avx2::new().expect("the level was checked").call(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Amx => avx512::Avx512::new().expect("the level was checked").call(kernel),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => kernel.run(neon::Neon),
            #[allow(unreachable_patterns)] // which levels exist depends on the target
            _ => panic!("{} does not exist on this machine", self.name()),
        }
    }
}

/// Asks for the cache line at `p`, into the second level; any address will do.
#[inline(always)]
pub fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults, of an instruction that every x86-64 has.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// As [`prefetch`], into the first level.
#[inline(always)]
pub fn prefetch_near(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for the cache line at `p`, to write it.
#[inline(always)]
pub fn prefetch_to_write(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults; processors without it do nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) p, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// The answer of a feature test, kept: every kernel call asks it.
#[cfg(target_arch = "x86_64")]
struct Detected(std::sync::atomic::AtomicU8);

#[cfg(target_arch = "x86_64")]
impl Detected {
    const fn new() -> Self {
        Self(std::sync::atomic::AtomicU8::new(0))
    }
    #[inline(always)]
    fn get(&self, test: impl Fn() -> bool) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        match self.0.load(Relaxed) {
            0 => {
                let has = test();
                self.0.store(1 + u8::from(has), Relaxed);
                has
            }
            known => known == 2,
        }
    }
}

/// 2 to the power of `n`.
#[inline(always)]
fn power(n: u32) -> f32 {
    f32::from_bits((127 + n) << 23)
}

/// [`Isa::plane_dots`], one plane after the other.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn planes_in_turn<S: Isa, const T: usize, const STRIDE: usize>(
    s: S,
    acc: &mut [[S::I; T]; 3],
    w: &[S::I; 8],
    most: u32,
    x: *const i32,
) {
    for (p, acc) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { s.dots(acc, w, most, x.add(8 * p), STRIDE) }
    }
}

/// Sixteen lanes of f32 and of i32, and what kernels do with them.
///
/// # Safety
/// A value may exist only where the processor has the instructions that the methods use.
#[allow(clippy::missing_safety_doc)] // pointers must be valid for the lanes that the name says
pub unsafe trait Isa: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32, or 64 bytes.
    type I: Copy;
    /// Most rows that a linear tile of this level holds in registers.
    const MAX_TILE: usize;
    /// Sums of 16 lanes that stay in registers beside the weights and the activation that they are made of.
    const SUMS: usize;
    /// Rows whose three planes of digits are summed at once by [`Isa::plane_dots`].
    const PLANE_ROWS: usize = 2;

    /// Runs `kernel` in a function compiled for these instructions.
    fn call<K: Kernel>(self, kernel: K) -> K::Out;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Reads 16 f32, unaligned.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Writes 16 f32, unaligned.
    unsafe fn store(self, p: *mut f32, x: Self::F);
    /// Reads 16 IEEE halves.
    unsafe fn load_f16(self, p: *const u16) -> Self::F;
    /// Writes 16 IEEE halves, rounded to nearest even.
    unsafe fn store_f16(self, p: *mut u16, x: Self::F);
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`: `b` where one is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: `b` where one is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Bit `i` is set where `a > b` in lane `i`; NaN is never greater.
    fn greater(self, a: Self::F, b: Self::F) -> u16;
    /// Lane `i` of `a` where bit `i` is set, else of `b`.
    fn select(self, mask: u16, a: Self::F, b: Self::F) -> Self::F;
    /// The lanes' sum as a tree: `i + (i + 8)`, then `+ 4`, `+ 2`, `+ 1`.
    fn sum(self, x: Self::F) -> f32;
    /// Lane `i` of vector `j` is lane `j` of `x[i]`.
    #[inline(always)]
    fn transpose(self, x: &[Self::F; 16]) -> [Self::F; 16] {
        let (mut rows, mut columns) = ([[0f32; 16]; 16], [[0f32; 16]; 16]);
        for (row, x) in rows.iter_mut().zip(x) {
            // SAFETY: 16 lanes.
            unsafe { self.store(row.as_mut_ptr(), *x) };
        }
        for (j, column) in columns.iter_mut().enumerate() {
            for (x, row) in column.iter_mut().zip(&rows) {
                *x = row[j];
            }
        }
        // SAFETY: as above.
        unsafe { array!(self.splat(0.0), 16, j => self.load(columns[j].as_ptr())) }
    }
    /// The largest lane, by [`Isa::max`] over the same tree.
    fn max_lane(self, x: Self::F) -> f32;

    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// Reads 64 bytes, unaligned.
    unsafe fn load_i(self, p: *const u8) -> Self::I;
    /// Writes 64 bytes, unaligned.
    unsafe fn store_i(self, p: *mut u8, x: Self::I);
    /// Reads 16 bytes, each widened without sign.
    unsafe fn load_u8(self, p: *const u8) -> Self::I;
    /// Reads 16 bytes, each widened with its sign.
    unsafe fn load_i8(self, p: *const u8) -> Self::I;
    /// Reads 16 u16, each widened without sign.
    unsafe fn load_u16(self, p: *const u16) -> Self::I;
    /// Writes the low byte of each lane.
    unsafe fn store_u8(self, p: *mut u8, x: Self::I);
    /// Writes the low half of each lane.
    unsafe fn store_u16(self, p: *mut u16, x: Self::I);
    /// Bitwise and.
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise or.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// Bitwise exclusive or.
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// Wrapping sum of lanes.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// The larger lane, signed.
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shift left.
    fn shl<const N: u32>(self, a: Self::I) -> Self::I;
    /// Shift right, zeros in.
    fn shr<const N: u32>(self, a: Self::I) -> Self::I;
    /// Shift right, sign in.
    fn sra<const N: u32>(self, a: Self::I) -> Self::I;
    /// `acc + sum of the four products` of unsigned bytes of `w` and signed bytes of `a`, exact.
    fn dot(self, acc: Self::I, w: Self::I, a: Self::I) -> Self::I;
    /// [`Isa::dot`] of every vector of `w` and the same of `T` rows: `acc[t] += sum over i of w[i] . x[t][4i..4i + 4]`.
    /// Bytes of `w` are at most `most`; the first row's bytes are at `x`, each further row's `stride` bytes on.
    #[inline(always)]
    unsafe fn dots<const T: usize>(
        self,
        acc: &mut [Self::I; T],
        w: &[Self::I],
        most: u32,
        x: *const i32,
        stride: usize,
    ) {
        let _ = most;
        for (i, w) in w.iter().enumerate() {
            for (t, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let four = unsafe { x.byte_add(t * stride).add(i).read() };
                *acc = self.dot(*acc, *w, self.splat_i(four));
            }
        }
    }
    /// [`Isa::dots`] of every vector of `w` with three planes of 32 bytes of each of `T` rows at once:
    /// `acc[p][t] += sum over i of w[i] . x[t][p][4i..4i + 4]`. The planes of a row follow each other, rows are `STRIDE`
    /// bytes apart.
    #[inline(always)]
    unsafe fn plane_dots<const T: usize, const STRIDE: usize>(
        self,
        acc: &mut [[Self::I; T]; 3],
        w: &[Self::I; 8],
        most: u32,
        x: *const i32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { planes_in_turn::<Self, T, STRIDE>(self, acc, w, most, x) }
    }
    /// Wrapping sum over the lanes.
    fn sum_i(self, x: Self::I) -> i32;
    /// The largest lane, signed.
    fn max_lane_i(self, x: Self::I) -> i32;

    /// i32 to f32, rounded to nearest even.
    fn to_f(self, x: Self::I) -> Self::F;
    /// f32 to i32, rounded to nearest even; values beyond i32 are unspecified.
    fn round(self, x: Self::F) -> Self::I;
    /// The bits of f32 lanes.
    fn bits(self, x: Self::F) -> Self::I;
    /// f32 lanes from bits.
    fn as_float(self, x: Self::I) -> Self::F;

    /// Reads 16 bfloat16.
    ///
    /// # Safety
    /// As [`Isa::load_u16`].
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller's promise.
        self.as_float(self.shl::<16>(unsafe { self.load_u16(p) }))
    }
    /// Writes 16 bfloat16, rounded to nearest even; NaN stays NaN.
    ///
    /// # Safety
    /// As [`Isa::store_u16`].
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F) {
        let bits = self.bits(x);
        let odd = self.and(self.shr::<16>(bits), self.splat_i(1));
        let rounded = self.add_i(bits, self.add_i(odd, self.splat_i(0x7fff)));
        let magnitude = self.and(bits, self.splat_i(0x7fff_ffff));
        // A NaN could round to infinity or wrap: keep its top bits and make it quiet.
        let quiet = self.or(bits, self.splat_i(0x0040_0000));
        let above = self.max_i(magnitude, self.splat_i(0x7f80_0000));
        let is_number = self.greater(self.splat(0.5), self.to_f(self.add_i(above, self.splat_i(-0x7f80_0000))));
        let kept = self.select(is_number, self.as_float(rounded), self.as_float(quiet));
        // SAFETY: the caller's promise.
        unsafe { self.store_u16(p, self.shr::<16>(self.bits(kept))) }
    }
    /// Reads 16 [`F8`] codes, none of them NaN, and multiplies them with `scale`, a power of two in 2^-60..=2^60.
    ///
    /// # Safety
    /// As [`Isa::load_i8`].
    #[inline(always)]
    unsafe fn load_f8<const M: u32>(self, p: *const u8, scale: f32) -> Self::F {
        const { assert!(M == 3 || M == 5) };
        // The code's bits in place of an f32's, whose bias is higher: subnormal codes are subnormal floats.
        // SAFETY: the caller's promise.
        let code = unsafe { self.load_i8(p) };
        let code = if M == 3 { self.shl::<20>(code) } else { self.shl::<18>(code) };
        let x = self.as_float(self.and(code, self.splat_i(1 << 31 | 0x7f << F8::<M>::SHIFT)));
        let (near, far) = (power(64), power(F8::<M>::REBIAS - 64) * scale);
        self.mul(self.mul(x, self.splat(near)), self.splat(far))
    }
    /// Writes 16 finite numbers as [`E2M5::encode`] does.
    ///
    /// # Safety
    /// As [`Isa::store_u8`].
    #[inline(always)]
    unsafe fn store_e2m5(self, p: *mut u8, x: Self::F) {
        let bits = self.bits(x);
        let magnitude = self.as_float(self.and(bits, self.splat_i(0x7fff_ffff)));
        let magnitude = self.min(magnitude, self.splat(E2M5::MAX));
        let at = self.bits(magnitude);
        let odd = self.and(self.shr::<{ E2M5::SHIFT }>(at), self.splat_i(1));
        let half = (1 << (E2M5::SHIFT - 1)) - 1 - (E2M5::REBIAS << 23) as i32;
        let normal = self.shr::<{ E2M5::SHIFT }>(self.add_i(at, self.add_i(odd, self.splat_i(half))));
        let steps = self.bits(self.add(magnitude, self.splat(E2M5::STEPS)));
        let steps = self.add_i(steps, self.splat_i(-(E2M5::STEPS.to_bits() as i32)));
        let small = self.greater(self.splat(E2M5::NORMAL), magnitude);
        let code = self.bits(self.select(small, self.as_float(steps), self.as_float(normal)));
        let sign = self.and(self.shr::<24>(bits), self.splat_i(0x80));
        // SAFETY: the caller's promise.
        unsafe { self.store_u8(p, self.or(code, sign)) }
    }
}
