//! The oracle as a backend: every program interpreted in f64, one op after another, as the op files
//! say. Slow, and right by inspection; everything else is tested against it.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Backend, Bound, DeviceInfo, DeviceKind, cast_vec};
use crate::error::{DeviceFault, Error, Result};
use crate::format::KvFormat;
use crate::op::Op;
use crate::program::{Elem, KvCache, Program, Role, RowSpace, Slot, SlotDecl};

/// Values of one slot.
#[derive(Clone, Debug)]
pub enum Values {
    /// Activations, decoded weights, cached keys and values.
    F64(Vec<f64>),
    /// Ids and counts.
    U32(Vec<u32>),
    /// Slot mappings.
    I32(Vec<i32>),
}

/// What an op's reference sees: the declarations and values of all slots.
pub struct Env<'a> {
    program: &'a Program,
    values: &'a mut [Values],
}

impl<'a> Env<'a> {
    /// One value per slot of `program`.
    pub fn new(program: &'a Program, values: &'a mut [Values]) -> Self {
        assert_eq!(program.slots.len(), values.len());
        Self { program, values }
    }
    pub(crate) fn decl(&self, slot: Slot) -> &SlotDecl {
        self.program.decl(slot)
    }
    pub(crate) fn shape(&self, slot: Slot) -> &[usize] {
        &self.program.decl(slot).shape
    }
    pub(crate) fn kv_format(&self, cache: KvCache) -> KvFormat {
        self.program.kv_format(cache)
    }
    pub(crate) fn live(&self, space: RowSpace) -> usize {
        self.u32s(self.program.live)[space as usize] as usize
    }
    pub(crate) fn f64s(&self, slot: Slot) -> &[f64] {
        match &self.values[slot.0 as usize] {
            Values::F64(v) => v,
            _ => panic!("slot {} holds no numbers", self.decl(slot).name),
        }
    }
    pub(crate) fn f64s_mut(&mut self, slot: Slot) -> &mut [f64] {
        match &mut self.values[slot.0 as usize] {
            Values::F64(v) => v,
            _ => panic!("a slot written as numbers holds none"),
        }
    }
    pub(crate) fn u32s(&self, slot: Slot) -> &[u32] {
        match &self.values[slot.0 as usize] {
            Values::U32(v) => v,
            _ => panic!("slot {} holds no u32", self.decl(slot).name),
        }
    }
    pub(crate) fn u32s_mut(&mut self, slot: Slot) -> &mut [u32] {
        match &mut self.values[slot.0 as usize] {
            Values::U32(v) => v,
            _ => panic!("a slot written as u32 holds none"),
        }
    }
    pub(crate) fn i32s(&self, slot: Slot) -> &[i32] {
        match &self.values[slot.0 as usize] {
            Values::I32(v) => v,
            _ => panic!("slot {} holds no i32", self.decl(slot).name),
        }
    }
}

/// The oracle.
pub struct ReferenceBackend {
    info: DeviceInfo,
}

impl Default for ReferenceBackend {
    fn default() -> Self {
        let info = DeviceInfo {
            backend: "reference",
            name: "f64 interpreter".into(),
            kind: DeviceKind::Cpu,
            memory: None,
            row_buckets: vec![512],
            features: Vec::new(),
        };
        Self { info }
    }
}

/// A buffer of the oracle.
pub type Buffer = Rc<RefCell<Values>>;

/// A program with its buffers.
pub struct Plan {
    program: Program,
    buffers: Vec<Buffer>,
}

/// Fresh contents: NaN and absurd ids, so that reading what nobody wrote shows.
fn poisoned(decl: &SlotDecl) -> Values {
    match decl.elem {
        Elem::U32 => Values::U32(vec![0xDEAD_BEEF; decl.len()]),
        Elem::I32 => Values::I32(vec![i32::MIN; decl.len()]),
        _ => Values::F64(vec![f64::NAN; decl.len()]),
    }
}

