//! Matrix products: activations prepared once per input, then panels shared out among the threads.

use std::ops::Range;

use super::activation::{RowGroup, TILE, WordGroup, quantise, quantise_words, tiles};
use super::integer::fetch_first;
use super::memory::Ptr;
use super::panel::{GROUP, Panels};
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use super::simd::{Isa, Kernel, Level};
use super::tile::{Form, TileKernel, max_tile, run_panels, tile_kernel};
use crate::program::{RowSpace, Slot};

/// Values that one item of the preparation converts, about: a span of K of all rows of a tile, for these are neighbours in
/// memory where threads should not meet.
const VALUES: usize = 256;
/// Rows whose prepared activations stay in the second-level cache while panels pass.
const ROW_BLOCK: usize = 64;
/// Bytes of panels that stay there while rows pass.
const PANEL_BLOCK: usize = 256 << 10;
/// Panels that the float kernels take at once where rows are few.
const FLOAT_PANELS: usize = 4;

/// An input of products, prepared in the forms that they want.
pub struct Input {
    x: Ptr<f32>,
    k: usize,
    /// The forms in which tiles of 1, 2, ... rows are read, by their numbers.
    wants: [[bool; Form::ALL.len()]; TILE],
    /// Where each form goes.
    prepared: [Ptr<u8>; Form::ALL.len()],
    level: Level,
    tile: usize,
}

/// A weight matrix with its kernels.
pub struct Matrix {
    weights: Ptr<u8>,
    /// Layout.
    pub shape: Panels,
    /// Kernels for 1, 2, ... rows, as many as the level has.
    kernels: Vec<TileKernel>,
}

impl Input {
    /// Input `x` of products with `weights`.
    pub fn new(b: &Builder<'_>, x: Slot, weights: &[Slot]) -> Self {
        let tile = max_tile(b.level).min(TILE);
        let mut wants = [[false; Form::ALL.len()]; TILE];
        for w in weights {
            for (i, wants) in wants[..tile].iter_mut().enumerate() {
                wants[tile_kernel(b.level, b.panels(*w).format, i + 1).form as usize] = true;
            }
        }
        Self { x: b.ptr(x), k: b.width(x), wants, prepared: b.prepared(), level: b.level, tile }
    }
    /// Prepares `rows` rows.
    pub fn prepare(&self, w: &Worker<'_>, rows: usize) {
        let tile = self.tile.min(rows).max(1);
        let span = (VALUES / tile).next_multiple_of(GROUP);
        let (tiles, spans) = (rows.div_ceil(tile), self.k.div_ceil(span));
        let chunk = if rows == 1 { 1 } else { w.chunk(tiles * spans) };
        w.phase(tiles * spans, chunk, |range| {
            for item in range {
                let (start, from) = (item / spans * tile, item % spans * span);
                let tile = (start, tile.min(rows - start));
                self.level.run(Prepare { input: self, tile, span: from..self.k.min(from + span) });
            }
        });
    }
    /// The tiles of `rows` rows from `start`, given as (first row, rows).
    fn tiles(&self, start: usize, end: usize, rows: usize) -> impl Iterator<Item = (usize, usize)> {
        tiles(rows, self.tile).skip_while(move |t| t.0 < start).take_while(move |t| t.0 < end)
    }
    /// Where the tile that begins at row `start` lies in one form.
    fn area(&self, form: Form, start: usize) -> *mut u8 {
        // SAFETY: within the scratch, which holds all rows.
        unsafe { self.prepared[form as usize].at(form.bytes(self.k, start)) }
    }
    /// Whether a tile of `len` rows is read in this form.
    fn wants(&self, form: Form, len: usize) -> bool {
        self.wants[len - 1][form as usize]
    }
}

/// Prepares a span of K of the rows of a tile.
struct Prepare<'a> {
    input: &'a Input,
    tile: (usize, usize),
    span: Range<usize>,
}

