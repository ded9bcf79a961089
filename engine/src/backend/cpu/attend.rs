//! The arithmetic of attention: queries against the tokens of a split, in three passes. Scores are sums over the
//! elements of a key, sixteen tokens side by side; a softmax over the split makes them weights; values are summed token
//! by token. Every sum has the order of its elements or tokens, so its bits do not depend on who shares the work.
//!
//! Few queries read the cache as it is stored. Many share tiles of it, widened once.

use arrayvec::ArrayVec;

use super::ahead::{Ahead, Next};
use super::attention::SPLIT;
use super::kv::{Cache, Order, SIDE};
use super::simd::{Isa, array};
use super::softmax::{State, Weights, padded};
use super::stored::{F32, Stored, get, in_format};
use crate::format::KvFormat;

/// Tokens of a tile: two vectors of scores.
const TILE: usize = 2 * SIDE;
/// Most queries that share a tile.
pub const WORK_QUERIES: usize = 32;
/// Most queries for which nothing is widened in advance.
const FEW: usize = 8;

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

impl Query {
    /// The tokens of a split that it sees, counted from the split's first; none where the range is empty.
    fn seen(&self, split: usize) -> Span {
        let start = split * SPLIT;
        let (from, to) = (self.first.max(start), (self.last + 1).min(start + SPLIT));
        Span { from: from - start, to: to.max(from) - start }
    }
}

/// Tokens `from..to` of a split.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Span {
    from: usize,
    to: usize,
}

impl Span {
    fn is_empty(self) -> bool {
        self.from >= self.to
    }
    /// What lies in `from..to` too.
    fn within(self, from: usize, to: usize) -> Self {
        Self { from: self.from.max(from), to: self.to.min(to) }
    }
}

/// Floats of working memory of a thread: a tile of keys and one of values, and what belongs to each query.
pub fn work_floats(dim: usize, queries: usize) -> usize {
    2 * TILE * padded(dim) + queries.clamp(1, WORK_QUERIES) * query_floats(dim)
}