impl Backend for ReferenceBackend {
    type Buffer = Buffer;
    type Plan = Plan;
    type Pending = ();

    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn supports(&self, _: &Op) -> bool {
        true
    }
    fn alloc(&mut self, decl: &SlotDecl) -> Result<Buffer> {
        Ok(Rc::new(RefCell::new(poisoned(decl))))
    }
    fn load(&mut self, decl: &SlotDecl, bytes: &[u8]) -> Result<Buffer> {
        let Elem::Weight(format) = decl.elem else { panic!("{} is no weight", decl.name) };
        let mut out = vec![0f32; decl.len()];
        format.decode(bytes, &mut out);
        Ok(Rc::new(RefCell::new(Values::F64(out.into_iter().map(f64::from).collect()))))
    }
    fn write(&mut self, buffer: &Buffer, bytes: &[u8]) -> Result<()> {
        match &mut *buffer.borrow_mut() {
            Values::F64(v) => {
                let floats: Vec<f32> = cast_vec(bytes);
                v.iter_mut().zip(floats).for_each(|(v, f)| *v = f as f64);
            }
            Values::U32(v) => bytemuck::cast_slice_mut(v)[..bytes.len()].copy_from_slice(bytes),
            Values::I32(v) => bytemuck::cast_slice_mut(v)[..bytes.len()].copy_from_slice(bytes),
        }
        Ok(())
    }
    fn read(&mut self, buffer: &Buffer, out: &mut [u8]) -> Result<()> {
        let floats: Vec<f32>;
        let borrowed = buffer.borrow();
        let bytes: &[u8] = match &*borrowed {
            Values::F64(v) => {
                floats = v.iter().take(out.len() / 4).map(|v| *v as f32).collect();
                bytemuck::cast_slice(&floats)
            }
            Values::U32(v) => bytemuck::cast_slice(v),
            Values::I32(v) => bytemuck::cast_slice(v),
        };
        out.copy_from_slice(&bytes[..out.len()]);
        Ok(())
    }
    fn block_bytes(&self, decl: &SlotDecl) -> usize {
        8 * decl.shape[1..].iter().product::<usize>()
    }
    fn save_blocks(&mut self, buffer: &Buffer, decl: &SlotDecl, blocks: &[u32], out: &mut [u8]) -> Result<()> {
        let bytes = self.block_bytes(decl);
        let Values::F64(values) = &*buffer.borrow() else { panic!("{} holds no numbers", decl.name) };
        for (block, out) in blocks.iter().zip(out.chunks_exact_mut(bytes)) {
            let values = &values[*block as usize * bytes / 8..][..bytes / 8];
            out.copy_from_slice(bytemuck::cast_slice(values));
        }
        Ok(())
    }
    fn load_blocks(&mut self, buffer: &Buffer, decl: &SlotDecl, blocks: &[u32], bytes: &[u8]) -> Result<()> {
        let size = self.block_bytes(decl);
        let Values::F64(values) = &mut *buffer.borrow_mut() else { panic!("{} holds no numbers", decl.name) };
        for (block, bytes) in blocks.iter().zip(bytes.chunks_exact(size)) {
            values[*block as usize * size / 8..][..size / 8].copy_from_slice(&cast_vec::<f64>(bytes));
        }
        Ok(())
    }
    fn compile(&mut self, program: &Program, bound: &Bound<Buffer>) -> Result<Plan> {
        let buffers = program
            .slots
            .iter()
            .map(|decl| match decl.role {
                Role::Scratch => self.alloc(decl),
                _ => bound.get(&decl.name).cloned().ok_or_else(|| Error::Device {
                    device: self.info.name.clone(),
                    what: DeviceFault::Rejected(format!("slot {:?} of {} is not bound", decl.name, program.name)),
                }),
            })
            .collect::<Result<_>>()?;
        Ok(Plan { program: program.clone(), buffers })
    }
    fn launch(&mut self, plan: &Plan) -> Result<()> {
        // Values move into one array for the interpreter and back afterwards.
        let empty = || Values::U32(Vec::new());
        let mut values: Vec<Values> = plan.buffers.iter().map(|b| b.replace(empty())).collect();
        for op in &plan.program.ops {
            op.reference(&mut Env::new(&plan.program, &mut values));
        }
        plan.buffers.iter().zip(values).for_each(|(b, v)| {
            b.replace(v);
        });
        Ok(())
    }
    fn wait(&mut self, (): ()) -> Result<()> {
        Ok(())
    }
}
