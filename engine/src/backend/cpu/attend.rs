//! The arithmetic of attention: queries against the tokens of a split.

use super::attention::SPLIT;
use super::kv::{Cache, get};
use super::math::{exp, exp1};
use super::simd::{Isa, array, prefetch};

/// Tokens of a tile: two vectors of scores.
const TILE: usize = 32;
/// Most queries that share a tile.
pub const WORK_QUERIES: usize = 32;

/// One head of one row.
#[derive(Clone, Copy)]
pub struct Query {
    /// As wide as a key.
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

/// Floats of working memory of a thread: a tile of keys and of values, and what belongs to each query.
pub fn work_floats(dim: usize, queries: usize) -> usize {
    2 * TILE * padded(dim) + queries.clamp(1, WORK_QUERIES) * query_floats(dim)
}

/// Of these, what belongs to a query: its padded vector, two states, its weights.
fn query_floats(dim: usize) -> usize {
    padded(dim) + 2 * State::floats(dim) + size_of::<Weights>() / 4
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
    /// Values; the front of keys where there are none.
    pub values: Option<&'a Cache>,
    /// Width of a value.
    pub value_dim: usize,
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
    /// The tile that values are read from.
    fn values(&self) -> *mut f32 {
        self.tile(usize::from(self.values.is_some()))
    }
    /// What is read from memory.
    fn caches(&self) -> impl Iterator<Item = &Cache> {
        std::iter::once(self.keys).chain(self.values)
    }
    fn query(&self, i: usize) -> *mut f32 {
        self.work.wrapping_add(2 * TILE * self.dim() + i * query_floats(self.keys.head_dim))
    }
    /// The weights of query `i` in a tile.
    fn weights(&self, i: usize) -> *mut Weights {
        self.query(i).wrapping_add(self.dim() + 2 * State::floats(self.keys.head_dim)).cast()
    }
    /// The total of query `i` after [`Attend::splits`].
    pub fn total(&self, i: usize) -> State {
        State::new(self.query(i).wrapping_add(self.dim()), self.value_dim)
    }
    /// The state of query `i` within a split.
    fn state(&self, i: usize) -> State {
        State::new(self.query(i).wrapping_add(2 * self.dim() + 16), self.value_dim)
    }
    /// All splits one after another; totals are left in the working memory.
    #[inline(always)]
    pub fn splits<S: Isa>(&mut self, s: S, queries: &[Query], splits: std::ops::Range<usize>) {
        let states: [State; WORK_QUERIES] = std::array::from_fn(|i| self.state(i));
        for split in splits {
            self.split(s, queries, &states[..queries.len()], split, None);
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
    ///
    /// Tile by tile, each of three passes goes over all queries, so that their chains of dependent
    /// operations overlap: scores, softmax, weighted values.
    #[inline(always)]
    pub fn split<S: Isa>(&mut self, s: S, queries: &[Query], states: &[State], split: usize, next: Option<Next<'_>>) {
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
            let mut ahead = next.as_ref().map_or(Ahead::default(), |n| n.tile(start % SPLIT));
            let pace = ahead.lines.div_ceil(3 * queries.len());
            self.fill(s, start, from, to);
            // The tokens of the tile that query `i` sees; none where the range is empty.
            let seen = |i: usize| {
                let (from, to) = (queries[i].first.max(start), (queries[i].last + 1).min(start + TILE));
                (from - start, to.max(from) - start)
            };
            let sees = |i: &usize| seen(*i).0 < seen(*i).1;
            for i in (0..queries.len()).filter(sees) {
                // SAFETY: a place in the working memory, of this query alone.
                self.score(s, self.query(i), seen(i), unsafe { &mut *self.weights(i) });
                ahead.ask(pace);
            }
            for i in (0..queries.len()).filter(sees) {
                // SAFETY: as above.
                soften(s, states[i], seen(i), unsafe { &mut *self.weights(i) });
                ahead.ask(pace);
            }
            let mut i = 0;
            while i < queries.len() {
                let tokens = seen(i);
                let alike = (i + 1..queries.len()).take(2).take_while(|j| seen(*j) == tokens).count();
                // Three sums of four vectors each, where registers hold so many.
                match alike {
                    _ if tokens.0 == tokens.1 => i += 1,
                    2 if S::SUMS >= 12 => i += self.weigh::<S, 3>(s, &states[i..], i, tokens),
                    1.. => i += self.weigh::<S, 2>(s, &states[i..], i, tokens),
                    _ => i += self.weigh::<S, 1>(s, &states[i..], i, tokens),
                }
                ahead.ask(pace);
            }
            ahead.ask(ahead.lines);
        }
    }
    /// Reads tokens `from..to` into the tile that starts at `start`, block by block.
    #[inline(always)]
    fn fill<S: Isa>(&mut self, s: S, start: usize, from: usize, to: usize) {
        let (dim, size) = (self.dim(), self.keys.block_size);
        let mut t = from;
        while t < to {
            let count = (size - t % size).min(to - t);
            let slot = self.table[t / size] as usize * size + t % size;
            for (which, cache) in self.caches().enumerate() {
                let row = self.tile(which).wrapping_add((t - start) * dim);
                if cache.latent.is_some() {
                    // SAFETY: `count` tokens of one block; their rows are in the tile.
                    unsafe { latents(s, cache, slot, std::slice::from_raw_parts_mut(row, count * dim), dim) };
                    continue;
                }
                let from = cache.at(slot, self.kv_head);
                // SAFETY: `count` tokens of one block and head lie together; their rows are in the tile.
                unsafe {
                    let rows = std::slice::from_raw_parts_mut(row, count * dim);
                    if dim == cache.head_dim && !cache.has_scales() {
                        get(s, cache.format, 1.0, from, rows);
                        continue;
                    }
                    for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
                        let (values, padding) = row.split_at_mut(cache.head_dim);
                        let from = from.add(i * cache.head_dim * cache.format.bytes());
                        get(s, cache.format, cache.scale(slot + i, self.kv_head), from, values);
                        padding.fill(0.0);
                    }
                }
            }
            t += count;
        }
    }
    /// Scaled scores of tokens `from..to` of the tile; -infinity for the others.
    #[inline(always)]
    fn score<S: Isa>(&self, s: S, q: *const f32, (from, to): (usize, usize), out: &mut Weights) {
        let visible = (1u64 << to) - (1u64 << from);
        let hidden = s.splat(f32::NEG_INFINITY);
        for half in 0..2 {
            let mask = (visible >> (16 * half)) as u16;
            let scores = match mask {
                0 => hidden,
                _ => s.select(mask, s.mul(self.scores(s, q, half), s.splat(self.scale)), hidden),
            };
            // SAFETY: 16 of the 32 values.
            unsafe { s.store(out.values.as_mut_ptr().add(16 * half), scores) };
        }
    }
    /// `q . k` of 16 tokens of the tile.
    #[inline(always)]
    fn scores<S: Isa>(&self, s: S, q: *const f32, half: usize) -> S::F {
        match self.dim() / 16 {
            2 => self.dots::<S, 2>(s, q, half),
            4 => self.dots::<S, 4>(s, q, half),
            8 => self.dots::<S, 8>(s, q, half),
            _ => self.dots_of_any_width(s, q, half),
        }
    }
    #[inline(always)]
    fn dots<S: Isa, const N: usize>(&self, s: S, q: *const f32, half: usize) -> S::F {
        // SAFETY: `N` vectors of the padded query, and 16 rows of the tile.
        unsafe {
            let q = array!(s.splat(0.0), N, i => s.load(q.add(16 * i)));
            let k = self.tile(0).add(16 * half * N * 16);
            s.sums(&array!(q[0], 16, t => {
                let row = k.add(t * N * 16);
                let mut sum = s.mul(q[0], s.load(row));
                for i in 1..N {
                    sum = s.fma(q[i], s.load(row.add(16 * i)), sum);
                }
                sum
            }))
        }
    }
    #[inline(always)]
    fn dots_of_any_width<S: Isa>(&self, s: S, q: *const f32, half: usize) -> S::F {
        // SAFETY: as in `dots`.
        unsafe {
            let k = self.tile(0).add(16 * half * self.dim());
            s.sums(&array!(s.splat(0.0), 16, t => {
                let row = k.add(t * self.dim());
                let mut sum = s.mul(s.load(q), s.load(row));
                for i in (16..self.dim()).step_by(16) {
                    sum = s.fma(s.load(q.add(i)), s.load(row.add(i)), sum);
                }
                sum
            }))
        }
    }
    /// `values = values * decay + weights . V` for tokens `from..to`, of `Q` queries from `first` on that see the same;
    /// returns how many these are.
    #[inline(always)]
    fn weigh<S: Isa, const Q: usize>(&self, s: S, states: &[State], first: usize, (from, to): (usize, usize)) -> usize {
        let states: [State; Q] = *states.first_chunk().expect("a state for each query");
        // SAFETY: places of these queries in the working memory, which nobody changes meanwhile.
        let weights: [&Weights; Q] = std::array::from_fn(|q| unsafe { &*self.weights(first + q) });
        let (mut at, dim) = (0, padded(self.value_dim));
        while at < dim {
            at += match (dim - at) / 16 {
                8.. => self.weigh_part::<S, Q, 8>(s, states, weights, from, to, at),
                4.. => self.weigh_part::<S, Q, 4>(s, states, weights, from, to, at),
                2.. => self.weigh_part::<S, Q, 2>(s, states, weights, from, to, at),
                _ => self.weigh_part::<S, Q, 1>(s, states, weights, from, to, at),
            };
        }
        Q
    }
    /// [`Attend::weigh`] for `N` vectors of the width from float `at`; returns how many floats that is.
    #[inline(always)]
    fn weigh_part<S: Isa, const Q: usize, const N: usize>(
        &self,
        s: S,
        states: [State; Q],
        weights: [&Weights; Q],
        from: usize,
        to: usize,
        at: usize,
    ) -> usize {
        // SAFETY: floats `at..at + 16 * N` of the states and of rows `from..to` of the tile.
        unsafe {
            let mut sums = array!([s.splat(0.0); N], Q, q => {
                let (out, decay) = (states[q].values().add(at), s.splat(weights[q].decay));
                array!(decay, N, i => s.mul(s.load(out.add(16 * i)), decay))
            });
            let mut row = self.values().add(from * self.dim() + at);
            for t in from..to {
                let values = array!(s.splat(0.0), N, i => s.load(row.add(16 * i)));
                for (sums, weights) in sums.iter_mut().zip(weights) {
                    let weight = s.splat(*weights.values.get_unchecked(t));
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = s.fma(weight, value, *sum);
                    }
                }
                row = row.wrapping_add(self.dim());
            }
            for (q, sums) in sums.into_iter().enumerate() {
                for (i, sum) in sums.into_iter().enumerate() {
                    s.store(states[q].values().add(at + 16 * i), sum);
                }
            }
        }
        16 * N
    }
}

