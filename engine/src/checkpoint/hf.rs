//! A Hugging Face folder: its JSON files read and checked, its weights left to [`super::shards`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::gguf::Fault;
use super::{GenerationDefaults, Located, Mapped, ends_a_turn, hf_config, int4, place, shards};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, WeightId};

/// Largest JSON file that is read (tokenizer.json of a 256k vocabulary has 33 MB).
const MAX_JSON: u64 = 256 << 20;

/// The text files of a folder, parsed.
pub struct Folder {
    path: PathBuf,
    config: Json,
    generation: Json,
    tokenizer_config: Json,
}

/// A UTF-8 file of bounded size.
pub fn read_text(path: &Path) -> Result<String> {
    let len = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if len > MAX_JSON {
        return Err(Error::checkpoint(path, "size", format!("{len} bytes; {MAX_JSON} at most are read")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map_err(|_| Error::checkpoint(path, "encoding", "not UTF-8"))
}

fn read_json(path: &Path) -> Result<Json> {
    serde_json::from_str(&read_text(path)?).map_err(|e| Error::checkpoint(path, "JSON", e.to_string()))
}

impl Folder {
    /// Reads the JSON files; only `config.json` must be there.
    pub fn open(path: &Path) -> Result<Folder> {
        let optional = |name: &str| match path.join(name) {
            file if file.is_file() => read_json(&file),
            _ => Ok(Json::Null),
        };
        Ok(Folder {
            path: path.to_path_buf(),
            config: read_json(&path.join("config.json"))?,
            generation: optional("generation_config.json")?,
            tokenizer_config: optional("tokenizer_config.json")?,
        })
    }

    fn fault(&self, file: &str) -> impl Fn(Fault) -> Error {
        let path = self.path.join(file);
        move |f| Error::checkpoint(&path, f.field, f.message)
    }

    /// The model's numbers.
    pub fn config(&self) -> Result<ModelConfig> {
        hf_config::config(&self.config).map_err(self.fault("config.json"))
    }

    /// The generation defaults, with the tokens that end a turn found by name in the tokenizer's files.
    pub fn generation(&self, config: &ModelConfig) -> Result<GenerationDefaults> {
        let defaults = hf_config::generation(&self.config, &self.generation, config.vocab);
        let mut defaults = defaults.map_err(self.fault("generation_config.json"))?;
        let added = self.tokenizer_config.get("added_tokens_decoder").and_then(Json::as_object);
        for (id, token) in added.into_iter().flatten() {
            let content = token.get("content").and_then(Json::as_str).unwrap_or_default();
            match id.parse::<u32>() {
                Ok(id) if (id as usize) < config.vocab && ends_a_turn(content) => defaults.eos.push(id),
                _ => {}
            }
        }
        defaults.eos.sort_unstable();
        defaults.eos.dedup();
        let add_bos = self.tokenizer_config.get("add_bos_token").and_then(Json::as_bool);
        defaults.add_bos = defaults.bos.is_some() && add_bos.unwrap_or(false);
        Ok(defaults)
    }

    /// Maps the weights and assigns them.
    pub fn weights(&self, config: &ModelConfig) -> Result<(Vec<Mapped>, HashMap<WeightId, Located>)> {
        let int4 = int4::scheme(&self.config).map_err(self.fault("config.json"))?;
        let (files, found) = shards::open(&self.path)?;
        let placed = place::hugging_face(config, int4, &files, found);
        let placed = placed.map_err(|f| Error::checkpoint(&self.path, f.field, f.message))?;
        Ok((files, placed))
    }

    /// Where `tokenizer.json` must be.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    /// The chat template: `chat_template.jinja`, else the one of `tokenizer_config.json` (of several, "default").
    pub fn chat_template(&self) -> Result<Option<String>> {
        let file = self.path.join("chat_template.jinja");
        if file.is_file() {
            return read_text(&file).map(Some);
        }
        match self.tokenizer_config.get("chat_template") {
            None | Some(Json::Null) => Ok(None),
            Some(Json::String(one)) => Ok(Some(one.clone())),
            Some(Json::Array(several)) => {
                let named = |t: &&Json| t.get("name").and_then(Json::as_str) == Some("default");
                let template = several.iter().find(named).and_then(|t| t.get("template")).and_then(Json::as_str);
                let template =
                    template.ok_or_else(|| Fault::new("chat_template", "a list without a `default` template"));
                template.map(|t| Some(t.to_string())).map_err(self.fault("tokenizer_config.json"))
            }
            Some(_) => Err(self.fault("tokenizer_config.json")(Fault::new("chat_template", "neither text nor a list"))),
        }
    }

    /// The text of a special token named in `tokenizer_config.json`, such as `bos_token`.
    pub fn special_token(&self, key: &str) -> Option<&str> {
        let value = self.tokenizer_config.get(key)?;
        value.as_str().or_else(|| value.get("content").and_then(Json::as_str))
    }

    /// Keys and values of the configuration files.
    pub fn metadata(&self) -> Vec<(String, String)> {
        let files = [("config", &self.config), ("generation", &self.generation)];
        let rows =
            files.iter().flat_map(|(file, json)| json.as_object().into_iter().flatten().map(move |kv| (file, kv)));
        rows.map(|(file, (key, value))| (format!("{file}.{key}"), value.to_string())).collect()
    }
}
