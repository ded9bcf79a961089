//! Records a forward pass of a decoder as a [`Program`].

use super::weights::{LayerWeight, WeightId};
use super::{ModelConfig, Rope};
use crate::format::{Format, KvFormat};
use crate::op::{AddRmsNorm, Attention, Embed, GatedMlp, GatherRows, Linear, QkvRopeStore, RmsNorm, Sample, SampleRow};
use crate::program::{Elem, Program, Role, RowSpace, Slot};

/// Capacities of a program: everything about its shape that is not the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Token rows.
    pub rows: usize,
    /// Logit rows.
    pub logit_rows: usize,
    /// Sequences per step.
    pub seqs: usize,
    /// Blocks per sequence.
    pub max_blocks: usize,
    /// Entries of the adjustment list, all rows together.
    pub adjust: usize,
}

/// The paged cache that all programs of a model share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Blocks in the pool.
    pub blocks: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Storage of keys and values.
    pub format: KvFormat,
}

/// Names of the input and output slots.
pub mod names {
    #![allow(missing_docs)] // each is described where `record` declares it
    pub const LIVE: &str = "live";
    pub const TOKENS: &str = "tokens";
    pub const POSITIONS: &str = "positions";
    pub const ROW_SEQ: &str = "row_seq";
    pub const SLOT_MAPPING: &str = "slot_mapping";
    pub const BLOCK_TABLES: &str = "block_tables";
    pub const ROPE: &str = "rope";
    pub const ROPE_LOCAL: &str = "rope.local";
    pub const LOGIT_ROWS: &str = "logit_rows";
    pub const SAMPLE_PARAMS: &str = "sample.params";
    pub const SAMPLE_OFFSETS: &str = "sample.offsets";
    pub const SAMPLE_ADJUST: &str = "sample.adjust";
    pub const SAMPLE_MASKS: &str = "sample.masks";
    pub const SAMPLED: &str = "sampled";
    pub const LOGITS: &str = "logits";
}

/// Slots that every layer uses.
struct Shared {
    positions: Slot,
    row_seq: Slot,
    slot_mapping: Slot,
    block_tables: Slot,
    rope: Slot,
    rope_local: Option<Slot>,
    residual: Slot,
    normed: Slot,
    q: Slot,
    k: Slot,
    v: Slot,
    attended: Slot,
    delta: Slot,
    gated: Slot,
}

struct Recorder<'a> {
    config: &'a ModelConfig,
    kv: KvShape,
    format_of: &'a dyn Fn(WeightId) -> Format,
    program: Program,
}

/// Records the forward pass: tokens in, sampled ids out, logits readable beside them.
///
/// `format_of` gives the stored format of a matrix; norms and biases are F32 vectors.
pub fn record(
    config: &ModelConfig,
    capacity: Capacity,
    kv: KvShape,
    format_of: &dyn Fn(WeightId) -> Format,
) -> Program {
    let name = format!("{} {} rows", config.family.name, capacity.rows);
    let program = Program::new(name, capacity.rows, capacity.logit_rows);
    let mut r = Recorder { config, kv, format_of, program };
    let tokens = r.input(names::TOKENS, Elem::U32, &[capacity.rows]);
    let shared = r.shared(&capacity);
    let table = r.weight(WeightId::Embed);
    let scale = if config.family.embed_scale { (config.hidden as f32).sqrt() } else { 1.0 };
    r.program.push(Embed { tokens, table, out: shared.residual, scale });
    for layer in 0..config.layers {
        r.attention(layer, &shared);
        r.mlp(layer, &shared);
    }
    r.head(&shared, &capacity, table);
    r.program
}

