//! Two ways to accept a guess, compared: shared noise, which is what the engine does, and rejection sampling.
//!
//! With shared noise both models take the arg-max of log-probability plus the same Gumbel noise. The chance that
//! they agree is `sum_i 1 / sum_j max(p_j / p_i, q_j / q_i)` (Daliri, Musco and Suresh, "Coupling without
//! Communication and Drafter-Invariant Speculative Decoding", 2024). Rejection sampling accepts with chance
//! `sum_i min(p_i, q_i)` (Leviathan et al. 2023), the most that any way can, but its answer then depends on what
//! was guessed: the same request gives other tokens under another draft, or without one.

/// Probabilities of a row of logits at a temperature; at 0 all of it is the first maximum's.
pub fn probabilities(logits: &[f32], temperature: f32) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if temperature == 0.0 {
        let best = logits.iter().position(|l| *l == max).unwrap_or(0);
        return (0..logits.len()).map(|i| f64::from(u8::from(i == best))).collect();
    }
    let weights: Vec<f64> = logits.iter().map(|l| (f64::from(l - max) / f64::from(temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

/// Chance that a guess from `q` is accepted by a target `p` under shared noise.
pub fn shared_noise(p: &[f64], q: &[f64]) -> f64 {
    // Sorted by p/q, max(p_j / p_i, q_j / q_i) is p_j / p_i exactly where p_j / q_j >= p_i / q_i: so one sweep with
    // running sums does for all pairs.
    let pairs = p.iter().copied().zip(q.iter().copied());
    let mut both: Vec<(f64, f64)> = pairs.filter(|(p, q)| *p > 0.0 || *q > 0.0).collect();
    both.sort_by(|a, b| (b.0 / b.1).total_cmp(&(a.0 / a.1)));
    let (mut above, mut below) = (0.0, both.iter().map(|b| b.1).sum::<f64>());
    let mut agree = 0.0;
    for (p, q) in both {
        below -= q;
        above += p;
        if p > 0.0 && q > 0.0 {
            agree += 1.0 / (above / p + below.max(0.0) / q);
        }
    }
    agree
}

/// Chance that a guess from `q` is accepted by a target `p` under rejection sampling.
pub fn rejection(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.min(*q)).sum()
}

/// Mean tokens per pass with `k` guesses, at least one, when guesses along a text are accepted with these chances.
pub fn tokens_per_pass(chances: &[f64], k: usize) -> f64 {
    let windows = chances.windows(k);
    let count = windows.len().max(1) as f64;
    let alive = |window: &[f64]| {
        let mut alive = 1.0;
        window.iter().fold(1.0, |sum, chance| {
            alive *= chance;
            sum + alive
        })
    };
    windows.map(alive).sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{SampleRow, gumbel};

    fn draws(p: &[f64], row: &SampleRow) -> usize {
        let score = |i: &usize| p[*i].ln() + gumbel(row, *i as u32);
        (0..p.len()).max_by(|a, b| score(a).total_cmp(&score(b))).unwrap()
    }

    #[test]
    fn the_formula_is_what_the_sampler_does() {
        let logits = [[2.0f32, 1.0, 0.3, -1.0, 0.5], [1.2, 1.6, 0.0, -0.5, 1.0]];
        for temperature in [0.6, 1.0] {
            let [p, q] = [0, 1].map(|i| probabilities(&logits[i], temperature));
            let row = |position| SampleRow { temperature, position, seed_lo: 3, ..SampleRow::default() };
            let hits = (0..40_000).filter(|n| draws(&p, &row(*n)) == draws(&q, &row(*n))).count();
            let (measured, formula) = (hits as f64 / 40_000.0, shared_noise(&p, &q));
            assert!((measured - formula).abs() < 0.01, "{measured} measured, {formula} by the formula");
            let best = rejection(&p, &q);
            let distance = 1.0 - best;
            assert!(formula <= best && formula >= (1.0 - distance) / (1.0 + distance), "{formula} {best}");
        }
    }

    #[test]
    fn the_ends() {
        let p = probabilities(&[3.0, 1.0, 2.0], 0.0);
        assert_eq!(p, [1.0, 0.0, 0.0]);
        let q = probabilities(&[1.0, 5.0, 2.0], 0.0);
        assert_eq!((shared_noise(&p, &p), shared_noise(&p, &q), rejection(&p, &q)), (1.0, 0.0, 0.0));
        let even = probabilities(&[1.0; 8], 1.0);
        assert!((shared_noise(&even, &even) - 1.0).abs() < 1e-12);
        assert_eq!(tokens_per_pass(&[0.5; 10], 2), 1.75);
    }
}
