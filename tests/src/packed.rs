//! Tiny models in INT4 as GPTQ and AWQ write them, and the same weights in F32 beside them.
//!
//! Packed here by the description of the files, bit by bit: what reads them shares no code with this.

use half::f16;
use ponder_engine::model::{ModelConfig, WeightId};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::tiny_model::{self, Tensors, TinyModel};

/// Who packed a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packer {
    /// Zeros are stored less one, in the whole word.
    Gptq,
    /// `checkpoint_format: gptq_v2`: zeros as they are.
    GptqV2,
    /// Symmetric: all zeros are 8, and stored so in spite of `checkpoint_format: gptq`.
    GptqSymmetric,
    /// AWQ's `gemm` layout.
    Awq,
}

/// The outputs of an AWQ word, from its lowest nibble.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// A model of the Llama family with all matrices of its layers packed in groups of `group` inputs (-1: whole rows).
pub struct Int4 {
    /// The packed one's `config.json`.
    pub config: Value,
    /// The packed one's tensors.
    pub tensors: Tensors,
    /// The same weights in F32.
    pub plain: TinyModel,
}

impl Int4 {
    /// Quantises and packs.
    pub fn new(packer: Packer, group: i64) -> Self {
        // Rows of 256, of 64, and of 160 inputs: whole groups of every size, and a last one that is not whole.
        let config = ModelConfig { hidden: 256, ffn: 160, ..tiny_model::config("llama") };
        let (mut tensors, mut plain) = (Tensors::new(), Tensors::new());
        for id in WeightId::required(&config) {
            let (rows, cols) = id.shape(&config);
            let name = id.hf_name(config.family).expect("a weight of both layouts");
            let values = tiny_model::values(&config, id);
            let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
            if rows == 1 || !matches!(id, WeightId::Layer(..)) {
                let entry = (Dtype::F32, shape, bytes(&values));
                tensors.insert(name.clone(), entry.clone());
                plain.insert(name, entry);
                continue;
            }
            let matrix = Matrix::quantise(&values, rows, cols, usize::try_from(group).unwrap_or(cols), packer);
            matrix.pack(name.strip_suffix("weight").expect("a matrix"), packer, &mut tensors);
            plain.insert(name, (Dtype::F32, shape, bytes(&matrix.values())));
        }
        let quantization = match packer {
            Packer::Awq => json!({ "quant_method": "awq", "bits": 4, "group_size": group, "zero_point": true,
                                   "version": "gemm" }),
            _ => json!({ "quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": false,
                         "sym": packer == Packer::GptqSymmetric,
                         "checkpoint_format": if packer == Packer::GptqV2 { "gptq_v2" } else { "gptq" } }),
        };
        let plain = tiny_model::folder(tiny_model::config_json(&config), &plain);
        let mut json = tiny_model::config_json(&config);
        json["quantization_config"] = quantization;
        Self { config: json, tensors, plain }
    }
    /// The packed model, written.
    pub fn packed(&self) -> TinyModel {
        tiny_model::folder(self.config.clone(), &self.tensors)
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Levels `[rows, cols]`, and scales and zeros `[groups, rows]`.
struct Matrix {
    rows: usize,
    cols: usize,
    group: usize,
    levels: Vec<u32>,
    scales: Vec<f16>,
    zeros: Vec<u32>,
}

impl Matrix {
    fn quantise(values: &[f32], rows: usize, cols: usize, group: usize, packer: Packer) -> Self {
        let groups = cols.div_ceil(group);
        let (mut levels, mut scales, mut zeros) = (vec![0; rows * cols], Vec::new(), Vec::new());
        for g in 0..groups {
            let inputs = g * group..cols.min(g * group + group);
            for row in 0..rows {
                let x = &values[row * cols..][inputs.clone()];
                let (lo, hi) = x.iter().fold((0f32, 0f32), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
                let (width, zero) = match packer {
                    Packer::GptqSymmetric => (2.0 * hi.max(-lo), 8),
                    // All there are, 0 and 15 among them.
                    _ => (hi - lo, (row * 7 + g) as u32 % 16),
                };
                let scale = f16::from_f32(width / 15.0);
                for (k, v) in inputs.clone().zip(x) {
                    let level = (v / scale.to_f32()).round() as i32 + zero as i32;
                    levels[row * cols + k] = level.clamp(0, 15) as u32;
                }
                scales.push(scale);
                zeros.push(zero);
            }
        }
        Self { rows, cols, group, levels, scales, zeros }
    }

    /// `scale * (level - zero)`.
    fn values(&self) -> Vec<f32> {
        let value = |i: usize| {
            let at = i % self.cols / self.group * self.rows + i / self.cols;
            self.scales[at].to_f32() * (self.levels[i] as f32 - self.zeros[at] as f32)
        };
        (0..self.rows * self.cols).map(value).collect()
    }

    fn pack(&self, stem: &str, packer: Packer, out: &mut Tensors) {
        let (rows, cols, groups) = (self.rows, self.cols, self.cols.div_ceil(self.group));
        let word = |nibble: &dyn Fn(usize) -> u32| (0..8).fold(0u32, |word, i| word | nibble(i) << (4 * i));
        let order: [usize; 8] = if packer == Packer::Awq { AWQ_ORDER } else { std::array::from_fn(|i| i) };
        let zeros = (0..groups * rows / 8).map(|i| {
            let word = word(&|n| self.zeros[8 * i + order[n]]);
            if packer == Packer::Gptq { word.wrapping_sub(0x1111_1111) } else { word }
        });
        let (shape, levels): (_, Vec<u32>) = if packer == Packer::Awq {
            let at = |i: usize| word(&|n| self.levels[(i % (rows / 8) * 8 + order[n]) * cols + i / (rows / 8)]);
            (vec![cols, rows / 8], (0..cols * rows / 8).map(at).collect())
        } else {
            let at = |i: usize| word(&|n| self.levels[i % rows * cols + i / rows * 8 + n]);
            (vec![cols / 8, rows], (0..cols / 8 * rows).map(at).collect())
        };
        let words = |words: Vec<u32>| words.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
        let scales = self.scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        let mut put = |part: &str, entry| drop(out.insert(format!("{stem}{part}"), entry));
        put("qzeros", (Dtype::I32, vec![groups, rows / 8], words(zeros.collect())));
        put("qweight", (Dtype::I32, shape, words(levels)));
        put("scales", (Dtype::F16, vec![groups, rows], scales));
        if packer != Packer::Awq {
            let order = (0..cols).map(|k| (k / self.group) as u32);
            put("g_idx", (Dtype::I32, vec![cols], words(order.collect())));
            // Of models that have none, they are there and 0.
            put("bias", (Dtype::F16, vec![rows], vec![0; 2 * rows]));
        }
    }
}
