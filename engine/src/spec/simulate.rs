//! What guessing would bring on a machine that is not here: times of steps from a roofline, tokens from an
//! acceptance rate.
//!
//! A decode step reads the weights and every sequence's cache once, computes its rows, and launches its layers.
//! The three constants below are fitted to AIConfigurator 0.12's tables of measured operators (Llama 3.1, FP8
//! weights and cache, 4,096 tokens in and 1,024 out; vLLM 0.24, TensorRT-LLM 1.3rc20, SGLang 0.5.14), which the
//! tests hold against.

/// A GPU by its data sheet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Its name.
    pub name: &'static str,
    /// Bytes per second.
    pub bandwidth: f64,
    /// Operations per second in FP8, dense.
    pub fp8: f64,
}

/// NVIDIA's H200 SXM (data sheet: 4.8 TB/s, 1,979 TFLOP/s FP8).
pub const H200: Gpu = Gpu { name: "H200", bandwidth: 4.8e12, fp8: 1979e12 };

/// Share of the bandwidth that decoding reaches.
const BANDWIDTH_SHARE: f64 = 0.80;
/// Share of the FP8 rate that a few rows reach.
const COMPUTE_SHARE: f64 = 0.60;
/// What a layer takes beside reading and computing: launches, norms, gaps.
const LAYER_SECONDS: f64 = 38e-6;

/// A dense model, as far as its speed goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimModel {
    /// Its name.
    pub name: &'static str,
    /// Parameters: bytes in FP8, and half the operations of a token.
    pub parameters: f64,
    /// Layers.
    pub layers: f64,
    /// Bytes of keys and values of a token, in FP8.
    pub kv_per_token: f64,
}

/// Llama 3.3 70B: 80 layers, 8 KV heads of 128.
pub const LLAMA_70B: SimModel =
    SimModel { name: "70B", parameters: 70.6e9, layers: 80.0, kv_per_token: 80.0 * 2.0 * 8.0 * 128.0 };
/// Llama 3.1 8B: 32 layers, 8 KV heads of 128.
pub const LLAMA_8B: SimModel =
    SimModel { name: "8B", parameters: 8.03e9, layers: 32.0, kv_per_token: 32.0 * 2.0 * 8.0 * 128.0 };
/// Llama 3.2 3B: 28 layers, 8 KV heads of 128.
pub const LLAMA_3B: SimModel =
    SimModel { name: "3B", parameters: 3.21e9, layers: 28.0, kv_per_token: 28.0 * 2.0 * 8.0 * 128.0 };
/// Llama 3.2 1B: 16 layers, 8 KV heads of 64.
pub const LLAMA_1B: SimModel =
    SimModel { name: "1B", parameters: 1.24e9, layers: 16.0, kv_per_token: 16.0 * 2.0 * 8.0 * 64.0 };

impl SimModel {
    /// Seconds of a step of `seqs` sequences with `rows` rows each over `context` cached tokens each.
    pub fn step_seconds(&self, gpu: Gpu, seqs: usize, rows: usize, context: usize) -> f64 {
        let (seqs, rows, context) = (seqs as f64, rows as f64, context as f64);
        let bytes = self.parameters + seqs * context * self.kv_per_token;
        let operations = 2.0 * self.parameters * seqs * rows;
        bytes / (gpu.bandwidth * BANDWIDTH_SHARE) + operations / (gpu.fp8 * COMPUTE_SHARE) + self.layers * LAYER_SECONDS
    }
}

/// A draft model and how often its guesses are right, if all before them are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimDraft {
    /// The model.
    pub model: SimModel,
    /// Chance that a guess is right.
    pub acceptance: f64,
}

/// Tokens of a step with `k` guesses: `1 + a + a^2 + … + a^k` (Leviathan et al. 2023, equation 1).
pub fn expected_tokens(acceptance: f64, k: usize) -> f64 {
    (0..=k as i32).map(|i| acceptance.powi(i)).sum()
}

/// Speed with `k` guesses over speed without, both on the same GPU, one after the other.
pub fn speed_up(gpu: Gpu, target: SimModel, draft: SimDraft, k: usize, seqs: usize, context: usize) -> f64 {
    let plain = target.step_seconds(gpu, seqs, 1, context);
    let verify = target.step_seconds(gpu, seqs, k + 1, context);
    let drafting = k as f64 * draft.model.step_seconds(gpu, seqs, 1, context);
    expected_tokens(draft.acceptance, k) * plain / (verify + drafting)
}

/// What to use at one batch size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Advice {
    /// Sequences at once.
    pub batch: usize,
    /// The draft; `None` where guessing does not pay.
    pub draft: Option<SimDraft>,
    /// Guesses per step.
    pub k: usize,
    /// Speed over that without guessing.
    pub speed_up: f64,
}