impl Kernel for Prepare<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Prepare { input, tile: (start, len), span } = self;
        let groups = span.start / GROUP..span.end / GROUP;
        // SAFETY: live rows of `x`; of the scratch, a span of the tile. Items are disjoint.
        unsafe {
            let x = |row: usize, k: usize| input.x.at((start + row) * input.k + k);
            if input.wants(Form::Planes, len) {
                let tile = input.area(Form::Planes, start).cast::<RowGroup>();
                for g in groups.clone() {
                    for row in 0..len {
                        quantise(s, x(row, g * GROUP), tile.add(g * len + row));
                    }
                }
            }
            if input.wants(Form::Words, len) {
                let tile = input.area(Form::Words, start).cast::<WordGroup>();
                for g in groups {
                    for row in 0..len {
                        quantise_words(s, x(row, g * GROUP), tile.add(g), row);
                    }
                }
            }
            if input.wants(Form::Floats, len) {
                let tile = input.area(Form::Floats, start).cast::<f32>();
                for k in span {
                    for row in 0..len {
                        *tile.add(k * len + row) = *x(row, k);
                    }
                }
            }
        }
    }
}

impl Matrix {
    /// The matrix in slot `w`.
    pub fn new(b: &Builder<'_>, w: Slot) -> Self {
        let shape = b.panels(w);
        let most = max_tile(b.level).min(TILE);
        let kernels = (1..=most).map(|rows| tile_kernel(b.level, shape.format, rows)).collect();
        Self { weights: b.ptr(w), shape, kernels }
    }
    /// Asks for the first weights of panels `from..to`.
    pub fn fetch(&self, (from, to): (usize, usize)) {
        let bytes = self.shape.panel_bytes();
        fetch_first(self.weights.0.wrapping_add(from * bytes), (to - from) * bytes);
    }
    /// Panels `panels` times a tile (first row, rows), into `out` with `stride` elements between rows.
    ///
    /// # Safety
    /// The input was prepared, and `out` is the tile's first row (of the first column of panel 0).
    pub unsafe fn run(
        &self,
        input: &Input,
        (start, len): (usize, usize),
        panels: (usize, usize),
        out: *mut f32,
        stride: usize,
    ) {
        let kernel = self.kernels[len - 1];
        let x = input.area(kernel.form, start);
        // SAFETY: the caller's promise.
        unsafe { run_panels(kernel.run, &self.shape, self.weights.0, panels, x, len, out, stride) }
    }
}

/// The panels of some products, as they are shared out.
pub struct Work {
    panels: usize,
    /// Bytes of the largest.
    bytes: usize,
    /// How many are best taken together.
    together: usize,
}

impl Work {
    /// Panels of matrices that are multiplied one after another.
    pub fn of<'a>(matrices: impl Iterator<Item = &'a Matrix>) -> Self {
        matrices.fold(Self { panels: 0, bytes: 1, together: 1 }, |work, m| Self {
            panels: work.panels + m.shape.count(),
            bytes: work.bytes.max(m.shape.panel_bytes()),
            together: if m.shape.format.is_quantised() { work.together } else { FLOAT_PANELS },
        })
    }
    /// Panels of two matrices of one shape, each multiplied beside the other's of the same outputs.
    pub fn side_by_side(a: &Matrix, b: &Matrix) -> Self {
        Self { bytes: a.shape.panel_bytes() + b.shape.panel_bytes(), ..Self::of([a].into_iter()) }
    }
    /// Panels of an item.
    fn chunk(&self, threads: usize) -> usize {
        let fair = if threads == 1 { self.panels } else { self.panels.div_ceil(threads * 4) };
        let enough = self.panels >= 2 * self.together * threads;
        let fair = if enough { (fair / self.together).max(1) * self.together } else { fair };
        fair.min(PANEL_BLOCK / self.bytes).max(1)
    }
    /// The panels that [`share`] will give to this thread first.
    pub fn first(&self, w: &Worker<'_>, rows: usize) -> (usize, usize) {
        let (blocks, chunk) = (rows.div_ceil(ROW_BLOCK), self.chunk(w.threads));
        let from = w.first(self.panels * blocks, chunk, self.together) % self.panels;
        (from, self.panels.min(from + chunk))
    }
}

