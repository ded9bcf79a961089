//! Multi-head latent attention in its absorbed form, and the store into its cache.
//!
//! DeepSeek-V2 (arXiv 2405.04434, section 2.1) caches of a token one latent vector, from which keys and values of all
//! heads are made, and one rotated key that all heads share. The matrix that makes keys of the latent can be
//! multiplied into the queries, and the one that makes values into what follows attention: then every head attends
//! to the cached vector itself. So keys and values are the same bytes, and all heads read them.
//!
//! No model family records these ops yet: the mixture of experts of DeepSeek-V3 is not here. Backends are held to
//! them by `op/problem/latent.rs`.

use super::{Cost, StepShape, attention};
use crate::backend::reference::Env;
use crate::program::{KvCache, Program, RowSpace, Slot};

/// `out[r, h] = softmax(scale * q[r, h] . C[0..=position]) C[0..=position, ..latent]`, where `C` are the cached vectors
/// of `latent + rope` elements, read through the row's block table as in [`super::Attention`].
#[derive(Clone, Debug, PartialEq)]
pub struct LatentAttention {
    /// `f32 [rows, heads * (latent + rope)]`: of each head the query of the latent, then the rotated one.
    pub q: Slot,
    /// `[blocks, block_size, 1, latent + rope]`, of [`Program::latent_cache`].
    pub cache: KvCache,
    /// `u32 [rows]`: position of the row's token; it attends to itself and all before.
    pub positions: Slot,
    /// `u32 [rows]`: which block table belongs to the row.
    pub row_seq: Slot,
    /// `u32 [seqs, max_blocks]`.
    pub block_tables: Slot,
    /// `f32 [rows, heads * latent]`.
    pub out: Slot,
    /// Query heads.
    pub heads: usize,
    /// Elements of a cached vector that are key and value; 512 in DeepSeek-V2 and V3.
    pub latent: usize,
    /// Elements after them that are key alone; 64 in DeepSeek-V2 and V3.
    pub rope: usize,
    /// Factor on the scores. It belongs to the model: that of the heads before absorption, not of this width.
    pub scale: f32,
}

/// Rounds `x`, its last `rope` elements rotated already, to the cache's format and stores it at each row's slot; padding
/// rows (-1) store nothing. In formats with scales the latent and the rotated key have their own.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentStore {
    /// `f32 [rows, latent + rope]`.
    pub x: Slot,
    /// `[blocks, block_size, 1, latent + rope]`, of [`Program::latent_cache`].
    pub cache: KvCache,
    /// `i32 [rows]`.
    pub slot_mapping: Slot,
    /// Elements of the latent.
    pub latent: usize,
    /// Elements of the rotated key.
    pub rope: usize,
}

impl LatentAttention {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let block_size = env.shape(self.cache.elements())[1];
        let max_blocks = env.shape(self.block_tables)[1];
        let (latent, width) = (self.latent, self.latent + self.rope);
        for row in 0..env.live(RowSpace::Batch) {
            let position = env.u32s(self.positions)[row] as usize;
            let table = env.u32s(self.block_tables)[env.u32s(self.row_seq)[row] as usize * max_blocks..].to_vec();
            let vector = |env: &Env<'_>, t: usize| -> Vec<f64> {
                let (block, offset) = (table[t / block_size] as usize, t % block_size);
                let scales = [0, 1].map(|part| attention::scale(env, self.cache, 2 * block + part, offset));
                let stored = env.f64s(self.cache.elements())[(block * block_size + offset) * width..][..width].iter();
                stored.enumerate().map(|(i, x)| x * scales[usize::from(i >= latent)]).collect()
            };
            let tokens: Vec<Vec<f64>> = (0..=position).map(|t| vector(env, t)).collect();
            for head in 0..self.heads {
                let q = &env.f64s(self.q)[(row * self.heads + head) * width..][..width];
                let dot = |c: &Vec<f64>| c.iter().zip(q).map(|(c, q)| c * q).sum::<f64>() * self.scale as f64;
                let scores: Vec<f64> = tokens.iter().map(dot).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut out = vec![0.0; latent];
                for (c, w) in tokens.iter().zip(&weights) {
                    out.iter_mut().zip(c).for_each(|(o, c)| *o += w / total * c);
                }
                env.f64s_mut(self.out)[(row * self.heads + head) * latent..][..latent].copy_from_slice(&out);
            }
        }
    }
    /// Queries and outputs count here, unlike in [`super::Attention`]: with 128 heads they weigh as much as hundreds of
    /// cached tokens.
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let width = self.latent + self.rope;
        let (rows, tokens) = (step.rows as f64, (step.rows * step.context) as f64);
        let cached = tokens * (width * program.kv_format(self.cache).bytes()) as f64;
        Cost {
            bytes: cached + rows * (4 * self.heads * (width + self.latent)) as f64,
            flops: tokens * (2 * self.heads * (width + self.latent)) as f64,
        }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        [self.q, self.positions, self.row_seq, self.block_tables].into_iter().chain(self.cache.slots()).collect()
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        vec![self.out]
    }
}

