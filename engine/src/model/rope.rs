//! Rotary embedding on the host: from a [`Rope`] and positions to the cosines and sines of a step.
//!
//! Kernels only multiply; every scaling of the frequencies (linear, Llama 3, YaRN, stored factors) is
//! settled here, in f64, rounded once to f32. The table of inverse frequencies is made once per model.
//!
//! Sources: Su et al. 2021 (RoPE); Peng et al. 2023 (YaRN); the parameter names are those of
//! transformers' `modeling_rope_utils`.

use std::f64::consts::TAU;

use super::{Rope, RopeScaling};

/// Inverse frequencies of one rotary embedding, ready to be turned into angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    inv_freq: Vec<f64>, // [dim / 2], radians per token
    scale: f64,         // factor on cos and sin (YaRN's attention factor)
}

impl RopeTable {
    /// The table of `rope`.
    ///
    /// # Panics
    /// If `rope.dim` is odd or the number of stored factors is not `dim / 2`.
    pub fn new(rope: &Rope) -> RopeTable {
        assert_eq!(rope.dim % 2, 0, "rotary dimension {}", rope.dim);
        let theta = f64::from(rope.theta);
        let plain = |i: usize| theta.powf(-(2.0 * i as f64) / rope.dim as f64);
        let inv_freq: Vec<f64> = (0..rope.dim / 2).map(plain).collect();
        let (inv_freq, scale) = match &rope.scaling {
            RopeScaling::None => (inv_freq, 1.0),
            RopeScaling::Linear { factor } => (inv_freq.iter().map(|f| f / f64::from(*factor)).collect(), 1.0),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let f = |&f: &f64| llama3(f, *factor, *low_freq_factor, *high_freq_factor, *original_context);
                (inv_freq.iter().map(f).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
                let edges = yarn_edges(rope, *original_context, *beta_fast, *beta_slow);
                let f = |(i, &f): (usize, &f64)| yarn(f, i, edges, f64::from(*factor));
                (inv_freq.iter().enumerate().map(f).collect(), f64::from(*attention_factor))
            }
            RopeScaling::Factors(factors) => {
                assert_eq!(factors.len(), inv_freq.len(), "rope factors");
                (inv_freq.iter().zip(factors).map(|(f, &d)| f / f64::from(d)).collect(), 1.0)
            }
        };
        RopeTable { inv_freq, scale }
    }

    /// Pairs per head: `dim / 2`.
    pub fn pairs(&self) -> usize {
        self.inv_freq.len()
    }

    /// Floats per position: `pairs * 2`.
    pub fn width(&self) -> usize {
        self.inv_freq.len() * 2
    }

    /// Fills `out`, `[positions, dim / 2, (cos, sin)]`.
    ///
    /// # Panics
    /// If `out` is not `positions.len() * self.width()` long.
    pub fn fill(&self, positions: &[u32], out: &mut [f32]) {
        assert_eq!(out.len(), positions.len() * self.width(), "cos/sin table");
        for (row, &position) in out.chunks_exact_mut(self.width().max(1)).zip(positions) {
            for (pair, inv_freq) in row.chunks_exact_mut(2).zip(&self.inv_freq) {
                let (sin, cos) = (f64::from(position) * inv_freq).sin_cos();
                pair[0] = (cos * self.scale) as f32;
                pair[1] = (sin * self.scale) as f32;
            }
        }
    }
}

/// A table that remembers the angles of the positions that it was asked for: sequences pass the same positions one after
/// another.
#[derive(Clone, Debug)]
pub struct RopeRows {
    table: RopeTable,
    /// Of positions 0 and up, as [`RopeTable::fill`] writes them.
    known: Vec<f32>,
}

/// Positions that are made at once.
const ROWS_AT_ONCE: usize = 64;
/// Floats that are kept at most: 32 MiB, 65,536 positions of heads of 128. What lies beyond is computed each time.
const KEPT: usize = 8 << 20;

