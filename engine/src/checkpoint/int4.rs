//! INT4 weights of Hugging Face files, as GPTQ and AWQ publish them: eight levels to a 32-bit word in `qweight`,
//! eight zeros to a word in `qzeros`, and `scales`, one of each for every output and group of inputs.
//!
//! ```text
//! GPTQ   qweight [in / 8, out]   word (r, n): output n, inputs 8r, 8r + 1, ... from the lowest bits
//! AWQ    qweight [in, out / 8]   word (k, j): input k, outputs 8j + 0, 2, 4, 6, 1, 3, 5, 7
//! both   qzeros [groups, out / 8], in the order of outputs of its kind; scales [groups, out]
//! ```
//! A weight is `scale * (level - zero)`, which [`Format::I4G32`] and [`Format::I4G128`] keep as it is.

use std::ops::Range;

use serde_json::Value as Json;

use super::gguf::Fault;
use crate::format::{Format, int4};

/// Elements of a row that are cut from the file at once.
const RUN: usize = 32;
/// Where the bits of outputs 0 to 7 of an AWQ word stand, in nibbles.
const AWQ_PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// How a checkpoint packs its weights, from its `quantization_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scheme {
    pub packing: Packing,
    /// Inputs that share a scale; `None`: all of a row.
    pub group: Option<usize>,
    /// Zeros are all 8, whatever the file stores for that.
    pub symmetric: bool,
    /// Groups are of inputs in an order of their own, unless `g_idx` says otherwise.
    pub act_order: bool,
}

/// Where levels lie in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// `offset` is added to each word of zeros: version 1 of the format subtracted it from the word.
    Gptq {
        offset: u32,
    },
    Awq,
}

/// One in each nibble.
const ONES: u32 = 0x1111_1111;

/// The scheme that `config.json` describes; `None` where it describes none of ours.
pub(crate) fn scheme(config: &Json) -> Result<Option<Scheme>, Fault> {
    let Some(given) = config.get("quantization_config") else { return Ok(None) };
    let text = |key: &str| given.get(key).and_then(Json::as_str).map(str::to_ascii_lowercase);
    let is_awq = match text("quant_method").as_deref() {
        Some("gptq") => false,
        Some("awq") => true,
        _ => return Ok(None),
    };
    let fault = |key: &str, why: String| Err(Fault::new(format!("quantization_config.{key}"), why));
    let number = |names: [&str; 2]| names.iter().find_map(|key| given.get(key)).and_then(Json::as_i64);
    match number(["bits", "w_bit"]) {
        Some(4) => {}
        bits => return fault("bits", format!("{bits:?} is not supported; 4 is")),
    }
    let group = match number(["group_size", "q_group_size"]) {
        Some(-1) => None,
        Some(group @ (32 | 64 | 128)) => Some(group as usize),
        size => return fault("group_size", format!("{size:?} is not supported; 32, 64, 128 and -1 are")),
    };
    let flag = |key: &str| given.get(key).and_then(Json::as_bool).unwrap_or(false);
    if flag("is_marlin_format") {
        return fault("is_marlin_format", "only the plain layout is supported".into());
    }
    // What GPTQModel sets for single layers: other bits and groups, by patterns of names.
    if given.get("dynamic").is_some_and(|d| d.as_object().is_some_and(|rules| !rules.is_empty())) {
        return fault("dynamic", "layers that differ from the rest are not supported".into());
    }
    let (key, layout) = match text("checkpoint_format") {
        _ if is_awq => ("version", text("version")),
        None => ("format", text("format")),
        given => ("checkpoint_format", given),
    };
    let packing = match (is_awq, layout.as_deref()) {
        (true, None | Some("gemm")) => Packing::Awq,
        (false, None | Some("gptq")) => Packing::Gptq { offset: ONES },
        (false, Some("gptq_v2")) => Packing::Gptq { offset: 0 },
        (_, Some(other)) => {
            return fault(key, format!("{other:?} is not supported; gemm (AWQ), gptq and gptq_v2 (GPTQ) are"));
        }
    };
    let symmetric = !is_awq && flag("sym");
    Ok(Some(Scheme { packing, group, symmetric, act_order: !is_awq && flag("desc_act") }))
}

impl Scheme {
    /// The shape of `qweight` for a weight `[rows, cols]`.
    pub fn levels_shape(&self, rows: usize, cols: usize) -> [usize; 2] {
        match self.packing {
            Packing::Gptq { .. } => [cols / 8, rows],
            Packing::Awq => [cols, rows / 8],
        }
    }
    /// Inputs of a group of a row of `cols`.
    pub fn group_of(&self, cols: usize) -> usize {
        self.group.unwrap_or(cols)
    }
    /// The format that holds rows of `cols`, a multiple of 32.
    pub fn format(&self, cols: usize) -> Format {
        let whole = |n: usize| n.is_multiple_of(Format::I4G128.block_len());
        if whole(cols) && whole(self.group_of(cols)) { Format::I4G128 } else { Format::I4G32 }
    }
    /// The packing of a tensor whose words of zeros begin with `first`: symmetric files mean a zero of 8 and store
    /// 7 or 8, and do not always say truly which (`checkpoint_format`).
    pub fn packing_of(&self, first: u32) -> Packing {
        match self.packing {
            Packing::Gptq { .. } if self.symmetric && first == 8 * ONES => Packing::Gptq { offset: 0 },
            packing => packing,
        }
    }
    /// Whether `g_idx` numbers the groups of inputs in their order: the only one that rows of blocks can have.
    pub fn is_plain_order(&self, g_idx: &[u8], cols: usize) -> bool {
        let group = self.group_of(cols);
        let mut words = g_idx.chunks_exact(4).enumerate();
        words.all(|(k, b)| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize == k / group)
    }
}

