//! The numbers that define a model, whatever file they came from.

use crate::format::KvFormat;
use crate::kv::bytes::{KvBytes, Vectors};
use crate::model::family::Family;

/// Dimensions and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What the layers look like.
    pub family: &'static Family,
    /// The model's own name, if its file has one.
    pub name: String,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head (not always `hidden / heads`).
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Longest context the model was trained for, in tokens.
    pub context: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Rotary embedding of global layers (and of all layers where there are no local ones).
    pub rope: Rope,
    /// Sliding-window layers, where the family has them.
    pub local: Option<LocalAttention>,
    /// The output projection is the embedding.
    pub tied: bool,
    /// Factor on the attention scores; `1/sqrt(head_dim)` unless the model says otherwise.
    pub attention_scale: f32,
}

/// Rotary position embedding (Su et al. 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Rotated leading dimensions of a head (even).
    pub dim: usize,
    /// Which dimensions form a pair.
    pub pairing: Pairing,
    /// Change of the frequencies for long contexts.
    pub scaling: RopeScaling,
}

/// Which dimensions of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// (0,1), (2,3), ...: GGUF files of the Llama family, whose q and k rows were permuted for it.
    Interleaved,
    /// (0, d/2), (1, d/2+1), ...: Hugging Face's `rotate_half`, GGUF's "neox".
    Halves,
}

/// Frequency scaling of RoPE.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3's smooth interpolation (`rope_type: llama3`).
    Llama3 {
        /// Stretch of the low frequencies.
        factor: f32,
        /// Wavelengths above `original / low` are stretched in full.
        low_freq_factor: f32,
        /// Wavelengths below `original / high` stay.
        high_freq_factor: f32,
        /// Context before stretching.
        original_context: usize,
    },
    /// YaRN (Peng et al. 2023), as in QwQ and Qwen 2.5 long-context configurations.
    Yarn {
        /// Stretch.
        factor: f32,
        /// Context before stretching.
        original_context: usize,
        /// Rotations above which a dimension stays.
        beta_fast: f32,
        /// Rotations below which a dimension is interpolated in full.
        beta_slow: f32,
        /// Factor on cos and sin; `0.1 ln(factor) + 1` unless the file says otherwise.
        attention_factor: f32,
    },
    /// Frequencies divided one by one (GGUF's `rope_freqs.weight`).
    Factors(Vec<f32>),
}

/// Layers that see only a window (Gemma 3).
#[derive(Clone, Debug, PartialEq)]
pub struct LocalAttention {
    /// Tokens visible, the current one included.
    pub window: usize,
    /// Every `pattern`-th layer is global, the others local.
    pub pattern: usize,
    /// Rotary embedding of the local layers.
    pub rope: Rope,
}

impl ModelConfig {
    /// Whether layer `layer` sees only a window.
    pub fn is_local(&self, layer: usize) -> bool {
        self.local.as_ref().is_some_and(|l| !(layer + 1).is_multiple_of(l.pattern))
    }
    /// What its KV cache takes.
    pub fn kv_bytes(&self, format: KvFormat) -> KvBytes {
        let vectors = Vectors::Gqa { kv_heads: self.kv_heads, head_dim: self.head_dim };
        KvBytes { layers: self.layers, vectors, format }
    }
}
