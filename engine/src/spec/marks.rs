//! What the draft's own cache holds, block by block.
//!
//! The draft's keys and values lie in its own buffers under the target's block numbers, so one
//! allocator serves both. The draft may lag behind (it skips steps in which nobody wants a guess), and a
//! block may reach a sequence by a way on which the draft computed nothing. So no sequence carries a
//! count of what is cached: each block says which tokens it was computed from, and a sequence reads off
//! how far its own log agrees. That covers rejected guesses, preemption, shared prefixes and a replayed
//! target alike, because the marks speak of contents and nothing else.

/// Hash of all tokens before a block's end; a collision costs a bad guess, never a wrong answer.
fn extend(before: u64, tokens: &[u32]) -> u64 {
    // FNV-1a's multiplier over words, with a shift so that high bits come down (Murmur's finaliser).
    tokens.iter().fold(before ^ 0xCBF2_9CE4_8422_2325, |h, t| {
        let mixed = (h ^ u64::from(*t)).wrapping_mul(0x0000_0100_0000_01B3);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
    })
}

/// What one block holds.
#[derive(Clone, Debug, Default)]
struct Mark {
    /// Hash of the tokens of all blocks before it.
    before: u64,
    /// Its own tokens, as far as it is filled.
    tokens: Vec<u32>,
}

/// Hashes of a log at its block borders, kept beside it so that they are computed once.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// `hashes[i]` is that of the first `i + 1` blocks.
    hashes: Vec<u64>,
}

impl Chain {
    fn before(&self, block: usize) -> u64 {
        if block == 0 { 0 } else { self.hashes[block - 1] }
    }
    /// Follows a log that grew.
    pub fn grow(&mut self, log: &[u32], block_size: usize) {
        for block in self.hashes.len()..log.len() / block_size {
            self.hashes.push(extend(self.before(block), &log[block * block_size..][..block_size]));
        }
    }
    /// The log was cut to `len` tokens.
    pub fn cut(&mut self, len: usize, block_size: usize) {
        self.hashes.truncate(len / block_size);
    }
}

/// The marks of all blocks of one cache.
#[derive(Clone, Debug)]
pub struct CacheMarks {
    block_size: usize,
    marks: Vec<Mark>,
}

impl CacheMarks {
    /// A cache of `blocks` blocks that hold nothing.
    pub fn new(blocks: usize, block_size: usize) -> Self {
        Self { block_size, marks: vec![Mark::default(); blocks] }
    }

    /// Nothing is cached any more.
    pub fn clear(&mut self) {
        self.marks.fill(Mark::default());
    }

    /// The contents of block `from` were copied to block `to`.
    pub fn copied(&mut self, from: u32, to: u32) {
        self.marks[to as usize] = self.marks[from as usize].clone();
    }

    /// How many tokens of `log` the blocks of `table` hold, from its front.
    pub fn held(&self, log: &[u32], chain: &mut Chain, table: &[u32]) -> usize {
        let size = self.block_size;
        chain.grow(log, size);
        for (i, block) in table.iter().enumerate().take(log.len().div_ceil(size)) {
            let mark = &self.marks[*block as usize];
            let own = &log[i * size..log.len().min((i + 1) * size)];
            if mark.before != chain.before(i) {
                return i * size;
            }
            let common = mark.tokens.iter().zip(own).take_while(|(a, b)| a == b).count();
            if common < size {
                return i * size + common;
            }
        }
        log.len().min(table.len() * size)
    }

    /// The places of `table` from position `from` on are about to be written: they hold nothing certain.
    pub fn spoil(&mut self, table: &[u32], from: usize) {
        let first = from / self.block_size;
        for (i, block) in table.iter().enumerate().skip(first) {
            let keep = if i == first { from % self.block_size } else { 0 };
            self.marks[*block as usize].tokens.truncate(keep);
        }
    }

    /// The cache holds all of `log` now; what stood before position `from` it held already.
    pub fn filled(&mut self, log: &[u32], chain: &Chain, table: &[u32], from: usize) {
        let size = self.block_size;
        let first = from / size;
        let mut before = chain.before(first.min(chain.hashes.len()));
        for (i, block) in table.iter().enumerate().take(log.len().div_ceil(size)).skip(first) {
            let own = &log[i * size..log.len().min((i + 1) * size)];
            self.marks[*block as usize] = Mark { before, tokens: own.to_vec() };
            before = extend(before, own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(marks: &CacheMarks, log: &[u32], table: &[u32]) -> usize {
        marks.held(log, &mut Chain::default(), table)
    }
    fn fill(marks: &mut CacheMarks, log: &[u32], table: &[u32]) {
        let mut chain = Chain::default();
        let from = marks.held(log, &mut chain, table);
        marks.spoil(table, from);
        marks.filled(log, &chain, table, from);
    }

    #[test]
    fn a_block_says_what_it_holds() {
        let mut marks = CacheMarks::new(8, 4);
        let log: Vec<u32> = (10..20).collect();
        assert_eq!(held(&marks, &log, &[3, 1, 5]), 0);
        fill(&mut marks, &log, &[3, 1, 5]);
        assert_eq!(held(&marks, &log, &[3, 1, 5]), 10);
        assert_eq!(held(&marks, &log, &[3, 1]), 8, "no further than the table goes");
        assert_eq!(held(&marks, &log[..6], &[3, 1]), 6, "a shorter log");
        let mut other = log.clone();
        other[9] = 7;
        assert_eq!(held(&marks, &other, &[3, 1, 5]), 9, "up to the first rejected guess");
        other[2] = 7;
        assert_eq!(held(&marks, &other, &[3, 1, 5]), 2, "later blocks follow other tokens");
        assert_eq!(held(&marks, &log, &[1, 3, 5]), 0, "the order of the blocks counts");
    }

    #[test]
    fn contents_outlive_their_owner_until_they_are_written() {
        let mut marks = CacheMarks::new(8, 4);
        let log: Vec<u32> = (10..20).collect();
        fill(&mut marks, &log, &[3, 1, 5]);
        // Another sequence with the same beginning gets the first block and one of its own.
        let branch = [10, 11, 12, 13, 99];
        assert_eq!(held(&marks, &branch, &[3, 6]), 4);
        fill(&mut marks, &branch, &[3, 6]);
        assert_eq!(held(&marks, &log, &[3, 1, 5]), 10, "nobody wrote into its blocks");
        marks.spoil(&[3, 1, 5], 6);
        assert_eq!(held(&marks, &log, &[3, 1, 5]), 6, "a run that failed half-way");
        marks.copied(6, 1);
        assert_eq!((held(&marks, &branch, &[3, 1]), held(&marks, &log, &[3, 1, 5])), (5, 4));
        marks.clear();
        assert_eq!(held(&marks, &log, &[3, 1, 5]), 0);
    }

    #[test]
    fn a_chain_follows_cuts() {
        let mut marks = CacheMarks::new(8, 4);
        let mut chain = Chain::default();
        let log: Vec<u32> = (10..20).collect();
        marks.held(&log, &mut chain, &[0, 1, 2]);
        marks.filled(&log, &chain, &[0, 1, 2], 0);
        let cut = [10, 11, 12, 13, 14, 0, 0, 0, 0, 0];
        chain.cut(5, 4);
        assert_eq!(marks.held(&cut, &mut chain, &[0, 1, 2]), 5);
        assert_eq!(chain.hashes[1], extend(extend(0, &cut[..4]), &cut[4..8]));
    }
}
