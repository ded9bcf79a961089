//! From a program to dispatches: which kernels serve an op, with which buffers, on which grid.
//!
//! Everything here happens once per program. A launch replays the list.

use std::collections::HashMap;

use ponder_engine::backend::Bound;
use ponder_engine::error::DeviceFault;
use ponder_engine::format::hadamard;
use ponder_engine::op::{self, Op};
use ponder_engine::program::{KvCache, Program, RowSpace, Slot};

use crate::buffer::{Buffer, Contents, Part, Weight};
use crate::layout::{GROUP, PANEL};
use crate::variants::{self, NormInput, Profile, Variant};

/// Workgroups per dimension that every device takes.
const GRID_LIMIT: usize = 65_535;
/// Rows up to which attention is split over workgroups.
const SPLIT_ROWS: usize = 16;
/// Tokens per split; fixed, since it orders sums.
const SPLIT: usize = 256;
/// Tokens per tile of attention, as its kernels have it.
const TILE: usize = 32;

/// One kernel launch, before it has a pipeline.
pub(crate) struct Step {
    pub variant: Variant,
    /// Members of `dims` by name.
    pub dims: Vec<(&'static str, u32)>,
    /// Bindings by name. What a variant does not declare is not bound.
    pub buffers: Vec<(&'static str, wgpu::Buffer)>,
    pub grid: [usize; 3],
}

/// A launchable program.
pub struct Plan {
    pub(crate) name: String,
    pub(crate) dispatches: Vec<Dispatch>,
    /// Small outputs and where they are copied, with their bytes.
    pub(crate) readbacks: Vec<(wgpu::Buffer, wgpu::Buffer, u64)>,
}

pub(crate) struct Dispatch {
    pub pipeline: wgpu::ComputePipeline,
    pub bind_group: wgpu::BindGroup,
    pub grid: [u32; 3],
}

type Steps = Result<(), DeviceFault>;

/// Collects the steps of a program.
pub(crate) struct Planner<'a> {
    pub program: &'a Program,
    pub profile: Profile,
    pub bound: &'a Bound<Buffer>,
    pub scratch: &'a HashMap<String, Buffer>,
    /// Memory that the plan needs beside the program's slots, by name.
    pub temp: &'a dyn Fn(&str, usize) -> Result<wgpu::Buffer, DeviceFault>,
    pub steps: Vec<Step>,
}

impl Planner<'_> {
    /// Plans every op in order.
    pub fn plan(mut self) -> Result<Vec<Step>, DeviceFault> {
        let program = self.program;
        for op in &program.ops {
            self.op(op).map_err(|fault| match fault {
                DeviceFault::Unsupported(what) => {
                    DeviceFault::Unsupported(format!("{} of {:?}: {what}", op.name(), program.name))
                }
                other => other,
            })?;
        }
        Ok(self.steps)
    }

    fn op(&mut self, op: &Op) -> Steps {
        match op {
            Op::Embed(o) => self.embed(o),
            Op::AddRmsNorm(o) => self.norm(o.residual, Some(o.delta), o.weight, o.out, o.eps),
            Op::RmsNorm(o) => self.norm(o.x, None, o.weight, o.out, o.eps),
            Op::QkvRopeStore(o) => self.qkv(o),
            Op::Attention(o) => self.attention(o),
            // No model records them yet.
            Op::LatentStore(_) | Op::LatentAttention(_) => Err(unsupported("the wgpu backend has no kernel for it")),
            Op::Linear(o) => self.linear(o),
            Op::GatedMlp(o) => self.gated_mlp(o),
            Op::GatherRows(o) => self.gather(o),
            Op::Sample(o) => self.sample(o),
            Op::CopyBlocks(o) => self.copy_blocks(o),
            Op::Add(o) => self.add(o),
            Op::ApplyRope(o) => self.rope(o, None),
            Op::KvStore(o) => self.kv_store(o),
            Op::GatedAct(o) => {
                if o.out != o.gate {
                    return Err(unsupported("the gate must be overwritten by the result"));
                }
                let up = self.plain(o.up)?;
                let width = self.width(o.gate);
                self.gated_act(up, o.out, width, o.activation)
            }
        }
    }