impl RopeRows {
    /// Nothing is known yet.
    pub fn new(rope: &Rope) -> RopeRows {
        RopeRows { table: RopeTable::new(rope), known: Vec::new() }
    }

    /// Floats per position.
    pub fn width(&self) -> usize {
        self.table.width()
    }

    /// As [`RopeTable::fill`], bit for bit.
    ///
    /// # Panics
    /// As there.
    pub fn fill(&mut self, positions: &[u32], out: &mut [f32]) {
        let width = self.width().max(1);
        assert_eq!(out.len(), positions.len() * self.width(), "cos/sin table");
        for (row, position) in out.chunks_exact_mut(width).zip(positions) {
            let at = *position as usize * width;
            if at >= KEPT {
                self.table.fill(&[*position], row);
                continue;
            }
            if at >= self.known.len() {
                let have = self.known.len() / width;
                let want = (*position as usize + 1).next_multiple_of(ROWS_AT_ONCE);
                let new: Vec<u32> = (have as u32..want as u32).collect();
                self.known.resize(want * width, 0.0);
                self.table.fill(&new, &mut self.known[have * width..]);
            }
            row.copy_from_slice(&self.known[at..at + width]);
        }
    }
}

/// [`RopeTable::fill`] without keeping the table.
pub fn tables(rope: &Rope, positions: &[u32], out: &mut [f32]) {
    RopeTable::new(rope).fill(positions, out);
}

