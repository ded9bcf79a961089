//! The configuration file: which instances there are, in TOML.
//!
//! ```toml
//! [[instances]]                 # short questions, many at once
//! name = "short"
//! model = "bundled"
//! up_to = 1000                  # tokens of prompt and expected answer; without it, no bound
//! max_model_len = 2048
//!
//! [[instances]]                 # long thinking
//! name = "long"
//! model = "models/qwq-32b.gguf"
//! backend = "cuda"
//! kv_memory = "40G"
//! ```

use std::path::{Path, PathBuf};

use ponder_engine::{Error, Result};
use serde::Deserialize;

use crate::models;
use crate::options::{EngineOptions, byte_count};

/// All instances.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetConfig {
    /// In any order.
    pub instances: Vec<InstanceConfig>,
}

/// One instance. What is left out is as on the command line.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceConfig {
    /// Its name, by which requests may ask for it.
    pub name: String,
    /// As `--model`.
    pub model: String,
    /// It is meant for requests of so many tokens at most, prompt and expected answer; left out: no bound.
    pub up_to: Option<usize>,
    /// Requests that it takes before others overflow to a larger instance; left out: two for each of its sequences.
    pub slots: Option<usize>,
    /// As `--backend`.
    pub backend: Option<String>,
    /// As `--adapter`.
    pub adapter: Option<String>,
    /// As `--threads`.
    pub threads: Option<usize>,
    /// As `--max-model-len`.
    pub max_model_len: Option<usize>,
    /// As `--max-num-seqs`.
    pub max_num_seqs: Option<usize>,
    /// As `--kv-memory`: bytes, such as "500M".
    pub kv_memory: Option<String>,
    /// As `--block-size`.
    pub block_size: Option<usize>,
    /// As `--scheduling-policy`.
    pub scheduling_policy: Option<String>,
    /// As `--length-stats`.
    pub length_stats: Option<PathBuf>,
}

impl FleetConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or says something that no instance can be; with the file and the field.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let wrong = |e: toml::de::Error| {
            let line = e.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            Error::checkpoint(path, format!("line {line}"), e.message())
        };
        let config: Self = toml::from_str(&text).map_err(wrong)?;
        for instance in &config.instances {
            let named = |e: Error| Error::checkpoint(path, format!("instance {:?}", instance.name), e.to_string());
            instance.options().and_then(|o| o.validate()).map_err(named)?;
        }
        Ok(config)
    }
}

impl InstanceConfig {
    /// The engine's options.
    ///
    /// # Errors
    /// If a word is unknown or the model is not there.
    pub fn options(&self) -> Result<EngineOptions> {
        let d = EngineOptions::new(models::resolve(&self.model)?);
        let bytes = |word: &String| byte_count(word).map_err(|why| Error::invalid("kv_memory", why));
        let seqs = self.max_num_seqs.unwrap_or(d.max_num_seqs);
        Ok(EngineOptions {
            backend: self.backend.as_deref().map_or(Ok(d.backend), str::parse)?,
            adapter: self.adapter.clone(),
            threads: self.threads.unwrap_or(d.threads),
            max_model_len: self.max_model_len,
            max_num_seqs: seqs,
            max_step_tokens: d.max_step_tokens.max(seqs),
            kv_memory: self.kv_memory.as_ref().map(bytes).transpose()?,
            block_size: self.block_size.unwrap_or(d.block_size),
            scheduling_policy: self.scheduling_policy.as_deref().map_or(Ok(d.scheduling_policy), str::parse)?,
            length_stats: self.length_stats.clone(),
            ..d
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<FleetConfig> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        FleetConfig::read(file.path())
    }

    #[test]
    fn a_file_describes_instances_and_mistakes_are_named() {
        // Any path that is there: nothing is opened.
        let short = "[[instances]]\nname = \"short\"\nmodel = \"Cargo.toml\"\nup_to = 800\nkv_memory = \"2M\"\n";
        let config = read(short).unwrap();
        let options = config.instances[0].options().unwrap();
        assert_eq!((config.instances[0].up_to, options.kv_memory), (Some(800), Some(2_000_000)));
        for (wrong, named) in [
            ("kv_memmory = \"2M\"", "kv_memmory"),
            ("backend = \"abacus\"", "backend"),
            ("max_model_len = \"x\"", "line"),
            ("block_size = 0", "block_size"),
            ("scheduling_policy = \"lifo\"", "lifo"),
        ] {
            let error = read(&format!("{short}{wrong}\n").replace("kv_memory = \"2M\"\n", "")).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
