//! A forward pass as data: a flat list of transformer-sized ops over named slots.
//!
//! A program says nothing about one step's facts (tokens, positions, block tables, sampling
//! parameters): they are the contents of its input slots. So a backend compiles a program once
//! per row bucket and launches it for ever.

use crate::format::{Format, KvFormat};
use crate::op::Op;

/// Index of a slot in [`Program::slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// What the elements of a slot are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elem {
    /// Activations: f32 on every backend.
    F32,
    /// Token ids, positions, counts, packed structs.
    U32,
    /// Slot mapping: -1 marks a padding row.
    I32,
    /// A weight in its stored format. Matrices are `[n, k]`, rows along k; vectors are `[n]` in F32.
    Weight(Format),
    /// Cached keys or values, `[blocks, block_size, kv_heads, head_dim]`; the layout is the backend's own.
    Kv(KvFormat),
    /// Scales of cached codes, f32 `[blocks, kv_heads, block_size]`; of latent vectors, which have two parts, `[blocks, 2,
    /// block_size]`.
    KvScale,
}

/// The cached keys of a layer, or its values, or its latent vectors, as ops name them: the stored elements, and
/// their scales where the format has such. Only [`Program::kv_caches`] and [`Program::latent_cache`] make one, so
/// there are no codes without scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvCache {
    elements: Slot,
    scales: Option<Slot>,
    holds: Holds,
}

/// What a cache is read for: a backend may lay out keys in another way than values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holds {
    /// Keys, for products with queries.
    Keys,
    /// Values, for sums over tokens.
    Values,
    /// Latent vectors, which are both.
    Latents,
}

impl KvCache {
    /// What it holds.
    pub fn holds(self) -> Holds {
        self.holds
    }
    /// KV `[blocks, block_size, kv_heads, head_dim]`; latent vectors are one head.
    pub fn elements(self) -> Slot {
        self.elements
    }
    /// `f32 [blocks, kv_heads, block_size]`, where the format has scales; of latent vectors `[blocks, 2, block_size]`.
    pub fn scales(self) -> Option<Slot> {
        self.scales
    }
    /// All its slots.
    pub fn slots(self) -> impl Iterator<Item = Slot> {
        [Some(self.elements), self.scales].into_iter().flatten()
    }
}

/// The shape of a cache of latent vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Blocks.
    pub blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Elements of a vector that keys and values are made from.
    pub latent: usize,
    /// Elements after them: the rotated key that all heads share.
    pub rope: usize,
}

/// Who fills a slot, and how long it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Filled once at load, shared by every program of the model.
    Weight,
    /// Filled by the host before each launch.
    Input,
    /// Survives launches, shared by every program of the model.
    Kv,
    /// Lives within one launch; allocated by the backend.
    Scratch,
    /// Read by the host after a launch.
    Output,
}

/// Declaration of a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotDecl {
    /// Unique in the program; the same name means the same buffer across programs of a model.
    pub name: String,
    /// Who fills it.
    pub role: Role,
    /// Element type.
    pub elem: Elem,
    /// Row-major shape.
    pub shape: Vec<usize>,
}

impl SlotDecl {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// True when some dimension is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes in the host's representation (weights: as stored in the file; KV: the format's width).
    pub fn bytes(&self) -> usize {
        match self.elem {
            Elem::F32 | Elem::U32 | Elem::I32 | Elem::KvScale => self.len() * 4,
            Elem::Weight(format) => self.len() / format.block_len() * format.block_bytes(),
            Elem::Kv(format) => self.len() * format.bytes(),
        }
    }
}

/// Which rows an op works on. Rows beyond the live count of their space are padding: not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowSpace {
    /// The tokens of this step: `live[0]` of [`Program::rows`].
    Batch,
    /// The rows whose logits are wanted: `live[1]` of [`Program::logit_rows`].
    Logits,
}

/// A recorded forward pass (or block copy, or any other launchable work).
#[derive(Clone, Debug)]
pub struct Program {
    /// For logs.
    pub name: String,
    /// Capacity in token rows.
    pub rows: usize,
    /// Capacity in logit rows.
    pub logit_rows: usize,
    /// Input `u32[2]`: live token rows, live logit rows.
    pub live: Slot,
    /// All slots.
    pub slots: Vec<SlotDecl>,
    /// The work, in order.
    pub ops: Vec<Op>,
}

