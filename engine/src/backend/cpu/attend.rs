//! The arithmetic of attention: queries against the tokens of a split.

use super::attention::SPLIT;
use super::kv::{Cache, get};
use super::math::{exp, exp1};
use super::simd::Isa;

/// Tokens of a tile: two vectors of scores.
const TILE: usize = 32;
/// Most queries that share a tile.
pub const WORK_QUERIES: usize = 32;

/// One head of one row.
#[derive(Clone, Copy)]
pub struct Query {
    /// `head_dim` values.
    pub q: *const f32,
    /// First visible token.
    pub first: usize,
    /// The row's own position.
    pub last: usize,
}

/// A running softmax: maximum, sum, and weighted values, `[max, sum, pad to 16, values]`.
#[derive(Clone, Copy)]
pub struct State {
    at: *mut f32,
    dim: usize,
}

fn padded(dim: usize) -> usize {
    dim.next_multiple_of(16)
}

/// Floats of working memory of a thread: a tile of keys and of values, padded queries, two states each.
pub fn work_floats(dim: usize, queries: usize) -> usize {
    2 * TILE * padded(dim) + queries.clamp(1, WORK_QUERIES) * (2 * State::floats(dim) + padded(dim))
}

impl State {
    /// Floats of a state.
    pub fn floats(dim: usize) -> usize {
        16 + padded(dim)
    }
    /// A state kept at `at`.
    pub fn new(at: *mut f32, dim: usize) -> Self {
        Self { at, dim: padded(dim) }
    }
    fn values(self) -> *mut f32 {
        self.at.wrapping_add(16)
    }
    /// (maximum, sum).
    fn head(self) -> (f32, f32) {
        // SAFETY: a state has `floats` floats, and one thread works on it (here and below).
        unsafe { (*self.at, *self.at.add(1)) }
    }
    fn set_head(self, max: f32, sum: f32) {
        // SAFETY: see `head`.
        unsafe { (*self.at, *self.at.add(1)) = (max, sum) }
    }
    #[inline(always)]
    fn reset<S: Isa>(self, s: S) {
        self.set_head(f32::NEG_INFINITY, 0.0);
        for i in (0..self.dim).step_by(16) {
            // SAFETY: see `head`.
            unsafe { s.store(self.values().add(i), s.splat(0.0)) };
        }
    }
    #[inline(always)]
    fn copy_to(self, to: State) {
        // SAFETY: two states of one size.
        unsafe { std::ptr::copy_nonoverlapping(self.at, to.at, 16 + self.dim) };
    }
    /// Takes in the next split.
    #[inline(always)]
    pub fn merge<S: Isa>(self, s: S, next: State) {
        let ((max, sum), (next_max, next_sum)) = (self.head(), next.head());
        let largest = if next_max > max { next_max } else { max };
        let (a, b) = (exp1(s, max - largest), exp1(s, next_max - largest));
        self.set_head(largest, next_sum.mul_add(b, sum * a));
        for i in (0..self.dim).step_by(16) {
            // SAFETY: see `head`.
            unsafe {
                let at = self.values().add(i);
                s.store(at, s.fma(s.load(next.values().add(i)), s.splat(b), s.mul(s.load(at), s.splat(a))));
            }
        }
    }
    /// Weighted values over their sum.
    #[inline(always)]
    pub fn finish(self, out: &mut [f32]) {
        let scale = 1.0 / self.head().1;
        for (i, out) in out.iter_mut().enumerate() {
            // SAFETY: see `head`.
            *out = unsafe { *self.values().add(i) } * scale;
        }
    }
}

/// Queries of one sequence and one key head.
pub struct Attend<'a> {
    /// Keys.
    pub keys: &'a Cache,
    /// Values.
    pub values: &'a Cache,
    /// The sequence's blocks.
    pub table: &'a [u32],
    /// Which head.
    pub kv_head: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// This thread's working memory, of [`work_floats`].
    pub work: *mut f32,
}

