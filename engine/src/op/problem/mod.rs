//! Problems for backends: small programs with seeded data, one list for every backend and the oracle.
//!
//! Data are a hash of (seed, slot, row, column), so a row holds the same numbers whatever the
//! capacity of the program around it: what [`crate::backend::check`] needs to compare row buckets.
//! Unwritten cache slots and padding rows hold NaN: whoever reads them shows it.

mod attention;
mod latent;
mod maker;
mod sampling;
mod small;

use std::collections::HashMap;

use super::Program;
use crate::format::{Format, KvFormat};
use crate::model::{Activation, Pairing};

use attention::{attention, copy_blocks, qkv};
use latent::latents;
use sampling::sampling;
use small::{add_rms_norm, embed, gated_mlp, gather, head_norm, linear};

/// One problem: launches in order, then outputs to compare.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What it tests, unique.
    pub name: String,
    /// Programs by index.
    pub programs: Vec<Program>,
    /// Stored bytes of weights by slot name.
    pub weights: HashMap<String, Vec<u8>>,
    /// Launches in order: program index, and bytes by input slot name.
    pub launches: Vec<(usize, HashMap<String, Vec<u8>>)>,
    /// Outputs of the last launch.
    pub outputs: Vec<Expected>,
}

/// An output to compare.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Slot name.
    pub slot: String,
    /// Live elements to compare, from the front.
    pub len: usize,
    /// Elements per row.
    pub width: usize,
    /// Allowed difference over the largest absolute reference value; `None` for ids, which are equal.
    pub tolerance: Option<f64>,
}

/// Uniform in [-1, 1) from a hash (splitmix64).
pub fn noise(seed: u64, slot: &str, row: usize, column: usize) -> f32 {
    let mut z = slot.bytes().fold(seed ^ 0x9E37_79B9_7F4A_7C15, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01B3));
    z = z.wrapping_add((row as u64) << 32 | column as u64).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Attention over the same tokens in blocks of any size.
pub fn attention_in_blocks(rows: usize, kv: KvFormat, block_size: usize) -> Problem {
    attention(rows, rows, kv, 4, 2, 32, block_size, Some(40))
}

/// Every problem at a row capacity, with `live` of the rows alive.
pub fn problems(rows: usize, live: usize) -> Vec<Problem> {
    let mut all = Vec::new();
    for format in Format::ALL {
        let k = match format.block_len() {
            256 => 768,
            128 => 640,
            _ => 576,
        };
        all.push(embed(rows, live, format, k));
        all.push(linear(rows, live, format, 200, k, false));
        all.push(gated_mlp(rows, live, format, k, Activation::Silu));
    }
    all.push(linear(rows, live, Format::Q4_1, 48, 1536, false));
    all.push(linear(rows, live, Format::BF16, 37, 100, true));
    all.push(linear(rows, live, Format::F32, 5, 20, false));
    all.push(linear(rows, live, Format::Q8_0, 1100, 64, true));
    all.push(gated_mlp(rows, live, Format::F16, 64, Activation::GeluTanh));
    all.extend([64, 576, 1000].map(|n| add_rms_norm(rows, live, n)));
    all.push(head_norm(rows, live));
    for (pairing, format, bias, norm, rope_dim) in [
        (Pairing::Interleaved, Format::Q4_1, false, false, 64),
        (Pairing::Halves, Format::BF16, true, false, 64),
        (Pairing::Halves, Format::Q4K, false, true, 64),
        (Pairing::Halves, Format::F32, true, true, 32),
        (Pairing::Interleaved, Format::F16, true, true, 32),
    ] {
        for kv in KvFormat::ALL {
            all.push(qkv(rows, live, pairing, format, bias, norm, (rope_dim, 64), kv));
        }
    }
    // Widths that the transform of keys takes whole, and in runs.
    for head_dim in [128, 96] {
        let (format, kv) = (Format::BF16, KvFormat::E2M5);
        all.push(qkv(rows, live, Pairing::Halves, format, false, head_dim == 96, (64, head_dim), kv));
    }
    for kv in KvFormat::ALL {
        all.push(attention(rows, live, kv, 3, 3, 64, 16, None));
        all.push(attention(rows, live, kv, 9, 3, 64, 16, None));
        all.push(attention(rows, live, kv, 8, 1, 128, 32, None));
        all.push(attention(rows, live, kv, 4, 2, 32, 16, Some(40)));
        all.push(copy_blocks(rows, live, kv));
    }
    for kv in [KvFormat::F16, KvFormat::E2M5] {
        all.push(attention(rows, live, kv, 4, 1, 256, 16, Some(300)));
    }
    all.extend(latents(rows, live));
    all.push(gather(rows, live));
    all.extend(sampling(rows, live));
    all
}
