//! The normalised Walsh-Hadamard transform of a head: an orthogonal matrix of nothing but signs, so that queries and
//! keys that both go through it give the same products, while a value far above the others of its head is spread over
//! all of them. Codes of few bits round what is level better (incoherence processing: QuIP, QuaRot, FlashAttention-3).
//!
//! It works on runs of [`run`] values. Every value of a stage is one sum or difference of two values of the stage
//! before, and the factor comes last, so there is one result whatever the order within a stage.

use std::ops::{Add, Mul, Sub};

/// How many neighbours are transformed together: the largest power of two that divides the width of a head.
pub const fn run(head_dim: usize) -> usize {
    1 << head_dim.trailing_zeros()
}

/// The factor that makes the transform of a head orthogonal, and so its own inverse.
pub fn factor(head_dim: usize) -> f64 {
    (run(head_dim) as f64).sqrt().recip()
}

/// Transforms a head in place; `factor` is [`factor`] of its width.
#[inline(always)]
pub fn transform<T: Copy + Add<Output = T> + Sub<Output = T> + Mul<Output = T>>(head: &mut [T], factor: T) {
    let (run, mut apart) = (run(head.len()), 1);
    while apart < run {
        for pairs in head.chunks_exact_mut(2 * apart) {
            let (first, second) = pairs.split_at_mut(apart);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        apart *= 2;
    }
    for x in head {
        *x = *x * factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::f8::{self, E2M5};
    use crate::op::problem::noise;

    fn transformed(x: &[f64]) -> Vec<f64> {
        let mut x = x.to_vec();
        let factor = factor(x.len());
        transform(&mut x, factor);
        x
    }

    #[test]
    fn it_is_the_matrix_of_parities() {
        for dim in [1, 2, 24, 64, 96] {
            let run = run(dim);
            for column in 0..dim {
                let unit: Vec<f64> = (0..dim).map(|i| f64::from(u8::from(i == column))).collect();
                for (row, got) in transformed(&unit).into_iter().enumerate() {
                    let even = ((row % run) & (column % run)).count_ones().is_multiple_of(2);
                    let sign = if even { 1.0 } else { -1.0 };
                    let want = if row / run == column / run { sign / (run as f64).sqrt() } else { 0.0 };
                    assert!((got - want).abs() < 1e-15, "{row} {column} of {dim}: {got}");
                }
            }
        }
        assert_eq!([1, 64, 80, 96, 100].map(run), [1, 64, 16, 32, 4]);
    }

    #[test]
    fn products_stay_and_outliers_spread() {
        for dim in [64, 80, 128] {
            let mut key: Vec<f64> = (0..dim).map(|i| f64::from(noise(1, "k", 0, i))).collect();
            let query: Vec<f64> = (0..dim).map(|i| f64::from(noise(1, "q", 0, i))).collect();
            key[5] = 100.0;
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let (k, q) = (transformed(&key), transformed(&query));
            assert!((dot(&k, &q) - dot(&key, &query)).abs() < 1e-12 * dot(&key, &key));
            assert!(k.iter().all(|x| x.abs() < 30.0) && key.iter().any(|x| x.abs() > 30.0));
            let twice = transformed(&k);
            assert!(twice.iter().zip(&key).all(|(a, b)| (a - b).abs() < 1e-12));
        }
    }

    /// Root mean square error of scores against keys that were stored as codes, relative to the scores', with an
    /// outlier in two of their values as models have it.
    fn score_error(transformed: bool) -> f64 {
        let (tokens, dim) = (16, 64);
        let head = |name: &str, t: usize| -> Vec<f32> {
            let mut x: Vec<f32> = (0..dim).map(|i| noise(3, name, t, i)).collect();
            if name == "k" {
                (x[5], x[40]) = (x[5] + 8.0, x[40] - 12.0);
            }
            if transformed {
                transform(&mut x, factor(dim) as f32);
            }
            x
        };
        let (mut error, mut size) = (0.0, 0.0);
        for t in 0..tokens {
            let (q, k) = (head("q", t), head("k", t));
            let dot = |k: &[f32]| k.iter().zip(&q).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>();
            let scale = f8::scale(f8::largest(&k));
            let stored: Vec<f32> = k.iter().map(|k| E2M5::decode(E2M5::encode(k / scale)) * scale).collect();
            error += (dot(&stored) - dot(&k)).powi(2);
            size += dot(&k).powi(2);
        }
        (error / size).sqrt()
    }

    #[test]
    fn transformed_keys_lose_less_in_their_codes() {
        let [plain, ours] = [false, true].map(score_error);
        assert!(ours > 0.0 && ours < plain, "{plain} {ours}");
    }
}
