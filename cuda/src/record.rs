//! Programs as dispatch lists: which kernel, which grid, which arguments, for every op.
//!
//! Pure: addresses in, launches out. A program is recorded once; the facts of a step are read by the
//! kernels from input buffers.

use ponder_engine::error::{DeviceFault, Error, Result};
use ponder_engine::format::{Format, KvFormat, hadamard};
use ponder_engine::model::{Activation, Pairing};
use ponder_engine::op::*;
use ponder_engine::program::{Elem, KvCache, Program, RowSpace, Slot};

use crate::device::{Dispatch, Module};
use crate::many::{self, Many};

/// Tokens of an attention split; `SPLIT` in attend.cuh.
pub const SPLIT: usize = 256;
/// Widest head.
pub const MAX_HEAD_DIM: usize = 256;
/// Widest latent of latent attention, and the heads that a block takes, as latent.cu has it.
const MAX_LATENT: usize = 512;
const LATENT_HEADS: usize = 32;
/// The same where a block walks the splits of an F32 cache.
const LATENT_HEADS_F32: usize = 16;
/// Row capacity up to which attention runs a block per split.
const SPLIT_ROWS: usize = 64;
/// Most memory for partial results of attention; beyond it a block walks its row's splits.
const SPLIT_BYTES: usize = 256 << 20;

/// Tokens of a row that a block samples from; `PART` in sample.cu, as `BINS` and `LIST` are.
const SAMPLE_PART: usize = 2048;
const SAMPLE_BINS: usize = 1024;
const SAMPLE_LIST: usize = 2048;

/// Bytes of a row's `Scratch` in sample.cu: masses, list, parts, counts, a length, values.
fn sample_row_bytes(vocab: usize) -> usize {
    let parts = vocab.div_ceil(SAMPLE_PART);
    (8 * SAMPLE_BINS + 8 * SAMPLE_LIST + 16 * parts + 4 * SAMPLE_BINS + 16 + 4 * vocab).next_multiple_of(256)
}

/// Arguments of a launch.
#[derive(Default)]
struct Args(Vec<u64>);

impl Args {
    fn ptr(mut self, address: u64) -> Self {
        self.0.push(address);
        self
    }
    fn u32(mut self, value: usize) -> Self {
        self.0.push(u32::try_from(value).expect("kernel parameters are below 2^32") as u64);
        self
    }
    fn f32(mut self, value: f32) -> Self {
        self.0.push(value.to_bits() as u64);
        self
    }
}

/// The variant's name in kernel names and in `-DVARIANT`.
pub fn format_name(format: Format) -> &'static str {
    format.name()
}

/// As [`format_name`].
pub fn kv_name(format: KvFormat) -> &'static str {
    match format {
        KvFormat::F32 => "F32",
        KvFormat::F16 => "F16",
        KvFormat::BF16 => "BF16",
        KvFormat::E2M5 => "E2M5",
    }
}

/// Bytes of the workspace (attention's partial sums, activations and partial sums of large products, the up half of a
/// mixed MLP, sampling) that [`record`] uses, one op at a time.
pub fn workspace_bytes(program: &Program) -> usize {
    let nowhere = vec![0; program.slots.len()];
    let mut recorder = Recorder::new(program, &nowhere, 0);
    // What cannot be recorded is said by `record`.
    let _ = recorder.all();
    recorder.most as usize
}

/// Partial results of attention: of each row, head and split its weighted values, then its maximum and weight.
struct Partials {
    rows: usize,
    heads: usize,
    dim: usize,
    /// Splits of the longest context, or 0 where each row's splits are walked by one block.
    splits: usize,
}

impl Partials {
    fn of(program: &Program, op: &Attention) -> Self {
        let tokens = program.decl(op.block_tables).shape[1] * program.kv_shape(op.k_cache)[1];
        Self::new(program.rows, op.heads, op.head_dim, tokens)
    }
    fn of_latents(program: &Program, op: &LatentAttention) -> Self {
        let tokens = program.decl(op.block_tables).shape[1] * program.kv_shape(op.cache)[1];
        Self::new(program.rows, op.heads, op.latent, tokens)
    }
    fn new(rows: usize, heads: usize, dim: usize, tokens: usize) -> Self {
        let all = Self { rows, heads, dim, splits: tokens.div_ceil(SPLIT) };
        let splits = if rows > SPLIT_ROWS || all.bytes() > SPLIT_BYTES { 0 } else { all.splits };
        Self { splits, ..all }
    }
    fn bytes(&self) -> usize {
        self.rows * self.heads * self.splits * (self.dim + 2) * 4
    }
    /// Where maxima and weights begin, if values begin at `sums`.
    fn weights(&self, sums: u64) -> u64 {
        sums + (self.rows * self.heads * self.splits * self.dim * 4) as u64
    }
}

