//! Intel's tile registers (AMX): eight registers of up to 16 rows of 64 bytes, and products of them.
//!
//! Instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter "Programming with Intel
//! AMX". Everything but products of tiles runs on AVX-512 there, so this is no vector type of its own.

use std::arch::asm;

use super::Detected;
use super::avx512::Avx512;

/// Whether tiles of bytes can be multiplied here: the processor has them, and the system lets this process use them.
pub fn is_available() -> bool {
    static DETECTED: Detected = Detected::new();
    DETECTED.get(|| Avx512::new().is_some() && processor_has_tiles() && system_allows_tiles())
}

/// CPUID: AMX-TILE and AMX-INT8, and that the system saves tiles (XCR0 bits 17 and 18).
fn processor_has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn saved_states() -> u64 {
        // SAFETY: register 0 exists wherever the instruction does.
        unsafe { _xgetbv(0) }
    }
    const TILES: u32 = 1 << 24 | 1 << 25;
    // AVX-512 was found before: leaf 7 exists, and the system has switched XGETBV on.
    let has = __cpuid_count(7, 0).edx & TILES == TILES;
    // SAFETY: as above.
    has && unsafe { saved_states() } >> 17 & 3 == 3
}

/// Linux asks to be asked before a process uses tiles (arch_prctl(2), ARCH_REQ_XCOMP_PERM), and answers for all its threads.
#[cfg(target_os = "linux")]
fn system_allows_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let answer: i64;
    // SAFETY: a system call with two numbers; it changes what this process may use, no memory.
    unsafe {
        asm!(
            "syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA,
            out("rcx") _, out("r11") _, options(nostack)
        );
    }
    answer == 0
}

/// Other systems have not been tried.
#[cfg(not(target_os = "linux"))]
fn system_allows_tiles() -> bool {
    false
}

/// Shapes of the eight tiles, as LDTILECFG takes them.
#[repr(C, align(64))]
pub struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Of (rows, bytes of a row) of each: at most 16 and 64, neither 0.
    pub const fn new(tiles: [(usize, usize); 8]) -> Self {
        let mut shapes = Self { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        let mut i = 0;
        while i < 8 {
            let (rows, bytes) = tiles[i];
            assert!(rows > 0 && rows <= 16 && bytes > 0 && bytes <= 64);
            (shapes.rows[i], shapes.bytes[i]) = (rows as u8, bytes as u16);
            i += 1;
        }
        shapes
    }
}

/// The tile registers of this thread, until it is dropped.
pub struct Tiles(());

impl Tiles {
    /// Gives them their shapes.
    ///
    /// # Safety
    /// [`is_available`], and this thread has no other.
    #[inline(always)]
    pub unsafe fn new(shapes: &'static Shapes) -> Self {
        // SAFETY: the caller's promise; the shapes are valid (here and below: registers that the compiler does not use).
        unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(readonly, nostack, preserves_flags)) };
        Self(())
    }
    /// Fills tile `T` with rows that are `stride` bytes apart.
    ///
    /// # Safety
    /// The rows are readable.
    #[inline(always)]
    pub unsafe fn load<const T: usize>(&self, rows: *const u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm{t}, [{rows} + {stride}]", t = const T, rows = in(reg) rows, stride = in(reg) stride,
                options(readonly, nostack, preserves_flags)
            );
        }
    }
    /// `C[m][n] = sum over k and b of A[m][4k + b] * B[k][4n + b]`, of signed bytes of A and unsigned ones of B; exact.
    #[inline(always)]
    pub fn multiply<const C: usize, const A: usize, const B: usize>(&self) {
        // SAFETY: see `new`.
        unsafe {
            asm!(
                "tilezero tmm{c}", "tdpbsud tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nomem, nostack, preserves_flags)
            );
        }
    }
    /// Writes tile `T`, row after row of 64 bytes.
    ///
    /// # Safety
    /// The rows are writable.
    #[inline(always)]
    pub unsafe fn store<const T: usize>(&self, rows: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tilestored [{rows} + {stride}], tmm{t}", t = const T, rows = in(reg) rows, stride = in(reg) 64usize,
                options(nostack, preserves_flags)
            );
        }
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: see `new`. Without this, every switch of threads would save 8 KiB more.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}
