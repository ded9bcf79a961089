//! Model files: GGUF and Hugging Face folders, opened, checked and mapped, never copied.
//!
//! [`Checkpoint::open`] reads the table of contents, derives the [`ModelConfig`], and checks that every
//! weight the family needs is there with the right shape, and that there is none it would not use. After
//! that, [`Checkpoint::tensor`] hands out views into the map. What it does *not* do: convert, permute or
//! widen anything; only FP8 codes and INT4 levels are brought together with their scales. Two differences between the
//! sources are left visible for the loader:
//! - rows of q and k in GGUF files of the Llama family are permuted ([`crate::model::Pairing::Interleaved`]);
//! - Gemma's norm weights in Hugging Face files are `w - 1` ([`TensorView::plus_one`]).
//!
//! The files must not shrink while they are open: a page that is gone ends the process (SIGBUS), as with
//! every reader that maps files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::format::Format;
use crate::model::{ModelConfig, WeightId};
use crate::text::{ChatTemplate, Tokenizer};

mod fp8;
pub mod gguf;
mod gguf_config;
pub mod gguf_write;
mod hf;
mod hf_config;
mod int4;
mod keys;
mod place;
pub mod plan;
mod shards;

use gguf::{Fault, Gguf};

/// What a model's files recommend for generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Tokens that end a text or a turn, sorted.
    pub eos: Vec<u32>,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Whether a plain (not templated) prompt begins with `bos`.
    pub add_bos: bool,
    /// Sampling temperature; 0 means greedy.
    pub temperature: Option<f32>,
    /// Candidates kept by rank; 0 means all.
    pub top_k: Option<u32>,
    /// Candidates kept by cumulated probability.
    pub top_p: Option<f32>,
    /// Candidates kept by probability relative to the best.
    pub min_p: Option<f32>,
    /// Divisor of the logits of tokens that were there.
    pub repetition_penalty: Option<f32>,
}

/// Whether a token of this text ends a turn or a text in some model that we run: files often name only one.
pub(crate) fn ends_a_turn(token: &str) -> bool {
    const ENDS: [&str; 9] = [
        "<|endoftext|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|end|>",
        "<end_of_turn>",
        "<eos>",
        "<｜end▁of▁sentence｜>",
    ];
    ENDS.contains(&token)
}

/// A weight as it lies in its file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Storage format.
    pub format: Format,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Elements of a row (K).
    pub cols: usize,
    /// What the file holds of it, row-major `[rows, cols]`; aligned to nothing in particular.
    bytes: &'a [u8],
    /// What belongs to the numbers in `bytes` and lies elsewhere.
    apart: ApartView<'a>,
    /// The file stores a norm's weight minus one: add 1 after decoding.
    pub plus_one: bool,
}

impl TensorView<'_> {
    /// The encoded elements, row-major `[rows, cols]`, as [`Format`] says.
    pub fn stored(&self) -> Cow<'_, [u8]> {
        match self.apart {
            ApartView::Nothing => Cow::Borrowed(self.bytes),
            ApartView::Fp8(scales) => fp8::blocks(self.bytes, self.rows, scales),
            ApartView::Int4(view) => view.blocks(self.format, self.bytes, self.rows, self.cols).into(),
        }
    }
    /// Whether every number is finite (of quantised formats: every scale).
    fn all_finite(&self) -> bool {
        match self.apart {
            ApartView::Int4(view) => view.scale_format.all_finite(view.scales),
            _ => self.format.all_finite(&self.stored()),
        }
    }
    /// Length of [`stored`](Self::stored).
    pub fn stored_bytes(&self) -> usize {
        self.format.bytes_for(self.rows * self.cols).unwrap_or(self.bytes.len())
    }
    /// All values, as the model means them (with [`plus_one`](Self::plus_one) applied).
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.format.decode(&self.stored(), &mut out);
        if self.plus_one {
            out.iter_mut().for_each(|v| *v += 1.0);
        }
        out
    }
}

/// Where a weight lies.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub name: String,
    pub file: usize,
    pub format: Format,
    pub rows: usize,
    pub cols: usize,
    pub range: std::ops::Range<usize>,
    pub apart: Apart,
}

/// What a weight has besides its numbers.
#[derive(Clone, Debug)]
pub(crate) enum Apart {
    Nothing,
    Fp8(fp8::Scales),
    Int4(int4::Parts),
}

