//! Causal attention over the paged cache, by online softmax (Milakov and Gimelshein 2018): over keys and values, or
//! over latent vectors, whose front is the value and which all heads share as if it were one key head.
//!
//! Positions are cut the same way for every row: splits of 128 tokens from position 0.
//! A split keeps its own maximum, sum and weighted values; splits are merged in ascending order. So a
//! row's arithmetic depends on its own position alone: neighbouring rows of one sequence share the tiles, and splits
//! may run on different threads (few rows) or one after another (many rows), with the same bits.

use std::ops::Range;

use arrayvec::ArrayVec;

use super::ahead::Next;
use super::attend::{Attend, Query, WORK_QUERIES, work_floats};
use super::kv::Cache;
use super::memory::Ptr;
use super::plan::{Builder, Live, Step};
use super::pool::Worker;
use super::simd::{Isa, Kernel, Level};
use super::softmax::State;
use crate::op;
use crate::program::{Program, RowSpace, Slot};

/// Tokens of a split.
pub const SPLIT: usize = 128;
/// Rows of one sequence that pass over its keys together.
const ROW_BLOCK: usize = 8;
/// Up to this many rows, splits are shared out among the threads.
const SPLIT_ROWS: usize = 16;
/// Most floats of scratch for the splits' partial results, unless one row needs more.
const PARTIAL_FLOATS: usize = 4 << 20;

/// Something of each query that shares a tile.
type Queries<T> = ArrayVec<T, WORK_QUERIES>;

/// [`op::Attention`] and [`op::LatentAttention`].
pub struct Attention {
    q: Ptr<f32>,
    keys: Cache,
    /// None where values are the front of keys.
    values: Option<Cache>,
    value_dim: usize,
    positions: Ptr<u32>,
    row_seq: Ptr<u32>,
    tables: Ptr<u32>,
    seqs: usize,
    max_blocks: usize,
    out: Ptr<f32>,
    heads: usize,
    scale: f32,
    window: Option<usize>,
    private: (Ptr<u8>, usize),
    partials: Ptr<f32>,
    /// Rows that the partial results have room for.
    partial_rows: usize,
    level: Level,
}

/// What the sizes of working memory follow from.
pub struct Extent {
    /// Tokens that a block table has room for.
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
}

impl Extent {
    /// Of attention.
    pub fn of(program: &Program, o: &op::Attention) -> Self {
        let tokens = program.decl(o.block_tables).shape[1] * program.kv_shape(o.k_cache)[1];
        Self { tokens, heads: o.heads, kv_heads: o.kv_heads, key_dim: o.head_dim, value_dim: o.head_dim }
    }
    /// Of attention to latent vectors.
    pub fn of_latents(program: &Program, o: &op::LatentAttention) -> Self {
        let tokens = program.decl(o.block_tables).shape[1] * program.kv_shape(o.cache)[1];
        Self { tokens, heads: o.heads, kv_heads: 1, key_dim: o.latent + o.rope, value_dim: o.latent }
    }
    /// Floats of one row's partial results: a state per head and split.
    fn partial_floats(&self) -> usize {
        self.tokens.div_ceil(SPLIT) * self.heads * State::floats(self.value_dim)
    }
    fn partial_rows(&self) -> usize {
        (PARTIAL_FLOATS / self.partial_floats().max(1)).clamp(1, SPLIT_ROWS)
    }
    /// Bytes wanted per thread, and for partial results.
    pub fn scratch(&self) -> (usize, usize) {
        let private = 4 * work_floats(self.key_dim, ROW_BLOCK * (self.heads / self.kv_heads));
        (private, 4 * self.partial_floats() * self.partial_rows())
    }
}

