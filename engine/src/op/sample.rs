//! Sampling on the device: from a row of logits to one token id.
//!
//! A row's result depends on its own logits and parameters alone. Randomness is counter-based
//! (Threefry-2x32, Salmon et al. 2011: additions, rotations and xors only, so that it is the same
//! in WGSL, CUDA and on the CPU), and the choice is a Gumbel maximum: `argmax(logit / T + noise)`
//! over the tokens that the filters keep is a sample of their softmax.
//!
//! Filters are defined by value, so that no sort order can matter: tokens with equal logits are
//! kept or dropped together.

use bytemuck::{Pod, Zeroable};

use super::{Cost, StepShape};
use crate::backend::reference::Env;
use crate::program::{Program, RowSpace, Slot};

/// The id returned for a row that has no finite maximum or contains a NaN or +infinity.
pub const ERROR_TOKEN: u32 = u32::MAX;

/// Samples one token per live logit row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// `f32 [logit_rows, vocab]`. Rows of [`SampleRow::default`] without adjustments (greedy, nothing filtered) are
    /// left as they are, and the host may read them after the launch; of others a backend may make what it likes.
    pub logits: Slot,
    /// [`SampleRow`]s as `u32 [logit_rows, 12]`.
    pub params: Slot,
    /// `u32 [logit_rows + 1]`: row `l` owns `adjust[offsets[l]..offsets[l + 1]]`.
    pub offsets: Slot,
    /// [`Adjust`]s as `u32 [capacity, 3]`, each token at most once per row.
    pub adjust: Slot,
    /// `u32 [logit_rows, ceil(vocab / 32)]`: sets of tokens, a bit each, the lowest first. A row that names one
    /// ([`SampleRow::mask`]) chooses from it alone; NaN and infinity are faults outside it too.
    pub masks: Slot,
    /// `u32 [logit_rows]`: the chosen ids, or [`ERROR_TOKEN`].
    pub out: Slot,
}

/// Sampling parameters of one row.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct SampleRow {
    /// 0 is greedy: the first maximum after adjustments, filters and noise play no part.
    pub temperature: f32,
    /// Keep tokens while the probability of all larger ones is below this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition: f32,
    /// Subtracted once from tokens of the output.
    pub presence: f32,
    /// Subtracted per occurrence in the output.
    pub frequency: f32,
    /// Keep tokens that fewer than this many exceed; 0 keeps all.
    pub top_k: u32,
    /// Low half of the request's seed.
    pub seed_lo: u32,
    /// High half of the request's seed.
    pub seed_hi: u32,
    /// Index among the request's `n` answers, below 256.
    pub choice: u32,
    /// Position of the token being chosen, below 2^24.
    pub position: u32,
    /// 0: any token; else one more than the row of `masks` that holds the tokens to choose from.
    pub mask: u32,
}

impl Default for SampleRow {
    fn default() -> Self {
        let (temperature, top_p, min_p, repetition, presence, frequency) = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0);
        let (top_k, seed_lo, seed_hi, choice, position, mask) = (0, 0, 0, 0, 0, 0);
        Self {
            temperature,
            top_p,
            min_p,
            repetition,
            presence,
            frequency,
            top_k,
            seed_lo,
            seed_hi,
            choice,
            position,
            mask,
        }
    }
}

/// Marks a token of the prompt or the output in [`Adjust::count`].
pub const SEEN: u32 = 1 << 31;

/// Change of one token's logit, before temperature: `logit + bias`, then the repetition penalty if
/// [`SEEN`], then presence and frequency by the count.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Adjust {
    /// Token id.
    pub token: u32,
    /// Occurrences in the output, with [`SEEN`] or-ed in.
    pub count: u32,
    /// Added first; -infinity forbids.
    pub bias: f32,
}

/// Threefry-2x32 with 20 rounds.
pub fn threefry2x32(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];
    let keys = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD1_1BDA];
    let mut x = [counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1])];
    for round in 0..20 {
        x[0] = x[0].wrapping_add(x[1]);
        x[1] = x[1].rotate_left(ROTATIONS[round % 8]) ^ x[0];
        if round % 4 == 3 {
            let i = round / 4 + 1;
            x[0] = x[0].wrapping_add(keys[i % 3]);
            x[1] = x[1].wrapping_add(keys[(i + 1) % 3]).wrapping_add(i as u32);
        }
    }
    x
}

