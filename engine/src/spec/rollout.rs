//! A draft model's work of one step: the tokens that it lacks, then one token at a time.
//!
//! All sequences go together: first one ragged batch of what their caches lack (more than one, if that is
//! a long prompt), whose last rows give the first guesses; then a batch of one row per sequence for each
//! further guess. The draft chooses with the target's own noise, penalties and biases, position by
//! position, so that where both see the same probabilities they choose the same token.

use super::verify::count;
use crate::error::Result;
use crate::model::batch::{Batch, BatchOutput, LogitRow, Row};
use crate::op::{Adjust, ERROR_TOKEN};
use crate::step::SamplePlan;

/// One sequence's share.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Its physical blocks.
    pub table: Vec<u32>,
    /// Position of the first of `tokens`: how many the draft's cache holds.
    pub from: usize,
    /// The tokens of its log that the cache lacks; at least the last one.
    pub tokens: Vec<u32>,
    /// How the token after them is chosen.
    pub sample: SamplePlan,
    /// Guesses wanted; with 0 its cache catches up only.
    pub wanted: usize,
}

/// What bounds a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolloutLimits {
    /// Most rows of one batch.
    pub max_rows: usize,
    /// Tokens of the draft: others can be no input and have no logits.
    pub vocab: usize,
    /// Tokens of the target: others can be no guess.
    pub target_vocab: usize,
}

/// What a rollout found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rolled {
    /// Guesses of each sequence, at most as many as it wanted.
    pub guesses: Vec<Vec<u32>>,
    /// Guesses of each sequence that were an input too: so many of them the cache holds.
    pub cached: Vec<usize>,
    /// Sequences whose logits were no numbers.
    pub broken: usize,
    /// Batches that were run.
    pub passes: usize,
}

/// A sequence on its way.
struct Path {
    sample: SamplePlan,
    guesses: Vec<u32>,
    cached: usize,
    live: bool,
}

/// Runs `asks` on a draft model: `run` runs one batch. `stop` is asked between batches, and ends the
/// rollout with what there is.
///
/// # Errors
/// Those of `run`.
pub fn rollout(
    asks: &[Ask],
    limits: RolloutLimits,
    run: &mut dyn FnMut(&Batch) -> Result<BatchOutput>,
    stop: &dyn Fn() -> bool,
) -> Result<Rolled> {
    let tables: Vec<Vec<u32>> = asks.iter().map(|a| a.table.clone()).collect();
    let mut batch = Batch { block_tables: tables, ..Batch::default() };
    let mut rolled = Rolled::default();
    let mut paths: Vec<Path> = asks.iter().map(|ask| Path::new(ask, limits.vocab)).collect();
    let mut run = |batch: &Batch, choosing: &[usize], paths: &mut [Path]| -> Result<()> {
        let output = run(batch)?;
        rolled.passes += 1;
        for (path, token) in choosing.iter().zip(&output.tokens) {
            rolled.broken += usize::from(*token == ERROR_TOKEN);
            paths[*path].take(*token, asks[*path].wanted, limits);
        }
        Ok(())
    };
    let lacking: Vec<(usize, usize)> =
        asks.iter().enumerate().flat_map(|(a, ask)| (0..ask.tokens.len()).map(move |i| (a, i))).collect();
    for part in lacking.chunks(limits.max_rows.max(1)) {
        let choosing = catch_up(asks, part, &paths, &mut batch);
        run(&batch, &choosing, &mut paths)?;
    }
    while !stop() {
        let choosing = go_on(asks, &mut paths, &mut batch);
        if choosing.is_empty() {
            break;
        }
        run(&batch, &choosing, &mut paths)?;
    }
    for path in paths {
        rolled.guesses.push(path.guesses);
        rolled.cached.push(path.cached);
    }
    Ok(rolled)
}

/// Fills `batch` with rows that caches lack; returns the asks whose last row is among them and chooses.
fn catch_up(asks: &[Ask], part: &[(usize, usize)], paths: &[Path], batch: &mut Batch) -> Vec<usize> {
    let mut choosing = Vec::new();
    batch.rows.clear();
    batch.logit_rows.clear();
    for (a, i) in part {
        let ask = &asks[*a];
        let (token, position) = (ask.tokens[*i], (ask.from + i) as u32);
        if i + 1 == ask.tokens.len() && ask.wanted > 0 {
            batch.logit_rows.push(paths[*a].logit_row(batch.rows.len()));
            choosing.push(*a);
        }
        batch.rows.push(Row { token, position, seq: *a as u32 });
    }
    choosing
}

/// Fills `batch` with the last guess of every sequence that wants another; returns those.
fn go_on(asks: &[Ask], paths: &mut [Path], batch: &mut Batch) -> Vec<usize> {
    let mut choosing = Vec::new();
    batch.rows.clear();
    batch.logit_rows.clear();
    for (a, (ask, path)) in asks.iter().zip(paths).enumerate().filter(|(_, (_, path))| path.live) {
        let token = *path.guesses.last().expect("a live path has guessed");
        let position = (ask.from + ask.tokens.len() + path.cached) as u32;
        batch.logit_rows.push(path.logit_row(batch.rows.len()));
        batch.rows.push(Row { token, position, seq: a as u32 });
        path.cached += 1;
        choosing.push(a);
    }
    choosing
}

