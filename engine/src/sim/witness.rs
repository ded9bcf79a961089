//! A model whose KV cache bears witness: every slot holds what a real one would depend on, as integers.
//!
//! A slot stores the salt, position and token it was written for, and a hash of everything that its row read
//! through the block table when it was written (a real key or value depends on all of that too). The next token
//! is a hash of what the row reads. So a block that is stale, foreign, mapped twice or in the wrong place
//! changes the output, and the comparison with an answer made without any cache shows it.

use std::collections::HashMap;

use super::dice::mix;
use crate::kv::Copies;
use crate::model::batch::{Batch, BatchOutput, LogitRow};
use crate::op::SEEN;

/// The model's end token.
pub const EOS: u32 = 0;
/// Opens thinking.
pub const OPEN: u32 = 2;
/// Close it, one after the other.
pub const CLOSE: [u32; 2] = [3, 4];
/// A blank.
pub const NEWLINE: u32 = 9;
/// Tokens from here on mean nothing.
pub const TEXT: u32 = 10;
/// Number of tokens.
pub const VOCAB: u32 = 24;

/// What one slot of the cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    /// Hash of salt, position and token.
    own: u64,
    /// Hash of what the row read before itself.
    read: u64,
}

/// What an unwritten slot holds.
const POISON: Slot = Slot { own: 0x5AFE_C0DE_DEAD_BEEF, read: 0x0BAD_F00D_0BAD_F00D };

/// Hash of everything before a token, then of everything with it: what a correct cache makes a row read.
pub fn advance(read: u64, salt: u64, position: usize, token: u32) -> u64 {
    take(read, Slot { own: own(salt, position, token), read })
}
fn own(salt: u64, position: usize, token: u32) -> u64 {
    mix(salt, (position as u64) << 32 | u64::from(token))
}
fn take(read: u64, slot: Slot) -> u64 {
    mix(read, slot.own ^ slot.read.rotate_left(17))
}

/// The next token after a row that read `read` and whose own token is `last`. Two in three times a habit, so that
/// guesses have a chance.
pub fn say(read: u64, last: u32, row: &LogitRow) -> u32 {
    let seed = mix(row.params.seed_lo.into(), row.params.choice.into());
    // Penalties count whatever their order.
    let counts = row.adjust.iter().filter(|a| a.count & !SEEN > 0);
    let counts = counts.fold(0, |sum: u64, a| sum.wrapping_add(mix(a.token.into(), (a.count & !SEEN).into())));
    let hash = mix(mix(read, seed), counts);
    let wish = match hash % 3 {
        0 => (hash >> 8) as u32 % VOCAB,
        _ => TEXT + (last * 5 + 3) % (VOCAB - TEXT),
    };
    let forbidden = |t: u32| row.adjust.iter().any(|a| a.token == t && a.bias == f32::NEG_INFINITY);
    (0..VOCAB).map(|i| (wish + i) % VOCAB).find(|t| !forbidden(*t)).expect("something is allowed")
}

/// The device: a cache of slots, and batches that write and read them.
pub struct Witness {
    block_size: usize,
    slots: Vec<Slot>,
    /// Blocks in host memory, by place.
    host: HashMap<u32, Vec<Slot>>,
}

impl Witness {
    /// An empty cache.
    pub fn new(blocks: usize, block_size: usize) -> Self {
        Self { block_size, slots: vec![POISON; blocks * block_size], host: HashMap::new() }
    }
    /// The device was lost.
    pub fn clear(&mut self) {
        self.slots.fill(POISON);
        self.host.clear();
    }

    /// Saves, loads and copies blocks, as a device does before a batch's rows.
    fn move_blocks(&mut self, copies: &Copies) {
        let size = self.block_size;
        let range = |block: u32| block as usize * size..(block as usize + 1) * size;
        for (block, place) in &copies.save {
            self.host.insert(*place, self.slots[range(*block)].to_vec());
        }
        for (place, block) in &copies.load {
            let saved = self.host.get(place).cloned().unwrap_or_else(|| vec![POISON; size]);
            self.slots[range(*block)].copy_from_slice(&saved);
        }
        for (from, to) in &copies.copy {
            self.slots.copy_within(range(*from), range(*to).start);
        }
    }

    /// Runs a batch; `salts` are those of its sequences. As on a device all rows are written before any is read.
    pub fn run(&mut self, batch: &Batch, salts: &[u64]) -> BatchOutput {
        self.move_blocks(&batch.copies);
        for row in &batch.rows {
            let at = self.at(batch, row.seq, row.position as usize);
            self.slots[at].own = own(salts[row.seq as usize], row.position as usize, row.token);
        }
        let mut seen = Vec::with_capacity(batch.rows.len());
        let mut before: Option<(u32, u32, u64)> = None;
        for row in &batch.rows {
            let read = match before {
                Some((seq, position, read)) if (seq, position + 1) == (row.seq, row.position) => read,
                _ => (0..row.position as usize).fold(0, |h, p| take(h, self.slots[self.at(batch, row.seq, p)])),
            };
            let at = self.at(batch, row.seq, row.position as usize);
            self.slots[at].read = read;
            let read = take(read, self.slots[at]);
            before = Some((row.seq, row.position, read));
            seen.push(read);
        }
        let say = |l: &LogitRow| say(seen[l.row as usize], batch.rows[l.row as usize].token, l);
        BatchOutput { tokens: batch.logit_rows.iter().map(say).collect(), ..BatchOutput::default() }
    }

    fn at(&self, batch: &Batch, seq: u32, position: usize) -> usize {
        let table = &batch.block_tables[seq as usize];
        table[position / self.block_size] as usize * self.block_size + position % self.block_size
    }
}