/// Shares panels x `rows` out: the panels of a block of rows, then those of the next, so that the block's activations stay
/// near while the panels pass. Calls `work(panels from..to, tiles)` for each item.
pub fn share(
    w: &Worker<'_>,
    input: &Input,
    rows: usize,
    of: &Work,
    mut work: impl FnMut((usize, usize), &mut dyn Iterator<Item = (usize, usize)>),
) {
    let (panels, blocks) = (of.panels, rows.div_ceil(ROW_BLOCK));
    w.phase_aligned(panels * blocks, of.chunk(w.threads), of.together, |mut range| {
        while !range.is_empty() {
            let (block, from) = (range.start / panels, range.start % panels);
            let to = panels.min(from + range.len());
            range.start += to - from;
            let mut tiles = input.tiles(block * ROW_BLOCK, (block + 1) * ROW_BLOCK, rows);
            work((from, to), &mut tiles);
        }
    });
}

/// One product of a step.
struct Product {
    matrix: Matrix,
    bias: Option<Ptr<f32>>,
    out: Ptr<f32>,
    /// Panels of the products before.
    first: usize,
}

/// Products of one input with one or more weights.
pub struct Linear {
    space: RowSpace,
    input: Input,
    products: Vec<Product>,
    work: Work,
}

impl Linear {
    /// `x` times each (weight, bias, out).
    pub fn new(b: &Builder<'_>, space: RowSpace, x: Slot, products: &[(Slot, Option<Slot>, Slot)]) -> Self {
        let weights: Vec<Slot> = products.iter().map(|p| p.0).collect();
        let mut first = 0;
        let make = |(w, bias, out): &(Slot, Option<Slot>, Slot)| {
            let matrix = Matrix::new(b, *w);
            first += matrix.shape.count();
            Product { first: first - matrix.shape.count(), bias: bias.map(|s| b.ptr(s)), out: b.ptr(*out), matrix }
        };
        let products: Vec<Product> = products.iter().map(make).collect();
        let work = Work::of(products.iter().map(|p| &p.matrix));
        Self { space, input: Input::new(b, x, &weights), products, work }
    }
}

impl Product {
    /// Its own among the panels of all products.
    fn own(&self, (from, to): (usize, usize)) -> Option<(usize, usize)> {
        let own = |panel: usize| panel.clamp(self.first, self.first + self.matrix.shape.count()) - self.first;
        (own(from) < own(to)).then(|| (own(from), own(to)))
    }
    /// Panels `from..to` for one tile, and their bias.
    ///
    /// # Safety
    /// The input was prepared; these outputs are this item's own.
    unsafe fn run(&self, input: &Input, tile: (usize, usize), (from, to): (usize, usize)) {
        let n = self.matrix.shape.n;
        // SAFETY: the caller's promise.
        unsafe {
            self.matrix.run(input, tile, (from, to), self.out.at(tile.0 * n), n);
            let Some(bias) = self.bias else { return };
            let (from, to) = (from * 16, n.min(to * 16));
            for row in tile.0..tile.0 + tile.1 {
                let out = self.out.slice_mut(row * n + from, to - from);
                out.iter_mut().zip(bias.slice(from, to - from)).for_each(|(o, b)| *o += b);
            }
        }
    }
}

impl Step for Linear {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let rows = live.rows(self.space);
        let first = self.work.first(w, rows);
        for p in &self.products {
            if let Some(panels) = p.own(first) {
                p.matrix.fetch(panels);
            }
        }
        self.input.prepare(w, rows);
        share(w, &self.input, rows, &self.work, |(from, to), tiles| {
            for tile in tiles {
                for p in &self.products {
                    if let Some(panels) = p.own((from, to)) {
                        // SAFETY: prepared above; items are disjoint in panels or rows.
                        unsafe { p.run(&self.input, tile, panels) }
                    }
                }
            }
        });
    }
}
