//! Programs compiled for the CPU: each op becomes a step that holds the addresses of its operands.
//!
//! A step is run by all threads at once; it cuts its work into phases ([`Worker::phase`]). Facts of a
//! launch come from the input buffers, the number of live rows from `live`.

use std::rc::Rc;

use super::activation::TILE;
use super::attention::Extent;
use super::memory::{Buffer, Contents, Memory, Ptr};
use super::panel::Panels;
use super::pool::Worker;
use super::simd::Level;
use super::tile::{Form, max_tile, tile_kernel};
use super::{attention, elementwise, embed, kv, linear, mlp, norm, rope, sample};
use crate::backend::Bound;
use crate::error::{DeviceFault, Error, Result};
use crate::op::{Op, StepShape};
use crate::program::{Elem, Program, Role, RowSpace, Slot};

/// One op, ready to run.
pub trait Step: Send + Sync {
    /// Runs it; called by every thread of a launch, in lockstep.
    fn run(&self, w: &Worker<'_>, live: &Live);
}

/// Live rows of a launch.
#[derive(Clone, Copy, Debug)]
pub struct Live(pub [usize; 2]);

impl Live {
    /// Rows of a space.
    pub fn rows(&self, space: RowSpace) -> usize {
        self.0[space as usize]
    }
}

/// Operations that are worth a thread: it does them in about the time that two need to meet in all phases of a small
/// model's step.
const OPERATIONS_PER_THREAD: f64 = 1e6;

/// A compiled program.
pub struct Plan {
    pub(super) name: String,
    pub(super) steps: Vec<Box<dyn Step>>,
    /// The op of each step.
    pub(super) ops: Vec<&'static str>,
    pub(super) live: Ptr<u32>,
    pub(super) capacity: [usize; 2],
    /// Operations for a row of each space.
    operations: [f64; 2],
    /// What the steps point into.
    _buffers: Vec<Buffer>,
    _scratch: Vec<Memory>,
}

impl Plan {
    /// Live rows, as the `live` input says now.
    pub(super) fn live_rows(&self) -> Live {
        // SAFETY: `live` is an input of two u32, and no launch is running.
        let live = unsafe { self.live.slice(0, 2) };
        let live = Live([0, 1].map(|i| live[i] as usize));
        assert!((0..2).all(|i| live.0[i] <= self.capacity[i]), "{live:?} rows in a plan for {:?}", self.capacity);
        live
    }
    /// How many of `most` threads run this launch: all but where it has so little to do that meeting takes longer.
    pub(super) fn threads(&self, live: &Live, most: usize) -> usize {
        let operations: f64 = live.0.iter().zip(self.operations).map(|(rows, each)| *rows as f64 * each).sum();
        // A program without any moves memory.
        if self.operations == [0.0; 2] { most } else { ((operations / OPERATIONS_PER_THREAD) as usize).clamp(1, most) }
    }
}

/// Where steps find their operands while they are built.
pub struct Builder<'a> {
    /// The program.
    pub program: &'a Program,
    /// Instructions to use.
    pub level: Level,
    buffers: Vec<Buffer>,
    scratch: Vec<Memory>,
    /// Prepared activations; one area for each form, for the widest.
    prepared: [Ptr<u8>; FORMS],
    /// Working memory of each thread.
    private: Ptr<u8>,
    private_bytes: usize,
    attention: Ptr<f32>,
}

impl Builder<'_> {
    /// A shape.
    pub fn shape(&self, slot: Slot) -> &[usize] {
        &self.program.decl(slot).shape
    }
    /// Elements of a row.
    pub fn width(&self, slot: Slot) -> usize {
        self.shape(slot)[1..].iter().product()
    }
    /// Address of a slot's first element.
    pub fn ptr<T>(&self, slot: Slot) -> Ptr<T> {
        Ptr(self.buffers[slot.0 as usize].0.memory.start().cast())
    }
    /// Layout of a weight matrix.
    pub fn panels(&self, slot: Slot) -> Panels {
        self.buffers[slot.0 as usize].0.panels.expect("a matrix operand was loaded as a weight matrix")
    }
    /// Scratch for activations in each form.
    pub fn prepared(&self) -> [Ptr<u8>; FORMS] {
        self.prepared
    }
    /// Working memory: `bytes` per thread, shared by all steps.
    pub fn private(&self) -> (Ptr<u8>, usize) {
        (self.private, self.private_bytes)
    }
    /// Partial results of attention.
    pub fn partials(&self) -> Ptr<f32> {
        self.attention
    }
}

/// Forms of activations.
const FORMS: usize = Form::ALL.len();

/// Bytes of scratch that an op wants.
#[derive(Clone, Copy, Default)]
struct Scratch {
    /// Activations in each form.
    prepared: [usize; FORMS],
    /// Of each thread.
    private: usize,
    /// Partial results of attention.
    partials: usize,
}