fn weight_format(program: &Program, slot: Slot) -> Format {
    match program.decl(slot).elem {
        Elem::Weight(format) => format,
        other => panic!("slot {} holds {other:?}, not a weight", program.decl(slot).name),
    }
}

/// gate and up of two formats, or in row-major F32, take two products.
fn formats_differ(program: &Program, op: &GatedMlp) -> bool {
    let (gate, up) = (weight_format(program, op.gate), weight_format(program, op.up));
    gate != up || gate == Format::F32
}

/// Records a program whose slot `i` lies at `addresses[i]`. `workspace` has [`workspace_bytes`].
pub fn record(program: &Program, addresses: &[u64], workspace: u64) -> Result<Vec<Dispatch>> {
    let mut recorder = Recorder::new(program, addresses, workspace);
    recorder.all()?;
    Ok(recorder.list)
}

struct Recorder<'a> {
    program: &'a Program,
    addresses: &'a [u64],
    workspace: u64,
    /// Bytes of it that the present op has taken, and the most that any op took.
    taken: u64,
    most: u64,
    /// What the present op has split into bf16 terms last, and where they lie.
    split: Option<(Slot, u64)>,
    list: Vec<Dispatch>,
}

/// One product of a launch: weight, bias and output addresses, and its rows.
type Segment = (u64, u64, u64, usize);

impl<'a> Recorder<'a> {
    fn new(program: &'a Program, addresses: &'a [u64], workspace: u64) -> Self {
        Self { program, addresses, workspace, taken: 0, most: 0, split: None, list: Vec::new() }
    }
    fn all(&mut self) -> Result<()> {
        self.program.ops.iter().try_for_each(|op| {
            (self.taken, self.split) = (0, None);
            self.op(op)
        })
    }
    /// Takes `bytes` of the workspace until the op's end.
    fn take(&mut self, bytes: usize) -> u64 {
        let at = self.workspace + self.taken;
        self.taken += bytes.next_multiple_of(256) as u64;
        self.most = self.most.max(self.taken);
        at
    }
    fn at(&self, slot: Slot) -> u64 {
        self.addresses[slot.0 as usize]
    }
    fn live(&self) -> u64 {
        self.at(self.program.live)
    }
    fn shape(&self, slot: Slot) -> &[usize] {
        &self.program.decl(slot).shape
    }
    fn rows(&self) -> usize {
        self.program.rows
    }
    fn push(
        &mut self,
        stem: &'static str,
        variant: &'static str,
        kernel: String,
        grid: [usize; 3],
        threads: u32,
        args: Args,
    ) {
        let grid = grid.map(|n| u32::try_from(n).expect("grids are below 2^32"));
        if grid.contains(&0) {
            return;
        }
        self.list.push(Dispatch { module: Module { stem, variant }, kernel, grid, threads, args: args.0 });
    }

