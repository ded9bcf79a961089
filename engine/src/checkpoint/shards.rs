//! The safetensors files of a Hugging Face folder: one, or shards listed in an index.
//!
//! The `safetensors` crate checks a file's header; what it lets pass is checked here: names that appear
//! twice (its map keeps the last), and shard names that lead out of the folder.

use std::collections::HashMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Mapped;
use super::place::Found;
use crate::error::{Error, Result};
use crate::format::Format;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Maps the folder's weight files and lists their tensors.
pub fn open(folder: &Path) -> Result<(Vec<Mapped>, HashMap<String, Found>)> {
    let single = folder.join(SINGLE);
    let index = folder.join(INDEX);
    if single.exists() {
        let file = Mapped::open(&inside(folder, SINGLE, &single)?)?;
        let found = tensors(&file, 0)?;
        return Ok((vec![file], found.into_iter().collect()));
    }
    if !index.exists() {
        return Err(no_weights(folder));
    }
    sharded(folder, &index)
}

/// The message for a folder without safetensors, which depends on what is there instead.
fn no_weights(folder: &Path) -> Error {
    let is_pickle =
        |p: &Path| p.extension().is_some_and(|e| ["bin", "pt", "pth", "pkl", "ckpt"].iter().any(|x| e == *x));
    let pickle = std::fs::read_dir(folder).ok().and_then(|d| d.flatten().map(|e| e.path()).find(|p| is_pickle(p)));
    match pickle {
        Some(p) => Error::checkpoint(
            p,
            "format",
            "pickled weights can run code when loaded and are refused; convert them to safetensors",
        ),
        None => Error::checkpoint(folder, SINGLE, format!("missing, and there is no {INDEX}")),
    }
}

fn sharded(folder: &Path, index: &Path) -> Result<(Vec<Mapped>, HashMap<String, Found>)> {
    let map = read_index(index)?;
    let mut names: Vec<&str> = map.values().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let mut files = Vec::new();
    let mut found = HashMap::new();
    for name in names {
        let path = shard_path(folder, index, name)?;
        let file = Mapped::open(&path)?;
        for (tensor, at) in tensors(&file, files.len())? {
            if map.get(&tensor).map(String::as_str) != Some(name) {
                return Err(Error::checkpoint(path, tensor, format!("in this shard, but not so in {INDEX}")));
            }
            found.insert(tensor, at);
        }
        files.push(file);
    }
    match map.iter().filter(|(t, _)| !found.contains_key(*t)).min() {
        Some((tensor, shard)) => Err(Error::checkpoint(index, tensor, format!("not in its shard {shard}"))),
        None => Ok((files, found)),
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

fn read_index(path: &Path) -> Result<HashMap<String, String>> {
    let text = super::hf::read_text(path)?;
    let index: Index = serde_json::from_str(&text).map_err(|e| Error::checkpoint(path, "weight_map", e.to_string()))?;
    Ok(index.weight_map.0)
}

/// A shard's path, if its name is one plain file name and the file lies where it says.
fn shard_path(folder: &Path, index: &Path, name: &str) -> Result<PathBuf> {
    let plain = matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(n)] if n == name);
    if !plain || name.len() > 255 || name.contains(['/', '\\', ':', '\0']) || !name.ends_with(".safetensors") {
        let shown: String = name.chars().take(80).collect();
        return Err(Error::checkpoint(index, "weight_map", format!("{shown:?} is not a plain .safetensors file name")));
    }
    let path = folder.join(name);
    if !path.exists() {
        return Err(Error::checkpoint(index, "weight_map", format!("shard {name} is missing from the folder")));
    }
    inside(folder, name, &path)
}

/// Follows symbolic links, which may lead only into the folder or, in a hub cache
/// (`snapshots/REVISION/`), into its `blobs/`.
fn inside(folder: &Path, name: &str, path: &Path) -> Result<PathBuf> {
    let real = |p: &Path| p.canonicalize().map_err(|e| Error::io(p, e));
    let (home, file) = (real(folder)?, real(path)?);
    let blobs = home.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent).map(|p| p.join("blobs"));
    if file.starts_with(&home) || blobs.is_some_and(|b| file.starts_with(b)) {
        return Ok(path.to_path_buf());
    }
    Err(Error::checkpoint(folder, name, "a link that leads out of the folder"))
}

/// The tensors of one safetensors file.
fn tensors(file: &Mapped, index: usize) -> Result<Vec<(String, Found)>> {
    let fault = |field: &str, why: String| Error::checkpoint(&file.path, field, why);
    let (header, meta) = SafeTensors::read_metadata(&file.map).map_err(|e| fault("header", e.to_string()))?;
    let json = &file.map[8..8 + header];
    serde_json::from_slice::<Unique<IgnoredAny>>(json).map_err(|e| fault("header", e.to_string()))?;
    let mut found = Vec::new();
    for (name, info) in meta.tensors() {
        let format = match info.dtype {
            Dtype::F32 => Some(Format::F32),
            Dtype::F16 => Some(Format::F16),
            Dtype::BF16 => Some(Format::BF16),
            Dtype::F8_E4M3 => Some(Format::F8),
            Dtype::I32 => None,
            other => {
                let why = format!("dtype {other:?} is not supported; F32, F16, BF16, F8_E4M3 and I32 are");
                return Err(fault(&name, why));
            }
        };
        if info.shape.contains(&0) {
            return Err(fault(&name, format!("a dimension of 0 in {:?}", info.shape)));
        }
        let range = 8 + header + info.data_offsets.0..8 + header + info.data_offsets.1;
        let elements = info.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = elements.and_then(|n| match format {
            // The file holds bare codes; their scales are a tensor of their own.
            Some(Format::F8) => Some(n),
            Some(format) => format.bytes_for(n),
            None => n.checked_mul(4),
        });
        if bytes != Some(range.len()) || range.end > file.map.len() {
            return Err(fault(&name, format!("shape {:?} does not fit its {} bytes", info.shape, range.len())));
        }
        found.push((name, Found { file: index, format, shape: info.shape.clone(), range }));
    }
    Ok(found)
}

/// A JSON object whose keys must differ (serde's maps keep the last of two equal ones).
struct Unique<V>(HashMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Seen<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Seen<V> {
            type Value = Unique<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with distinct keys")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut out = HashMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if out.contains_key(&key) {
                        return Err(serde::de::Error::custom(format!("`{key}` appears twice")));
                    }
                    out.insert(key, value);
                }
                Ok(Unique(out))
            }
        }
        d.deserialize_map(Seen(std::marker::PhantomData))
    }
}