impl Scratch {
    fn of(program: &Program, op: &Op, level: Level) -> Self {
        let products: Vec<(Slot, usize)> = match op {
            Op::Linear(o) => vec![(o.w, program.capacity(o.space))],
            Op::QkvRopeStore(o) => [o.wq, o.wk, o.wv].map(|w| (w, program.rows)).to_vec(),
            Op::GatedMlp(o) => [o.gate, o.up, o.down].map(|w| (w, program.rows)).to_vec(),
            Op::Attention(o) => {
                let (private, partials) = Extent::of(program, o).scratch();
                return Self { private, partials, ..Self::default() };
            }
            Op::LatentAttention(o) => {
                let (private, partials) = Extent::of_latents(program, o).scratch();
                return Self { private, partials, ..Self::default() };
            }
            _ => Vec::new(),
        };
        let mut scratch = Self::default();
        for (w, rows) in products {
            let decl = program.decl(w);
            let Elem::Weight(format) = decl.elem else { continue };
            for tile in 1..=rows.min(max_tile(level)).min(TILE) {
                let form = tile_kernel(level, format, tile).form;
                let bytes = &mut scratch.prepared[form as usize];
                *bytes = form.bytes(decl.shape[1], rows).max(*bytes);
            }
        }
        scratch
    }
    /// What serves both.
    fn max(self, other: Self) -> Self {
        Self {
            prepared: std::array::from_fn(|i| self.prepared[i].max(other.prepared[i])),
            private: self.private.max(other.private),
            partials: self.partials.max(other.partials),
        }
    }
}

/// Compiles `program` for buffers found by name; scratch is the plan's own.
pub fn compile(program: &Program, bound: &Bound<Buffer>, level: Level, threads: usize) -> Result<Plan> {
    let reject = |what: String| Error::Device { device: "cpu".into(), what: DeviceFault::Rejected(what) };
    let mut buffers = Vec::new();
    for decl in &program.slots {
        buffers.push(match decl.role {
            Role::Scratch => {
                let memory = Memory::new(decl.bytes(), &decl.name)?;
                Buffer(Rc::new(Contents { memory, decl: decl.clone(), panels: None }))
            }
            _ => {
                let found = bound.get(&decl.name);
                let missing = || reject(format!("slot {:?} of {} is not bound", decl.name, program.name));
                let buffer = found.cloned().ok_or_else(missing)?;
                if buffer.0.decl.elem != decl.elem || buffer.0.decl.len() < decl.len() {
                    let have = &buffer.0.decl;
                    return Err(reject(format!(
                        "slot {:?} of {} is {decl:?}, bound to {have:?}",
                        decl.name, program.name
                    )));
                }
                buffer
            }
        });
    }
    let wanted = program.ops.iter().map(|op| Scratch::of(program, op, level)).fold(Scratch::default(), Scratch::max);
    let private_bytes = wanted.private.next_multiple_of(128);
    let sizes = wanted.prepared.into_iter().chain([private_bytes * threads, wanted.partials]);
    let scratch: Vec<Memory> = sizes.map(|bytes| Memory::new(bytes, "scratch")).collect::<Result<_>>()?;
    let start = |i: usize| scratch[i].start();
    let mut builder = Builder {
        program,
        level,
        prepared: std::array::from_fn(|form| Ptr(start(form))),
        private: Ptr(start(FORMS)),
        private_bytes,
        attention: Ptr(start(FORMS + 1).cast()),
        buffers,
        scratch: Vec::new(),
    };
    let (mut steps, mut ops) = (Vec::new(), Vec::new());
    for op in &program.ops {
        steps.extend(build(&builder, op));
        ops.resize(steps.len(), op.name());
    }
    builder.scratch = scratch;
    Ok(Plan {
        name: program.name.clone(),
        steps,
        ops,
        live: builder.ptr(program.live),
        capacity: [program.rows, program.logit_rows],
        operations: [(1, 0), (0, 1)].map(|(rows, logit_rows)| {
            let row = StepShape { rows, logit_rows, context: 0 };
            program.ops.iter().map(|op| op.cost(program, &row).flops).sum()
        }),
        _buffers: builder.buffers,
        _scratch: builder.scratch,
    })
}

/// The steps of one op.
fn build(b: &Builder<'_>, op: &Op) -> Vec<Box<dyn Step>> {
    match op {
        Op::Embed(o) => vec![Box::new(embed::Embed::new(b, o))],
        Op::AddRmsNorm(o) => vec![Box::new(norm::Norm::add(b, o))],
        Op::RmsNorm(o) => vec![Box::new(norm::Norm::plain(b, o))],
        Op::QkvRopeStore(o) => vec![
            Box::new(linear::Linear::new(b, RowSpace::Batch, o.x, &rope::projections(o))),
            Box::new(rope::Heads::qkv(b, o)),
        ],
        Op::Attention(o) => vec![Box::new(attention::Attention::new(b, o))],
        Op::LatentStore(o) => vec![Box::new(kv::Store::of_latents(b, o))],
        Op::LatentAttention(o) => vec![Box::new(attention::Attention::of_latents(b, o))],
        Op::Linear(o) => vec![Box::new(linear::Linear::new(b, o.space, o.x, &[(o.w, o.bias, o.out)]))],
        Op::GatedMlp(o) => vec![
            Box::new(mlp::GateUp::new(b, o)),
            Box::new(linear::Linear::new(b, RowSpace::Batch, o.gated, &[(o.down, None, o.out)])),
        ],
        Op::GatherRows(o) => vec![Box::new(elementwise::Gather::new(b, o))],
        Op::Sample(o) => vec![Box::new(sample::Sample::new(b, o))],
        Op::CopyBlocks(o) => vec![Box::new(kv::CopyBlocks::new(b, o))],
        Op::Add(o) => vec![Box::new(elementwise::Add::new(b, o))],
        Op::ApplyRope(o) => vec![Box::new(rope::Heads::rope(b, o))],
        Op::KvStore(o) => vec![Box::new(kv::Store::new(b, o))],
        Op::GatedAct(o) => vec![Box::new(mlp::Act::new(b, o))],
    }
}