/// Of these, what belongs to a query: two states, its weights.
fn query_floats(dim: usize) -> usize {
    2 * State::floats(dim) + size_of::<Weights>() / 4
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

/// Keys of one or two vectors of tokens: where the first element of each lies and, where codes have such, the tokens'
/// scales.
struct Keys<E: Stored> {
    at: [*const E::Element; 2],
    scales: [Option<*const f32>; 2],
    /// Elements from a vector to that of the next element.
    step: usize,
    /// First token within the split.
    first: usize,
    /// Whether there is a second vector.
    pair: bool,
}

/// Neighbouring tokens' values.
struct Run<E: Stored> {
    at: *const E::Element,
    scales: Option<*const f32>,
    tokens: Span,
}

impl Attend<'_> {
    fn dim(&self) -> usize {
        padded(self.keys.head_dim)
    }
    /// The tile of keys, `[dim][TILE]`.
    fn key_tile(&self) -> *mut f32 {
        self.work
    }
    /// The tile of values, `[TILE][dim]`.
    fn value_tile(&self) -> *mut f32 {
        self.work.wrapping_add(TILE * self.dim())
    }
    fn query(&self, i: usize) -> *mut f32 {
        self.work.wrapping_add(2 * TILE * self.dim() + i * query_floats(self.keys.head_dim))
    }
    /// The scores of query `i` in a split, then its weights.
    fn weights(&self, i: usize) -> *mut Weights {
        self.query(i).cast()
    }
    /// The total of query `i` after [`Attend::splits`].
    pub fn total(&self, i: usize) -> State {
        State::new(self.query(i).wrapping_add(SPLIT), self.value_dim)
    }
    /// The state of query `i` within a split.
    fn state(&self, i: usize) -> State {
        State::new(self.query(i).wrapping_add(SPLIT + State::floats(self.keys.head_dim)), self.value_dim)
    }
    /// The slot of a token.
    fn slot(&self, token: usize) -> usize {
        let size = self.keys.block_size;
        self.table[token / size] as usize * size + token % size
    }
    /// Tokens `from..to` block by block: first token, count, slot.
    pub fn blocks(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let size = self.keys.block_size;
        let mut t = from;
        std::iter::from_fn(move || {
            let count = (size - t % size).min(to.checked_sub(t).filter(|left| *left > 0)?);
            let token = t;
            t += count;
            Some((token, count, self.slot(token)))
        })
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
    #[inline(always)]
    pub fn split<S: Isa>(&mut self, s: S, queries: &[Query], states: &[State], split: usize, next: Option<Next<'_>>) {
        let seen: ArrayVec<Span, WORK_QUERIES> = queries.iter().map(|q| q.seen(split)).collect();
        let sees = || seen.iter().filter(|span| !span.is_empty());
        let (Some(from), Some(to)) = (sees().map(|s| s.from).min(), sees().map(|s| s.to).max()) else { return };
        let all = Span { from, to };
        let direct = self.values.is_some_and(|v| v.head_dim.is_multiple_of(16)) && self.keys.order == Order::Elements;
        let few = direct && queries.len() <= FEW;
        let mut ahead = next.map_or(Ahead::default(), |n| n.ahead());
        let (elements, tokens) = (self.keys.head_dim.div_ceil(ELEMENTS), (to - from).div_ceil(TOKENS));
        ahead.pace(
            queries.len().div_ceil(4) * (to - from).div_ceil(TILE) * elements + queries.len().div_ceil(3) * tokens,
        );
        if few {
            in_format!(self.keys.format, E => self.scores_of_few::<S, E>(s, queries, split, all, &mut ahead));
        } else {
            self.scores_of_many(s, queries, split, all, &mut ahead);
        }
        for (i, span) in seen.iter().enumerate().filter(|(_, span)| !span.is_empty()) {
            // SAFETY: a place in the working memory, of this query alone.
            states[i].begin(s, (span.from, span.to), unsafe { &mut *self.weights(i) });
        }
        match self.values {
            Some(values) if few => in_format!(values.format, E => {
                let start = split * SPLIT;
                let runs: ArrayVec<Run<E>, { SPLIT / SIDE }> = self.blocks(start + from, start + to)
                    .map(|(token, count, slot)| self.run(values, slot, token - start, count))
                    .collect();
                self.weigh_all::<S, E>(s, states, &seen, &runs, values.head_dim, &mut ahead);
            }),
            _ => self.weigh_many(s, states, &seen, split, all, &mut ahead),
        }
        ahead.rest();
    }
    /// The scores of queries, from keys as they are stored.
    #[inline(always)]
    fn scores_of_few<S: Isa, E: Stored>(&self, s: S, queries: &[Query], split: usize, all: Span, ahead: &mut Ahead) {
        let end = all.to.next_multiple_of(SIDE);
        let mut first = all.from - all.from % SIDE;
        while first < end {
            let pair = S::SUMS >= 12 && first + SIDE < end;
            let slots = [first, if pair { first + SIDE } else { first }].map(|t| self.slot(split * SPLIT + t));
            let at = slots.map(|slot| self.keys.at(slot, self.kv_head).cast_const().cast());
            let scales = slots.map(|slot| self.keys.scale_at(slot, self.kv_head).map(<*mut f32>::cast_const));
            self.scores(s, queries, &Keys::<E> { at, scales, step: SIDE, first, pair }, ahead);
            first += if pair { TILE } else { SIDE };
        }
    }
    /// The scores of queries, by tiles of keys.
    #[inline(always)]
    fn scores_of_many<S: Isa>(&mut self, s: S, queries: &[Query], split: usize, all: Span, ahead: &mut Ahead) {
        for start in (0..SPLIT).step_by(TILE) {
            let span = all.within(start, start + TILE);
            if span.is_empty() {
                continue;
            }
            let scales = self.fill_keys(s, split, start, span);
            for half in 0..if S::SUMS >= 12 { 1 } else { 2 } {
                let first = start + half * SIDE;
                let at = [0, SIDE].map(|t| self.key_tile().wrapping_add(half * SIDE + t).cast_const());
                let scales = if half == 0 { scales } else { [scales[1]; 2] };
                let keys = Keys::<F32> { at, scales, step: TILE, first, pair: S::SUMS >= 12 };
                self.scores(s, queries, &keys, ahead);
            }
        }
    }
    /// Reads the keys of `span` into the tile that starts at `start`; returns where their scales are, if they have yet
    /// to be applied. What the tile holds of other tokens is anything.
    #[inline(always)]
    fn fill_keys<S: Isa>(&mut self, s: S, split: usize, start: usize, span: Span) -> [Option<*const f32>; 2] {
        let (keys, tile) = (self.keys, self.key_tile());
        if keys.order == Order::Tokens {
            self.fill_rows(s, keys, keys.head_dim, split, start, span);
            for half in 0..2 {
                for d in (0..self.dim()).step_by(16) {
                    // SAFETY: sixteen rows of one tile and sixteen columns of the other.
                    unsafe {
                        let rows = self.value_tile().add(half * 16 * self.dim() + d);
                        let columns = s.transpose(&array!(s.splat(0.0), 16, i => s.load(rows.add(i * self.dim()))));
                        for (i, column) in columns.into_iter().enumerate() {
                            s.store(tile.add((d + i) * TILE + half * 16), column);
                        }
                    }
                }
            }
            return [None; 2];
        }
        let mut scales = [None; 2];
        for (half, scales) in scales.iter_mut().enumerate() {
            let first = start + half * SIDE;
            if span.within(first, first + SIDE).is_empty() {
                continue;
            }
            let slot = self.slot(split * SPLIT + first);
            *scales = keys.scale_at(slot, self.kv_head).map(<*mut f32>::cast_const);
            let at = keys.at(slot, self.kv_head);
            in_format!(keys.format, E => for d in 0..keys.head_dim {
                // SAFETY: the same element of sixteen tokens of one block, and sixteen columns of the tile.
                unsafe {
                    let element = E::load(s, at.cast::<<E as Stored>::Element>().add(d * SIDE), 1.0);
                    s.store(tile.add(d * TILE + half * SIDE), element);
                }
            });
        }
        // A half that nobody sees has no scales, and any will do.
        [scales[0].or(scales[1]), scales[1].or(scales[0])]
    }
    /// Reads the first `width` elements of `span`'s vectors into the rows of the tile that starts at `start`.
    #[inline(always)]
    fn fill_rows<S: Isa>(&self, s: S, cache: &Cache, width: usize, split: usize, start: usize, span: Span) {
        let dim = self.dim();
        for (token, count, slot) in self.blocks(split * SPLIT + span.from, split * SPLIT + span.to) {
            let row = self.value_tile().wrapping_add((token - split * SPLIT - start) * dim);
            // SAFETY: `count` tokens of one block lie together; their rows are in the tile, which this thread has alone.
            unsafe {
                let rows = std::slice::from_raw_parts_mut(row, count * dim);
                if cache.latent.is_none() && dim == cache.head_dim && !cache.has_scales() {
                    get(s, cache.format, 1.0, cache.at(slot, self.kv_head), rows);
                    continue;
                }
                for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
                    let heads = if cache.latent.is_some() { 0..cache.parts() } else { self.kv_head..self.kv_head + 1 };
                    for head in heads {
                        let place = if cache.latent.is_some() { cache.part(head) } else { 0..cache.head_dim };
                        if place.start < width {
                            let scale = cache.scale(slot + i, head);
                            get(s, cache.format, scale, cache.at(slot + i, head), &mut row[place]);
                        }
                    }
                    row[width..].fill(0.0);
                }
            }
        }
    }
    /// The scores of all queries with one or two vectors of tokens.
    #[inline(always)]
    fn scores<S: Isa, E: Stored>(&self, s: S, queries: &[Query], keys: &Keys<E>, ahead: &mut Ahead) {
        let mut i = 0;
        while i < queries.len() {
            let some = &queries[i..];
            i += match (some.len(), keys.pair) {
                (4.., true) => self.dots::<S, E, 4, 2>(s, some, i, keys, ahead),
                (3, true) => self.dots::<S, E, 3, 2>(s, some, i, keys, ahead),
                (2, true) => self.dots::<S, E, 2, 2>(s, some, i, keys, ahead),
                (_, true) => self.dots::<S, E, 1, 2>(s, some, i, keys, ahead),
                (4.., false) => self.dots::<S, E, 4, 1>(s, some, i, keys, ahead),
                (3, false) => self.dots::<S, E, 3, 1>(s, some, i, keys, ahead),
                (2, false) => self.dots::<S, E, 2, 1>(s, some, i, keys, ahead),
                (_, false) => self.dots::<S, E, 1, 1>(s, some, i, keys, ahead),
            };
        }
    }
    /// The scores of the first `Q` of some queries, which are `i` and so on, with `V` vectors of tokens; returns `Q`.
    #[inline(always)]
    fn dots<S: Isa, E: Stored, const Q: usize, const V: usize>(
        &self,
        s: S,
        queries: &[Query],
        i: usize,
        keys: &Keys<E>,
        ahead: &mut Ahead,
    ) -> usize {
        let queries: [*const f32; Q] = queries.first_chunk::<Q>().expect("so many queries").map(|query| query.q);
        let mut sums = [[s.splat(0.0); V]; Q];
        let dim = self.keys.head_dim;
        for start in (0..dim).step_by(ELEMENTS) {
            ahead.turn();
            for d in start..dim.min(start + ELEMENTS) {
                // SAFETY: an element of each query and of each vector of tokens.
                unsafe {
                    let key = array!(s.splat(0.0), V, v => E::load(s, keys.at[v].add(d * keys.step), 1.0));
                    for (sums, query) in sums.iter_mut().zip(queries) {
                        let q = s.splat(*query.add(d));
                        for (sum, key) in sums.iter_mut().zip(key) {
                            *sum = s.fma(q, key, *sum);
                        }
                    }
                }
            }
        }
        for (q, sums) in sums.into_iter().enumerate() {
            for (v, mut sum) in sums.into_iter().enumerate() {
                // SAFETY: sixteen scales, and sixteen places among the query's scores.
                unsafe {
                    if let Some(scales) = keys.scales[v] {
                        sum = s.mul(sum, s.load(scales));
                    }
                    let to = self.weights(i + q).cast::<f32>().add(keys.first + v * SIDE);
                    s.store(to, s.mul(sum, s.splat(self.scale)));
                }
            }
        }
        Q
    }
    fn run<E: Stored>(&self, values: &Cache, slot: usize, first: usize, count: usize) -> Run<E> {
        Run {
            at: values.at(slot, self.kv_head).cast_const().cast(),
            scales: values.scale_at(slot, self.kv_head).map(<*mut f32>::cast_const),
            tokens: Span { from: first, to: first + count },
        }
    }
    /// The weighted values of queries, by tiles of values.
    #[inline(always)]
    fn weigh_many<S: Isa>(
        &mut self,
        s: S,
        states: &[State],
        seen: &[Span],
        split: usize,
        all: Span,
        ahead: &mut Ahead,
    ) {
        for start in (0..SPLIT).step_by(TILE) {
            let span = all.within(start, start + TILE);
            if span.is_empty() {
                continue;
            }
            self.fill_rows(s, self.values.unwrap_or(self.keys), self.value_dim, split, start, span);
            let tokens = Span { from: start, to: start + TILE };
            let run = Run { at: self.value_tile().cast_const(), scales: None, tokens };
            self.weigh_all::<S, F32>(s, states, seen, &[run], self.dim(), ahead);
        }
    }
    /// Adds the values of runs, whose tokens are `step` elements apart, to the states of all queries. Neighbours that see
    /// the same tokens share what is read.
    #[inline(always)]
    fn weigh_all<S: Isa, E: Stored>(
        &self,
        s: S,
        states: &[State],
        seen: &[Span],
        runs: &[Run<E>],
        step: usize,
        ahead: &mut Ahead,
    ) {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return };
        let mut i = 0;
        while i < seen.len() {
            let within = |span: &Span| span.within(first.tokens.from, last.tokens.to);
            let span = within(&seen[i]);
            let alike = seen[i..].iter().take(3).take_while(|other| within(other) == span).count();
            // Registers hold three times four sums, or as few as twice two.
            i += match alike {
                _ if span.is_empty() => 1,
                3 if S::SUMS >= 12 => self.weigh::<S, E, 3, 4>(s, &states[i..], i, span, runs, step, ahead),
                2.. if S::SUMS >= 12 => self.weigh::<S, E, 2, 4>(s, &states[i..], i, span, runs, step, ahead),
                2.. => self.weigh::<S, E, 2, 2>(s, &states[i..], i, span, runs, step, ahead),
                _ => self.weigh::<S, E, 1, 4>(s, &states[i..], i, span, runs, step, ahead),
            };
        }
    }
    /// The same for `Q` queries from `i` on that see `span`, `N` vectors of the width at a time; returns `Q`.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn weigh<S: Isa, E: Stored, const Q: usize, const N: usize>(
        &self,
        s: S,
        states: &[State],
        i: usize,
        span: Span,
        runs: &[Run<E>],
        step: usize,
        ahead: &mut Ahead,
    ) -> usize {
        let states: [State; Q] = *states.first_chunk().expect("a state for each query");
        let weights: [*const f32; Q] = std::array::from_fn(|q| self.weights(i + q).cast_const().cast());
        let (mut at, dim) = (0, padded(self.value_dim));
        while at < dim {
            at += match (dim - at) / 16 {
                left if left >= N => self.weigh_part::<S, E, Q, N>(s, states, weights, span, runs, step, at, ahead),
                2.. => self.weigh_part::<S, E, Q, 2>(s, states, weights, span, runs, step, at, ahead),
                _ => self.weigh_part::<S, E, Q, 1>(s, states, weights, span, runs, step, at, ahead),
            };
        }
        Q
    }
    /// [`Attend::weigh`] for the floats `at..at + 16 * N` of the width; returns how many these are.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn weigh_part<S: Isa, E: Stored, const Q: usize, const N: usize>(
        &self,
        s: S,
        states: [State; Q],
        weights: [*const f32; Q],
        span: Span,
        runs: &[Run<E>],
        step: usize,
        at: usize,
        ahead: &mut Ahead,
    ) -> usize {
        // SAFETY: floats of the states, weights of the split's tokens, and values of the runs' tokens.
        unsafe {
            let mut sums = array!([s.splat(0.0); N], Q, q => {
                let values = states[q].values().add(at);
                array!(s.splat(0.0), N, i => s.load(values.add(16 * i)))
            });
            for run in runs {
                let tokens = span.within(run.tokens.from, run.tokens.to);
                let mut t = tokens.from;
                while t < tokens.to {
                    ahead.turn();
                    let end = tokens.to.min(t + TOKENS);
                    while t < end {
                        let offset = t - run.tokens.from;
                        let from = run.at.add(offset * step + at);
                        let scale = run.scales.map_or(1.0, |scales| *scales.add(offset));
                        let values = array!(s.splat(0.0), N, i => E::load(s, from.add(16 * i), scale));
                        for (sums, weights) in sums.iter_mut().zip(weights) {
                            let weight = s.splat(*weights.add(t));
                            for (sum, value) in sums.iter_mut().zip(values) {
                                *sum = s.fma(weight, value, *sum);
                            }
                        }
                        t += 1;
                    }
                }
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

/// Elements of a key between two requests for what is needed later.
const ELEMENTS: usize = 16;
/// Tokens whose values are added between two such requests.
const TOKENS: usize = 8;
