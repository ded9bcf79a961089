//! The kernels for quantised weights on tile registers: five rows and more.
//!
//! They give the integers of the kernels in `integer.rs`, and do the same with them: so the same bits. A product of
//! tiles takes tens of cycles until its result can be stored, and a row that was just stored cannot be read by a tile. So
//! each group of weights passes through a pipeline, and different groups are at work at a time:
//!
//! ```text
//! unpack: quants of group i + 2 into memory, a row of a tile for four elements of K
//! multiply: group i with the tile's activations
//! store: the sums of a group before it, whose product is done
//! add up: those of the group before that one
//! ```

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::activation::{RowGroup, WordGroup};
use super::integer::{Quant, add_up, centre, fetch_ahead};
use super::panel::{GROUP, LANES};
use super::simd::amx::{Shapes, Tiles};
use super::simd::{Isa, prefetch_near, prefetch_to_write};
use super::tile::{Form, Tile, TileArgs};

/// Groups that are unpacked before they are multiplied.
const UNPACKED: usize = 2;
/// Places for unpacked groups, and for stored sums. A group is unpacked into place `i + 2` while place `i` is read, and its
/// sums are stored while those one place further are read: at the same offsets, so that no load seems to follow the stores
/// that it does not depend on (processors compare 12 bits of addresses).
const PLACES: usize = 4;

/// What passes between the stages: places for quants, then for sums.
#[repr(C, align(64))]
struct Between([[u8; 1024]; 2 * PLACES]);

/// A walk over the groups of all panels.
struct Groups<Q> {
    /// The group that is next.
    at: *const u8,
    /// Its number.
    next: usize,
    quant: PhantomData<Q>,
}

impl<Q: Quant> Groups<Q> {
    /// From the first on.
    fn new(panels: *const u8) -> Self {
        Self { at: panels, next: 0, quant: PhantomData }
    }
    /// Whether a block begins here, with its header.
    #[inline(always)]
    fn at_header(&self) -> bool {
        Q::HEADER > 0 && self.next.is_multiple_of(Q::BLOCK_GROUPS)
    }
    /// The next group.
    #[inline(always)]
    fn take(&mut self) -> *const u8 {
        let group = self.at.wrapping_add(if self.at_header() { Q::HEADER } else { 0 });
        (self.at, self.next) = (group.wrapping_add(Q::GROUP_BYTES), self.next + 1);
        group
    }
}

/// Kernel for `T` rows.
pub(super) struct Tiled<P, const T: usize>(PhantomData<P>);

impl<P: Scheme<T>, const T: usize> Tile for Tiled<P, T> {
    const ROWS: usize = T;
    const FORM: Form = P::FORM;
    #[inline(always)]
    unsafe fn run<S: Isa>(s: S, a: TileArgs) {
        // SAFETY: the arguments describe `count` panels, a tile of `T` rows and their outputs; a kernel of this kind is
        // picked only where there are tile registers, and nothing else on this thread holds them meanwhile.
        unsafe { Pipeline::<S, P, T>::new(s, a).run() }
    }
}

/// The stages and where they are.
struct Pipeline<S: Isa, P: Scheme<T>, const T: usize> {
    s: S,
    a: TileArgs,
    tiles: Tiles,
    /// Groups of a panel, and of all.
    groups: usize,
    total: usize,
    /// Weights to unpack, to multiply, and to take scales from.
    unpacked: Groups<P::Quant>,
    multiplied: Groups<P::Quant>,
    added: Groups<P::Quant>,
    /// Activations to multiply with, and whose factors come next.
    multiplier: Activations<P::Group>,
    factors: Activations<P::Group>,
    /// Scales of the block that is added up.
    header: [S::F; 2],
    /// Sums of the panel so far, and where they go.
    totals: [S::F; T],
    out: *mut f32,
}

/// A walk over the groups of activations, again for each panel.
struct Activations<G> {
    first: *const G,
    next: usize,
}

impl<G> Activations<G> {
    /// The next group of `len` values; whether it is the last of `groups`.
    #[inline(always)]
    fn take(&mut self, len: usize, groups: usize) -> (*const G, bool) {
        let group = self.first.wrapping_add(self.next * len);
        self.next += 1;
        let last = self.next == groups;
        if last {
            self.next = 0;
        }
        (group, last)
    }
}