impl Recorder<'_> {
    fn input(&mut self, name: &str, elem: Elem, shape: &[usize]) -> Slot {
        self.program.slot(name, Role::Input, elem, shape)
    }
    fn weight(&mut self, id: WeightId) -> Slot {
        let (rows, cols) = id.shape(self.config);
        // Vectors are tiny: F32, whatever the file holds. Matrices stay as stored.
        if rows == 1 {
            return self.program.slot(id.gguf_name(), Role::Weight, Elem::Weight(Format::F32), &[cols]);
        }
        self.program.slot(id.gguf_name(), Role::Weight, Elem::Weight((self.format_of)(id)), &[rows, cols])
    }
    fn layer_weight(&mut self, layer: usize, weight: LayerWeight) -> Slot {
        self.weight(WeightId::Layer(layer, weight))
    }
    fn rope_input(&mut self, name: &str, rope: &Rope) -> Slot {
        let rows = self.program.rows;
        self.input(name, Elem::F32, &[rows, rope.dim / 2, 2])
    }
    fn shared(&mut self, capacity: &Capacity) -> Shared {
        let c = self.config;
        let rows = capacity.rows;
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        Shared {
            positions: self.input(names::POSITIONS, Elem::U32, &[rows]),
            row_seq: self.input(names::ROW_SEQ, Elem::U32, &[rows]),
            slot_mapping: self.input(names::SLOT_MAPPING, Elem::I32, &[rows]),
            block_tables: self.input(names::BLOCK_TABLES, Elem::U32, &[capacity.seqs, capacity.max_blocks]),
            rope: self.rope_input(names::ROPE, &c.rope),
            rope_local: c.local.as_ref().map(|l| self.rope_input(names::ROPE_LOCAL, &l.rope)),
            residual: self.program.scratch("residual", &[rows, c.hidden]),
            normed: self.program.scratch("normed", &[rows, c.hidden]),
            q: self.program.scratch("q", &[rows, q]),
            k: self.program.scratch("k", &[rows, kv]),
            v: self.program.scratch("v", &[rows, kv]),
            attended: self.program.scratch("attended", &[rows, q]),
            delta: self.program.scratch("delta", &[rows, c.hidden]),
            gated: self.program.scratch("gated", &[rows, c.ffn]),
        }
    }
    /// `normed = norm(residual)`; from the second half-layer on, what the last one made is added first.
    fn norm(&mut self, s: &Shared, weight: Slot, first: bool) {
        let eps = self.config.norm_eps;
        if first {
            self.program.push(RmsNorm { x: s.residual, weight, out: s.normed, eps });
        } else {
            self.program.push(AddRmsNorm { residual: s.residual, delta: s.delta, weight, out: s.normed, eps });
        }
    }
    /// Gemma's norm of a half-layer's result before it is added.
    fn post_norm(&mut self, s: &Shared, layer: usize, weight: LayerWeight) {
        if self.config.family.post_norms {
            let weight = self.layer_weight(layer, weight);
            self.program.push(RmsNorm { x: s.delta, weight, out: s.delta, eps: self.config.norm_eps });
        }
    }
    fn attention(&mut self, layer: usize, s: &Shared) {
        let c = self.config;
        let weight = self.layer_weight(layer, LayerWeight::AttnNorm);
        self.norm(s, weight, layer == 0);
        let [wq, wk, wv] = [LayerWeight::Q, LayerWeight::K, LayerWeight::V].map(|w| self.layer_weight(layer, w));
        let bias = c
            .family
            .qkv_bias
            .then(|| [LayerWeight::QBias, LayerWeight::KBias, LayerWeight::VBias].map(|w| self.layer_weight(layer, w)));
        let norm =
            c.family.qk_norm.then(|| [LayerWeight::QNorm, LayerWeight::KNorm].map(|w| self.layer_weight(layer, w)));
        let shape = [self.kv.blocks, self.kv.block_size, c.kv_heads, c.head_dim];
        let names = ["k", "v"].map(|x| format!("kv.{layer}.{x}"));
        let [k_cache, v_cache] = self.program.kv_caches(names.each_ref().map(String::as_str), self.kv.format, shape);
        let local = c.local.as_ref().filter(|_| c.is_local(layer));
        let rope = local.map_or(&c.rope, |l| &l.rope);
        self.program.push(QkvRopeStore {
            x: s.normed,
            wq,
            wk,
            wv,
            bias,
            norm,
            eps: c.norm_eps,
            rope: if local.is_some() { s.rope_local.expect("local layers have a table") } else { s.rope },
            rope_dim: rope.dim,
            pairing: rope.pairing,
            hadamard: self.kv.format.has_scales(),
            slot_mapping: s.slot_mapping,
            k_cache,
            v_cache,
            q: s.q,
            k: s.k,
            v: s.v,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
        });
        self.program.push(Attention {
            q: s.q,
            k_cache,
            v_cache,
            positions: s.positions,
            row_seq: s.row_seq,
            block_tables: s.block_tables,
            out: s.attended,
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            scale: c.attention_scale,
            window: local.map(|l| l.window),
        });
        let w = self.layer_weight(layer, LayerWeight::O);
        self.program.push(Linear { x: s.attended, w, bias: None, out: s.delta, space: RowSpace::Batch });
        self.post_norm(s, layer, LayerWeight::PostAttnNorm);
    }
    fn mlp(&mut self, layer: usize, s: &Shared) {
        let weight = self.layer_weight(layer, LayerWeight::MlpNorm);
        self.norm(s, weight, false);
        let [gate, up, down] =
            [LayerWeight::Gate, LayerWeight::Up, LayerWeight::Down].map(|w| self.layer_weight(layer, w));
        let activation = self.config.family.activation;
        self.program.push(GatedMlp { x: s.normed, gate, up, down, gated: s.gated, out: s.delta, activation });
        self.post_norm(s, layer, LayerWeight::PostMlpNorm);
    }
    /// The last norm, the output projection of the rows whose logits are wanted, and sampling.
    fn head(&mut self, s: &Shared, capacity: &Capacity, embed: Slot) {
        let (rows, c) = (capacity.logit_rows, self.config);
        let weight = self.weight(WeightId::OutputNorm);
        self.norm(s, weight, false);
        let index = self.input(names::LOGIT_ROWS, Elem::U32, &[rows]);
        let params = self.input(names::SAMPLE_PARAMS, Elem::U32, &[rows, size_of::<SampleRow>() / 4]);
        let offsets = self.input(names::SAMPLE_OFFSETS, Elem::U32, &[rows + 1]);
        let adjust = self.input(names::SAMPLE_ADJUST, Elem::U32, &[capacity.adjust, 3]);
        let masks = self.input(names::SAMPLE_MASKS, Elem::U32, &[rows, c.vocab.div_ceil(32)]);
        let gathered = self.program.scratch("gathered", &[rows, c.hidden]);
        self.program.push(GatherRows { x: s.normed, index, out: gathered });
        let w = if c.tied { embed } else { self.weight(WeightId::Output) };
        let logits = self.program.slot(names::LOGITS, Role::Output, Elem::F32, &[rows, c.vocab]);
        self.program.push(Linear { x: gathered, w, bias: None, out: logits, space: RowSpace::Logits });
        let out = self.program.slot(names::SAMPLED, Role::Output, Elem::U32, &[rows]);
        self.program.push(Sample { logits, params, offsets, adjust, masks, out });
    }
}
