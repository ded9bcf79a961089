//! Tokens of the cache that attention will need next, fetched while it works.

use arrayvec::ArrayVec;

use super::attend::Attend;
use super::attention::SPLIT;
use super::kv::SIDE;
use super::simd::prefetch;

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
    /// What it will read.
    pub fn ahead(&self) -> Ahead {
        let start = self.split * SPLIT;
        let (from, to) = (self.first.max(start), (self.last + 1).min(start + SPLIT));
        let mut ahead = Ahead::default();
        for cache in std::iter::once(self.attend.keys).chain(self.attend.values) {
            for (_, count, slot) in self.attend.blocks(from, to) {
                let (at, bytes) = cache.stretch(slot, count, self.attend.kv_head);
                let lines = bytes.div_ceil(64);
                if ahead.runs.try_push((at, lines)).is_ok() {
                    ahead.lines += lines;
                }
            }
        }
        ahead
    }
}

/// Cache lines to fetch ahead, a few at a time between other work: blocks are too short for the
/// processor to guess what follows, and all lines at once would only fill its queues.
#[derive(Default)]
pub struct Ahead {
    /// First line and count.
    runs: ArrayVec<(*const u8, usize), { 2 * SPLIT / SIDE }>,
    /// The run in turn.
    run: usize,
    /// Lines left.
    lines: usize,
    /// Lines to ask for at a time.
    pace: usize,
}

impl Ahead {
    /// There will be so many occasions to ask.
    pub fn pace(&mut self, occasions: usize) {
        self.pace = self.lines.div_ceil(occasions.max(1));
    }
    /// One of these.
    #[inline(always)]
    pub fn turn(&mut self) {
        self.ask(self.pace);
    }
    /// Asks for all that is left.
    pub fn rest(&mut self) {
        self.ask(self.lines);
    }
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