    fn buffer(&self, slot: Slot) -> Result<&Buffer, DeviceFault> {
        let name = &self.program.decl(slot).name;
        let found = self.scratch.get(name).or_else(|| self.bound.get(name));
        found.ok_or_else(|| DeviceFault::Rejected(format!("slot {name:?} of {:?} is not bound", self.program.name)))
    }
    fn plain(&self, slot: Slot) -> Result<wgpu::Buffer, DeviceFault> {
        match &*self.buffer(slot)?.0 {
            Contents::Plain(p) => Ok(p.buffer.clone()),
            Contents::Weight(_) => {
                Err(DeviceFault::Rejected(format!("{:?} is a matrix", self.program.decl(slot).name)))
            }
        }
    }
    fn weight(&self, slot: Slot) -> Result<Buffer, DeviceFault> {
        Ok(self.buffer(slot)?.clone())
    }
    /// Values per row.
    fn width(&self, slot: Slot) -> usize {
        self.program.decl(slot).shape[1..].iter().product()
    }

    fn push(
        &mut self,
        variant: Variant,
        dims: Vec<(&'static str, u32)>,
        mut buffers: Vec<(&'static str, wgpu::Buffer)>,
        grid: [usize; 3],
    ) -> Steps {
        if let Some(too_many) = grid.iter().find(|g| **g > GRID_LIMIT) {
            return Err(unsupported(format!("{too_many} workgroups in one dimension (at most {GRID_LIMIT})")));
        }
        buffers.push(("live", self.plain(self.program.live)?));
        self.steps.push(Step { variant, dims, buffers, grid });
        Ok(())
    }

    fn embed(&mut self, o: &op::Embed) -> Steps {
        let table = self.weight(o.table)?;
        let weight = matrix(&table, "the table")?;
        let (tokens, out) = (self.plain(o.tokens)?, self.plain(o.out)?);
        let groups = weight.k.div_ceil(GROUP);
        for part in &weight.parts {
            let dims = vec![
                ("groups", groups as u32),
                ("k", weight.k as u32),
                ("n", part.rows as u32),
                ("first", part.first as u32),
                ("scale", o.scale.to_bits()),
            ];
            let mut buffers = vec![("tokens", tokens.clone()), ("out", out.clone())];
            buffers.extend(planes(part, ["w_q", "w_s"]));
            let grid = [groups.div_ceil(32), self.program.rows, 1];
            self.push(variants::embed(weight.format), dims, buffers, grid)?;
        }
        Ok(())
    }

    fn norm(&mut self, x: Slot, delta: Option<Slot>, weight: Slot, out: Slot, eps: f32) -> Steps {
        let n = self.program.decl(weight).shape[0];
        let width = self.width(x);
        let input = match (delta, x == out) {
            (Some(_), false) => NormInput::Sum,
            (Some(_), true) => return Err(unsupported("the residual may not be the output")),
            (None, true) => NormInput::InPlace,
            (None, false) => NormInput::Apart,
        };
        let mut buffers = vec![("x", self.plain(x)?), ("weight", self.plain(weight)?), ("out", self.plain(out)?)];
        if let Some(delta) = delta {
            buffers.push(("delta", self.plain(delta)?));
        }
        let dims = vec![("n", n as u32), ("width", width as u32), ("eps", eps.to_bits())];
        let variant = variants::norm(self.profile, input, n.is_multiple_of(4));
        self.push(variant, dims, buffers, [width / n, self.program.rows, 1])
    }

    fn linear(&mut self, o: &op::Linear) -> Steps {
        let (x, out) = (self.plain(o.x)?, self.plain(o.out)?);
        let bias = o.bias.map(|b| self.plain(b)).transpose()?;
        self.product(x, &self.weight(o.w)?, bias, out, o.space)
    }

    /// `out = x w^T (+ bias)`, a dispatch for each part of the weight.
    fn product(
        &mut self,
        x: wgpu::Buffer,
        w: &Buffer,
        bias: Option<wgpu::Buffer>,
        out: wgpu::Buffer,
        space: RowSpace,
    ) -> Steps {
        let weight = matrix(w, "the weight")?;
        let capacity = self.program.capacity(space);
        let ragged = !weight.k.is_multiple_of(GROUP);
        for part in &weight.parts {
            let kernel = variants::linear(self.profile, weight.format, capacity, ragged, bias.is_some(), space);
            let mut buffers = vec![("x", x.clone()), ("out", out.clone())];
            buffers.extend(planes(part, ["w_q", "w_s"]));
            buffers.extend(bias.clone().map(|b| ("bias", b)));
            let grid = [part.rows.div_ceil(kernel.outputs), capacity.div_ceil(kernel.tokens), 1];
            self.push(kernel.variant, product_dims(weight, part), buffers, grid)?;
        }
        Ok(())
    }

    fn gated_mlp(&mut self, o: &op::GatedMlp) -> Steps {
        let (gate, up, down) = (self.weight(o.gate)?, self.weight(o.up)?, self.weight(o.down)?);
        let (x, gated, out) = (self.plain(o.x)?, self.plain(o.gated)?, self.plain(o.out)?);
        let (g, u) = (matrix(&gate, "the gate")?, matrix(&up, "up")?);
        let ragged = !g.k.is_multiple_of(GROUP);
        let kernel = variants::gate_up(self.profile, g.format, self.program.rows, ragged, o.activation);
        match kernel.filter(|_| g.format == u.format && g.parts.len() == u.parts.len()) {
            Some(kernel) => {
                for (g_part, u_part) in g.parts.iter().zip(&u.parts) {
                    let mut buffers = vec![("x", x.clone()), ("out", gated.clone())];
                    buffers.extend(planes(g_part, ["gate_q", "gate_s"]));
                    buffers.extend(planes(u_part, ["up_q", "up_s"]));
                    let grid = [g_part.rows.div_ceil(kernel.outputs), self.program.rows.div_ceil(kernel.tokens), 1];
                    self.push(kernel.variant.clone(), product_dims(g, g_part), buffers, grid)?;
                }
            }
            None => {
                let temp = (self.temp)("up", self.program.rows * u.n * 4)?;
                self.product(x.clone(), &gate, None, gated.clone(), RowSpace::Batch)?;
                self.product(x, &up, None, temp.clone(), RowSpace::Batch)?;
                self.gated_act(temp, o.gated, u.n, o.activation)?;
            }
        }
        self.product(gated, &down, None, out, RowSpace::Batch)
    }

    fn gated_act(
        &mut self,
        up: wgpu::Buffer,
        out: Slot,
        width: usize,
        activation: ponder_engine::model::Activation,
    ) -> Steps {
        let buffers = vec![("up", up), ("out", self.plain(out)?)];
        self.rowwise(variants::gated_act(activation), width, buffers, self.program.rows)
    }

    /// A kernel with a lane per value of a row.
    fn rowwise(
        &mut self,
        variant: Variant,
        width: usize,
        buffers: Vec<(&'static str, wgpu::Buffer)>,
        rows: usize,
    ) -> Steps {
        self.push(variant, vec![("width", width as u32)], buffers, [width.div_ceil(64), rows, 1])
    }

    fn add(&mut self, o: &op::Add) -> Steps {
        let buffers = vec![("delta", self.plain(o.delta)?), ("residual", self.plain(o.residual)?)];
        self.rowwise(variants::plain("elementwise"), self.width(o.residual), buffers, self.program.rows)
    }

    fn gather(&mut self, o: &op::GatherRows) -> Steps {
        let buffers = vec![("x", self.plain(o.x)?), ("index", self.plain(o.index)?), ("out", self.plain(o.out)?)];
        self.rowwise(variants::plain("gather"), self.width(o.x), buffers, self.program.logit_rows)
    }

    fn qkv(&mut self, o: &op::QkvRopeStore) -> Steps {
        let x = self.plain(o.x)?;
        let (q, k, v) = (self.plain(o.q)?, self.plain(o.k)?, self.plain(o.v)?);
        for (i, (w, out)) in [(o.wq, &q), (o.wk, &k), (o.wv, &v)].into_iter().enumerate() {
            let bias = o.bias.map(|b| self.plain(b[i])).transpose()?;
            self.product(x.clone(), &self.weight(w)?, bias, out.clone(), RowSpace::Batch)?;
        }
        let format = self.program.common_format(o.k_cache, o.v_cache).map_err(unsupported)?;
        if o.hadamard != format.has_scales() {
            return Err(unsupported(format!("hadamard {} with keys and values in {format}", o.hadamard)));
        }
        let (head_dim, dim, pairing, hadamard) = (o.head_dim, o.rope_dim, o.pairing, o.hadamard);
        let mut rotate = |x, heads, norm: Option<Slot>| {
            let rope = op::ApplyRope { x, rope: o.rope, heads, head_dim, dim, pairing, hadamard };
            self.rope(&rope, norm.map(|norm| (norm, o.eps)))
        };
        if o.norm.is_some() || format.has_scales() {
            rotate(o.q, o.heads, o.norm.map(|n| n[0]))?;
        }
        if format.has_scales() {
            rotate(o.k, o.kv_heads, o.norm.map(|n| n[1]))?;
        }
        let mut buffers = vec![("slot_mapping", self.plain(o.slot_mapping)?), ("k", k), ("v", v)];
        buffers.extend(self.cache(o.k_cache, ["k_cache", "k_scales"])?);
        buffers.extend(self.cache(o.v_cache, ["v_cache", "v_scales"])?);
        let mut dims = head_dims(o.kv_heads, head_dim, dim, o.eps, hadamard)?;
        let (rows, block_size) = (self.program.rows, self.program.kv_shape(o.k_cache)[1]);
        if format.has_scales() {
            dims.push(("block_size", block_size as u32));
            return self.push(variants::codes(self.profile, true), dims, buffers, [2 * o.kv_heads, rows, 1]);
        }
        buffers.extend([("rope", self.plain(o.rope)?), ("q", q)]);
        if let Some(norm) = o.norm {
            buffers.push(("norm", self.plain(norm[1])?));
        }
        let query_heads = if o.norm.is_some() { 0 } else { o.heads };
        dims.push(("query_heads", query_heads as u32));
        let variant = variants::store(self.profile, format, Some((pairing, o.norm.is_some())));
        self.push(variant, dims, buffers, [2 * o.kv_heads + query_heads, rows, 1])
    }

    fn rope(&mut self, o: &op::ApplyRope, norm: Option<(Slot, f32)>) -> Steps {
        let mut buffers = vec![("rope", self.plain(o.rope)?), ("x", self.plain(o.x)?)];
        if let Some((norm, _)) = norm {
            buffers.push(("norm", self.plain(norm)?));
        }
        let dims = head_dims(o.heads, o.head_dim, o.dim, norm.map_or(0.0, |(_, eps)| eps), o.hadamard)?;
        let variant = variants::rope(self.profile, o.pairing, norm.is_some());
        self.push(variant, dims, buffers, [o.heads, self.program.rows, 1])
    }

    fn kv_store(&mut self, o: &op::KvStore) -> Steps {
        let (format, [_, block_size, heads, head_dim]) =
            (self.program.kv_format(o.cache), self.program.kv_shape(o.cache));
        let mut dims = head_dims(heads, head_dim, 0, 0.0, false)?;
        dims.extend([("query_heads", 0), ("block_size", block_size as u32)]);
        let mut buffers = vec![("slot_mapping", self.plain(o.slot_mapping)?), ("v", self.plain(o.x)?)];
        buffers.extend(self.cache(o.cache, ["v_cache", "v_scales"])?);
        let grid = [heads, self.program.rows, 1];
        let variant = match format.has_scales() {
            true => variants::codes(self.profile, false),
            false => variants::store(self.profile, format, None),
        };
        self.push(variant, dims, buffers, grid)
    }

    /// The buffers of a cache under the names that a kernel gives its elements and scales.
    fn cache(
        &self,
        cache: KvCache,
        names: [&'static str; 2],
    ) -> Result<Vec<(&'static str, wgpu::Buffer)>, DeviceFault> {
        names.into_iter().zip(cache.slots()).map(|(name, slot)| Ok((name, self.plain(slot)?))).collect()
    }

    fn attention(&mut self, o: &op::Attention) -> Steps {
        if !o.head_dim.is_multiple_of(4) || !o.heads.is_multiple_of(o.kv_heads) {
            return Err(unsupported(format!("{} heads over {} of width {}", o.heads, o.kv_heads, o.head_dim)));
        }
        let block_size = self.program.kv_shape(o.k_cache)[1];
        let max_blocks = self.program.decl(o.block_tables).shape[1];
        let rows = self.program.rows;
        let (group, quads) = (o.heads / o.kv_heads, o.head_dim / 4);
        let splits = (max_blocks * block_size).div_ceil(SPLIT);
        let partial = rows <= SPLIT_ROWS && splits > 1;
        let out = self.plain(o.out)?;
        let target = match partial {
            true => (self.temp)("partial attention", rows * o.heads * splits * (quads + 1) * 16)?,
            false => out.clone(),
        };
        let window = ("window", o.window.unwrap_or(0) as u32);
        let dims = vec![
            ("kv_heads", o.kv_heads as u32),
            ("block_size", block_size as u32),
            ("max_blocks", max_blocks as u32),
            window,
            ("splits", splits as u32),
            ("scale", o.scale.to_bits()),
            ("tile", TILE as u32),
        ];
        let positions = self.plain(o.positions)?;
        let mut buffers = vec![
            ("q", self.plain(o.q)?),
            ("positions", positions.clone()),
            ("row_seq", self.plain(o.row_seq)?),
            ("block_tables", self.plain(o.block_tables)?),
            ("out", target.clone()),
        ];
        buffers.extend(self.cache(o.k_cache, ["k_cache", "k_scales"])?);
        buffers.extend(self.cache(o.v_cache, ["v_cache", "v_scales"])?);
        let format = self.program.common_format(o.k_cache, o.v_cache).map_err(unsupported)?;
        let variant = variants::attention(self.profile, format, group, o.head_dim, partial);
        self.push(variant, dims, buffers, [o.kv_heads, rows, if partial { splits } else { 1 }])?;
        if partial {
            let dims = vec![("heads", o.heads as u32), ("quads", quads as u32), window, ("splits", splits as u32)];
            let buffers = vec![("positions", positions), ("parts", target), ("out", out)];
            self.push(variants::attention_combine(self.profile), dims, buffers, [o.heads, rows, 1])?;
        }
        Ok(())
    }

    fn sample(&mut self, o: &op::Sample) -> Steps {
        let buffers = vec![
            ("logits", self.plain(o.logits)?),
            ("params", self.plain(o.params)?),
            ("offsets", self.plain(o.offsets)?),
            ("changes", self.plain(o.adjust)?),
            ("masks", self.plain(o.masks)?),
            ("out", self.plain(o.out)?),
        ];
        let dims = vec![("vocab", self.width(o.logits) as u32), ("lowest", f32::NEG_INFINITY.to_bits())];
        self.push(variants::sample(self.profile), dims, buffers, [1, self.program.logit_rows, 1])
    }

    fn copy_blocks(&mut self, o: &op::CopyBlocks) -> Steps {
        let decl = self.program.decl(o.cache);
        let bytes = decl.bytes() / decl.shape[0].max(1);
        if !bytes.is_multiple_of(4) {
            return Err(unsupported(format!("KV blocks of {bytes} bytes: not a multiple of 4")));
        }
        let words = bytes / 4;
        let buffers = vec![("pairs", self.plain(o.pairs)?), ("cache", self.plain(o.cache)?)];
        let grid = [words.div_ceil(64), self.program.rows, 1];
        self.push(variants::plain("copy"), vec![("words", words as u32)], buffers, grid)
    }
}

fn unsupported(what: impl Into<String>) -> DeviceFault {
    DeviceFault::Unsupported(what.into())
}

fn matrix<'a>(buffer: &'a Buffer, what: &str) -> Result<&'a Weight, DeviceFault> {
    match &*buffer.0 {
        Contents::Weight(weight) => Ok(weight),
        Contents::Plain(_) => Err(DeviceFault::Rejected(format!("{what} is no matrix"))),
    }
}

fn planes(part: &Part, names: [&'static str; 2]) -> [(&'static str, wgpu::Buffer); 2] {
    [(names[0], part.quants.clone()), (names[1], part.scales.clone())]
}

fn product_dims(weight: &Weight, part: &Part) -> Vec<(&'static str, u32)> {
    vec![
        ("groups", weight.k.div_ceil(GROUP) as u32),
        ("k", weight.k as u32),
        ("panels", part.rows.div_ceil(PANEL) as u32),
        ("n", part.rows as u32),
        ("first", part.first as u32),
        ("width", weight.n as u32),
        ("quads", (GROUP / 4) as u32),
    ]
}

/// Dims of kernels over heads, which move four values at a time.
fn head_dims(
    heads: usize,
    head_dim: usize,
    rope_dim: usize,
    eps: f32,
    transform: bool,
) -> Result<Vec<(&'static str, u32)>, DeviceFault> {
    if !head_dim.is_multiple_of(4) || !rope_dim.is_multiple_of(4) || rope_dim > head_dim {
        return Err(unsupported(format!("heads of {head_dim} with {rope_dim} rotated: both must be multiples of 4")));
    }
    Ok(vec![
        ("heads", heads as u32),
        ("head_dim", head_dim as u32),
        ("rope_dim", rope_dim as u32),
        ("eps", eps.to_bits()),
        ("run", if transform { hadamard::run(head_dim) as u32 } else { 1 }),
        ("factor", (hadamard::factor(head_dim) as f32).to_bits()),
    ])
}
