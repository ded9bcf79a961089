//! Assigns the tensors of a file to the weights of a model: each required one found once, in the right
//! shape, and none left over that the model would silently not use.

use std::collections::HashMap;
use std::ops::Range;

use super::fp8::Scales;
use super::gguf::{Fault, Gguf};
use super::int4::{Parts, Scheme};
use super::{Apart, Located, Mapped, fp8};
use crate::format::{F8_BLOCK, Format};
use crate::model::{ModelConfig, WeightId};

/// A tensor that some file has.
pub struct Found {
    /// Index of its file.
    pub file: usize,
    /// Storage format; `None`: 32-bit words of packed integers.
    pub format: Option<Format>,
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
            (name.to_string(), Found { file: 0, format: Some(t.format), shape, range: t.range.clone() })
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
    numbers(&name, t)?.decode(&bytes[t.range.clone()], &mut factors);
    Ok(Some(factors))
}

/// Places the tensors of a GGUF file.
pub fn gguf(config: &ModelConfig, found: HashMap<String, Found>) -> Result<HashMap<WeightId, Located>, Fault> {
    let factors = found.contains_key("rope_freqs.weight").then_some(WeightId::RopeFreqs);
    place(config, factors, None, found, |id| Some(id.gguf_name()), |_, _| false)
}

/// Places the tensors of Hugging Face files; `int4` says how their packed weights are to be read, if there are any.
pub fn hugging_face(
    config: &ModelConfig,
    int4: Option<Scheme>,
    files: &[Mapped],
    found: HashMap<String, Found>,
) -> Result<HashMap<WeightId, Located>, Fault> {
    let int4 = int4.map(|scheme| Int4 { scheme, files });
    let unused = |name: &str, t: &Found| {
        name.ends_with("rotary_emb.inv_freq")
            // Scales of activations serve who rounds those too; we do not.
            || name.ends_with(".input_scale")
            || (config.tied && name == "lm_head.weight")
            // GPTQ files of models without biases have biases of 0.
            || (name.ends_with(".bias") && int4.is_some_and(|i| i.bytes(t).iter().all(|b| *b == 0)))
    };
    place(config, None, int4, found, |id| id.hf_name(config.family), unused)
}

/// The format of a tensor of numbers.
fn numbers(name: &str, t: &Found) -> Result<Format, Fault> {
    t.format.ok_or_else(|| Fault::new(name, "its dtype is I32, and numbers are needed here"))
}

/// What placing packed weights takes.
#[derive(Clone, Copy)]
struct Int4<'a> {
    scheme: Scheme,
    files: &'a [Mapped],
}