/// Reads neighbouring tokens of a cache of latent vectors, from `slot` on, into rows of `dim` floats.
///
/// # Safety
/// The tokens are in one block.
#[inline(always)]
unsafe fn latents<S: Isa>(s: S, cache: &Cache, slot: usize, rows: &mut [f32], dim: usize) {
    for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
        row[cache.head_dim..].fill(0.0);
        for part in 0..cache.parts() {
            let from = cache.at(slot + i, part);
            // SAFETY: a part has as many elements as its place says.
            unsafe { get(s, cache.format, cache.scale(slot + i, part), from, &mut row[cache.part(part)]) };
        }
    }
}

/// The work that this thread will probably do next.
pub struct Next<'a> {
    /// Its queries' sequence and head.
    pub attend: Attend<'a>,
    /// Its split.
    pub split: usize,
    /// Its first visible token.
    pub first: usize,
    /// Its last.
    pub last: usize,
}

impl Next<'_> {
    /// What the tile at `offset` of its split will read.
    fn tile(&self, offset: usize) -> Ahead {
        let start = self.split * SPLIT + offset;
        let (from, to) = (self.first.max(start), (self.last + 1).min(start + TILE));
        let size = self.attend.keys.block_size;
        let mut ahead = Ahead::default();
        let (mut t, mut run) = (from, 0);
        while t < to && run + 2 <= ahead.runs.len() {
            let count = (size - t % size).min(to - t);
            let slot = self.attend.table[t / size] as usize * size + t % size;
            for cache in self.attend.caches() {
                let lines = (count * cache.head_dim * cache.format.bytes()).div_ceil(64);
                ahead.runs[run] = (cache.at(slot, self.attend.kv_head), lines);
                ahead.lines += lines;
                run += 1;
            }
            t += count;
        }
        ahead
    }
}

