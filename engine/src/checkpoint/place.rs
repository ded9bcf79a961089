//! Assigns the tensors of a file to the weights of a model: each required one found once, in the right
//! shape, and none left over that the model would silently not use.

use std::collections::HashMap;
use std::ops::Range;

use super::fp8::Scales;
use super::gguf::{Fault, Gguf};
use super::{Located, fp8};
use crate::format::{F8_BLOCK, Format};
use crate::model::{ModelConfig, WeightId};

/// A tensor that some file has.
pub struct Found {
    /// Index of its file.
    pub file: usize,
    /// Storage format.
    pub format: Format,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
    /// Where its bytes lie.
    pub range: Range<usize>,
}

impl Found {
    /// All tensors of a GGUF file.
    pub fn of_gguf(gguf: &Gguf, bytes: &[u8]) -> HashMap<String, Found> {
        let found = gguf.tensors(bytes).map(|(name, t)| {
            let shape = t.dims().iter().rev().copied().collect();
            (name.to_string(), Found { file: 0, format: t.format, shape, range: t.range.clone() })
        });
        found.collect()
    }
}

/// The stored divisors of the rotary frequencies, if there are any.
pub fn rope_factors(found: &HashMap<String, Found>, bytes: &[u8]) -> Result<Option<Vec<f32>>, Fault> {
    let name = WeightId::RopeFreqs.gguf_name();
    let Some(t) = found.get(&name) else { return Ok(None) };
    let [len] = t.shape[..] else { return Err(Fault::new(name, "not a vector")) };
    let mut factors = vec![0.0; len];
    t.format.decode(&bytes[t.range.clone()], &mut factors);
    Ok(Some(factors))
}

/// Places the tensors of a GGUF file.
pub fn gguf(config: &ModelConfig, found: HashMap<String, Found>) -> Result<HashMap<WeightId, Located>, Fault> {
    let factors = found.contains_key("rope_freqs.weight").then_some(WeightId::RopeFreqs);
    place(config, factors, found, |id| Some(id.gguf_name()), |_| false)
}

/// Places the tensors of Hugging Face files.
pub fn hugging_face(config: &ModelConfig, found: HashMap<String, Found>) -> Result<HashMap<WeightId, Located>, Fault> {
    // Scales of activations serve who rounds those too; we do not.
    let unused = |name: &str| {
        name.ends_with("rotary_emb.inv_freq")
            || name.ends_with(".input_scale")
            || (config.tied && name == "lm_head.weight")
    };
    place(config, None, found, |id| id.hf_name(config.family), unused)
}

/// Takes the scales of FP8 codes `[rows, cols]` from the tensors left.
fn scales(name: &str, rows: usize, cols: usize, found: &mut HashMap<String, Found>) -> Result<Scales, Fault> {
    if !cols.is_multiple_of(F8_BLOCK) {
        return Err(Fault::new(name, format!("FP8 rows of {cols} elements are no multiple of {F8_BLOCK}")));
    }
    let names = fp8::SUFFIXES.map(|suffix| format!("{name}{suffix}"));
    let Some((name, t)) = names.iter().find_map(|n| Some((n, found.remove(n)?))) else {
        return Err(Fault::new(
            name,
            format!("FP8 codes without scales: neither {} nor {} is there", names[0], names[1]),
        ));
    };
    let by = fp8::By::of(&t.shape, rows, cols).ok_or_else(|| {
        let why =
            format!("scales of shape {:?} for [{rows}, {cols}]: neither one, nor per row, nor per block", t.shape);
        Fault::new(name, why)
    })?;
    match t.format {
        Format::F8 => Err(Fault::new(name, "scales of scaled codes")),
        format => Ok(Scales { file: t.file, format, range: t.range, by }),
    }
}

fn place(
    config: &ModelConfig,
    extra: Option<WeightId>,
    mut found: HashMap<String, Found>,
    name_of: impl Fn(WeightId) -> Option<String>,
    may_be_unused: impl Fn(&str) -> bool,
) -> Result<HashMap<WeightId, Located>, Fault> {
    let mut placed = HashMap::new();
    for id in WeightId::required(config).chain(extra) {
        let Some(name) = name_of(id) else { continue };
        let t = found.remove(&name).ok_or_else(|| {
            Fault::new(
                &name,
                format!("this tensor is missing from a {} model of {} layers", config.family.name, config.layers),
            )
        })?;
        let (rows, cols) = id.shape(config);
        let fits = match t.shape[..] {
            [c] => rows == 1 && c == cols,
            [r, c] => r == rows && c == cols,
            _ => false,
        };
        if !fits {
            let why = format!("its shape is {:?}, the configuration needs [{rows}, {cols}]", t.shape);
            return Err(Fault::new(name, why));
        }
        let scales = match t.format {
            Format::F8 => Some(scales(&name, rows, cols, &mut found)?),
            _ => None,
        };
        placed.insert(id, Located { name, file: t.file, format: t.format, rows, cols, range: t.range, scales });
    }
    match found.keys().filter(|name| !may_be_unused(name)).min() {
        Some(name) => Err(Fault::new(name, format!("a {} model has no place for this tensor", config.family.name))),
        None => Ok(placed),
    }
}