impl<S: Isa, P: Scheme<T>, const T: usize> Pipeline<S, P, T> {
    /// # Safety
    /// As [`super::tile::TileFn`], and there are tile registers that nothing else on this thread holds.
    #[inline(always)]
    unsafe fn new(s: S, a: TileArgs) -> Self {
        let groups = a.k / GROUP;
        let headers = if P::Quant::HEADER > 0 { groups / P::Quant::BLOCK_GROUPS * P::Quant::HEADER } else { 0 };
        debug_assert_eq!(a.panel_bytes, groups * P::Quant::GROUP_BYTES + headers, "panels follow each other");
        let activations = || Activations { first: a.x.cast(), next: 0 };
        Self {
            s,
            a,
            // SAFETY: the caller's promise.
            tiles: unsafe { Tiles::new(P::SHAPES) },
            groups,
            total: groups * a.count,
            unpacked: Groups::new(a.panels),
            multiplied: Groups::new(a.panels),
            added: Groups::new(a.panels),
            multiplier: activations(),
            factors: activations(),
            header: [s.splat(0.0); 2],
            totals: [s.splat(0.0); T],
            out: a.out,
        }
    }
    /// All groups through all stages.
    ///
    /// # Safety
    /// As [`Pipeline::new`].
    #[inline(always)]
    unsafe fn run(mut self) {
        let mut between = MaybeUninit::<Between>::uninit();
        let between = between.as_mut_ptr();
        // SAFETY: the caller's promise; a place is read only after it was written.
        unsafe {
            self.fetch_out();
            for i in 0..UNPACKED.min(self.total) {
                self.unpack(between, i);
            }
            for i in (0..self.total + P::DELAY + 1).step_by(4) {
                self.step::<0>(between, i);
                self.step::<1>(between, i + 1);
                self.step::<2>(between, i + 2);
                self.step::<3>(between, i + 3);
            }
        }
    }
    /// Each stage's next group, if there is one; `I` is `i` modulo 4.
    ///
    /// # Safety
    /// As [`Pipeline::new`]; called for ascending `i`.
    #[inline(always)]
    unsafe fn step<const I: usize>(&mut self, between: *mut Between, i: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            if i >= P::DELAY && i - P::DELAY < self.total {
                let sums = sums::<P, T>(between, i - P::DELAY);
                match (I + 4 - P::DELAY) % 4 {
                    0 => P::store::<0>(&self.tiles, sums),
                    1 => P::store::<1>(&self.tiles, sums),
                    2 => P::store::<2>(&self.tiles, sums),
                    _ => P::store::<3>(&self.tiles, sums),
                }
            }
            if i > P::DELAY && i - P::DELAY - 1 < self.total {
                self.add_up(sums::<P, T>(between, i - P::DELAY - 1));
            }
            if i + UNPACKED < self.total {
                self.unpack(between, i + UNPACKED);
            }
            if i < self.total {
                let w = self.multiplied.take();
                fetch_ahead(w, P::Quant::GROUP_BYTES);
                let (x, _) = self.multiplier.take(P::GROUP_LEN, self.groups);
                P::multiply::<I>(&self.tiles, w, quants(between, i), x);
            }
        }
    }
    /// Asks for the places of the panel's outputs. They are often another processor's, and stores wait for one another: the
    /// pipeline's would stand behind them.
    #[inline(always)]
    fn fetch_out(&self) {
        (0..T).for_each(|t| prefetch_to_write(self.out.wrapping_add(t * self.a.stride).cast()));
    }
    /// # Safety
    /// There is a group `i`, the next to be unpacked.
    #[inline(always)]
    unsafe fn unpack(&mut self, between: *mut Between, i: usize) {
        // SAFETY: the caller's promise.
        unsafe { P::unpack(self.s, self.unpacked.take(), quants(between, i)) }
    }
    /// # Safety
    /// `sums` are those of the next group.
    #[inline(always)]
    unsafe fn add_up(&mut self, sums: *const u8) {
        let s = self.s;
        // SAFETY: the caller's promise; a panel has 16 outputs for each row.
        unsafe {
            if self.added.at_header() {
                self.header = P::Quant::header(s, self.added.at);
            }
            let scales = P::Quant::scales(s, self.header, self.added.take());
            let (x, last) = self.factors.take(P::GROUP_LEN, self.groups);
            for (t, total) in self.totals.iter_mut().enumerate() {
                *total = P::add(s, scales, sums, x, t, *total);
            }
            if last {
                for (t, total) in self.totals.iter_mut().enumerate() {
                    s.store(self.out.add(t * self.a.stride), *total);
                    *total = s.splat(0.0);
                }
                self.out = self.out.wrapping_add(LANES);
                self.fetch_out();
            }
        }
    }
}

