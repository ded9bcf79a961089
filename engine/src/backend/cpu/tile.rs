//! The inner loops of every matrix product: a tile of rows against panels of weights.
//!
//! One function per (level, format, rows in the tile), found when a program is compiled. Whatever the
//! tile, an output is made of the same operations in the same order: groups in ascending K, in each an
//! exact integer sum and one fused multiply-add (two where the format has minima). So a row's result
//! does not depend on the tile, the panel split or the level.

use std::marker::PhantomData;

use super::activation::{RowGroup, TILE, WordGroup};
use super::float::{Float, Scaled};
use super::integer::Integer;
use super::panel::{GROUP, LANES, Panels};
use super::simd::{Isa, Kernel, Level};
use crate::format::Format;

/// Panels times a tile: `out[t * stride + panel * 16 + lane]`.
#[derive(Clone, Copy)]
pub struct TileArgs {
    /// The first panel.
    pub panels: *const u8,
    /// Bytes between panels.
    pub panel_bytes: usize,
    /// Panels to do; each writes 16 outputs per row.
    pub count: usize,
    /// The tile, in the kernel's [`Form`].
    pub x: *const u8,
    /// Width.
    pub k: usize,
    /// Where the first panel's outputs of the tile's first row go.
    pub out: *mut f32,
    /// Elements between rows of `out`.
    pub stride: usize,
}

/// A kernel. Safe to call where its level is available and the arguments describe valid memory.
pub type TileFn = unsafe fn(TileArgs);

/// Fewest rows that tile registers multiply faster than vectors.
#[cfg(target_arch = "x86_64")]
const FEWEST_TILED: usize = 5;

/// How a kernel wants its tile of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// [`RowGroup`]s `[k / 32][rows]`.
    Planes,
    /// [`WordGroup`]s `[k / 32]`.
    Words,
    /// f32 `[k][rows]`.
    Floats,
}

impl Form {
    /// All of them, each at the place of its number.
    pub const ALL: [Form; 3] = [Form::Planes, Form::Words, Form::Floats];
    /// Bytes of some tiles of [`TILE`] rows, or of a last one with what is left.
    pub fn bytes(self, k: usize, rows: usize) -> usize {
        match self {
            Form::Planes => rows * (k / GROUP) * size_of::<RowGroup>(),
            Form::Words => rows.div_ceil(TILE) * (k / GROUP) * size_of::<WordGroup>(),
            Form::Floats => rows * k * 4,
        }
    }
}

/// A kernel, and what it reads: chosen together, for one is nothing without the other.
#[derive(Clone, Copy)]
pub struct TileKernel {
    /// The kernel.
    pub run: TileFn,
    /// Its tile's form.
    pub form: Form,
}

/// The kernel for a format and a number of rows (up to the level's largest tile).
pub fn tile_kernel(level: Level, format: Format, rows: usize) -> TileKernel {
    #[cfg(target_arch = "x86_64")]
    if level == Level::Amx
        && rows >= FEWEST_TILED
        && let Some(kernel) = pick_tiled(format, rows)
    {
        return kernel;
    }
    struct Pick(Format, usize);
    impl Kernel for Pick {
        type Out = TileKernel;
        #[inline(always)]
        fn run<S: Isa>(self, s: S) -> TileKernel {
            pick(s, self.0, self.1)
        }
    }
    level.run(Pick(format, rows))
}

/// The largest tile of a level.
pub fn max_tile(level: Level) -> usize {
    struct Most;
    impl Kernel for Most {
        type Out = usize;
        #[inline(always)]
        fn run<S: Isa>(self, _: S) -> usize {
            S::MAX_TILE
        }
    }
    level.run(Most)
}

#[inline(always)]
fn pick<S: Isa>(_: S, format: Format, rows: usize) -> TileKernel {
    assert!(rows <= S::MAX_TILE, "no tile of {rows} rows");
    macro_rules! table {
        ($($format:ident => $kernel:ident<$quant:ty>),*) => {
            match (format, rows) {
                $((Format::$format, 1) => kernel::<S, $kernel<$quant, 1>>(),
                  (Format::$format, 2) => kernel::<S, $kernel<$quant, 2>>(),
                  (Format::$format, 3) => kernel::<S, $kernel<$quant, 3>>(),
                  (Format::$format, 4) => kernel::<S, $kernel<$quant, 4>>(),
                  (Format::$format, 5) => kernel::<S, $kernel<$quant, 5>>(),
                  (Format::$format, 6) => kernel::<S, $kernel<$quant, 6>>(),
                  (Format::$format, 7) => kernel::<S, $kernel<$quant, 7>>(),
                  (Format::$format, 8) => kernel::<S, $kernel<$quant, 8>>(),)*
                (_, rows) => panic!("no tile of {rows} rows"),
            }
        };
    }
    table!(
        Q4_0 => Integer<super::quant::Q4_0>, Q4_1 => Integer<super::quant::Q4_1>,
        Q5_0 => Integer<super::quant::Q5_0>, Q5_1 => Integer<super::quant::Q5_1>,
        Q8_0 => Integer<super::quant::Q8_0>, Q4K => Integer<super::quant::Q4K>,
        Q5K => Integer<super::quant::Q5K>, Q6K => Integer<super::quant::Q6K>,
        I4G32 => Integer<super::quant::I4G32>, I4G128 => Integer<super::quant::I4G128>,
        F32 => Float<super::quant::F32>, F16 => Float<super::quant::F16>, BF16 => Float<super::quant::Bf16>,
        F8 => Scaled<super::quant::F8>
    )
}

