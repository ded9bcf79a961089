//! Moves blocks of the cache: within the device, to host memory and back.
//!
//! What moves is a property of the declarations: every [`Role::Kv`] slot, whose first dimension is the blocks.

use crate::backend::{Backend, Bound};
use crate::error::Result;
use crate::kv::Copies;
use crate::op::CopyBlocks;
use crate::program::{Elem, Program, Role, SlotDecl};

/// Pairs of one launch.
const PAIRS: usize = 64;
const PAIRS_NAME: &str = "copy.pairs";

/// The slots that are indexed by blocks, and blocks of theirs in host memory.
pub struct BlockMover<B: Backend> {
    slots: Vec<SlotDecl>,
    /// By place: the block's bytes in every slot, one after the other.
    host: Vec<Box<[u8]>>,
    copy: Option<B::Plan>,
}

impl<B: Backend> Default for BlockMover<B> {
    fn default() -> Self {
        Self { slots: Vec::new(), host: Vec::new(), copy: None }
    }
}

impl<B: Backend> BlockMover<B> {
    /// Takes note of a slot, if blocks index it.
    pub fn know(&mut self, decl: SlotDecl) {
        if decl.role == Role::Kv {
            self.slots.push(decl);
        }
    }

    /// Saves, loads, and copies.
    pub fn run(&mut self, backend: &mut B, buffers: &mut Bound<B::Buffer>, copies: &Copies) -> Result<()> {
        if !copies.save.is_empty() {
            self.save(backend, buffers, &copies.save)?;
        }
        if !copies.load.is_empty() {
            self.load(backend, buffers, &copies.load)?;
        }
        for pairs in copies.copy.chunks(PAIRS) {
            self.copy(backend, buffers, pairs)?;
        }
        Ok(())
    }

    fn save(&mut self, backend: &mut B, buffers: &Bound<B::Buffer>, list: &[(u32, u32)]) -> Result<()> {
        let blocks: Vec<u32> = list.iter().map(|(block, _)| *block).collect();
        let all: usize = self.slots.iter().map(|s| backend.block_bytes(s)).sum();
        for (_, place) in list {
            let place = *place as usize;
            self.host.resize_with(self.host.len().max(place + 1), Default::default);
            if self.host[place].is_empty() {
                self.host[place] = vec![0; all].into();
            }
        }
        let mut at = 0;
        for slot in &self.slots {
            let bytes = backend.block_bytes(slot);
            let mut saved = vec![0; blocks.len() * bytes];
            backend.save_blocks(&buffers[&slot.name], slot, &blocks, &mut saved)?;
            for ((_, place), saved) in list.iter().zip(saved.chunks_exact(bytes)) {
                self.host[*place as usize][at..at + bytes].copy_from_slice(saved);
            }
            at += bytes;
        }
        Ok(())
    }

    fn load(&mut self, backend: &mut B, buffers: &Bound<B::Buffer>, list: &[(u32, u32)]) -> Result<()> {
        let blocks: Vec<u32> = list.iter().map(|(_, block)| *block).collect();
        let mut at = 0;
        for slot in &self.slots {
            let bytes = backend.block_bytes(slot);
            let saved = list.iter().flat_map(|(place, _)| &self.host[*place as usize][at..at + bytes]);
            let saved: Vec<u8> = saved.copied().collect();
            backend.load_blocks(&buffers[&slot.name], slot, &blocks, &saved)?;
            at += bytes;
        }
        Ok(())
    }

    /// Copies blocks within the device, in a launch of its own.
    fn copy(&mut self, backend: &mut B, buffers: &mut Bound<B::Buffer>, pairs: &[(u32, u32)]) -> Result<()> {
        let mut program = Program::new("copy blocks", PAIRS, 0);
        let input = program.slot(PAIRS_NAME, Role::Input, Elem::U32, &[PAIRS, 2]);
        let live = program.decl(program.live).name.clone();
        if self.copy.is_none() {
            buffers.insert(PAIRS_NAME.into(), backend.alloc(program.decl(input))?);
            for slot in &self.slots {
                let cache = program.slot(slot.name.clone(), Role::Kv, slot.elem, &slot.shape);
                program.push(CopyBlocks { pairs: input, cache });
            }
            self.copy = Some(backend.compile(&program, buffers)?);
        }
        let flat: Vec<u32> = pairs.iter().flat_map(|(from, to)| [*from, *to]).collect();
        backend.write(&buffers[PAIRS_NAME], bytemuck::cast_slice(&flat))?;
        backend.write(&buffers[&live], bytemuck::cast_slice(&[pairs.len() as u32, 0]))?;
        let pending = backend.launch(self.copy.as_ref().expect("compiled above"))?;
        backend.wait(pending)
    }
}
