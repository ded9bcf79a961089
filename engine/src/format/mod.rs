//! How numbers are stored: the weight formats and the KV-cache formats, as rows of two tables.

pub mod decode;
pub mod encode;
pub mod f8;
pub mod hadamard;
pub mod int4;

use f8::E2M5;
use serde::{Deserialize, Serialize};

/// Storage format of a weight tensor. Quantised formats are the GGUF blocks
/// (layouts: ggml's `ggml-common.h`), little-endian, along a row's K dimension; FP8 and INT4 are blocks of
/// our own, which hold what checkpoints keep apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of a single.
    BF16,
    /// 32 int8, one f16 scale: `d * q`.
    Q8_0,
    /// 32 nibbles, one f16 scale: `d * (q - 8)`.
    Q4_0,
    /// 32 nibbles, f16 scale and minimum: `d * q + m`.
    Q4_1,
    /// 32 five-bit, one f16 scale: `d * (q - 16)`.
    Q5_0,
    /// 32 five-bit, f16 scale and minimum: `d * q + m`.
    Q5_1,
    /// 256 nibbles in 8 groups with 6-bit scales and minima.
    Q4K,
    /// 256 five-bit in 8 groups with 6-bit scales and minima.
    Q5K,
    /// 256 six-bit in 16 groups with int8 scales.
    Q6K,
    /// FP8: an f32 scale, then 128 [`f8::E4M3`] codes: `code * scale`. One scale per tensor, per row or per
    /// 128 x 128 block are all this.
    F8,
    /// INT4 of GPTQ and AWQ: a word of scale and zero ([`int4`]), then 32 nibbles: `d * (q - zero)`.
    I4G32,
    /// The same with 128 nibbles to a word.
    I4G128,
}

/// Elements of an FP8 block, whose scale they share; also the side of the blocks in files.
pub const F8_BLOCK: usize = 128;

impl Format {
    /// Every format, for tables and tests.
    pub const ALL: [Format; 14] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::F8,
        Format::I4G32,
        Format::I4G128,
    ];

    /// (name, elements per block, bytes per block).
    const fn row(self) -> (&'static str, usize, usize) {
        match self {
            Format::F32 => ("F32", 1, 4),
            Format::F16 => ("F16", 1, 2),
            Format::BF16 => ("BF16", 1, 2),
            Format::Q8_0 => ("Q8_0", 32, 34),
            Format::Q4_0 => ("Q4_0", 32, 18),
            Format::Q4_1 => ("Q4_1", 32, 20),
            Format::Q5_0 => ("Q5_0", 32, 22),
            Format::Q5_1 => ("Q5_1", 32, 24),
            Format::Q4K => ("Q4_K", 256, 144),
            Format::Q5K => ("Q5_K", 256, 176),
            Format::Q6K => ("Q6_K", 256, 210),
            Format::F8 => ("F8_E4M3", F8_BLOCK, 4 + F8_BLOCK),
            Format::I4G32 => ("I4_G32", 32, 4 + 16),
            Format::I4G128 => ("I4_G128", 128, 4 + 64),
        }
    }

    /// The name as GGUF and Hugging Face write it.
    pub const fn name(self) -> &'static str {
        self.row().0
    }
    /// Elements in one block.
    pub const fn block_len(self) -> usize {
        self.row().1
    }
    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.row().2
    }
    /// True for blocks of integers with scales: all but floats and FP8.
    pub const fn is_quantised(self) -> bool {
        self.block_len() > 1 && !matches!(self, Format::F8)
    }
    /// Bytes of `len` elements, or `None` if `len` is no multiple of the block or the product overflows.
    pub fn bytes_for(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Storage format of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvFormat {
    /// IEEE single.
    F32,
    /// IEEE half.
    #[default]
    F16,
    /// The upper half of a single.
    BF16,
    /// FP8: [`E2M5`] codes, with a scale for each token and head ([`f8`]).
    #[serde(rename = "fp8")]
    E2M5,
}

impl KvFormat {
    /// Every format, for tables and tests.
    pub const ALL: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::BF16, KvFormat::E2M5];

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            KvFormat::F32 => 4,
            KvFormat::F16 | KvFormat::BF16 => 2,
            KvFormat::E2M5 => 1,
        }
    }
    /// Whether each token and head has a scale, of 4 bytes.
    pub const fn has_scales(self) -> bool {
        matches!(self, KvFormat::E2M5)
    }
    /// The word for it on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            KvFormat::F32 => "f32",
            KvFormat::F16 => "f16",
            KvFormat::BF16 => "bf16",
            KvFormat::E2M5 => "fp8",
        }
    }
    /// The value after a round trip through the cache; of a format with scales, of what was divided by its scale.
    pub fn round(self, x: f32) -> f32 {
        match self {
            KvFormat::F32 => x,
            KvFormat::F16 => half::f16::from_f32(x).to_f32(),
            KvFormat::BF16 => half::bf16::from_f32(x).to_f32(),
            KvFormat::E2M5 => E2M5::decode(E2M5::encode(x)),
        }
    }
}

impl std::fmt::Display for KvFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for KvFormat {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let word = word.to_ascii_lowercase();
        let codes = if word.starts_with("fp8_") { "; the codes of fp8 are E2M5 here" } else { "" };
        let found = Self::ALL.into_iter().find(|f| f.name() == word);
        found.ok_or_else(|| format!("it is none of f32, f16, bf16, fp8{codes}"))
    }
}