/// The kernel on tile registers, if the format has one.
#[cfg(target_arch = "x86_64")]
fn pick_tiled(format: Format, rows: usize) -> Option<TileKernel> {
    use super::simd::avx512::Avx512;
    use super::tiled::{Planes, Tiled, Words};
    macro_rules! table {
        ($($format:ident => $scheme:ident),*) => {
            match (format, rows) {
                $((Format::$format, 5) => Some(kernel::<Avx512, Tiled<$scheme<super::quant::$format>, 5>>()),
                  (Format::$format, 6) => Some(kernel::<Avx512, Tiled<$scheme<super::quant::$format>, 6>>()),
                  (Format::$format, 7) => Some(kernel::<Avx512, Tiled<$scheme<super::quant::$format>, 7>>()),
                  (Format::$format, 8) => Some(kernel::<Avx512, Tiled<$scheme<super::quant::$format>, 8>>()),)*
                _ => None,
            }
        };
    }
    table!(
        Q4_0 => Words, Q4_1 => Words, Q4K => Words, I4G32 => Words, I4G128 => Words,
        Q5_0 => Planes, Q5_1 => Planes, Q8_0 => Planes, Q5K => Planes
    )
}

/// A tile kernel: `run` on an instruction set.
pub(super) trait Tile {
    /// Rows of the tile.
    const ROWS: usize;
    /// Its form.
    const FORM: Form;
    /// # Safety
    /// As [`TileFn`].
    unsafe fn run<S: Isa>(s: S, args: TileArgs);
}

/// `T` on the instructions of `S`.
fn kernel<S: Isa, T: Tile>() -> TileKernel {
    TileKernel { run: enter::<S, T>, form: T::FORM }
}

/// # Safety
/// The level of `S` is available (it was when the function was picked), and `args` are valid.
unsafe fn enter<S: Isa, T: Tile>(args: TileArgs) {
    struct Run<T>(TileArgs, PhantomData<T>);
    impl<T: Tile> Kernel for Run<T> {
        type Out = ();
        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            // Known when this is compiled: a level has no code for tiles that it never runs.
            if T::ROWS <= S::MAX_TILE {
                // SAFETY: the caller of `enter` promises the arguments.
                unsafe { T::run(s, self.0) }
            }
        }
    }
    // SAFETY: a zero-sized proof; `pick` was given one of the same type.
    let s: S = unsafe { std::mem::MaybeUninit::zeroed().assume_init() };
    s.call(Run::<T>(args, PhantomData));
}

/// Runs `tile` over panels `from..to` of a matrix, sparing the columns past its last row.
///
/// # Safety
/// `weights` are the panels of `shape`, `x` a tile of `rows` rows of its width, `out` the tile's rows.
pub unsafe fn run_panels(
    tile: TileFn,
    shape: &Panels,
    weights: *const u8,
    (from, to): (usize, usize),
    x: *const u8,
    rows: usize,
    out: *mut f32,
    stride: usize,
) {
    let panel_bytes = shape.panel_bytes();
    let whole = to.min(shape.n / LANES);
    // SAFETY: the caller's promise; whole panels write 16 columns of `out` each, the last writes a copy.
    unsafe {
        let args =
            TileArgs { panels: weights.add(from * panel_bytes), panel_bytes, count: 0, x, k: shape.k, out, stride };
        if from < whole {
            tile(TileArgs { count: whole - from, out: out.add(from * LANES), ..args });
        }
        if whole < to {
            let mut padded = [0f32; TILE * LANES];
            let panels = weights.add(whole * panel_bytes);
            tile(TileArgs { panels, count: 1, out: padded.as_mut_ptr(), stride: LANES, ..args });
            for t in 0..rows {
                let columns = shape.n - whole * LANES;
                std::ptr::copy_nonoverlapping(
                    padded.as_ptr().add(t * LANES),
                    out.add(t * stride + whole * LANES),
                    columns,
                );
            }
        }
    }
}