impl Int4<'_> {
    fn bytes(&self, t: &Found) -> &[u8] {
        &self.files[t.file].map[t.range.clone()]
    }

    /// The weight `name` (`....weight`), if it is packed: its tensors are taken from those left.
    fn place(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
        found: &mut HashMap<String, Found>,
    ) -> Result<Option<Located>, Fault> {
        let Some(stem) = name.strip_suffix("weight") else { return Ok(None) };
        let name = format!("{stem}qweight");
        let Some(levels) = found.remove(&name) else { return Ok(None) };
        if !rows.is_multiple_of(8) || !cols.is_multiple_of(32) {
            return Err(Fault::new(name, format!("INT4 of [{rows}, {cols}]: not a multiple of 8 and 32")));
        }
        let group = self.scheme.group_of(cols);
        let groups = cols.div_ceil(group);
        let mut take = |part: &str, shape: [usize; 2]| {
            let name = format!("{stem}{part}");
            let t = found.remove(&name).ok_or_else(|| Fault::new(&name, "this part of an INT4 weight is missing"))?;
            fits(&name, &t, &shape)?;
            Ok((name, t))
        };
        let (zeros_name, zeros) = take("qzeros", [groups, rows / 8])?;
        let (scales_name, scales) = take("scales", [groups, rows])?;
        fits(&name, &levels, &self.scheme.levels_shape(rows, cols))?;
        for (name, t) in [(&name, &levels), (&zeros_name, &zeros)] {
            if t.format.is_some() {
                return Err(Fault::new(name, "packed INT4 is a tensor of I32"));
            }
        }
        let scale_format = match scales.format {
            Some(format @ (Format::F16 | Format::BF16)) => format,
            _ => return Err(Fault::new(scales_name, "scales of INT4 are F16 or BF16")),
        };
        self.check_order(&format!("{stem}g_idx"), cols, found)?;
        let first = self.bytes(&zeros).first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        let apart = Apart::Int4(Parts {
            packing: self.scheme.packing_of(first),
            group,
            zeros: (zeros.file, zeros.range),
            scales: (scales.file, scales.range),
            scale_format,
        });
        let format = self.scheme.format(cols);
        Ok(Some(Located { name, file: levels.file, format, rows, cols, range: levels.range, apart }))
    }

    /// Takes the groups of inputs from the tensors left, and refuses those that are not runs of inputs.
    fn check_order(&self, name: &str, cols: usize, found: &mut HashMap<String, Found>) -> Result<(), Fault> {
        let Some(t) = found.remove(name) else {
            let needed = self.scheme.act_order && self.scheme.group_of(cols) < cols;
            return if needed { Err(Fault::new(name, "missing, and desc_act is true")) } else { Ok(()) };
        };
        fits(name, &t, &[cols])?;
        if t.format.is_some() || !self.scheme.is_plain_order(self.bytes(&t), cols) {
            return Err(Fault::new(name, "groups of inputs in another order (desc_act) are not supported"));
        }
        Ok(())
    }
}

/// Whether a tensor has the shape that its place needs.
fn fits(name: &str, t: &Found, shape: &[usize]) -> Result<(), Fault> {
    if t.shape == shape {
        return Ok(());
    }
    Err(Fault::new(name, format!("its shape is {:?}, the configuration needs {shape:?}", t.shape)))
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
    match numbers(name, &t)? {
        Format::F8 => Err(Fault::new(name, "scales of scaled codes")),
        format => Ok(Scales { file: t.file, format, range: t.range, by }),
    }
}

fn place(
    config: &ModelConfig,
    extra: Option<WeightId>,
    int4: Option<Int4<'_>>,
    mut found: HashMap<String, Found>,
    name_of: impl Fn(WeightId) -> Option<String>,
    may_be_unused: impl Fn(&str, &Found) -> bool,
) -> Result<HashMap<WeightId, Located>, Fault> {
    let mut placed = HashMap::new();
    for id in WeightId::required(config).chain(extra) {
        let Some(name) = name_of(id) else { continue };
        let (rows, cols) = id.shape(config);
        let packed = int4.map(|int4| int4.place(&name, rows, cols, &mut found)).transpose()?.flatten();
        if let Some(located) = packed {
            placed.insert(id, located);
            continue;
        }
        let t = found.remove(&name).ok_or_else(|| {
            Fault::new(
                &name,
                format!("this tensor is missing from a {} model of {} layers", config.family.name, config.layers),
            )
        })?;
        let fits = match t.shape[..] {
            [c] => rows == 1 && c == cols,
            [r, c] => r == rows && c == cols,
            _ => false,
        };
        if !fits {
            let why = format!("its shape is {:?}, the configuration needs [{rows}, {cols}]", t.shape);
            return Err(Fault::new(name, why));
        }
        let format = numbers(&name, &t)?;
        let apart = match format {
            Format::F8 => Apart::Fp8(scales(&name, rows, cols, &mut found)?),
            _ => Apart::Nothing,
        };
        placed.insert(id, Located { name, file: t.file, format, rows, cols, range: t.range, apart });
    }
    match found.iter().filter(|(name, t)| !may_be_unused(name, t)).min_by_key(|(name, _)| *name) {
        Some((name, _)) => {
            Err(Fault::new(name, format!("a {} model has no place for this tensor", config.family.name)))
        }
        None => Ok(placed),
    }
}
