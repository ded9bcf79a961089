//! The memory plan: what a model will take, before anything is allocated.

use std::fmt;

use crate::kv::bytes::KvBytes;

/// Bytes, and what fits. Prints as a small table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes of the weights.
    pub weights: u64,
    /// The KV cache, but for its length.
    pub kv: KvBytes,
    /// The cache of a draft model in the same blocks, if it is on the same device.
    pub beside: Option<KvBytes>,
    /// Tokens per block of it.
    pub block_size: usize,
    /// Bytes for activations and tables.
    pub scratch: u64,
    /// Bytes that may be used in all.
    pub budget: u64,
    /// Longest context of the model.
    pub context: u64,
}

impl MemoryPlan {
    /// Bytes left for the KV cache.
    pub fn kv_budget(&self) -> u64 {
        self.budget.saturating_sub(self.weights).saturating_sub(self.scratch)
    }
    /// Bytes of keys and values of a token, of both models.
    pub fn kv_per_token(&self) -> u64 {
        self.kv.per_token() + self.beside.map_or(0, KvBytes::per_token)
    }
    /// Bytes of a block: of both models, scales included.
    pub fn per_block(&self) -> u64 {
        self.kv.per_block(self.block_size) + self.beside.map_or(0, |kv| kv.per_block(self.block_size))
    }
    /// Blocks that fit in [`kv_budget`](Self::kv_budget).
    pub fn blocks(&self) -> u64 {
        self.kv_budget() / self.per_block().max(1)
    }
    /// Tokens that fit, over all requests together.
    pub fn tokens(&self) -> u64 {
        self.blocks().saturating_mul(self.block_size as u64)
    }
    /// Bytes that are missing before even one block fits.
    pub fn missing(&self) -> Option<u64> {
        let least = self.weights.saturating_add(self.scratch).saturating_add(self.per_block());
        least.checked_sub(self.budget).filter(|m| *m > 0)
    }
}

/// A number of bytes in words: `98.4 MB` (powers of 1000, as memory is sold and files are listed).
pub fn bytes_in_words(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kv = format!("KV cache ({})", self.kv.format);
        writeln!(f, "{:<16} {:>10}", "memory budget", bytes_in_words(self.budget))?;
        writeln!(f, "{:<16} {:>10}", "weights", bytes_in_words(self.weights))?;
        writeln!(f, "{:<16} {:>10}", "scratch", bytes_in_words(self.scratch))?;
        writeln!(f, "{kv:<16} {:>10} per token", bytes_in_words(self.kv.per_token()))?;
        if self.kv.format.has_scales() {
            writeln!(f, "{:<16} {:>10} per token", "KV scales", bytes_in_words(self.kv.scales_per_token()))?;
        }
        match self.missing() {
            Some(m) => write!(f, "{:<16} {:>10}", "missing", bytes_in_words(m)),
            None => {
                let contexts = self.tokens() as f64 / self.context.max(1) as f64;
                let (tokens, context) = (self.tokens(), self.context);
                write!(f, "{:<16} {tokens:>10} tokens = {contexts:.1} contexts of {context}", "fits")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::KvFormat;
    use crate::kv::bytes::Vectors;

    #[test]
    fn fits_and_missing() {
        let mut plan = MemoryPlan {
            weights: 98_000_000,
            // SmolLM2-135M.
            kv: KvBytes { layers: 30, vectors: Vectors::Gqa { kv_heads: 3, head_dim: 64 }, format: KvFormat::F16 },
            beside: None,
            block_size: 16,
            scratch: 2_000_000,
            budget: 500_000_000,
            context: 8192,
        };
        assert_eq!((plan.tokens(), plan.missing()), (400_000_000 / 23_040 / 16 * 16, None));
        assert!(plan.to_string().contains("17360 tokens = 2.1 contexts of 8192"), "{plan}");
        plan.budget = 90_000_000;
        assert_eq!((plan.tokens(), plan.missing()), (0, Some(10_368_640)));
        assert!(plan.to_string().ends_with("10.4 MB"), "{plan}");
        plan.budget = 500_000_000;
        plan.kv.format = KvFormat::E2M5;
        assert_eq!(plan.blocks(), 400_000_000 / (16 * (11_520 + 720)));
        assert!(plan.to_string().contains("720 B per token"), "{plan}");
    }
}