/// The same, in the map.
#[derive(Clone, Copy, Debug)]
enum ApartView<'a> {
    Nothing,
    Fp8(fp8::View<'a>),
    Int4(int4::View<'a>),
}

/// A mapped file.
pub(crate) struct Mapped {
    pub path: PathBuf,
    pub map: Mmap,
}

impl Mapped {
    pub(crate) fn open(path: &Path) -> Result<Mapped> {
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let is_file = file.metadata().map_err(|e| Error::io(path, e))?.is_file();
        if !is_file {
            return Err(Error::checkpoint(path, "path", "not a regular file"));
        }
        // SAFETY: the map is read-only and only ever seen as bytes. Another process that changes the file
        // can change those bytes under us; what we derive from them is checked again at each use of a range.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Mapped { path: path.to_path_buf(), map })
    }
}

/// Where the parts that are not weights come from.
enum Source {
    Gguf(Gguf),
    HuggingFace(hf::Folder),
}

/// An opened model.
pub struct Checkpoint {
    /// The `.gguf` file or the folder.
    pub path: PathBuf,
    /// The model's numbers.
    pub config: ModelConfig,
    /// What the files recommend for generation.
    pub generation: GenerationDefaults,
    files: Vec<Mapped>,
    weights: HashMap<WeightId, Located>,
    source: Source,
}

impl Checkpoint {
    /// Opens a `.gguf` file, a Hugging Face folder, or a folder that holds exactly one `.gguf` file.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Checkpoint`], the latter naming the file and the field to mend.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !meta.is_dir() {
            return Self::open_gguf(path);
        }
        if path.join("config.json").is_file() {
            return Self::open_folder(path);
        }
        let mut ggufs = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| Error::io(path, e))? {
            let file = entry.map_err(|e| Error::io(path, e))?.path();
            if file.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
                ggufs.push(file);
            }
        }
        match ggufs.as_slice() {
            [one] => Self::open_gguf(one),
            [] => Err(Error::checkpoint(path, "config.json", "missing, and there is no .gguf file either")),
            more => Err(Error::checkpoint(path, "path", format!("{} .gguf files; name one of them", more.len()))),
        }
    }

    fn open_gguf(path: &Path) -> Result<Checkpoint> {
        let file = Mapped::open(path)?;
        let fault = |f: Fault| Error::checkpoint(path, f.field, f.message);
        let gguf = Gguf::read(&file.map).map_err(fault)?;
        let found = place::Found::of_gguf(&gguf, &file.map);
        let tied = !found.contains_key(&WeightId::Output.gguf_name());
        let factors = place::rope_factors(&found, &file.map).map_err(fault)?;
        let config = gguf_config::config(&gguf, &file.map, tied, factors).map_err(fault)?;
        let generation = gguf_config::generation(&gguf, &file.map, config.vocab).map_err(fault)?;
        let weights = place::gguf(&config, found).map_err(fault)?;
        Ok(Checkpoint {
            path: path.to_path_buf(),
            config,
            generation,
            files: vec![file],
            weights,
            source: Source::Gguf(gguf),
        })
    }

    fn open_folder(path: &Path) -> Result<Checkpoint> {
        let folder = hf::Folder::open(path)?;
        let config = folder.config()?;
        let generation = folder.generation(&config)?;
        let (files, weights) = folder.weights(&config)?;
        let source = Source::HuggingFace(folder);
        Ok(Checkpoint { path: path.to_path_buf(), config, generation, files, weights, source })
    }

    /// The weight `id`.
    ///
    /// # Errors
    /// If the model has none such.
    pub fn tensor(&self, id: WeightId) -> Result<TensorView<'_>> {
        let l = self.weights.get(&id);
        let l = l.ok_or_else(|| Error::checkpoint(&self.path, format!("{id:?}"), "this model has no such weight"))?;
        let plus_one = id.is_norm() && self.is_hugging_face() && self.config.family.hf_norm_plus_one;
        Ok(TensorView { plus_one, ..self.view(l) })
    }

    fn view<'a>(&'a self, l: &'a Located) -> TensorView<'a> {
        let part = |file: usize, range: &std::ops::Range<usize>| &self.files[file].map[range.clone()];
        let bytes = part(l.file, &l.range);
        let apart = match &l.apart {
            Apart::Nothing => ApartView::Nothing,
            Apart::Fp8(s) => ApartView::Fp8(fp8::View { format: s.format, by: s.by, bytes: part(s.file, &s.range) }),
            Apart::Int4(p) => ApartView::Int4(int4::View {
                packing: p.packing,
                group: p.group,
                zeros: part(p.zeros.0, &p.zeros.1),
                scales: part(p.scales.0, &p.scales.1),
                scale_format: p.scale_format,
            }),
        };
        TensorView { name: &l.name, format: l.format, rows: l.rows, cols: l.cols, bytes, apart, plus_one: false }
    }

    /// Whether the model has the weight `id`.
    pub fn has(&self, id: WeightId) -> bool {
        self.weights.contains_key(&id)
    }

    /// Every weight of the model, in the order of a forward pass.
    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        WeightId::required(&self.config)
    }

    fn is_hugging_face(&self) -> bool {
        matches!(self.source, Source::HuggingFace(_))
    }

    /// The tokenizer, built anew at each call.
    ///
    /// # Errors
    /// If the vocabulary is missing, inconsistent, of an unsupported kind, or larger than the embedding.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let (path, built) = match &self.source {
            Source::Gguf(g) => (self.files[0].path.clone(), Tokenizer::from_gguf(g, &self.files[0].map)),
            Source::HuggingFace(folder) => {
                let path = folder.tokenizer_path();
                let text = hf::read_text(&path)?;
                (path, Tokenizer::from_json(&text))
            }
        };
        let tokenizer = built.map_err(|f| Error::checkpoint(&path, f.field, f.message))?;
        let (tokens, rows) = (tokenizer.vocab_size(), self.config.vocab);
        if tokens > rows {
            return Err(Error::checkpoint(
                path,
                "vocabulary",
                format!("{tokens} tokens, the embedding has {rows} rows"),
            ));
        }
        Ok(tokenizer)
    }

    /// The chat template, if the files have one.
    ///
    /// # Errors
    /// If it does not parse, or the key that should hold it holds something else.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match &self.source {
            Source::Gguf(g) => {
                let map = &self.files[0].map;
                let fault = |f: Fault| Error::checkpoint(&self.files[0].path, f.field, f.message);
                let keys = keys::Keys::Gguf(g, map, "");
                let Some(source) = keys.str_opt("tokenizer.chat_template").map_err(fault)? else { return Ok(None) };
                let (bos, eos) = gguf_config::bos_eos_text(g, map).map_err(fault)?;
                ChatTemplate::new(source, bos, eos).map(Some)
            }
            Source::HuggingFace(folder) => {
                let Some(source) = folder.chat_template()? else { return Ok(None) };
                let text = |key| folder.special_token(key).unwrap_or_default();
                ChatTemplate::new(&source, text("bos_token"), text("eos_token")).map(Some)
            }
        }
    }

    /// Bytes of all weight files together.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.map.len() as u64).sum()
    }

    /// Bytes of the weights that the model uses.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.values().map(|l| self.view(l).stored_bytes() as u64).sum()
    }

    /// Tells the system that the mapped pages are not needed now: they stop counting as resident memory, and
    /// are read again if they are.
    pub fn forget_pages(&self) {
        #[cfg(unix)]
        for file in &self.files {
            // SAFETY: the map is shared and read-only, so a dropped page comes back with the file's contents.
            // A refusal changes nothing but the memory in use.
            let _ = unsafe { file.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// Everything that the files say about the model, as `(key, value)`, long arrays shortened.
    pub fn metadata(&self) -> Vec<(String, String)> {
        match &self.source {
            Source::Gguf(g) => g.entries(&self.files[0].map).map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            Source::HuggingFace(folder) => folder.metadata(),
        }
    }

    /// Looks for NaN and infinities in the weights (for quantised formats: in their scales), with `threads` threads.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the name of the tensor. It reads every weight once, so it is a step of
    /// loading and not of [`open`](Self::open).
    pub fn check_finite(&self, threads: usize) -> Result<()> {
        let all: Vec<&Located> = self.weights.values().collect();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let worker = || {
            let mut bad = Vec::new();
            while let Some(l) = all.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                if !self.view(l).all_finite() {
                    bad.push(*l);
                }
            }
            bad
        };
        let bad: Vec<&Located> = std::thread::scope(|s| {
            let workers: Vec<_> = (0..threads.max(1)).map(|_| s.spawn(worker)).collect();
            workers.into_iter().flat_map(|w| w.join().expect("the scan does not panic")).collect()
        });
        match bad.iter().min_by_key(|l| &l.name) {
            None => Ok(()),
            Some(l) => Err(Error::checkpoint(
                &self.files[l.file].path,
                &l.name,
                "contains NaN or an infinity: the file is damaged",
            )),
        }
    }
}