/// Cache lines to fetch ahead, a few at a time between other work: blocks are too short for the
/// processor to guess what follows, and all lines at once would only fill its queues.
struct Ahead {
    runs: [(*const u8, usize); 8],
    /// The run in turn.
    run: usize,
    /// Lines left.
    lines: usize,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { runs: [(std::ptr::null(), 0); 8], run: 0, lines: 0 }
    }
}

impl Ahead {
    /// Starts to fetch the next `count` lines.
    #[inline(always)]
    fn ask(&mut self, count: usize) {
        let mut count = count.min(self.lines);
        self.lines -= count;
        while count > 0 {
            let (at, left) = self.runs[self.run];
            let now = count.min(left);
            (0..now).for_each(|i| prefetch(at.wrapping_add(64 * i)));
            self.runs[self.run] = (at.wrapping_add(64 * now), left - now);
            self.run += usize::from(now == left);
            count -= now;
        }
    }
}

/// Scores of a tile, then their weights, and the factor on what the state holds already.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Weights {
    values: [f32; TILE],
    decay: f32,
}

/// Turns the scores of tokens `from..to` into weights relative to the state's new maximum.
#[inline(always)]
fn soften<S: Isa>(s: S, state: State, (from, to): (usize, usize), weights: &mut Weights) {
    let visible = (1u64 << to) - (1u64 << from);
    // SAFETY: 32 values.
    let scores = array!(s.splat(0.0), 2, i => unsafe { s.load(weights.values.as_ptr().add(16 * i)) });
    let (max, sum) = state.head();
    let tile_max = s.max_lane(s.max(scores[0], scores[1]));
    let largest = if tile_max > max { tile_max } else { max };
    let mut parts = [s.splat(0.0); 2];
    for half in 0..2 {
        let mask = (visible >> (16 * half)) as u16;
        parts[half] = s.select(mask, exp(s, s.sub(scores[half], s.splat(largest))), parts[half]);
        // SAFETY: 16 of the 32 values.
        unsafe { s.store(weights.values.as_mut_ptr().add(16 * half), parts[half]) };
    }
    weights.decay = exp1(s, max - largest);
    state.set_head(largest, sum.mul_add(weights.decay, s.sum(s.add(parts[0], parts[1]))));
}