impl Program {
    /// An empty program with its `live` input.
    pub fn new(name: impl Into<String>, rows: usize, logit_rows: usize) -> Self {
        let live = SlotDecl { name: "live".into(), role: Role::Input, elem: Elem::U32, shape: vec![2] };
        Self { name: name.into(), rows, logit_rows, live: Slot(0), slots: vec![live], ops: Vec::new() }
    }
    /// Declares a slot. Panics if the name is taken: that is a mistake in the recording code.
    pub fn slot(&mut self, name: impl Into<String>, role: Role, elem: Elem, shape: &[usize]) -> Slot {
        let name = name.into();
        assert!(self.find(&name).is_none(), "slot {name:?} declared twice");
        self.slots.push(SlotDecl { name, role, elem, shape: shape.to_vec() });
        Slot(self.slots.len() as u32 - 1)
    }
    /// Declares f32 scratch.
    pub fn scratch(&mut self, name: impl Into<String>, shape: &[usize]) -> Slot {
        self.slot(name, Role::Scratch, Elem::F32, shape)
    }
    /// Declares the caches of a layer's keys and values, of `[blocks, block_size, kv_heads, head_dim]` elements each,
    /// with their scales if need be.
    pub fn kv_caches(&mut self, names: [&str; 2], format: KvFormat, shape: [usize; 4]) -> [KvCache; 2] {
        let [keys, values] = names;
        [(keys, Holds::Keys), (values, Holds::Values)]
            .map(|(name, holds)| self.cache(name, format, shape, shape[2], holds))
    }
    /// Declares the cache of a layer's latent vectors ([`crate::op::LatentAttention`]): `latent` elements, then
    /// `rope` that are a rotated key. Codes have a scale for either part.
    pub fn latent_cache(&mut self, name: &str, format: KvFormat, shape: LatentShape) -> KvCache {
        let LatentShape { blocks, block_size, latent, rope } = shape;
        self.cache(name, format, [blocks, block_size, 1, latent + rope], 2, Holds::Latents)
    }
    /// `parts` of a token have scales of their own.
    fn cache(&mut self, name: &str, format: KvFormat, shape: [usize; 4], parts: usize, holds: Holds) -> KvCache {
        let elements = self.slot(name, Role::Kv, Elem::Kv(format), &shape);
        let declare = || self.slot(format!("{name}.scales"), Role::Kv, Elem::KvScale, &[shape[0], parts, shape[1]]);
        KvCache { elements, scales: format.has_scales().then(declare), holds }
    }
    /// Format of a cache.
    pub fn kv_format(&self, cache: KvCache) -> KvFormat {
        match self.decl(cache.elements).elem {
            Elem::Kv(format) => format,
            _ => unreachable!("a cache was declared as such"),
        }
    }
    /// The format of a layer's keys and values.
    ///
    /// # Errors
    /// Two formats, in words.
    pub fn common_format(&self, k: KvCache, v: KvCache) -> Result<KvFormat, String> {
        let [k, v] = [k, v].map(|cache| self.kv_format(cache));
        if k == v { Ok(v) } else { Err(format!("keys in {k} with values in {v}")) }
    }
    /// `[blocks, block_size, kv_heads, head_dim]` of a cache.
    pub fn kv_shape(&self, cache: KvCache) -> [usize; 4] {
        self.decl(cache.elements).shape[..].try_into().expect("a cache has four dimensions")
    }
    /// Appends an op.
    pub fn push(&mut self, op: impl Into<Op>) {
        self.ops.push(op.into());
    }
    /// The declaration of `slot`.
    pub fn decl(&self, slot: Slot) -> &SlotDecl {
        &self.slots[slot.0 as usize]
    }
    /// A slot by name.
    pub fn find(&self, name: &str) -> Option<Slot> {
        self.slots.iter().position(|s| s.name == name).map(|i| Slot(i as u32))
    }
    /// Capacity of a row space.
    pub fn capacity(&self, space: RowSpace) -> usize {
        match space {
            RowSpace::Batch => self.rows,
            RowSpace::Logits => self.logit_rows,
        }
    }
    /// Turns a scratch slot into an output, so that the host can look at it (a tap).
    pub fn tap(&mut self, name: &str) -> Option<Slot> {
        let slot = self.find(name)?;
        let decl = &mut self.slots[slot.0 as usize];
        if decl.role == Role::Scratch {
            decl.role = Role::Output;
        }
        Some(slot)
    }
}