/// The place for the quants of group `i`.
#[inline(always)]
fn quants(between: *mut Between, i: usize) -> *mut u8 {
    between.cast::<u8>().wrapping_add(1024 * (i % PLACES))
}

/// The place for its sums.
#[inline(always)]
fn sums<P: Scheme<T>, const T: usize>(between: *mut Between, i: usize) -> *mut u8 {
    between.cast::<u8>().wrapping_add(1024 * (PLACES + i * P::SUM_PLACES % PLACES))
}

/// How a group of weights is multiplied with `T` rows.
pub(super) trait Scheme<const T: usize> {
    /// The weights' format.
    type Quant: Quant;
    /// How its activations are prepared: as groups of the next type.
    const FORM: Form;
    /// A group of activations: of all rows, or of one.
    type Group;
    /// Values of it for all rows.
    const GROUP_LEN: usize;
    /// Places that its sums take.
    const SUM_PLACES: usize;
    /// Steps of the pipeline between multiplying and storing; the next step adds up.
    const DELAY: usize;
    /// Shapes of the tiles.
    const SHAPES: &'static Shapes;
    /// Unpacks a group.
    ///
    /// # Safety
    /// `w` points at a group (here and below).
    unsafe fn unpack<S: Isa>(s: S, w: *const u8, to: *mut u8);
    /// Multiplies unpacked quants with activations, as group number `I` modulo 4.
    ///
    /// # Safety
    /// `x` points at a group of activations (here and below).
    unsafe fn multiply<const I: usize>(tiles: &Tiles, w: *const u8, quants: *const u8, x: *const Self::Group);
    /// Stores the sums of group number `I` modulo 4.
    ///
    /// # Safety
    /// The place is writable.
    unsafe fn store<const I: usize>(tiles: &Tiles, sums: *mut u8);
    /// Sums of row `t` to its total.
    ///
    /// # Safety
    /// `sums` were stored.
    unsafe fn add<S: Isa>(
        s: S,
        scales: [S::F; 2],
        sums: *const u8,
        x: *const Self::Group,
        t: usize,
        total: S::F,
    ) -> S::F;
}

/// Quants of 4 bits times [`WordGroup`]s: two words of each row are two rows of one tile.
pub(super) struct Words<Q>(PhantomData<Q>);

impl<Q: Quant, const T: usize> Scheme<T> for Words<Q> {
    type Quant = Q;
    const FORM: Form = Form::Words;
    type Group = WordGroup;
    const GROUP_LEN: usize = 1;
    const SUM_PLACES: usize = 1;
    const DELAY: usize = 2;
    // Sums in tiles 0 to 3, activations in 4 and 5, quants in 6 and 7.
    const SHAPES: &'static Shapes = &{
        let words = (2 * T, 64);
        Shapes::new([words, words, words, words, words, words, (16, 64), (16, 64)])
    };
    #[inline(always)]
    unsafe fn unpack<S: Isa>(s: S, w: *const u8, to: *mut u8) {
        // SAFETY: the caller's promise; 16 rows of a tile.
        unsafe {
            for (i, quants) in Q::quants(s, w).into_iter().enumerate() {
                s.store_i(to.add(64 * i), s.shl::<4>(quants));
                s.store_i(to.add(64 * (8 + i)), quants);
            }
        }
    }
    #[inline(always)]
    unsafe fn multiply<const I: usize>(tiles: &Tiles, _: *const u8, quants: *const u8, x: *const WordGroup) {
        // SAFETY: the caller's promise.
        unsafe {
            let words = (&raw const (*x).words).cast();
            macro_rules! product {
                ($sums:literal, $words:literal, $quants:literal) => {{
                    tiles.load::<$quants>(quants, 64);
                    tiles.load::<$words>(words, 64);
                    tiles.multiply::<$sums, $words, $quants>();
                }};
            }
            match I {
                0 => product!(0, 4, 6),
                1 => product!(1, 5, 7),
                2 => product!(2, 4, 6),
                _ => product!(3, 5, 7),
            }
        }
    }
    #[inline(always)]
    unsafe fn store<const I: usize>(tiles: &Tiles, sums: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { tiles.store::<I>(sums) }
    }
    #[inline(always)]
    unsafe fn add<S: Isa>(
        s: S,
        scales: [S::F; 2],
        sums: *const u8,
        x: *const WordGroup,
        t: usize,
        total: S::F,
    ) -> S::F {
        // SAFETY: the caller's promise; each word's sums are a row of 16.
        unsafe {
            let factors = &(*x).factors[t];
            let (high, low) = (s.load_i(sums.add(128 * t)), s.load_i(sums.add(128 * t + 64)));
            let sum = s.add_i(s.add_i(s.shl::<12>(high), low), s.splat_i(factors.centre8));
            add_up::<S, Q>(s, s.to_f(sum), scales, factors, total)
        }
    }
}