/// Where zeros and scales of a weight lie.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub packing: Packing,
    pub group: usize,
    /// (file, range) of `qzeros`.
    pub zeros: (usize, Range<usize>),
    /// (file, range) of `scales`.
    pub scales: (usize, Range<usize>),
    pub scale_format: Format,
}

/// Zeros and scales of a weight in their files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub packing: Packing,
    pub group: usize,
    pub zeros: &'a [u8],
    pub scales: &'a [u8],
    pub scale_format: Format,
}

/// Word `i` of a tensor of words.
fn word(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
}

/// Nibble `i` of a word as byte `i`.
fn spread(word: u32) -> u64 {
    let mut x = u64::from(word);
    for (shift, keep) in [(16, 0x0000_ffff_0000_ffff), (8, 0x00ff_00ff_00ff_00ff), (4, 0x0f0f_0f0f_0f0f_0f0f)] {
        x = (x | x << shift) & keep;
    }
    x
}

impl View<'_> {
    /// Output `row`'s zero of a group.
    fn zero(&self, rows: usize, group: usize, row: usize) -> u8 {
        let word = word(self.zeros, group * (rows / 8) + row / 8);
        match self.packing {
            Packing::Gptq { offset } => (word.wrapping_add(offset) >> (4 * (row % 8)) & 15) as u8,
            Packing::Awq => (word >> (4 * AWQ_PLACE[row % 8]) & 15) as u8,
        }
    }
    /// Levels `RUN * run..` of a row, in the order of a block: byte i has element i and, above it, i + 16.
    fn levels(&self, words: &[u8], rows: usize, row: usize, run: usize) -> [u8; RUN / 2] {
        match self.packing {
            Packing::Gptq { .. } => {
                let eight = |i: usize| spread(word(words, (4 * run + i) * rows + row));
                let halves = [eight(0) | eight(2) << 4, eight(1) | eight(3) << 4];
                std::array::from_fn(|i| halves[i / 8].to_le_bytes()[i % 8])
            }
            Packing::Awq => {
                let shift = 4 * AWQ_PLACE[row % 8];
                let level = |k: usize| (word(words, k * (rows / 8) + row / 8) >> shift & 15) as u8;
                std::array::from_fn(|i| level(RUN * run + i) | level(RUN * run + i + 16) << 4)
            }
        }
    }

    /// The weight `[rows, cols]` in `format`, whose `qweight` is `words`.
    pub fn blocks(&self, format: Format, words: &[u8], rows: usize, cols: usize) -> Vec<u8> {
        let mut scales = vec![0f32; self.scales.len() / self.scale_format.block_bytes()];
        self.scale_format.decode(self.scales, &mut scales);
        let (block, row_bytes) = (format.block_len(), cols / format.block_len() * format.block_bytes());
        let mut out = vec![0u8; rows * row_bytes];
        // A stretch of rows per thread; a small matrix is not worth threads.
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(out.len() >> 20).max(1);
        let stretch = rows.div_ceil(threads);
        let work = |first: usize, out: &mut [u8]| {
            for (row, out) in (first..).zip(out.chunks_exact_mut(row_bytes)) {
                for (b, out) in out.chunks_exact_mut(format.block_bytes()).enumerate() {
                    let group = b * block / self.group;
                    let head = int4::word(scales[group * rows + row], self.zero(rows, group, row));
                    out[..4].copy_from_slice(&head.to_le_bytes());
                    for (i, out) in out[4..].chunks_exact_mut(RUN / 2).enumerate() {
                        out.copy_from_slice(&self.levels(words, rows, row, b * block / RUN + i));
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for (i, out) in out.chunks_mut(stretch * row_bytes).enumerate() {
                let work = &work;
                if threads == 1 { work(0, out) } else { drop(scope.spawn(move || work(i * stretch, out))) }
            }
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nibbles_spread() {
        assert_eq!(spread(0xfedc_ba98), 0x0f0e_0d0c_0b0a_0908);
    }

    #[test]
    fn schemes() {
        let of = |q: Json| scheme(&json!({ "quantization_config": q }));
        let gptq = json!({"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": true});
        let v1 = Packing::Gptq { offset: ONES };
        let want = Scheme { packing: v1, group: None, symmetric: true, act_order: false };
        assert_eq!(of(gptq.clone()).unwrap(), Some(want));
        // Zeros of 8 in a file that says it stores one less.
        assert_eq!((want.packing_of(0x8888_8888), want.packing_of(0x7777_7777)), (Packing::Gptq { offset: 0 }, v1));
        assert_eq!((want.format(256), want.format(160)), (Format::I4G128, Format::I4G32));
        let awq = json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM", "zero_point": true});
        let awq = of(awq).unwrap().expect("AWQ");
        assert_eq!((awq.packing, awq.group, awq.format(256)), (Packing::Awq, Some(64), Format::I4G32));
        assert_eq!(of(json!({"quant_method": "fp8"})).unwrap(), None);
        for (key, value) in [
            ("bits", json!(3)),
            ("group_size", json!(16)),
            ("checkpoint_format", json!("marlin")),
            ("dynamic", json!({"+:.*": {"bits": 8}})),
            ("is_marlin_format", json!(true)),
        ] {
            let mut spoilt = gptq.clone();
            spoilt[key] = value;
            assert!(of(spoilt).unwrap_err().field.ends_with(key), "{key}");
        }
        assert!(of(json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"})).is_err());
    }
}
