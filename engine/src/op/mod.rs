//! The ops of a transformer's forward pass. Each file holds one op's operands, its cost, and its
//! meaning: a reference in f64 that is the oracle for every backend.
//!
//! The upper half of [`Op`] is what models record; the lower half is what [`lower`] expands it
//! into for backends that lack a fused kernel.

mod attention;
mod elementwise;
mod embed;
mod latent;
mod linear;
pub mod lower;
mod mlp;
mod norm;
pub mod problem;
mod qkv;
mod rope;
mod sample;

pub use attention::{Attention, KvStore};
pub use elementwise::{Add, CopyBlocks, GatherRows};
pub use embed::Embed;
pub use latent::{LatentAttention, LatentStore};
pub use linear::Linear;
pub use mlp::{GatedAct, GatedMlp};
pub use norm::{AddRmsNorm, RmsNorm};
pub use qkv::QkvRopeStore;
pub use rope::ApplyRope;
pub use sample::{Adjust, ERROR_TOKEN, SEEN, Sample, SampleRow, gumbel, threefry2x32};

use crate::backend::reference::Env;
use crate::program::{Program, Slot};

/// Bytes moved and operations done by one op: the limit that a kernel is measured against.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Bytes read or written in device memory, each once.
    pub bytes: f64,
    /// Floating-point operations; a fused multiply-add counts two.
    pub flops: f64,
}

/// What a step looks like, for [`Op::cost`].
#[derive(Clone, Copy, Debug)]
pub struct StepShape {
    /// Live token rows.
    pub rows: usize,
    /// Live logit rows.
    pub logit_rows: usize,
    /// Mean tokens that a row attends to.
    pub context: usize,
}

macro_rules! ops {
    ($($name:ident),*) => {
        /// One op of a program.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)] // each variant is documented on its payload
        pub enum Op { $($name($name)),* }
        $(impl From<$name> for Op { fn from(op: $name) -> Op { Op::$name(op) } })*
        impl Op {
            /// The op's name, also the stem of its files in every language.
            pub fn name(&self) -> &'static str { match self { $(Op::$name(_) => stringify!($name)),* } }
            /// Runs the op's meaning on f64 values.
            pub fn reference(&self, env: &mut Env<'_>) { match self { $(Op::$name(op) => op.reference(env)),* } }
            /// Bytes and operations of this op in a step.
            pub fn cost(&self, program: &Program, step: &StepShape) -> Cost { match self { $(Op::$name(op) => op.cost(program, step)),* } }
            /// Whether [`lower`] can expand it.
            pub fn is_fused(&self) -> bool { matches!(self, Op::AddRmsNorm(_) | Op::QkvRopeStore(_) | Op::GatedMlp(_)) }
            /// Slots read.
            pub fn reads(&self) -> Vec<Slot> { match self { $(Op::$name(op) => op.reads()),* } }
            /// Slots written.
            pub fn writes(&self) -> Vec<Slot> { match self { $(Op::$name(op) => op.writes()),* } }
        }
    };
}

ops!(
    Embed,
    AddRmsNorm,
    RmsNorm,
    QkvRopeStore,
    Attention,
    LatentStore,
    LatentAttention,
    Linear,
    GatedMlp,
    GatherRows,
    Sample,
    CopyBlocks, // recorded
    Add,
    ApplyRope,
    KvStore,
    GatedAct // lowered
);
