//! Every kernel variant, in one place: which file, under which definitions, for which profile.
//!
//! The planner asks these functions for a variant, and [`all`] lists what they can answer, so that a test
//! can take each through naga to every target.

use ponder_engine::format::{Format, KvFormat};
use ponder_engine::model::{Activation, Pairing};
use ponder_engine::program::RowSpace;

use crate::layout::layout;
use crate::source::Defines;

/// What kind of device kernels are made for. The order of every sum depends on the profile, the format and
/// the shape alone, never on the number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// A CPU behind Vulkan: a lane owns whole rows of a weight.
    Cpu {
        /// Subgroups of at least 8: activations are loaded once and broadcast. Same bits as without.
        broadcast: bool,
    },
    /// Any GPU, as in a browser: neither subgroups nor f16 arithmetic.
    GpuBase,
    /// A GPU with subgroups of at least 8: folds by shuffle, in the order of `GpuBase`.
    GpuSubgroup,
}

impl Profile {
    /// Every profile.
    pub const ALL: [Profile; 4] =
        [Profile::Cpu { broadcast: false }, Profile::Cpu { broadcast: true }, Profile::GpuBase, Profile::GpuSubgroup];

    /// Its name in `ponder devices`.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Cpu { broadcast: false } => "cpu, no subgroups",
            Profile::Cpu { broadcast: true } => "cpu",
            Profile::GpuBase => "gpu-base",
            Profile::GpuSubgroup => "gpu-subgroup",
        }
    }
    /// True where a CPU runs the kernels.
    pub fn is_cpu(self) -> bool {
        matches!(self, Profile::Cpu { .. })
    }
    /// True if its kernels use subgroup operations.
    pub fn subgroups(self) -> bool {
        matches!(self, Profile::Cpu { broadcast: true } | Profile::GpuSubgroup)
    }
    /// `cpu` lanes or `gpu` lanes.
    fn lanes(self, cpu: usize, gpu: usize) -> usize {
        if self.is_cpu() { cpu } else { gpu }
    }
}

/// One kernel: a file and its definitions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variant {
    /// Stem of the file.
    pub stem: &'static str,
    /// Its definitions.
    pub defines: Defines,
}

impl Variant {
    fn new(stem: &'static str) -> Self {
        Self { stem, defines: Defines::new() }
    }
    fn set(mut self, name: &'static str, value: impl ToString) -> Self {
        self.defines.insert(name, value.to_string());
        self
    }
    fn flag(self, name: &'static str, value: bool) -> Self {
        self.set(name, value as u8)
    }
    fn format(self, format: Format) -> Self {
        let l = layout(format);
        self.set("FORMAT", l.file).set("HALVES", l.halves).flag("SCALED", l.words > 0).flag("MIN", l.min)
    }
    /// KV is F32, F16, BF16 or FP8.
    fn cache(self, kv: KvFormat) -> Self {
        self.set("KV", kv as u8)
    }
    /// A line that names it, for labels and errors.
    pub fn label(&self) -> String {
        let defines: Vec<String> = self.defines.iter().map(|(k, v)| format!("{k}={v}")).collect();
        format!("{} {}", self.stem, defines.join(" "))
    }
}

/// The most tokens that a lane of `linear` serves.
pub const TOKENS: usize = 8;

/// Tokens per lane for a row capacity: one program serves all live counts up to it.
pub fn tokens(capacity: usize) -> usize {
    let mut t = 1;
    while t * 2 <= capacity.min(TOKENS) {
        t *= 2;
    }
    t
}

/// A linear kernel with the outputs and tokens of one workgroup.
pub struct LinearKernel {
    /// The variant.
    pub variant: Variant,
    /// Outputs per workgroup.
    pub outputs: usize,
    /// Tokens per workgroup.
    pub tokens: usize,
}

/// The linear for a row capacity.
pub fn linear(
    profile: Profile,
    format: Format,
    capacity: usize,
    ragged: bool,
    bias: bool,
    space: RowSpace,
) -> LinearKernel {
    if !profile.is_cpu() && capacity > TOKENS {
        let tile = Variant::new("linear_tile").format(format).flag("RAGGED", ragged);
        let variant = tile.flag("BIAS", bias).set("SPACE", space as u8);
        return LinearKernel { variant, outputs: 64, tokens: 32 };
    }
    let few = few_rows(Variant::new("linear"), profile, format, capacity, ragged, 4);
    LinearKernel { variant: few.variant.flag("BIAS", bias).set("SPACE", space as u8), ..few }
}

/// The fused gate and up, where one kernel does them.
pub fn gate_up(
    profile: Profile,
    format: Format,
    capacity: usize,
    ragged: bool,
    activation: Activation,
) -> Option<LinearKernel> {
    if !profile.is_cpu() && capacity > TOKENS {
        return None;
    }
    let few = few_rows(Variant::new("mlp"), profile, format, capacity, ragged, 2);
    let variant = few.variant.set("SPACE", 0).flag("DUAL", true).flag("GELU", activation == Activation::GeluTanh);
    Some(LinearKernel { variant, ..few })
}

fn few_rows(
    variant: Variant,
    profile: Profile,
    format: Format,
    capacity: usize,
    ragged: bool,
    panels: usize,
) -> LinearKernel {
    let split = !profile.is_cpu();
    let (panels, tokens) = (if split { 1 } else { panels }, tokens(capacity));
    let variant = variant
        .format(format)
        .set("R", panels)
        .set("T", tokens)
        .flag("RAGGED", ragged)
        .flag("SPLIT", split)
        .flag("SUBGROUP", profile.subgroups())
        .flag("BROADCAST", profile == Profile::Cpu { broadcast: true });
    LinearKernel { variant, outputs: 8 * panels, tokens }
}