/// The best draft and number of guesses, up to `most`, at each batch size.
pub fn advise(
    gpu: Gpu,
    target: SimModel,
    drafts: &[SimDraft],
    most: usize,
    batches: &[usize],
    context: usize,
) -> Vec<Advice> {
    let best_at = |&batch: &usize| {
        let mut best = Advice { batch, draft: None, k: 0, speed_up: 1.0 };
        for (draft, k) in drafts.iter().flat_map(|d| (1..=most).map(move |k| (*d, k))) {
            let speed_up = speed_up(gpu, target, draft, k, batch, context);
            if speed_up > best.speed_up {
                best = Advice { batch, draft: Some(draft), k, speed_up };
            }
        }
        best
    };
    batches.iter().map(best_at).collect()
}

/// The acceptance under which `k` guesses give `wanted`: what a published speed-up says of its pair.
pub fn acceptance_behind(
    gpu: Gpu,
    target: SimModel,
    draft: SimModel,
    k: usize,
    context: usize,
    wanted: f64,
) -> Option<f64> {
    let at = |acceptance| speed_up(gpu, target, SimDraft { model: draft, acceptance }, k, 1, context);
    let (mut low, mut high) = (0.0, 1.0);
    if !(at(low)..at(high)).contains(&wanted) {
        return None;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        *if at(middle) < wanted { &mut low } else { &mut high } = middle;
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, want: f64, what: &str) {
        assert!((got / want - 1.0).abs() < 0.15, "{what}: {got:.3} is not within 15% of {want}");
    }

    /// Milliseconds per token on one H200, the mean of the three engines named above.
    #[test]
    fn measured_steps_of_an_h200() {
        for (batch, ms) in [(1, 21.1), (8, 23.4), (32, 30.6), (64, 38.3)] {
            near(LLAMA_70B.step_seconds(H200, batch, 1, 4608) * 1e3, ms, &format!("70B at {batch}"));
        }
        for (batch, ms) in [(1, 3.42), (32, 6.73), (128, 16.4)] {
            near(LLAMA_8B.step_seconds(H200, batch, 1, 4608) * 1e3, ms, &format!("8B at {batch}"));
        }
    }

    /// NVIDIA, "Boost Llama 3.3 70B Inference Throughput 3x with NVIDIA TensorRT-LLM Speculative Decoding",
    /// developer blog, 17 December 2024: one H200, FP8, batch 1: 51.14 tokens/s alone, 181.74 with the 1B, 161.53
    /// with the 3B, 134.38 with the 8B as draft, of 10 tokens. Acceptance is not published there: it is read off
    /// the smallest and the largest draft, and the one between them is predicted.
    #[test]
    fn published_speed_ups() {
        const ALONE: f64 = 51.14;
        near(1.0 / LLAMA_70B.step_seconds(H200, 1, 1, 1024), ALONE, "70B alone");
        let behind = |draft, speed: f64| acceptance_behind(H200, LLAMA_70B, draft, 10, 1024, speed / ALONE).unwrap();
        let (small, large) = (behind(LLAMA_1B, 181.74), behind(LLAMA_8B, 134.38));
        assert!(0.7 < small && small < large && large < 0.95, "a larger draft guesses better: {small} {large}");
        let log = |m: SimModel| m.parameters.ln();
        let share = (log(LLAMA_3B) - log(LLAMA_1B)) / (log(LLAMA_8B) - log(LLAMA_1B));
        let between = SimDraft { model: LLAMA_3B, acceptance: small + share * (large - small) };
        near(speed_up(H200, LLAMA_70B, between, 10, 1, 1024), 161.53 / ALONE, "3B as draft");
        for (draft, speed) in [(LLAMA_1B, 181.74), (LLAMA_8B, 134.38)] {
            let draft = SimDraft { model: draft, acceptance: behind(draft, speed) };
            near(speed_up(H200, LLAMA_70B, draft, 10, 1, 1024), speed / ALONE, draft.model.name);
        }
    }

    #[test]
    fn advice_shrinks_with_the_batch() {
        let drafts = [SimDraft { model: LLAMA_8B, acceptance: 0.80 }, SimDraft { model: LLAMA_1B, acceptance: 0.70 }];
        let advice = advise(H200, LLAMA_70B, &drafts, 16, &[1, 2, 4, 8, 16, 32, 64], 4096);
        assert!(advice[0].speed_up > 1.8 && advice[0].draft.unwrap().model == LLAMA_1B, "{:?}", advice[0]);
        assert!(advice.windows(2).all(|w| w[1].k <= w[0].k && w[1].speed_up <= w[0].speed_up), "{advice:?}");
        let useless = [SimDraft { model: LLAMA_8B, acceptance: 0.1 }];
        let none = advise(H200, LLAMA_70B, &useless, 8, &[1], 4096)[0];
        assert_eq!((none.draft, none.k, none.speed_up), (None, 0, 1.0));
    }
}
