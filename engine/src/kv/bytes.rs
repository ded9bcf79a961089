//! Bytes of a KV cache: the one place that has the formula.

use crate::format::KvFormat;

/// What a layer caches of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vectors {
    /// Grouped-query attention: a key and a value per head.
    Gqa {
        /// Key and value heads.
        kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
    },
    /// Multi-head latent attention (DeepSeek-V2): one latent that keys and values are made from, and one
    /// rotated key that all heads share.
    Mla {
        /// Width of the latent.
        latent: usize,
        /// Width of the rotated key.
        rope: usize,
    },
}

/// A cache, but for its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvBytes {
    /// Layers.
    pub layers: usize,
    /// What each of them caches.
    pub vectors: Vectors,
    /// How it is stored.
    pub format: KvFormat,
}

impl KvBytes {
    /// Bytes of keys and values of one token, over all layers.
    pub const fn per_token(self) -> u64 {
        let values = match self.vectors {
            Vectors::Gqa { kv_heads, head_dim } => 2 * kv_heads * head_dim,
            Vectors::Mla { latent, rope } => latent + rope,
        };
        (self.layers * values * self.format.bytes()) as u64
    }
    /// Bytes of the scales of one token, over all layers: f32, one for each head's key and one for its value, or for the
    /// latent and for the rotated key; none where the format has none.
    pub const fn scales_per_token(self) -> u64 {
        let vectors = match self.vectors {
            Vectors::Gqa { kv_heads, .. } => 2 * kv_heads,
            Vectors::Mla { .. } => 2,
        };
        if self.format.has_scales() { (4 * self.layers * vectors) as u64 } else { 0 }
    }
    /// Bytes of a block of `block_size` tokens, scales included.
    pub const fn per_block(self, block_size: usize) -> u64 {
        (self.per_token() + self.scales_per_token()) * block_size as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gqa(layers: usize, kv_heads: usize, head_dim: usize, format: KvFormat) -> KvBytes {
        KvBytes { layers, vectors: Vectors::Gqa { kv_heads, head_dim }, format }
    }

    /// The figures that papers and blog posts quote.
    #[test]
    fn classic_figures() {
        let llama_70b = gqa(80, 8, 128, KvFormat::F16);
        assert_eq!(12_000 * llama_70b.per_token(), 3_932_160_000); // 3.93 GB
        let deepseek = KvBytes { layers: 61, vectors: Vectors::Mla { latent: 512, rope: 64 }, format: KvFormat::BF16 };
        assert_eq!(30_000 * deepseek.per_token(), 2_108_160_000); // 2.1 GB
    }

    #[test]
    fn fp8_is_half_of_f16_to_the_byte_and_its_scales_are_apart() {
        for (layers, kv_heads, head_dim) in [(30, 3, 64), (80, 8, 128), (18, 1, 256)] {
            let [half, eighth] = [KvFormat::F16, KvFormat::E2M5].map(|f| gqa(layers, kv_heads, head_dim, f));
            assert_eq!(2 * eighth.per_token(), half.per_token());
            assert_eq!(half.scales_per_token(), 0);
            assert_eq!(half.per_block(16), 16 * half.per_token());
            assert_eq!(eighth.scales_per_token(), (layers * 2 * kv_heads * 4) as u64);
            assert_eq!(eighth.per_block(16), 8 * half.per_token() + 16 * eighth.scales_per_token());
            // 4 bytes beside head_dim codes.
            assert_eq!(eighth.scales_per_token() * head_dim as u64, 4 * eighth.per_token());
        }
    }
}