/// `act(out) * up`.
pub fn gated_act(activation: Activation) -> Variant {
    Variant::new("mlp").flag("DUAL", false).flag("GELU", activation == Activation::GeluTanh)
}

/// Embedding rows.
pub fn embed(format: Format) -> Variant {
    Variant::new("embed").format(format)
}

/// Where a norm reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormInput {
    /// A buffer of its own.
    Apart,
    /// The output buffer.
    InPlace,
    /// Residual plus delta.
    Sum,
}

/// RMS norm.
pub fn norm(profile: Profile, input: NormInput, quads: bool) -> Variant {
    Variant::new("norm")
        .flag("QUAD", quads)
        .set("LANES", profile.lanes(8, 128))
        .flag("ADD", input == NormInput::Sum)
        .flag("INPLACE", input == NormInput::InPlace)
}

/// RoPE in place, after a norm of heads.
pub fn rope(profile: Profile, pairing: Pairing, norm: bool) -> Variant {
    let lanes = Variant::new("rope").set("LANES", profile.lanes(8, 32));
    lanes.flag("HALVED", pairing == Pairing::Halves).flag("NORM", norm)
}

/// The store of keys and values, which rotates queries too unless heads are normed; `None`: the store of one
/// tensor, as it is. Formats with scales have [`codes`] instead, after [`rope`].
pub fn store(profile: Profile, kv: KvFormat, rope: Option<(Pairing, bool)>) -> Variant {
    let base = Variant::new("qkv").set("LANES", profile.lanes(8, 32)).cache(kv).flag("ROPE", rope.is_some());
    let halved = rope.is_some_and(|(pairing, _)| pairing == Pairing::Halves);
    let norm = rope.is_some_and(|(_, norm)| norm);
    base.flag("HALVED", halved).flag("NORM", norm).flag("QUERY", rope.is_some() && !norm)
}

/// The store of codes: of keys and values (`both`), or of one tensor.
pub fn codes(profile: Profile, both: bool) -> Variant {
    Variant::new("codes").set("LANES", profile.lanes(8, 32)).flag("BOTH", both)
}

/// Attention by (row, key head); `partial`: by split as well.
pub fn attention(profile: Profile, kv: KvFormat, group: usize, head_dim: usize, partial: bool) -> Variant {
    let (lanes, quads) = (profile.lanes(8, 64), head_dim / 4);
    if profile == (Profile::Cpu { broadcast: true }) {
        let base = Variant::new("attention_subgroup").cache(kv).set("GROUP", group).set("QUADS", quads);
        return base.set("ITEMS", quads.div_ceil(8)).flag("PARTIAL", partial);
    }
    // On a CPU one lane serves all heads of the group, so that a key or value is loaded once.
    let share = if profile.is_cpu() { group } else { 1 };
    Variant::new("attention")
        .set("LANES", lanes)
        .cache(kv)
        .set("GROUP", group)
        .set("QUADS", quads)
        .set("SHARE", share)
        .set("KSHARE", share)
        .set("ITEMS", (quads * group / share).div_ceil(lanes))
        .flag("PARTIAL", partial)
}

/// The fold of partial attention.
pub fn attention_combine(profile: Profile) -> Variant {
    Variant::new("attention_combine").set("LANES", profile.lanes(8, 32))
}

/// Sampling.
pub fn sample(profile: Profile) -> Variant {
    Variant::new("sample").set("LANES", profile.lanes(8, 128))
}

/// Kernels without variants: `copy`, `elementwise`, `gather`.
pub fn plain(stem: &'static str) -> Variant {
    Variant::new(stem)
}

/// Every variant of a profile, over the formats, groups and head widths of the families that exist.
pub fn all(profile: Profile) -> Vec<Variant> {
    let mut out: Vec<Variant> = ["copy", "elementwise", "gather"].map(plain).into();
    for format in Format::ALL {
        out.push(embed(format));
        for (capacity, ragged) in [(1, false), (2, false), (4, false), (8, false), (64, false), (1, true), (64, true)] {
            for bias in [false, true] {
                out.push(linear(profile, format, capacity, ragged, bias, RowSpace::Batch).variant);
            }
            for activation in [Activation::Silu, Activation::GeluTanh] {
                out.extend(gate_up(profile, format, capacity, ragged, activation).map(|k| k.variant));
            }
        }
        out.push(linear(profile, format, 1, false, false, RowSpace::Logits).variant);
    }
    out.extend([Activation::Silu, Activation::GeluTanh].map(gated_act));
    for quads in [false, true] {
        out.extend([NormInput::Apart, NormInput::InPlace, NormInput::Sum].map(|input| norm(profile, input, quads)));
    }
    for pairing in [Pairing::Interleaved, Pairing::Halves] {
        out.extend([false, true].map(|with| rope(profile, pairing, with)));
    }
    out.extend([false, true].map(|both| codes(profile, both)));
    for kv in KvFormat::ALL {
        if !kv.has_scales() {
            out.push(store(profile, kv, None));
            for pairing in [Pairing::Interleaved, Pairing::Halves] {
                out.extend([false, true].map(|with| store(profile, kv, Some((pairing, with)))));
            }
        }
        for (group, head_dim) in [(1, 64), (3, 64), (4, 128), (8, 128), (4, 256)] {
            out.extend([false, true].map(|partial| attention(profile, kv, group, head_dim, partial)));
        }
    }
    out.push(attention_combine(profile));
    out.push(sample(profile));
    out.sort();
    out.dedup();
    out
}