/// Uniform in (0, 1) from the upper 23 bits: `(bits + 0.5) / 2^23`, exact in f32.
fn uniform(row: &SampleRow, token: u32) -> f64 {
    let counter = [token, row.position | row.choice << 24];
    let bits = threefry2x32([row.seed_lo, row.seed_hi], counter)[0] >> 9;
    (bits as f64 + 0.5) / (1u32 << 23) as f64
}

/// Standard Gumbel noise `-ln(-ln(u))` of (seed, choice, position, token).
pub fn gumbel(row: &SampleRow, token: u32) -> f64 {
    -(-uniform(row, token).ln()).ln()
}

/// Applies the penalties and biases of one row.
fn adjust(logits: &mut [f64], row: &SampleRow, list: &[Adjust]) {
    for a in list {
        let l = &mut logits[a.token as usize];
        *l += a.bias as f64;
        if a.count & SEEN != 0 {
            *l = if *l > 0.0 { *l / row.repetition as f64 } else { *l * row.repetition as f64 };
        }
        let count = a.count & !SEEN;
        if count > 0 {
            *l -= row.presence as f64 + row.frequency as f64 * count as f64;
        }
    }
}

/// Whether each token survives top-k, then top-p, and min-p. `z` are logits over temperature.
fn kept(z: &[f64], row: &SampleRow) -> Vec<bool> {
    let mut order: Vec<usize> = (0..z.len()).filter(|&i| z[i] > f64::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| z[b].total_cmp(&z[a]));
    let max = z[order[0]];
    if row.top_k > 0 && (row.top_k as usize) < order.len() {
        let bound = z[order[row.top_k as usize - 1]];
        order.retain(|&i| z[i] >= bound);
    }
    let total: f64 = order.iter().map(|&i| (z[i] - max).exp()).sum();
    let (mut before, mut larger, mut last) = (0.0, 0.0, f64::INFINITY);
    let mut keep = vec![false; z.len()];
    for &i in &order {
        if z[i] < last {
            (larger, last) = (before, z[i]);
        }
        keep[i] = (row.top_p >= 1.0 || larger < row.top_p as f64 * total)
            && (row.min_p <= 0.0 || z[i] - max >= (row.min_p as f64).ln());
        before += (z[i] - max).exp();
    }
    keep
}

/// Whether a mask allows a token.
pub fn allows(mask: &[u32], token: usize) -> bool {
    mask[token / 32] >> (token % 32) & 1 == 1
}

/// The meaning of sampling, for one row and the mask that it names, if it does.
pub(crate) fn sample_row(logits: &[f64], row: &SampleRow, list: &[Adjust], mask: Option<&[u32]>) -> u32 {
    let mut z = logits.to_vec();
    adjust(&mut z, row, list);
    if z.iter().any(|l| l.is_nan() || *l == f64::INFINITY) {
        return ERROR_TOKEN;
    }
    if let Some(mask) = mask {
        z.iter_mut().enumerate().filter(|(i, _)| !allows(mask, *i)).for_each(|(_, l)| *l = f64::NEG_INFINITY);
    }
    if z.iter().all(|l| *l == f64::NEG_INFINITY) {
        return ERROR_TOKEN;
    }
    let first_max = |z: &[f64]| {
        let mut best = 0;
        for (i, v) in z.iter().enumerate() {
            if *v > z[best] {
                best = i;
            }
        }
        best as u32
    };
    if row.temperature == 0.0 {
        return first_max(&z);
    }
    z.iter_mut().for_each(|l| *l /= row.temperature as f64);
    let keep = kept(&z, row);
    for (i, l) in z.iter_mut().enumerate() {
        *l = if keep[i] { *l + gumbel(row, i as u32) } else { f64::NEG_INFINITY };
    }
    first_max(&z)
}