/// Llama 3: long wavelengths are divided by `factor`, short ones stay, those between are blended.
fn llama3(inv_freq: f64, factor: f32, low: f32, high: f32, original_context: usize) -> f64 {
    let (factor, low, high) = (f64::from(factor), f64::from(low), f64::from(high));
    let turns = original_context as f64 * inv_freq / TAU; // rotations within the original context
    if turns < low {
        inv_freq / factor
    } else if turns > high {
        inv_freq
    } else {
        let smooth = (turns - low) / (high - low);
        (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
    }
}

/// The pair indices between which YaRN blends: those that turn `beta_fast` and `beta_slow` times
/// within the original context, widened to whole numbers.
fn yarn_edges(rope: &Rope, original_context: usize, beta_fast: f32, beta_slow: f32) -> (f64, f64) {
    let dim = rope.dim as f64;
    let pair_turning =
        |turns: f64| dim * (original_context as f64 / (turns * TAU)).ln() / (2.0 * f64::from(rope.theta).ln());
    let low = pair_turning(f64::from(beta_fast)).floor().max(0.0);
    let high = pair_turning(f64::from(beta_slow)).ceil().min(dim - 1.0);
    (low, if low == high { high + 0.001 } else { high })
}

/// YaRN ("NTK by parts"): pairs below `low` keep their frequency, above `high` it is divided.
fn yarn(inv_freq: f64, pair: usize, (low, high): (f64, f64), factor: f64) -> f64 {
    let stretched = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
    inv_freq / factor * stretched + inv_freq * (1.0 - stretched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pairing;

    fn rope(dim: usize, theta: f32, scaling: RopeScaling) -> Rope {
        Rope { theta, dim, pairing: Pairing::Halves, scaling }
    }
    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * b.abs().max(1e-9)
    }

    #[test]
    fn remembered_rows_are_the_same_bits() {
        let rope = rope(64, 1e6, RopeScaling::None);
        let (mut rows, table) = (RopeRows::new(&rope), RopeTable::new(&rope));
        for positions in [vec![3, 0, 63], vec![64], vec![5, 700, 131_071, 2], vec![200_000, 131_072, 699]] {
            let (mut got, mut want) = (vec![0.0; positions.len() * 64], vec![0.0; positions.len() * 64]);
            rows.fill(&positions, &mut got);
            table.fill(&positions, &mut want);
            assert_eq!(got, want, "{positions:?}");
        }
        assert!(rows.known.len() <= KEPT);
    }

    #[test]
    fn plain_by_hand() {
        let mut out = [0.0; 8];
        // theta 100, dim 4: inverse frequencies 1 and 1/10.
        tables(&rope(4, 100.0, RopeScaling::None), &[0, 3], &mut out);
        let (s0, c0) = 3f64.sin_cos();
        let (s1, c1) = 0.3f64.sin_cos();
        let want = [1.0, 0.0, 1.0, 0.0, c0 as f32, s0 as f32, c1 as f32, s1 as f32];
        for (got, want) in out.iter().zip(want) {
            assert!((got - want).abs() < 1e-7, "{out:?}");
        }
    }

    #[test]
    fn linear_and_factors_divide() {
        let linear = RopeTable::new(&rope(4, 100.0, RopeScaling::Linear { factor: 8.0 }));
        assert!(close(linear.inv_freq[1], 0.1 / 8.0));
        let factors = RopeTable::new(&rope(4, 100.0, RopeScaling::Factors(vec![1.0, 4.0])));
        assert!(close(factors.inv_freq[0], 1.0) && close(factors.inv_freq[1], 0.025));
    }

    #[test]
    fn llama3_has_three_regions() {
        // Llama 3.1's own parameters: factor 8, low 1, high 4, 8192 tokens, theta 500000, dim 128.
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let table = RopeTable::new(&rope(128, 500_000.0, scaling));
        let plain = RopeTable::new(&rope(128, 500_000.0, RopeScaling::None));
        let ratio = |i: usize| plain.inv_freq[i] / table.inv_freq[i];
        assert!(close(ratio(0), 1.0) && close(ratio(63), 8.0));
        // A wavelength of 8192/2 tokens turns twice: smooth = 1/3, so 1/ratio = 2/3/8 + 1/3.
        let blended = llama3(TAU * 2.0 / 8192.0, 8.0, 1.0, 4.0, 8192) / (TAU * 2.0 / 8192.0);
        assert!(close(blended, 2.0 / 3.0 / 8.0 + 1.0 / 3.0));
        let between = (0..64).filter(|&i| ratio(i) > 1.001 && ratio(i) < 7.999).count();
        assert!((3..12).contains(&between), "{between} blended pairs");
    }

    #[test]
    fn yarn_edges_by_hand() {
        // QwQ's parameters: theta 1e6, dim 128, 32768 tokens, factor 4, beta 32 and 1.
        // 64 ln(32768 / (32 * 2π)) / ln 1e6 = 23.6, so 23; 64 ln(32768 / 2π) / ln 1e6 = 39.7, so 40.
        let r = rope(
            128,
            1e6,
            RopeScaling::Yarn {
                factor: 4.0,
                original_context: 32768,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: 1.138_629_4,
            },
        );
        assert_eq!(yarn_edges(&r, 32768, 32.0, 1.0), (23.0, 40.0));
        let table = RopeTable::new(&r);
        let plain = |i: usize| 1e6f64.powf(-(i as f64) / 64.0);
        assert!(close(table.inv_freq[23], plain(23)));
        assert!(close(table.inv_freq[40], plain(40) / 4.0));
        // Half way between: 31.5 is not a pair, 30 is 7/17 of the way.
        let w = 7.0 / 17.0;
        assert!(close(table.inv_freq[30], plain(30) * (w / 4.0 + 1.0 - w)));
        let mut out = vec![0.0; 128];
        table.fill(&[0], &mut out);
        assert_eq!((out[0], out[1]), (1.138_629_4, 0.0));
    }

    #[test]
    fn angles_stay_exact_far_out() {
        // At position 10^6 an f32 angle would be off by 0.03 rad.
        let mut out = [0.0; 2];
        tables(&rope(2, 10_000.0, RopeScaling::None), &[1_000_003], &mut out);
        let (sin, cos) = 1_000_003f64.sin_cos();
        assert!((f64::from(out[0]) - cos).abs() < 1e-7 && (f64::from(out[1]) - sin).abs() < 1e-7);
    }
}
