//! The canonical weights of a decoder, and what GGUF and Hugging Face files call them: one table.
//!
//! Every weight is a matrix `[rows, cols]` with `cols` the inner dimension (K); vectors have one row.

use super::{Family, ModelConfig};

/// A weight of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightId {
    /// Token embedding, `[vocab, hidden]`.
    Embed,
    /// The last RMS norm, `[hidden]`.
    OutputNorm,
    /// Output projection, `[vocab, hidden]`; absent where the embedding serves (tied).
    Output,
    /// Divisors of the rotary frequencies, `[dim / 2]` (GGUF files of Llama 3.1 and later).
    RopeFreqs,
    /// A weight of decoder layer `.0`.
    Layer(usize, LayerWeight),
}

/// A weight of one decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerWeight {
    /// RMS norm before attention, `[hidden]`.
    AttnNorm,
    /// Query projection, `[heads * head_dim, hidden]`.
    Q,
    /// Key projection, `[kv_heads * head_dim, hidden]`.
    K,
    /// Value projection, `[kv_heads * head_dim, hidden]`.
    V,
    /// Output projection of attention, `[hidden, heads * head_dim]`.
    O,
    /// Bias of Q, `[heads * head_dim]`.
    QBias,
    /// Bias of K, `[kv_heads * head_dim]`.
    KBias,
    /// Bias of V, `[kv_heads * head_dim]`.
    VBias,
    /// RMS norm of each query head, `[head_dim]`.
    QNorm,
    /// RMS norm of each key head, `[head_dim]`.
    KNorm,
    /// RMS norm after attention, before the residual add, `[hidden]`.
    PostAttnNorm,
    /// RMS norm before the MLP, `[hidden]`.
    MlpNorm,
    /// Gate projection, `[ffn, hidden]`.
    Gate,
    /// Up projection, `[ffn, hidden]`.
    Up,
    /// Down projection, `[hidden, ffn]`.
    Down,
    /// RMS norm after the MLP, before the residual add, `[hidden]`.
    PostMlpNorm,
}

use LayerWeight::*;

/// (weight, name in GGUF after `blk.N.`, name in Hugging Face files after `model.layers.N.`).
const LAYER_NAMES: [(LayerWeight, &str, &str); 16] = [
    (AttnNorm, "attn_norm.weight", "input_layernorm.weight"),
    (Q, "attn_q.weight", "self_attn.q_proj.weight"),
    (K, "attn_k.weight", "self_attn.k_proj.weight"),
    (V, "attn_v.weight", "self_attn.v_proj.weight"),
    (O, "attn_output.weight", "self_attn.o_proj.weight"),
    (QBias, "attn_q.bias", "self_attn.q_proj.bias"),
    (KBias, "attn_k.bias", "self_attn.k_proj.bias"),
    (VBias, "attn_v.bias", "self_attn.v_proj.bias"),
    (QNorm, "attn_q_norm.weight", "self_attn.q_norm.weight"),
    (KNorm, "attn_k_norm.weight", "self_attn.k_norm.weight"),
    (PostAttnNorm, "post_attention_norm.weight", "post_attention_layernorm.weight"),
    (MlpNorm, "ffn_norm.weight", "pre_feedforward_layernorm.weight"),
    (Gate, "ffn_gate.weight", "mlp.gate_proj.weight"),
    (Up, "ffn_up.weight", "mlp.up_proj.weight"),
    (Down, "ffn_down.weight", "mlp.down_proj.weight"),
    (PostMlpNorm, "post_ffw_norm.weight", "post_feedforward_layernorm.weight"),
];

fn layer_names(w: LayerWeight) -> (&'static str, &'static str) {
    let row = LAYER_NAMES.iter().find(|r| r.0 == w).expect("every layer weight has a row");
    (row.1, row.2)
}

impl LayerWeight {
    /// Whether a family's layers have this weight.
    pub fn belongs_to(self, family: &Family) -> bool {
        match self {
            QBias | KBias | VBias => family.qkv_bias,
            QNorm | KNorm => family.qk_norm,
            PostAttnNorm | PostMlpNorm => family.post_norms,
            AttnNorm | Q | K | V | O | MlpNorm | Gate | Up | Down => true,
        }
    }
    /// Whether this is an RMS norm's weight.
    pub fn is_norm(self) -> bool {
        matches!(self, AttnNorm | QNorm | KNorm | PostAttnNorm | MlpNorm | PostMlpNorm)
    }
}

impl WeightId {
    /// The tensor's name in a GGUF file.
    pub fn gguf_name(self) -> String {
        match self {
            WeightId::Embed => "token_embd.weight".into(),
            WeightId::OutputNorm => "output_norm.weight".into(),
            WeightId::Output => "output.weight".into(),
            WeightId::RopeFreqs => "rope_freqs.weight".into(),
            WeightId::Layer(n, w) => format!("blk.{n}.{}", layer_names(w).0),
        }
    }

    /// The tensor's name in a Hugging Face file; `None` where such files do not have it.
    pub fn hf_name(self, family: &Family) -> Option<String> {
        Some(match self {
            WeightId::Embed => "model.embed_tokens.weight".into(),
            WeightId::OutputNorm => "model.norm.weight".into(),
            WeightId::Output => "lm_head.weight".into(),
            WeightId::RopeFreqs => return None,
            // Without norms after the blocks, the norm before the MLP is named after attention.
            WeightId::Layer(n, MlpNorm) if !family.post_norms => {
                format!("model.layers.{n}.post_attention_layernorm.weight")
            }
            WeightId::Layer(n, w) => format!("model.layers.{n}.{}", layer_names(w).1),
        })
    }

    /// Whether this is an RMS norm's weight (see [`Family::hf_norm_plus_one`]).
    pub fn is_norm(self) -> bool {
        match self {
            WeightId::OutputNorm => true,
            WeightId::Layer(_, w) => w.is_norm(),
            WeightId::Embed | WeightId::Output | WeightId::RopeFreqs => false,
        }
    }

    /// `(rows, cols)` in a model of this configuration.
    pub fn shape(self, c: &ModelConfig) -> (usize, usize) {
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        match self {
            WeightId::Embed | WeightId::Output => (c.vocab, c.hidden),
            WeightId::OutputNorm => (1, c.hidden),
            WeightId::RopeFreqs => (1, c.rope.dim / 2),
            WeightId::Layer(_, w) => match w {
                AttnNorm | PostAttnNorm | MlpNorm | PostMlpNorm => (1, c.hidden),
                Q => (q, c.hidden),
                K | V => (kv, c.hidden),
                O => (c.hidden, q),
                QBias => (1, q),
                KBias | VBias => (1, kv),
                QNorm | KNorm => (1, c.head_dim),
                Gate | Up => (c.ffn, c.hidden),
                Down => (c.hidden, c.ffn),
            },
        }
    }

    /// Every weight that a model of this configuration must have, in the order of a forward pass.
    pub fn required(c: &ModelConfig) -> impl Iterator<Item = WeightId> {
        let family = c.family;
        let layers = (0..c.layers).flat_map(move |n| {
            let of_family = LAYER_NAMES.iter().map(|r| r.0).filter(move |w| w.belongs_to(family));
            of_family.map(move |w| WeightId::Layer(n, w))
        });
        let output = (!c.tied).then_some(WeightId::Output);
        [WeightId::Embed].into_iter().chain(layers).chain([WeightId::OutputNorm]).chain(output)
    }
}