impl Path {
    fn new(ask: &Ask, vocab: usize) -> Self {
        let adjust: Vec<Adjust> = ask.sample.adjust.iter().copied().filter(|a| (a.token as usize) < vocab).collect();
        let sample = SamplePlan { params: ask.sample.params, adjust, guide: None };
        Self { sample, guesses: Vec::new(), cached: 0, live: false }
    }
    fn logit_row(&self, row: usize) -> LogitRow {
        LogitRow { row: row as u32, params: self.sample.params, adjust: self.sample.adjust.clone(), mask: None }
    }
    /// Takes the token that its row chose. What the target cannot say is no guess, and ends the path; what
    /// the draft itself cannot read ends it too.
    fn take(&mut self, token: u32, wanted: usize, limits: RolloutLimits) {
        self.live = false;
        if token as usize >= limits.target_vocab {
            return;
        }
        self.guesses.push(token);
        self.sample.params.position += 1;
        count(&mut self.sample.adjust, &self.sample.params, token);
        self.live = self.guesses.len() < wanted && (token as usize) < limits.vocab;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{SEEN, SampleRow};

    const LIMITS: RolloutLimits = RolloutLimits { max_rows: 4, vocab: 90, target_vocab: 100 };

    /// The next token is the sum of the two before it in the cache, modulo 100.
    fn run_with(batches: &mut Vec<Batch>, slots: &mut [u32; 64], batch: &Batch) -> BatchOutput {
        let slot = |seq: u32, p: u32| (batch.block_tables[seq as usize][p as usize / 4] * 4 + p % 4) as usize;
        batch.rows.iter().for_each(|r| slots[slot(r.seq, r.position)] = r.token);
        batches.push(batch.clone());
        let next = |l: &LogitRow| {
            let row = batch.rows[l.row as usize];
            assert_eq!(l.params.position, row.position + 1);
            (slots[slot(row.seq, row.position)] + slots[slot(row.seq, row.position - 1)]) % 100
        };
        BatchOutput { tokens: batch.logit_rows.iter().map(next).collect(), ..BatchOutput::default() }
    }

    fn ask(table: &[u32], from: usize, tokens: &[u32], wanted: usize) -> Ask {
        let position = (from + tokens.len()) as u32;
        let params = SampleRow { position, presence: 0.5, ..SampleRow::default() };
        let adjust = vec![Adjust { token: 95, count: 0, bias: 1.0 }, Adjust { token: 8, count: SEEN | 1, bias: 0.0 }];
        Ask {
            table: table.to_vec(),
            from,
            tokens: tokens.to_vec(),
            sample: SamplePlan { params, adjust, guide: None },
            wanted,
        }
    }

    #[test]
    fn all_sequences_together_each_as_far_as_it_wants() {
        let (mut batches, mut slots) = (Vec::new(), [0; 64]);
        let asks = [ask(&[2, 0], 0, &[1, 2, 3, 5], 3), ask(&[1], 0, &[7, 1], 1), ask(&[3], 0, &[4, 4], 0)];
        let rolled = rollout(&asks, LIMITS, &mut |b| Ok(run_with(&mut batches, &mut slots, b)), &|| false).unwrap();
        assert_eq!(rolled.guesses, [vec![8, 13, 21], vec![8], vec![]]);
        assert_eq!((rolled.cached.as_slice(), rolled.passes, rolled.broken), (&[2, 0, 0][..], 4, 0));
        // Eight rows in parts of four, then single rows.
        assert_eq!(batches.iter().map(|b| b.rows.len()).collect::<Vec<_>>(), [4, 4, 1, 1]);
        assert!(batches.iter().flat_map(|b| &b.logit_rows).all(|l| l.adjust.iter().all(|a| a.token < 90)));
        let counts = |l: &LogitRow| l.adjust.iter().map(|a| (a.token, a.count & !SEEN)).collect::<Vec<_>>();
        assert_eq!(counts(&batches[3].logit_rows[0]), [(8, 2), (13, 1)], "penalties count the guesses");
    }

    #[test]
    fn what_nobody_can_say_or_read_ends_the_guesses() {
        let (mut batches, mut slots) = (Vec::new(), [0; 64]);
        let mut run = |b: &Batch| Ok(run_with(&mut batches, &mut slots, b));
        // 50 + 45 = 95: the target knows it, the draft cannot read it.
        let asks = [ask(&[0, 1], 0, &[50, 45], 3)];
        assert_eq!(rollout(&asks, LIMITS, &mut run, &|| false).unwrap().guesses, [[95]]);
        let narrow = RolloutLimits { target_vocab: 60, ..LIMITS };
        let asks = [ask(&[0, 1], 0, &[20, 30], 3)];
        // 50, then 80: beyond the target's tokens.
        assert_eq!(rollout(&asks, narrow, &mut run, &|| false).unwrap().guesses, [[50]]);
        let mut broken =
            |b: &Batch| Ok(BatchOutput { tokens: vec![ERROR_TOKEN; b.logit_rows.len()], ..BatchOutput::default() });
        let rolled = rollout(&asks, LIMITS, &mut broken, &|| false).unwrap();
        assert_eq!((rolled.guesses[0].len(), rolled.broken, rolled.passes), (0, 1, 1));
    }

    #[test]
    fn it_stops_between_batches() {
        let (mut batches, mut slots) = (Vec::new(), [0; 64]);
        let asks = [ask(&[0, 1], 0, &[1, 2], 5)];
        let rolled = rollout(&asks, LIMITS, &mut |b| Ok(run_with(&mut batches, &mut slots, b)), &|| true).unwrap();
        assert_eq!((rolled.guesses[0].as_slice(), rolled.cached[0]), (&[3][..], 0));
    }
}