    fn op(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Embed(o) => self.embed(o),
            Op::AddRmsNorm(o) => self.add_rms_norm(o),
            Op::RmsNorm(o) => self.rms_norm(o),
            Op::QkvRopeStore(o) => self.qkv(o)?,
            Op::Attention(o) => self.attention(o)?,
            Op::LatentStore(o) => self.latent_store(o),
            Op::LatentAttention(o) => self.latent_attention(o)?,
            Op::Linear(o) => {
                let segment = (self.at(o.w), o.bias.map_or(0, |b| self.at(b)), self.at(o.out), self.shape(o.w)[0]);
                self.linear(o.space, o.x, weight_format(self.program, o.w), self.shape(o.w)[1], &[segment]);
            }
            Op::GatedMlp(o) => self.gated_mlp(o),
            Op::GatherRows(o) => self.gather_rows(o),
            Op::Sample(o) => self.sample(o),
            Op::CopyBlocks(o) => self.copy_blocks(o)?,
            Op::Add(o) => self.add(o),
            Op::ApplyRope(o) => self.apply_rope(o),
            Op::KvStore(o) => self.kv_store(o),
            Op::GatedAct(o) => {
                self.gated_act(self.at(o.gate), self.at(o.up), self.at(o.out), self.shape(o.gate)[1], o.activation)
            }
        }
        Ok(())
    }

    fn embed(&mut self, o: &Embed) {
        let (vocab, hidden) = (self.shape(o.table)[0], self.shape(o.table)[1]);
        let variant = format_name(weight_format(self.program, o.table));
        let args = Args::default().ptr(self.live()).ptr(self.at(o.tokens)).ptr(self.at(o.table)).ptr(self.at(o.out));
        let args = args.u32(vocab).u32(hidden).f32(o.scale);
        self.push("embed", variant, format!("embed_{variant}"), [hidden.div_ceil(512), self.rows(), 1], 128, args);
    }
    fn add_rms_norm(&mut self, o: &AddRmsNorm) {
        let n = self.shape(o.weight)[0];
        let args = Args::default().ptr(self.live()).ptr(self.at(o.residual)).ptr(self.at(o.delta));
        let args = args.ptr(self.at(o.weight)).ptr(self.at(o.out)).u32(n).f32(o.eps);
        self.push("norm", "", "add_rms_norm".into(), [1, self.rows(), 1], 256, args);
    }
    fn rms_norm(&mut self, o: &RmsNorm) {
        let n = self.shape(o.weight)[0];
        let groups = self.shape(o.x)[1..].iter().product::<usize>() / n;
        let args = Args::default().ptr(self.live()).ptr(self.at(o.x)).ptr(self.at(o.weight)).ptr(self.at(o.out));
        if groups == 1 {
            return self.push("norm", "", "rms_norm".into(), [1, self.rows(), 1], 256, args.u32(n).f32(o.eps));
        }
        let args = args.u32(groups).u32(n).f32(o.eps);
        self.push("norm", "", "rms_norm_groups".into(), [groups.div_ceil(8), self.rows(), 1], 256, args);
    }

    /// Column tiles of eight token rows that a block takes: no effect on any bit of the result.
    fn column_tiles(&self, rows: usize) -> usize {
        match rows {
            0..=8 => 1,
            9..=16 => 2,
            _ => 4,
        }
    }
    /// Up to three products of `x` with weights of one format.
    fn linear(&mut self, space: RowSpace, x: Slot, format: Format, k: usize, segments: &[Segment]) {
        let rows = self.program.capacity(space);
        let variant = format_name(format);
        let head = || Args::default().ptr(self.live()).u32(space as usize).ptr(self.at(x)).u32(k);
        if format == Format::F32 {
            let lists: Vec<_> = segments.iter().map(|s| (s.3, head().ptr(s.0).ptr(s.1).ptr(s.2).u32(s.3))).collect();
            for (n, args) in lists {
                self.push("linear", variant, "linear_F32".into(), [n.div_ceil(8), rows.div_ceil(8), 1], 256, args);
            }
            return;
        }
        let n: Vec<usize> = segments.iter().map(|s| s.3).collect();
        if let Some(many) = Many::linear(rows, format, k, &n) {
            return self.linear_many(space, x, format, k, segments, many);
        }
        let segment = |i: usize| segments.get(i).copied().unwrap_or_default();
        let args = (0..3).map(segment).fold(head(), |args, s| args.ptr(s.0).ptr(s.1).ptr(s.2).u32(s.3));
        let cols = self.column_tiles(rows);
        let tiles: usize = segments.iter().map(|s| s.3.div_ceil(crate::weight::TILE_N)).sum();
        let grid = [tiles, rows.div_ceil(8 * cols), 1];
        self.push("linear", variant, format!("linear_{variant}_{cols}"), grid, 256, args);
    }

    /// The same for many rows.
    fn linear_many(&mut self, space: RowSpace, x: Slot, format: Format, k: usize, segments: &[Segment], many: Many) {
        let split = self.split(space, x, k, &many);
        let sums = self.take(many.sum_bytes());
        let segment = |i: usize| segments.get(i).copied().unwrap_or_default();
        let head = Args::default().ptr(self.live()).u32(space as usize);
        let args = head.ptr(split).u32(k).ptr(sums);
        let args = (0..3).map(segment).fold(args, |args, s| args.ptr(s.0).ptr(s.1).ptr(s.2).u32(s.3));
        let variant = format_name(format);
        let grid = [many.row_blocks, many.parts, many.classes];
        self.push("linear", variant, format!("linear_{variant}_many"), grid, 256, args);
        if many.classes == 1 {
            return;
        }
        let args = Args::default().ptr(self.live()).u32(space as usize).ptr(sums).u32(many.classes).u32(many.rows());
        let args = (0..3).map(segment).fold(args, |args, s| args.ptr(s.1).ptr(s.2).u32(s.3));
        let grid = [many.columns.div_ceil(256), self.program.capacity(space), 1];
        self.push("split", "", "join_linear".into(), grid, 256, args);
    }
    /// Where the bf16 terms of `x` lie, for the products of this op.
    fn split(&mut self, space: RowSpace, x: Slot, k: usize, many: &Many) -> u64 {
        if let Some((_, at)) = self.split.filter(|split| split.0 == x) {
            return at;
        }
        let tiles = many::term_tiles(self.program.capacity(space));
        let at = self.take(tiles * many.chunks * many::TERM_BYTES);
        let args = Args::default().ptr(self.live()).u32(space as usize).ptr(self.at(x)).u32(k).ptr(at);
        self.push("split", "", "split_terms".into(), [many.chunks, tiles, 1], 128, args);
        self.split = Some((x, at));
        at
    }

    fn qkv(&mut self, o: &QkvRopeStore) -> Result<()> {
        self.check_head(o.head_dim)?;
        let hidden = self.shape(o.wq)[1];
        let parts = [(o.wq, o.q), (o.wk, o.k), (o.wv, o.v)];
        let segment = |i: usize| -> Segment {
            let (w, out) = parts[i];
            (self.at(w), o.bias.map_or(0, |b| self.at(b[i])), self.at(out), self.shape(w)[0])
        };
        let mut launches: Vec<(Format, Vec<Segment>)> = Vec::new();
        for (i, (w, _)) in parts.iter().enumerate() {
            let format = weight_format(self.program, *w);
            match launches.iter_mut().find(|l| l.0 == format) {
                Some(launch) => launch.1.push(segment(i)),
                None => launches.push((format, vec![segment(i)])),
            }
        }
        for (format, segments) in launches {
            self.linear(RowSpace::Batch, o.x, format, hidden, &segments);
        }
        let format = self.program.common_format(o.k_cache, o.v_cache).map_err(unsupported)?;
        let [_, block_size, ..] = self.program.kv_shape(o.k_cache);
        let norm = |i: usize| o.norm.map_or(0, |n| self.at(n[i]));
        let args = Args::default().ptr(self.live()).ptr(self.at(o.q)).ptr(self.at(o.k)).ptr(self.at(o.v));
        let args =
            args.ptr(norm(0)).ptr(norm(1)).f32(o.eps).ptr(self.at(o.rope)).u32(o.rope_dim).u32(pairing(o.pairing));
        let [(k_cache, k_scales), (v_cache, v_scales)] = [o.k_cache, o.v_cache].map(|c| self.cache(c));
        let args = args.ptr(self.at(o.slot_mapping)).ptr(k_cache).ptr(v_cache);
        let args = args.u32(o.heads).u32(o.kv_heads).u32(o.head_dim).ptr(k_scales).ptr(v_scales).u32(block_size);
        let args = args.u32(run(o.hadamard, o.head_dim));
        let grid = [(o.heads + 2 * o.kv_heads).div_ceil(4), self.rows(), 1];
        let variant = kv_name(format);
        self.push("qkv", variant, format!("qkv_finish_{variant}"), grid, 128, args);
        Ok(())
    }
    /// Addresses of a cache's elements and of its scales, 0 where it has none.
    fn cache(&self, cache: KvCache) -> (u64, u64) {
        (self.at(cache.elements()), cache.scales().map_or(0, |s| self.at(s)))
    }
    fn apply_rope(&mut self, o: &ApplyRope) {
        let args = Args::default().ptr(self.live()).ptr(self.at(o.x)).ptr(self.at(o.rope));
        let args =
            args.u32(o.heads).u32(o.head_dim).u32(o.dim).u32(pairing(o.pairing)).u32(run(o.hadamard, o.head_dim));
        self.push("qkv", "F16", "apply_rope".into(), [o.heads.div_ceil(4), self.rows(), 1], 128, args);
    }
    fn kv_store(&mut self, o: &KvStore) {
        let [_, _, kv_heads, head_dim] = self.program.kv_shape(o.cache);
        self.store(o.x, o.cache, o.slot_mapping, (kv_heads, head_dim, head_dim));
    }
    /// Its parts are two heads.
    fn latent_store(&mut self, o: &LatentStore) {
        self.store(o.x, o.cache, o.slot_mapping, (2, o.latent, o.rope));
    }
    /// Heads are their number, their width, and the last one's.
    fn store(&mut self, x: Slot, cache: KvCache, slot_mapping: Slot, (count, dim, last): (usize, usize, usize)) {
        let (variant, block_size) = (kv_name(self.program.kv_format(cache)), self.program.kv_shape(cache)[1]);
        let (elements, scales) = self.cache(cache);
        let args = Args::default().ptr(self.live()).ptr(self.at(x)).ptr(self.at(slot_mapping));
        if cache.scales().is_some() {
            let args = args.ptr(scales).ptr(elements).u32(count).u32(dim).u32(last).u32(block_size);
            return self.push("codes", "", "store_codes".into(), [count.div_ceil(4), self.rows(), 1], 128, args);
        }
        let width = (count - 1) * dim + last;
        let args = args.ptr(elements).u32(width);
        self.push("qkv", variant, format!("kv_store_{variant}"), [width.div_ceil(256), self.rows(), 1], 256, args);
    }

    fn attention(&mut self, o: &Attention) -> Result<()> {
        self.check_head(o.head_dim)?;
        let variant = kv_name(self.program.common_format(o.k_cache, o.v_cache).map_err(unsupported)?);
        let group = o.heads / o.kv_heads;
        let head_tiles = o.kv_heads * group.div_ceil(group.next_power_of_two().min(8));
        let width = o.head_dim.next_power_of_two().max(64);
        let (block_size, max_blocks) = (self.program.kv_shape(o.k_cache)[1], self.shape(o.block_tables)[1]);
        let window = o.window.unwrap_or(0);
        let [(k_cache, k_scales), (v_cache, v_scales)] = [o.k_cache, o.v_cache].map(|c| self.cache(c));
        let args = Args::default().ptr(self.live()).ptr(self.at(o.q)).ptr(k_cache).ptr(v_cache);
        let args =
            args.ptr(self.at(o.positions)).ptr(self.at(o.row_seq)).ptr(self.at(o.block_tables)).ptr(self.at(o.out));
        let args = args.u32(o.heads).u32(o.kv_heads).u32(o.head_dim).u32(block_size).u32(max_blocks);
        let args = args.f32(o.scale).u32(window).ptr(k_scales).ptr(v_scales);
        let partials = Partials::of(self.program, o);
        if partials.splits == 0 {
            let kernel = format!("attention_rows_{variant}_{width}");
            self.push("attention", variant, kernel, [head_tiles, self.rows(), 1], 128, args);
            return Ok(());
        }
        let sums = self.take(partials.bytes());
        let weights = partials.weights(sums);
        let kernel = format!("attention_split_{variant}_{width}");
        let grid = [partials.splits, head_tiles, self.rows()];
        self.push("attention", variant, kernel, grid, 128, args.ptr(sums).ptr(weights));
        let args = Args::default().ptr(self.live()).ptr(self.at(o.positions)).ptr(self.at(o.out));
        let args = args.u32(o.heads).u32(o.head_dim).u32(window).ptr(sums).ptr(weights).u32(partials.splits);
        self.push("attention", variant, "attention_combine".into(), [o.heads, self.rows(), 1], 128, args);
        Ok(())
    }
    fn latent_attention(&mut self, o: &LatentAttention) -> Result<()> {
        if o.latent > MAX_LATENT || !o.latent.is_multiple_of(32) || !o.rope.is_multiple_of(8) {
            let most = format!("at most {MAX_LATENT} in multiples of 32, and multiples of 8");
            return Err(unsupported(format!("latent vectors of {} + {} elements: {most}", o.latent, o.rope)));
        }
        let format = self.program.kv_format(o.cache);
        let variant = kv_name(format);
        let (block_size, max_blocks) = (self.program.kv_shape(o.cache)[1], self.shape(o.block_tables)[1]);
        let (elements, scales) = self.cache(o.cache);
        let args = Args::default().ptr(self.live()).ptr(self.at(o.q)).ptr(elements).ptr(scales);
        let args =
            args.ptr(self.at(o.positions)).ptr(self.at(o.row_seq)).ptr(self.at(o.block_tables)).ptr(self.at(o.out));
        let args = args.u32(o.heads).u32(o.latent).u32(o.rope).u32(block_size).u32(max_blocks).f32(o.scale);
        let partials = Partials::of_latents(self.program, o);
        if partials.splits == 0 {
            let tiles = o.heads.div_ceil(if format == KvFormat::F32 { LATENT_HEADS_F32 } else { LATENT_HEADS });
            self.push("latent", variant, format!("latent_rows_{variant}"), [tiles, self.rows(), 1], 256, args);
            return Ok(());
        }
        let sums = self.take(partials.bytes());
        let weights = partials.weights(sums);
        let grid = [o.heads.div_ceil(LATENT_HEADS), partials.splits, self.rows()];
        self.push("latent", variant, format!("latent_split_{variant}"), grid, 256, args.ptr(sums).ptr(weights));
        let args = Args::default().ptr(self.live()).ptr(self.at(o.positions)).ptr(self.at(o.out));
        let args = args.u32(o.heads).u32(o.latent).ptr(sums).ptr(weights).u32(partials.splits);
        self.push("latent", variant, "latent_combine".into(), [o.heads, self.rows(), 1], 256, args);
        Ok(())
    }
    fn check_head(&self, dim: usize) -> Result<()> {
        if dim <= MAX_HEAD_DIM && dim.is_multiple_of(8) {
            return Ok(());
        }
        Err(unsupported(format!("heads of {dim} values: at most {MAX_HEAD_DIM}, in multiples of 8")))
    }

    fn gated_mlp(&mut self, o: &GatedMlp) {
        let (ffn, hidden) = (self.shape(o.gate)[0], self.shape(o.gate)[1]);
        let format = weight_format(self.program, o.gate);
        let rows = self.rows();
        if formats_differ(self.program, o) {
            let up = self.take(self.program.decl(o.gated).bytes());
            self.linear(RowSpace::Batch, o.x, format, hidden, &[(self.at(o.gate), 0, self.at(o.gated), ffn)]);
            let up_format = weight_format(self.program, o.up);
            self.linear(RowSpace::Batch, o.x, up_format, hidden, &[(self.at(o.up), 0, up, ffn)]);
            self.gated_act(self.at(o.gated), up, self.at(o.gated), ffn, o.activation);
        } else if let Some(many) = Many::gate_up(rows, format, hidden, ffn) {
            self.gate_up_many(o, format, many);
        } else {
            let (variant, cols) = (format_name(format), self.column_tiles(rows));
            let args = Args::default().ptr(self.live()).ptr(self.at(o.x)).u32(hidden).ptr(self.at(o.gate));
            let args = args.ptr(self.at(o.up)).ptr(self.at(o.gated)).u32(ffn).u32(activation(o.activation));
            let grid = [ffn.div_ceil(crate::weight::TILE_N), rows.div_ceil(8 * cols), 1];
            self.push("mlp", variant, format!("gate_up_{variant}_{cols}"), grid, 256, args);
        }
        let down = (self.at(o.down), 0, self.at(o.out), hidden);
        self.linear(RowSpace::Batch, o.gated, weight_format(self.program, o.down), ffn, &[down]);
    }
    fn gate_up_many(&mut self, o: &GatedMlp, format: Format, many: Many) {
        let (ffn, hidden) = (self.shape(o.gate)[0], self.shape(o.gate)[1]);
        let split = self.split(RowSpace::Batch, o.x, hidden, &many);
        let sums = self.take(many.sum_bytes());
        let variant = format_name(format);
        let args = Args::default().ptr(self.live()).ptr(split).u32(hidden).ptr(sums).ptr(self.at(o.gate));
        let args = args.ptr(self.at(o.up)).ptr(self.at(o.gated)).u32(ffn).u32(activation(o.activation));
        let grid = [many.row_blocks, many.parts, many.classes];
        self.push("mlp", variant, format!("gate_up_{variant}_many"), grid, 256, args);
        if many.classes == 1 {
            return;
        }
        let args = Args::default().ptr(self.live()).ptr(sums).u32(many.classes).u32(many.rows());
        let args = args.ptr(self.at(o.gated)).u32(ffn).u32(activation(o.activation));
        self.push("split", "", "join_gate_up".into(), [ffn.div_ceil(256), self.rows(), 1], 256, args);
    }
    fn gated_act(&mut self, gate: u64, up: u64, out: u64, n: usize, kind: Activation) {
        let args = Args::default().ptr(self.live()).ptr(gate).ptr(up).ptr(out).u32(n).u32(activation(kind));
        self.push("mlp", "F32", "gated_act".into(), [n.div_ceil(256), self.rows(), 1], 256, args);
    }
    fn add(&mut self, o: &Add) {
        let n = self.shape(o.residual)[1];
        let args = Args::default().ptr(self.live()).ptr(self.at(o.residual)).ptr(self.at(o.delta)).u32(n);
        self.push("elementwise", "", "add".into(), [n.div_ceil(256), self.rows(), 1], 256, args);
    }
    fn gather_rows(&mut self, o: &GatherRows) {
        let n = self.shape(o.x)[1];
        let args = Args::default().ptr(self.live()).ptr(self.at(o.x)).ptr(self.at(o.index)).ptr(self.at(o.out)).u32(n);
        let grid = [n.div_ceil(256), self.program.logit_rows, 1];
        self.push("elementwise", "", "gather_rows".into(), grid, 256, args);
    }
    fn copy_blocks(&mut self, o: &CopyBlocks) -> Result<()> {
        let decl = self.program.decl(o.cache);
        let bytes = decl.bytes() / decl.shape[0].max(1);
        let (kernel, word) = match bytes {
            b if b.is_multiple_of(16) => ("copy_blocks", 16),
            b if b.is_multiple_of(4) => ("copy_blocks_4", 4),
            _ => return Err(unsupported(format!("KV blocks of {bytes} bytes: not a multiple of 4"))),
        };
        let args = Args::default().ptr(self.live()).ptr(self.at(o.pairs)).ptr(self.at(o.cache)).u32(bytes / word);
        let grid = [(bytes / word).div_ceil(256), self.rows(), 1];
        self.push("elementwise", "", kernel.into(), grid, 256, args);
        Ok(())
    }
    fn sample(&mut self, o: &Sample) {
        let (vocab, rows) = (self.shape(o.logits)[1], self.program.logit_rows);
        let head = || Args::default().ptr(self.live());
        let values = head().ptr(self.at(o.logits)).ptr(self.at(o.params)).ptr(self.at(o.offsets));
        let values = values.ptr(self.at(o.adjust)).ptr(self.at(o.masks));
        let params = || head().ptr(self.at(o.params));
        let (parts, one) = ([vocab.div_ceil(SAMPLE_PART), rows, 1], [rows, 1, 1]);
        let launches = [
            ("sample_values", parts, values),
            ("sample_bins", parts, params()),
            ("sample_noise", parts, params()),
            ("sample_finish", one, params().ptr(self.at(o.out))),
        ];
        let scratch = self.take(rows * sample_row_bytes(vocab));
        for (kernel, grid, args) in launches {
            let args = args.u32(vocab).ptr(scratch).u32(sample_row_bytes(vocab));
            self.push("sample", "", kernel.into(), grid, 256, args);
        }
    }
}

/// Values of a head that are transformed together; 1 where none are.
fn run(hadamard: bool, head_dim: usize) -> usize {
    if hadamard { hadamard::run(head_dim) } else { 1 }
}

fn pairing(pairing: Pairing) -> usize {
    match pairing {
        Pairing::Interleaved => 0,
        Pairing::Halves => 1,
    }
}

fn activation(activation: Activation) -> usize {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}

fn unsupported(what: String) -> Error {
    Error::Device { device: "cuda".into(), what: DeviceFault::Unsupported(what) }
}