impl Sample {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let vocab = env.shape(self.logits)[1];
        for row in 0..env.live(RowSpace::Logits) {
            let params: SampleRow = bytemuck::pod_read_unaligned(bytemuck::cast_slice(
                &env.u32s(self.params)[row * size_of::<SampleRow>() / 4..][..size_of::<SampleRow>() / 4],
            ));
            let offsets = &env.u32s(self.offsets)[row..row + 2];
            let list = &env.u32s(self.adjust)[3 * offsets[0] as usize..3 * offsets[1] as usize];
            let list: Vec<Adjust> = bytemuck::cast_slice(list).to_vec();
            let words = env.shape(self.masks)[1];
            let mask = params.mask.checked_sub(1).map(|m| env.u32s(self.masks)[m as usize * words..][..words].to_vec());
            let token = sample_row(&env.f64s(self.logits)[row * vocab..][..vocab], &params, &list, mask.as_deref());
            env.u32s_mut(self.out)[row] = token;
        }
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let n = (step.logit_rows * program.decl(self.logits).shape[1]) as f64;
        Cost { bytes: 4.0 * n, flops: n }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        vec![self.logits, self.params, self.offsets, self.adjust, self.masks]
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.out]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threefry_matches_the_published_vectors() {
        // Random123's known-answer file, threefry2x32 with 20 rounds.
        assert_eq!(threefry2x32([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry2x32([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        assert_eq!(threefry2x32([0x13198a2e, 0x03707344], [0x243f6a88, 0x85a308d3]), [0xc492_3a9c, 0x483d_f7a0]);
    }

    #[test]
    fn frequencies_follow_the_softmax_and_the_filters() {
        let logits = [2.0f64, 1.0, 0.0, 0.0, -1.0];
        let count = |row: SampleRow| {
            let mut hits = [0usize; 5];
            for position in 0..20_000 {
                hits[sample_row(&logits, &SampleRow { position, ..row }, &[], None) as usize] += 1;
            }
            hits.map(|h| h as f64 / 20_000.0)
        };
        let base = SampleRow { temperature: 1.0, seed_lo: 7, ..SampleRow::default() };
        let total: f64 = logits.iter().map(|l| l.exp()).sum();
        for (hit, logit) in count(base).iter().zip(logits) {
            assert!((hit - logit.exp() / total).abs() < 0.012, "{hit} for {logit}");
        }
        assert_eq!(count(SampleRow { top_k: 1, ..base })[0], 1.0);
        assert!(count(SampleRow { top_k: 3, ..base })[3] > 0.0, "ties are kept together");
        assert_eq!(count(SampleRow { top_k: 3, ..base })[4], 0.0);
        assert_eq!(count(SampleRow { top_p: 0.5, ..base })[1], 0.0);
        assert_eq!(count(SampleRow { min_p: 0.2, ..base })[2], 0.0);
    }

    #[test]
    fn adjustments_and_faults() {
        let logits = [1.0, 0.9, -0.5];
        let greedy = SampleRow { repetition: 2.0, ..SampleRow::default() };
        let pick = |list: &[Adjust]| sample_row(&logits, &greedy, list, None);
        assert_eq!(pick(&[]), 0);
        assert_eq!(pick(&[Adjust { token: 0, count: SEEN, bias: 0.0 }]), 1);
        assert_eq!(pick(&[Adjust { token: 2, count: 0, bias: 9.0 }]), 2);
        assert_eq!(pick(&[Adjust { token: 0, count: 0, bias: f32::NEG_INFINITY }]), 1);
        assert_eq!(sample_row(&[0.0, f64::NAN], &greedy, &[], None), ERROR_TOKEN);
        assert_eq!(sample_row(&[0.0, f64::INFINITY], &greedy, &[], None), ERROR_TOKEN);
        assert_eq!(sample_row(&[f64::NEG_INFINITY; 2], &greedy, &[], None), ERROR_TOKEN);
        let frequent = SampleRow { frequency: 0.2, presence: 0.05, ..SampleRow::default() };
        assert_eq!(sample_row(&logits, &frequent, &[Adjust { token: 0, count: SEEN | 1, bias: 0.0 }], None), 1);
        let masked = |mask: u32| sample_row(&logits, &SampleRow::default(), &[], Some(&[mask]));
        assert_eq!((masked(0b111), masked(0b110), masked(0b100), masked(0)), (0, 1, 2, ERROR_TOKEN));
        assert_eq!(sample_row(&[0.0, f64::NAN], &greedy, &[], Some(&[1])), ERROR_TOKEN, "a fault outside the mask");
    }
}