impl LatentStore {
    pub(super) fn reference(&self, env: &mut Env<'_>) {
        let parts = [0..self.latent, self.latent..self.latent + self.rope];
        attention::store(env, self.x, self.cache, self.slot_mapping, &parts);
    }
    pub(super) fn cost(&self, program: &Program, step: &StepShape) -> Cost {
        let n = step.rows * (self.latent + self.rope);
        Cost { bytes: (n * (4 + program.kv_format(self.cache).bytes())) as f64, flops: 0.0 }
    }
    pub(super) fn reads(&self) -> Vec<Slot> {
        [self.x, self.slot_mapping].into_iter().chain(self.cache.scales()).collect()
    }
    pub(super) fn writes(&self) -> Vec<Slot> {
        self.cache.slots().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::backend::cast_vec;
    use crate::backend::check::run;
    use crate::backend::reference::ReferenceBackend;
    use crate::format::KvFormat;
    use crate::op::problem::{Expected, Problem, noise};
    use crate::program::{Elem, LatentShape, Role};

    const TOKENS: usize = 5;
    const HEADS: usize = 3;
    const LATENT: usize = 8;
    const ROPE: usize = 4;
    /// Of a head's key and query before absorption, without their rotated part; and of its value.
    const KEY: usize = 6;
    const VALUE: usize = 7;
    const SCALE: f32 = 0.7;

    fn vector(name: &str, row: usize, width: usize) -> Vec<f64> {
        (0..width).map(|column| f64::from(noise(1, name, row, column))).collect()
    }
    /// Row `row` of a head's matrix from the latent.
    fn up(name: &str, head: usize, row: usize) -> Vec<f64> {
        vector(name, head * 100 + row, LATENT)
    }
    fn dot(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// One head of the token at `position`, as the paper has it before absorption: a key and a value of every token
    /// made from its latent.
    fn unabsorbed(position: usize, head: usize) -> Vec<f64> {
        let latents: Vec<Vec<f64>> = (0..=position).map(|t| vector("latent", t, LATENT)).collect();
        let made = |name: &str, width: usize, c: &[f64]| -> Vec<f64> {
            (0..width).map(|row| dot(&up(name, head, row), c)).collect()
        };
        let (q, q_rope) = (vector("q", position * HEADS + head, KEY), vector("qr", position * HEADS + head, ROPE));
        let score = |(t, c): (usize, &Vec<f64>)| {
            let sum = dot(&q, &made("up_k", KEY, c)) + dot(&q_rope, &vector("rope", t, ROPE));
            (f64::from(SCALE) * sum).exp()
        };
        let weights: Vec<f64> = latents.iter().enumerate().map(score).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; VALUE];
        for (c, w) in latents.iter().zip(&weights) {
            out.iter_mut().zip(made("up_v", VALUE, c)).for_each(|(o, v)| *o += w / total * v);
        }
        out
    }

    /// The query of the latent: the transposed matrix of keys times the query of the head.
    fn absorbed_query(position: usize, head: usize) -> Vec<f64> {
        let q = vector("q", position * HEADS + head, KEY);
        let matrix: Vec<Vec<f64>> = (0..KEY).map(|row| up("up_k", head, row)).collect();
        (0..LATENT).map(|i| (0..KEY).map(|row| matrix[row][i] * q[row]).sum()).collect()
    }

    #[test]
    fn it_is_attention_over_keys_and_values_made_of_latents() {
        let mut p = Program::new("absorbed", TOKENS, TOKENS);
        let mut input = |name: &str, elem, shape: &[usize]| p.slot(name, Role::Input, elem, shape);
        let q = input("q", Elem::F32, &[TOKENS, HEADS * (LATENT + ROPE)]);
        let x = input("x", Elem::F32, &[TOKENS, LATENT + ROPE]);
        let slot_mapping = input("slot_mapping", Elem::I32, &[TOKENS]);
        let [positions, row_seq] = ["positions", "row_seq"].map(|name| input(name, Elem::U32, &[TOKENS]));
        let block_tables = input("block_tables", Elem::U32, &[1, 2]);
        let shape = LatentShape { blocks: 2, block_size: 4, latent: LATENT, rope: ROPE };
        let cache = p.latent_cache("cache", KvFormat::F32, shape);
        let out = p.slot("out", Role::Output, Elem::F32, &[TOKENS, HEADS * LATENT]);
        let (heads, latent, rope, scale) = (HEADS, LATENT, ROPE, SCALE);
        p.push(LatentStore { x, cache, slot_mapping, latent, rope });
        p.push(LatentAttention { q, cache, positions, row_seq, block_tables, out, heads, latent, rope, scale });

        let floats = |x: Vec<f64>| x.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect::<Vec<u8>>();
        let words = |x: &[u32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let of_head = |i: usize| [absorbed_query(i / HEADS, i % HEADS), vector("qr", i, ROPE)].concat();
        let of_token = |t: usize| [vector("latent", t, LATENT), vector("rope", t, ROPE)].concat();
        // The second block comes first.
        let inputs = HashMap::from([
            ("live".to_string(), words(&[TOKENS as u32; 2])),
            ("q".to_string(), floats((0..TOKENS * HEADS).flat_map(of_head).collect())),
            ("x".to_string(), floats((0..TOKENS).flat_map(of_token).collect())),
            ("slot_mapping".to_string(), words(&[4, 5, 6, 7, 0])),
            ("positions".to_string(), words(&[0, 1, 2, 3, 4])),
            ("row_seq".to_string(), words(&[0; TOKENS])),
            ("block_tables".to_string(), words(&[1, 0])),
        ]);
        let (width, len) = (HEADS * LATENT, TOKENS * HEADS * LATENT);
        let problem = Problem {
            name: "absorbed".into(),
            programs: vec![p],
            weights: HashMap::new(),
            launches: vec![(0, inputs)],
            outputs: vec![Expected { slot: "out".into(), len, width, tolerance: Some(0.0) }],
        };
        let got: Vec<f32> = cast_vec(&run(&mut ReferenceBackend::default(), &problem).unwrap()[0]);
        let mut seen = Vec::new();
        for (i, got) in got.chunks_exact(LATENT).enumerate() {
            let (position, head) = (i / HEADS, i % HEADS);
            let got: Vec<f64> = got.iter().map(|x| f64::from(*x)).collect();
            // What follows attention in the absorbed form.
            for (row, want) in unabsorbed(position, head).into_iter().enumerate() {
                let got = dot(&up("up_v", head, row), &got);
                assert!((got - want).abs() < 1e-6, "token {position}, head {head}: {got}, not {want}");
                seen.push(want);
            }
        }
        assert!(seen.len() == TOKENS * HEADS * VALUE && seen.iter().any(|x| x.abs() > 0.5), "it says nothing");
    }
}