impl Attention {
    /// From the op.
    pub fn new(b: &Builder<'_>, o: &op::Attention) -> Self {
        let slots = [o.q, o.positions, o.row_seq, o.block_tables, o.out];
        let (keys, values) = (Cache::new(b, o.k_cache), Some(Cache::new(b, o.v_cache)));
        Self::over(b, slots, keys, values, &Extent::of(b.program, o), o.scale, o.window)
    }
    /// From the op over latent vectors.
    pub fn of_latents(b: &Builder<'_>, o: &op::LatentAttention) -> Self {
        let slots = [o.q, o.positions, o.row_seq, o.block_tables, o.out];
        let keys = Cache::of_latents(b, o.cache, o.latent);
        Self::over(b, slots, keys, None, &Extent::of_latents(b.program, o), o.scale, None)
    }
    fn over(
        b: &Builder<'_>,
        [q, positions, row_seq, tables, out]: [Slot; 5],
        keys: Cache,
        values: Option<Cache>,
        extent: &Extent,
        scale: f32,
        window: Option<usize>,
    ) -> Self {
        let [seqs, max_blocks] = b.shape(tables)[..] else { panic!("block tables have two dimensions") };
        Self {
            q: b.ptr(q),
            keys,
            values,
            value_dim: extent.value_dim,
            positions: b.ptr(positions),
            row_seq: b.ptr(row_seq),
            tables: b.ptr(tables),
            seqs,
            max_blocks,
            out: b.ptr(out),
            heads: extent.heads,
            scale,
            window,
            private: b.private(),
            partials: b.partials(),
            partial_rows: extent.partial_rows(),
            level: b.level,
        }
    }
    fn group(&self) -> usize {
        self.heads / self.keys.kv_heads
    }
    /// A row's position and first visible token.
    fn visible(&self, row: usize) -> (usize, usize) {
        // SAFETY: a live row.
        let position = unsafe { *self.positions.at(row) } as usize;
        (self.window.map_or(0, |w| (position + 1).saturating_sub(w)), position)
    }
    fn sequence(&self, row: usize) -> usize {
        // SAFETY: a live row.
        unsafe { *self.row_seq.at(row) as usize }
    }
    /// What a head of a row asks.
    fn query(&self, row: usize, head: usize) -> Query {
        let (first, last) = self.visible(row);
        let dim = self.keys.head_dim;
        // SAFETY: a live row's head.
        Query { q: unsafe { self.q.at((row * self.heads + head) * dim) }, first, last }
    }
    fn attend<'a>(&'a self, worker: &Worker<'_>, row: usize, kv_head: usize) -> Attend<'a> {
        let seq = self.sequence(row);
        assert!(seq < self.seqs, "row {row} names block table {seq} of {}", self.seqs);
        let (private, bytes) = self.private;
        Attend {
            keys: &self.keys,
            values: self.values.as_ref(),
            value_dim: self.value_dim,
            // SAFETY: a row of the tables; each thread has its own part of the working memory.
            table: unsafe { self.tables.slice(seq * self.max_blocks, self.max_blocks) },
            kv_head,
            scale: self.scale,
            // SAFETY: as above.
            work: unsafe { private.at(worker.index * bytes) }.cast(),
        }
    }
    /// Where the state of a (row, head, split) is kept between the two phases.
    fn partial(&self, row: usize, head: usize, split: usize) -> State {
        let floats = State::floats(self.value_dim);
        let splits = (self.max_blocks * self.keys.block_size).div_ceil(SPLIT);
        // SAFETY: `partial_rows` rows have room for every head and split.
        State::new(unsafe { self.partials.at(((row * self.heads + head) * splits + split) * floats) }, self.value_dim)
    }
    /// The splits that a row sees.
    fn splits(&self, row: usize) -> Range<usize> {
        let (first, last) = self.visible(row);
        first / SPLIT..last / SPLIT + 1
    }
    /// The splits that one or another of some rows sees.
    fn splits_of(&self, rows: &Range<usize>) -> Range<usize> {
        let start = rows.clone().map(|r| self.splits(r).start).min().unwrap_or(0);
        start..rows.clone().map(|r| self.splits(r).end).max().unwrap_or(0)
    }
    /// Rows cut into runs of at most `longest` neighbours of one sequence.
    fn runs(&self, rows: Range<usize>, longest: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::with_capacity(rows.len());
        for row in rows {
            match runs.last_mut() {
                Some(run) if run.len() < longest && self.sequence(run.start) == self.sequence(row) => run.end = row + 1,
                _ => runs.push(row..row + 1),
            }
        }
        runs
    }
    /// The queries that some rows have for a key head, as ranges of at most [`WORK_QUERIES`] of them.
    fn parts_of(&self, rows: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let count = rows.len() * self.group();
        (0..count).step_by(WORK_QUERIES).map(move |start| start..count.min(start + WORK_QUERIES))
    }
    /// (row, head) of one of these queries.
    fn asks(&self, rows: &Range<usize>, kv_head: usize, query: usize) -> (usize, usize) {
        (rows.start + query / self.group(), kv_head * self.group() + query % self.group())
    }
    fn write(&self, row: usize, head: usize, total: State) {
        let dim = self.value_dim;
        // SAFETY: a live row's head, this item's own.
        let out = unsafe { self.out.slice_mut((row * self.heads + head) * dim, dim) };
        self.level.run(Finish { total, out });
    }