/// Wider quants times the planes of [`RowGroup`]s: such a group is four rows of a tile, of which the last has no meaning.
pub(super) struct Planes<Q>(PhantomData<Q>);

impl<Q: Quant> Planes<Q> {
    /// Quants lie in memory as a tile wants them.
    const AS_STORED: bool = Q::MOST == 255;
}

impl<Q: Quant, const T: usize> Scheme<T> for Planes<Q> {
    type Quant = Q;
    const FORM: Form = Form::Planes;
    type Group = RowGroup;
    const GROUP_LEN: usize = T;
    const SUM_PLACES: usize = 2;
    const DELAY: usize = 1;
    // Sums of four rows and of the others in tiles 0 and 1, or 2 and 3; their activations in 4 and 5, quants in 6 and 7.
    const SHAPES: &'static Shapes = &{
        let others = 4 * (T - 4);
        Shapes::new([(16, 64), (others, 64), (16, 64), (others, 64), (16, 32), (others, 32), (8, 64), (8, 64)])
    };
    #[inline(always)]
    unsafe fn unpack<S: Isa>(s: S, w: *const u8, to: *mut u8) {
        if Self::AS_STORED {
            // They only have to be near: a tile's rows are not asked for ahead of time, as other loads are.
            return (0..GROUP * LANES).step_by(64).for_each(|at| prefetch_near(w.wrapping_add(at)));
        }
        // SAFETY: the caller's promise; 8 rows of a tile.
        unsafe {
            for (i, quants) in Q::quants(s, w).into_iter().enumerate() {
                s.store_i(to.add(64 * i), quants);
            }
        }
    }
    #[inline(always)]
    unsafe fn multiply<const I: usize>(tiles: &Tiles, w: *const u8, quants: *const u8, x: *const RowGroup) {
        let quants = if Self::AS_STORED { w } else { quants };
        // SAFETY: the caller's promise; planes of 32 bytes follow each other, four to a row group.
        unsafe {
            macro_rules! product {
                ($sums:literal, $others:literal, $quants:literal) => {{
                    tiles.load::<$quants>(quants, 64);
                    tiles.load::<4>(x.cast(), GROUP);
                    tiles.multiply::<$sums, 4, $quants>();
                    tiles.load::<5>(x.add(4).cast(), GROUP);
                    tiles.multiply::<$others, 5, $quants>();
                }};
            }
            match I % 2 {
                0 => product!(0, 1, 6),
                _ => product!(2, 3, 7),
            }
        }
    }
    #[inline(always)]
    unsafe fn store<const I: usize>(tiles: &Tiles, sums: *mut u8) {
        // SAFETY: the caller's promise; a place and the next one.
        unsafe {
            match I % 2 {
                0 => {
                    tiles.store::<0>(sums);
                    tiles.store::<1>(sums.add(1024));
                }
                _ => {
                    tiles.store::<2>(sums);
                    tiles.store::<3>(sums.add(1024));
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn add<S: Isa>(s: S, scales: [S::F; 2], sums: *const u8, x: *const RowGroup, t: usize, total: S::F) -> S::F {
        // SAFETY: the caller's promise; each plane's sums are a row of 16, and a row group has four such rows.
        unsafe {
            let x = &*x.add(t);
            let [high, middle, low] = [0, 1, 2].map(|plane| s.load_i(sums.add(256 * t + 64 * plane)));
            let high = s.add_i(s.add_i(s.shl::<8>(high), middle), centre::<S, Q>(s, &x.negated_high, 0, 8));
            let low = s.add_i(low, centre::<S, Q>(s, &x.negated_low, 0, 8));
            let sum = s.fma(s.to_f(high), s.splat(256.0), s.to_f(low));
            add_up::<S, Q>(s, sum, scales, &x.factors, total)
        }
    }
}