impl Attend<'_> {
    fn dim(&self) -> usize {
        padded(self.keys.head_dim)
    }
    /// Tile of keys (0) or values (1), `[TILE][dim]`.
    fn tile(&self, which: usize) -> *mut f32 {
        self.work.wrapping_add(which * TILE * self.dim())
    }
    fn query(&self, i: usize) -> *mut f32 {
        self.work.wrapping_add(2 * TILE * self.dim() + i * (2 * (16 + self.dim()) + self.dim()))
    }
    /// The total of query `i` after [`Attend::splits`].
    pub fn total(&self, i: usize) -> State {
        State::new(self.query(i).wrapping_add(self.dim()), self.keys.head_dim)
    }
    /// The state of query `i` within a split.
    fn state(&self, i: usize) -> State {
        State::new(self.query(i).wrapping_add(2 * self.dim() + 16), self.keys.head_dim)
    }
    /// All splits one after another; totals are left in the working memory.
    #[inline(always)]
    pub fn splits<S: Isa>(&mut self, s: S, queries: &[Query], splits: std::ops::Range<usize>) {
        let states: [State; WORK_QUERIES] = std::array::from_fn(|i| self.state(i));
        for split in splits {
            self.split(s, queries, &states[..queries.len()], split);
            for (i, query) in queries.iter().enumerate() {
                match split {
                    _ if !(query.first / SPLIT..=query.last / SPLIT).contains(&split) => {}
                    _ if split == query.first / SPLIT => states[i].copy_to(self.total(i)),
                    _ => self.total(i).merge(s, states[i]),
                }
            }
        }
    }
    /// One split: fresh states of all queries that see it.
    #[inline(always)]
    pub fn split<S: Isa>(&mut self, s: S, queries: &[Query], states: &[State], split: usize) {
        let dim = self.keys.head_dim;
        for (i, (query, state)) in queries.iter().zip(states).enumerate() {
            state.reset(s);
            // SAFETY: a query has `dim` values; the working memory has room for them, padded.
            unsafe {
                std::ptr::copy_nonoverlapping(query.q, self.query(i), dim);
                std::slice::from_raw_parts_mut(self.query(i).add(dim), self.dim() - dim).fill(0.0);
            }
        }
        let first = queries.iter().map(|q| q.first).min().unwrap_or(0);
        let last = queries.iter().map(|q| q.last).max().unwrap_or(0);
        for start in (split * SPLIT..(split + 1) * SPLIT).step_by(TILE) {
            let (from, to) = (first.max(start), (last + 1).min(start + TILE));
            if from >= to {
                continue;
            }
            self.fill(s, start, from, to);
            for (i, (query, state)) in queries.iter().zip(states).enumerate() {
                let (from, to) = (query.first.max(start), (query.last + 1).min(start + TILE));
                if from < to {
                    self.step(s, self.query(i), *state, from - start, to - start);
                }
            }
        }
    }
    /// Reads tokens `from..to` into the tile that starts at `start`.
    #[inline(always)]
    fn fill<S: Isa>(&mut self, s: S, start: usize, from: usize, to: usize) {
        let (dim, size) = (self.dim(), self.keys.block_size);
        for t in from..to {
            let slot = self.table[t / size] as usize * size + t % size;
            for (which, cache) in [self.keys, self.values].into_iter().enumerate() {
                // SAFETY: row `t - start` of the tile.
                let row = unsafe { std::slice::from_raw_parts_mut(self.tile(which).add((t - start) * dim), dim) };
                get(s, cache, cache.at(slot, self.kv_head), row);
            }
        }
    }
    /// Takes tokens `from..to` of the tile into one query's state.
    #[inline(always)]
    fn step<S: Isa>(&self, s: S, q: *const f32, state: State, from: usize, to: usize) {
        let visible = (1u64 << to) - (1u64 << from);
        let hidden = s.splat(f32::NEG_INFINITY);
        let mut scores = [hidden; 2];
        for (half, scores) in scores.iter_mut().enumerate() {
            let mask = (visible >> (16 * half)) as u16;
            if mask != 0 {
                let sums = self.scores(s, q, half);
                *scores = s.select(mask, s.mul(sums, s.splat(self.scale)), hidden);
            }
        }
        let (max, sum) = state.head();
        let tile_max = s.max_lane(s.max(scores[0], scores[1]));
        let largest = if tile_max > max { tile_max } else { max };
        let mut weights = [0f32; TILE];
        let mut parts = [s.splat(0.0); 2];
        for half in 0..2 {
            let mask = (visible >> (16 * half)) as u16;
            parts[half] = s.select(mask, exp(s, s.sub(scores[half], s.splat(largest))), parts[half]);
            // SAFETY: 16 of the 32 weights.
            unsafe { s.store(weights.as_mut_ptr().add(16 * half), parts[half]) };
        }
        let decay = exp1(s, max - largest);
        state.set_head(largest, sum.mul_add(decay, s.sum(s.add(parts[0], parts[1]))));
        let mut at = 0;
        while at < self.dim() {
            at += match (self.dim() - at) / 16 {
                8.. => self.weigh::<S, 8>(s, state, &weights[from..to], from, at, decay),
                4.. => self.weigh::<S, 4>(s, state, &weights[from..to], from, at, decay),
                _ => self.weigh::<S, 1>(s, state, &weights[from..to], from, at, decay),
            };
        }
    }
    /// `q . k` of 16 tokens of the tile.
    #[inline(always)]
    fn scores<S: Isa>(&self, s: S, q: *const f32, half: usize) -> S::F {
        match self.dim() / 16 {
            4 => self.dots::<S, 4>(s, q, half),
            8 => self.dots::<S, 8>(s, q, half),
            _ => self.dots_of_any_width(s, q, half),
        }
    }
    #[inline(always)]
    fn dots<S: Isa, const N: usize>(&self, s: S, q: *const f32, half: usize) -> S::F {
        // SAFETY: `N` vectors of the padded query, and 16 rows of the tile.
        unsafe {
            let q: [S::F; N] = std::array::from_fn(|i| s.load(q.add(16 * i)));
            let k = self.tile(0).add(16 * half * N * 16);
            let dot = |t: usize| {
                let row = k.add(t * N * 16);
                let mut sum = s.mul(q[0], s.load(row));
                for (i, q) in q.iter().enumerate().skip(1) {
                    sum = s.fma(*q, s.load(row.add(16 * i)), sum);
                }
                sum
            };
            s.sums(&std::array::from_fn(dot))
        }
    }
    #[inline(always)]
    fn dots_of_any_width<S: Isa>(&self, s: S, q: *const f32, half: usize) -> S::F {
        // SAFETY: as in `dots`.
        unsafe {
            let k = self.tile(0).add(16 * half * self.dim());
            let dot = |t: usize| {
                let row = k.add(t * self.dim());
                let mut sum = s.mul(s.load(q), s.load(row));
                for i in (16..self.dim()).step_by(16) {
                    sum = s.fma(s.load(q.add(i)), s.load(row.add(i)), sum);
                }
                sum
            };
            s.sums(&std::array::from_fn(dot))
        }
    }
    /// `values = values * decay + weights . V` for `N` vectors of the width; returns how many floats that is.
    #[inline(always)]
    fn weigh<S: Isa, const N: usize>(&self, s: S, state: State, weights: &[f32], from: usize, at: usize, decay: f32) -> usize {
        // SAFETY: floats `at..at + 16 * N` of the state and of rows `from..` of the tile.
        unsafe {
            let out = state.values().add(at);
            let mut sums: [S::F; N] = std::array::from_fn(|i| s.mul(s.load(out.add(16 * i)), s.splat(decay)));
            let mut row = self.tile(1).add(from * self.dim() + at);
            for weight in weights {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = s.fma(s.splat(*weight), s.load(row.add(16 * i)), *sum);
                }
                row = row.wrapping_add(self.dim());
            }
            for (i, sum) in sums.into_iter().enumerate() {
                s.store(out.add(16 * i), sum);
            }
        }
        16 * N
    }
}
