//! What a model thinks of a text that is given: the logits after each of its tokens.
//!
//! It drives a [`ModelRunner`] directly, without requests and scheduler: nothing is generated here.

use ponder_engine::Result;
use ponder_engine::backend::Backend;
use ponder_engine::model::batch::{Batch, LogitRow, Row};
use ponder_engine::model::runner::ModelRunner;
use ponder_engine::request::SamplingParams;

/// Calls `each(position, logits)` for every position from `from` on: the logits, `[vocab]`, of the token
/// that comes after `tokens[position]`. The cache is overwritten from its first block.
///
/// # Errors
/// Those of the device, or if the text is longer than the runner's longest sequence.
pub fn score<B: Backend>(
    runner: &mut ModelRunner<B>,
    tokens: &[u32],
    from: usize,
    mut each: impl FnMut(usize, &[f32]),
) -> Result<()> {
    let options = *runner.options();
    let vocab = runner.config().vocab;
    let blocks = tokens.len().div_ceil(options.kv.block_size) as u32;
    let mut start = 0;
    while start < tokens.len() {
        // Rows before `from` need no logits, so more of them go into a step.
        let end = match from.checked_sub(start) {
            Some(before) if before > 0 => start + before.min(options.max_rows),
            _ => start + options.max_rows.min(options.max_logit_rows),
        };
        let end = end.min(tokens.len());
        let batch = Batch {
            rows: (start..end).map(|p| Row { token: tokens[p], position: p as u32, seq: 0 }).collect(),
            block_tables: vec![(0..blocks).collect()],
            logit_rows: (start..end).filter(|p| *p >= from).map(|p| greedy(p - start, p)).collect(),
            want_logits: true,
            ..Batch::default()
        };
        let out = runner.run(&batch)?;
        for (i, logits) in out.logits.chunks_exact(vocab).enumerate() {
            each(start + i, logits);
        }
        start = end;
    }
    Ok(())
}

fn greedy(row: usize, position: usize) -> LogitRow {
    LogitRow { row: row as u32, params: SamplingParams::default().row(0, position + 1), adjust: Vec::new(), mask: None }
}

/// Natural logarithm of the probability that `logits` give to `token`, summed in f64.
pub fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, l| m.max(*l)) as f64;
    let sum: f64 = logits.iter().map(|l| (*l as f64 - max).exp()).sum();
    logits[token as usize] as f64 - max - sum.ln()
}

/// The `n` likeliest tokens and the logarithms of their probabilities, the likeliest first.
pub fn likeliest(logits: &[f32], n: usize) -> Vec<(u32, f64)> {
    let n = n.min(logits.len());
    if n == 0 {
        return Vec::new();
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    ids.select_nth_unstable_by(n - 1, by_logit);
    ids.truncate(n);
    ids.sort_by(by_logit);
    let best = log_probability(logits, ids[0]);
    let top = logits[ids[0] as usize] as f64;
    ids.into_iter().map(|id| (id, best + logits[id as usize] as f64 - top)).collect()
}

/// Sum of `-ln p` over the scored tokens of a text, and how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Surprise {
    /// Sum of the negative logarithms, natural.
    pub nll: f64,
    /// Tokens scored.
    pub tokens: usize,
}

impl Surprise {
    /// `exp` of the mean.
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.tokens as f64).exp()
    }
}

/// Scores one window as llama.cpp's `perplexity` does: the tokens of its second half, each given all that
/// stand before it in the window, the one right at the middle and the one after the window excepted.
///
/// # Errors
/// As [`score`].
pub fn score_window<B: Backend>(runner: &mut ModelRunner<B>, window: &[u32]) -> Result<Surprise> {
    let mut surprise = Surprise::default();
    // Logits after the last token would predict what lies outside the window.
    let inputs = &window[..window.len() - 1];
    score(runner, inputs, window.len() / 2, |position, logits| {
        surprise.nll -= log_probability(logits, window[position + 1]);
        surprise.tokens += 1;
    })?;
    Ok(surprise)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_a_row_known_by_hand() {
        // Odds 1 : 2 : 1.
        let logits = [0.0, 2f32.ln(), 0.0];
        assert!((log_probability(&logits, 1) - 0.5f64.ln()).abs() < 1e-7);
        let best = likeliest(&logits, 2);
        assert_eq!(best.iter().map(|b| b.0).collect::<Vec<_>>(), [1, 0]);
        assert!((best[1].1 - 0.25f64.ln()).abs() < 1e-7);
        assert_eq!(likeliest(&logits, 9).len(), 3);
        assert!((Surprise { nll: 4f64.ln() * 3.0, tokens: 3 }.perplexity() - 4.0).abs() < 1e-12);
    }
}