    /// Few rows: every split of a run of rows is an item, then every head merges its own.
    fn by_split(&self, w: &Worker<'_>, rows: usize) {
        let kv_heads = self.keys.kv_heads;
        let most_splits = |runs: &[Range<usize>]| runs.iter().map(|r| self.splits_of(r).len()).max().unwrap_or(0);
        // Rows of one sequence read its tokens once, unless threads would have nothing to do.
        let mut longest = (WORK_QUERIES / self.group()).clamp(1, ROW_BLOCK);
        let mut runs = self.runs(0..rows, longest);
        while longest > 1 && runs.len() * most_splits(&runs) * kv_heads < w.threads {
            longest /= 2;
            runs = self.runs(0..rows, longest);
        }
        let most = most_splits(&runs);
        let place = |item: usize| {
            let rows = runs.get(item / kv_heads / most)?;
            let split = self.splits_of(rows).nth(item / kv_heads % most)?;
            Some((rows, split, item % kv_heads))
        };
        let sharing = w.sharing();
        w.phase(runs.len() * most * kv_heads, 1, |range| {
            for item in range {
                let Some((rows, split, kv_head)) = place(item) else { continue };
                let next = || {
                    let (rows, split, kv_head) = place(item + sharing)?;
                    let (first, _) = self.visible(rows.start);
                    let (_, last) = self.visible(rows.end - 1);
                    Some(Next { attend: self.attend(w, rows.start, kv_head), split, first, last })
                };
                for part in self.parts_of(rows) {
                    let asks = part.map(|query| self.asks(rows, kv_head, query));
                    let mut attend = self.attend(w, rows.start, kv_head);
                    let queries: Queries<Query> = asks.clone().map(|(row, head)| self.query(row, head)).collect();
                    let states: Queries<State> =
                        asks.clone().map(|(row, head)| self.partial(row, head, split)).collect();
                    self.level.run(OneSplit {
                        attend: &mut attend,
                        queries: &queries,
                        states: &states,
                        split,
                        next: next(),
                    });
                    if most == 1 {
                        asks.zip(states).for_each(|((row, head), total)| self.write(row, head, total));
                    }
                }
            }
        });
        if most == 1 {
            return;
        }
        w.phase(rows * self.heads, 1, |range| {
            for item in range {
                let (row, head) = (item / self.heads, item % self.heads);
                let splits = self.splits(row);
                let total = self.partial(row, head, splits.start);
                for split in splits.skip(1) {
                    self.level.run(Merge { total, next: self.partial(row, head, split) });
                }
                self.write(row, head, total);
            }
        });
    }

    /// Many rows: every run of rows is an item, and splits follow one another.
    fn by_rows(&self, w: &Worker<'_>, rows: usize) {
        let kv_heads = self.keys.kv_heads;
        w.phase(rows.div_ceil(ROW_BLOCK) * kv_heads, 1, |range| {
            for item in range {
                let (block, kv_head) = (item / kv_heads, item % kv_heads);
                for run in self.runs(block * ROW_BLOCK..rows.min((block + 1) * ROW_BLOCK), ROW_BLOCK) {
                    self.rows_of_one_sequence(w, run, kv_head);
                }
            }
        });
    }

    fn rows_of_one_sequence(&self, w: &Worker<'_>, rows: Range<usize>, kv_head: usize) {
        for part in self.parts_of(&rows) {
            let mut attend = self.attend(w, rows.start, kv_head);
            let last = self.asks(&rows, kv_head, part.end - 1).0;
            let splits = self.splits_of(&(self.asks(&rows, kv_head, part.start).0..last + 1));
            let asks = part.map(|query| self.asks(&rows, kv_head, query));
            let queries: Queries<Query> = asks.clone().map(|(row, head)| self.query(row, head)).collect();
            self.level.run(AllSplits { attend: &mut attend, queries: &queries, splits });
            for (i, (row, head)) in asks.enumerate() {
                self.write(row, head, attend.total(i));
            }
        }
    }
}

impl Step for Attention {
    fn run(&self, w: &Worker<'_>, live: &Live) {
        let rows = live.rows(RowSpace::Batch);
        if rows <= self.partial_rows { self.by_split(w, rows) } else { self.by_rows(w, rows) }
    }
}

struct OneSplit<'a, 'b> {
    attend: &'a mut Attend<'b>,
    queries: &'a [Query],
    states: &'a [State],
    split: usize,
    next: Option<Next<'b>>,
}

impl Kernel for OneSplit<'_, '_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        self.attend.split(s, self.queries, self.states, self.split, self.next);
    }
}

struct AllSplits<'a, 'b> {
    attend: &'a mut Attend<'b>,
    queries: &'a [Query],
    splits: Range<usize>,
}

impl Kernel for AllSplits<'_, '_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        self.attend.splits(s, self.queries, self.splits);
    }
}

struct Merge {
    total: State,
    next: State,
}

impl Kernel for Merge {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        self.total.merge(s, self.next);
    }
}

struct Finish<'a> {
    total: State,
    out: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Isa>(self, _: S) {
        self.total.finish(self.out);
    }
}
