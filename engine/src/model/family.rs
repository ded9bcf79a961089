//! Model families as rows of one table: what differs between decoders, and nothing else.

/// Gate activation of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU by the tanh approximation.
    GeluTanh,
}

/// One family.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// Our name of it.
    pub name: &'static str,
    /// `architectures[0]` in a Hugging Face config.json.
    pub hf: &'static [&'static str],
    /// `general.architecture` in a GGUF file.
    pub gguf: &'static str,
    /// q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// RMS norm on each head's q and k before RoPE.
    pub qk_norm: bool,
    /// Norms after attention and MLP too, before the residual add (Gemma).
    pub post_norms: bool,
    /// Norm weights are stored as `w - 1` in Hugging Face files (Gemma).
    pub hf_norm_plus_one: bool,
    /// Embeddings are multiplied by `sqrt(hidden)` (Gemma).
    pub embed_scale: bool,
    /// Gate activation.
    pub activation: Activation,
    /// GGUF files store q and k permuted for interleaved rotation.
    pub gguf_interleaved_rope: bool,
}

const LLAMA: Family = Family {
    name: "llama",
    hf: &["LlamaForCausalLM"],
    gguf: "llama",
    qkv_bias: false,
    qk_norm: false,
    post_norms: false,
    hf_norm_plus_one: false,
    embed_scale: false,
    activation: Activation::Silu,
    gguf_interleaved_rope: true,
};

/// The table.
pub static FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        name: "qwen2",
        hf: &["Qwen2ForCausalLM"],
        gguf: "qwen2",
        qkv_bias: true,
        gguf_interleaved_rope: false,
        ..LLAMA
    },
    Family {
        name: "qwen3",
        hf: &["Qwen3ForCausalLM"],
        gguf: "qwen3",
        qk_norm: true,
        gguf_interleaved_rope: false,
        ..LLAMA
    },
    Family {
        name: "gemma3",
        hf: &["Gemma3ForCausalLM"],
        gguf: "gemma3",
        qk_norm: true,
        post_norms: true,
        hf_norm_plus_one: true,
        embed_scale: true,
        activation: Activation::GeluTanh,
        gguf_interleaved_rope: false,
        ..LLAMA
    },
];

impl Family {
    /// By `general.architecture`.
    pub fn by_gguf(arch: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|f| f.gguf == arch)
    }
    /// By `architectures[0]`.
    pub fn by_hf(arch: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|f| f.hf.contains(&arch))
    }
}
