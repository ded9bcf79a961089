//! A loaded model on one backend: weights, cache, and a compiled plan per row bucket.

use std::time::{Duration, Instant};

use super::ModelConfig;
use super::batch::{Batch, BatchOutput, Row};
use super::mover::BlockMover;
use super::record::{Capacity, KvShape, names, record};
use super::rope::RopeRows;
use super::weights::WeightId;
use crate::backend::{Backend, Bound, DeviceInfo};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::kv::Copies;
use crate::op::lower::lower;
use crate::op::{Adjust, SampleRow};
use crate::program::{Program, Role, SlotDecl};

/// Sizes fixed when a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunnerOptions {
    /// Most token rows of one step.
    pub max_rows: usize,
    /// Most logit rows of one step.
    pub max_logit_rows: usize,
    /// Most sequences of one step.
    pub max_seqs: usize,
    /// Longest sequence, in tokens.
    pub max_model_len: usize,
    /// The cache.
    pub kv: KvShape,
}

/// Progress of a load, in bytes.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// A program for one row bucket, compiled on first use.
struct Bucket<B: Backend> {
    capacity: Capacity,
    plan: Option<B::Plan>,
}

/// Where inputs are put together, kept from step to step.
#[derive(Default)]
struct Inputs {
    words: Vec<u32>,
    slots: Vec<i32>,
    floats: Vec<f32>,
    params: Vec<SampleRow>,
    adjust: Vec<Adjust>,
}

/// A model ready to run batches.
pub struct ModelRunner<B: Backend> {
    backend: B,
    config: ModelConfig,
    options: RunnerOptions,
    formats: Vec<(WeightId, Format)>,
    buffers: Bound<B::Buffer>,
    buckets: Vec<Bucket<B>>,
    adjust_capacity: usize,
    rope: RopeRows,
    rope_local: Option<RopeRows>,
    mover: BlockMover<B>,
    inputs: Inputs,
    /// Time that the last step spent between launch and its end.
    pub last_device_time: Duration,
}

impl<B: Backend> ModelRunner<B> {
    /// Loads the weights and allocates the cache. `progress` gets (bytes done, bytes in all).
    pub fn load(backend: B, checkpoint: &Checkpoint, options: RunnerOptions, progress: Progress<'_>) -> Result<Self> {
        let config = checkpoint.config.clone();
        let formats = WeightId::required(&config)
            .map(|id| Ok((id, checkpoint.tensor(id)?.format)))
            .collect::<Result<Vec<_>>>()?;
        let rope_local = config.local.as_ref().map(|l| RopeRows::new(&l.rope));
        let mut runner = Self {
            rope: RopeRows::new(&config.rope),
            rope_local,
            buckets: buckets(backend.info(), &options),
            backend,
            config,
            options,
            formats,
            buffers: Bound::default(),
            adjust_capacity: 1024,
            mover: BlockMover::default(),
            inputs: Inputs::default(),
            last_device_time: Duration::ZERO,
        };
        runner.load_weights(checkpoint, progress)?;
        runner.allocate()?;
        Ok(runner)
    }

    /// The device underneath.
    pub fn device(&self) -> &DeviceInfo {
        self.backend.info()
    }
    /// The sizes it was loaded with.
    pub fn options(&self) -> &RunnerOptions {
        &self.options
    }
    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn program(&self, capacity: Capacity) -> Program {
        let format_of = |id: WeightId| self.formats.iter().find(|(i, _)| *i == id).map_or(Format::F32, |(_, f)| *f);
        record(&self.config, capacity, self.options.kv, &format_of)
    }

    fn load_weights(&mut self, checkpoint: &Checkpoint, progress: Progress<'_>) -> Result<()> {
        let program = self.program(self.buckets[0].capacity);
        let total: u64 = program.slots.iter().filter(|s| s.role == Role::Weight).map(|s| s.bytes() as u64).sum();
        let (mut done, mut mapped) = (0, 0);
        progress(done, total);
        for id in WeightId::required(&self.config) {
            let name = id.gguf_name();
            let Some(slot) = program.find(&name) else { continue };
            let decl = program.decl(slot);
            let view = checkpoint.tensor(id)?;
            let buffer = if view.rows == 1 {
                // Vectors are tiny: F32 whatever the file holds, with the model's own meaning.
                self.backend.load(decl, bytemuck::cast_slice(&view.to_f32()))?
            } else {
                self.backend.load(decl, &view.stored())?
            };
            self.buffers.insert(name, buffer);
            done += decl.bytes() as u64;
            // What was read is on the device now: the map need not stay in memory beside it.
            if done - mapped > 32 << 20 || done == total {
                checkpoint.forget_pages();
                mapped = done;
            }
            progress(done, total);
        }
        Ok(())
    }

    /// Inputs, outputs and the cache, sized for the largest bucket and shared by all.
    fn allocate(&mut self) -> Result<()> {
        let largest = Capacity { adjust: self.adjust_capacity, ..self.buckets[self.buckets.len() - 1].capacity };
        for decl in self.program(largest).slots {
            if matches!(decl.role, Role::Input | Role::Output | Role::Kv) {
                let buffer = self.backend.alloc(&decl)?;
                self.buffers.insert(decl.name.clone(), buffer);
                self.mover.know(decl);
            }
        }
        Ok(())
    }

    /// Compiles every bucket now instead of at its first use.
    pub fn warm_up(&mut self) -> Result<()> {
        (0..self.buckets.len()).try_for_each(|i| self.ensure_plan(i))
    }

    fn ensure_plan(&mut self, index: usize) -> Result<()> {
        if self.buckets[index].plan.is_none() {
            let capacity = Capacity { adjust: self.adjust_capacity, ..self.buckets[index].capacity };
            let program = lower(&self.program(capacity), |op| self.backend.supports(op));
            self.buckets[index].plan = Some(self.backend.compile(&program, &self.buffers)?);
        }
        Ok(())
    }

    /// Moves blocks of the cache, in the order of `copies`: every buffer that is indexed by blocks.
    ///
    /// # Errors
    /// Those of the device.
    pub fn move_blocks(&mut self, copies: &Copies) -> Result<()> {
        self.mover.run(&mut self.backend, &mut self.buffers, copies)
    }

    /// Runs one step, after what it copies, and waits for it.
    pub fn run(&mut self, batch: &Batch) -> Result<BatchOutput> {
        let start = Instant::now();
        self.move_blocks(&batch.copies)?;
        let copy_time = start.elapsed();
        if batch.rows.is_empty() {
            self.last_device_time = Duration::ZERO;
            return Ok(BatchOutput { copy_time, ..BatchOutput::default() });
        }
        Ok(BatchOutput { copy_time, ..self.compute(batch)? })
    }

    fn compute(&mut self, batch: &Batch) -> Result<BatchOutput> {
        let index = self.bucket_for(batch)?;
        self.grow_adjust(batch)?;
        self.ensure_plan(index)?;
        self.write_inputs(batch, index)?;
        let plan = self.buckets[index].plan.as_ref().expect("compiled above");
        let start = Instant::now();
        let pending = self.backend.launch(plan)?;
        self.backend.wait(pending)?;
        self.last_device_time = start.elapsed();
        self.read_outputs(batch)
    }

    fn bucket_for(&self, batch: &Batch) -> Result<usize> {
        let (rows, logits) = (batch.rows.len(), batch.logit_rows.len());
        let fits = |b: &Bucket<B>| b.capacity.rows >= rows && b.capacity.logit_rows >= logits;
        let seqs = batch.block_tables.len();
        match self.buckets.iter().position(fits) {
            Some(index) if seqs <= self.options.max_seqs => Ok(index),
            _ => Err(Error::invalid(
                "batch",
                format!("{rows} rows, {logits} logit rows, {seqs} sequences exceed the limits {:?}", self.options),
            )),
        }
    }

    /// A longer adjustment list than ever before: a larger buffer, and plans made anew.
    fn grow_adjust(&mut self, batch: &Batch) -> Result<()> {
        let wanted: usize = batch.logit_rows.iter().map(|r| r.adjust.len()).sum();
        if wanted > self.adjust_capacity {
            self.adjust_capacity = wanted.next_power_of_two();
            self.buckets.iter_mut().for_each(|b| b.plan = None);
            let capacity = Capacity { adjust: self.adjust_capacity, ..self.buckets[0].capacity };
            let program = self.program(capacity);
            let slot = program.find(names::SAMPLE_ADJUST).expect("every program samples");
            let buffer = self.backend.alloc(program.decl(slot))?;
            self.buffers.insert(names::SAMPLE_ADJUST.into(), buffer);
        }
        Ok(())
    }

    fn write<T: bytemuck::NoUninit>(&mut self, name: &str, values: &[T]) -> Result<()> {
        self.backend.write(&self.buffers[name], bytemuck::cast_slice(values))
    }

    /// Fills the input slots for the bucket `index`.
    fn write_inputs(&mut self, batch: &Batch, index: usize) -> Result<()> {
        let mut inputs = std::mem::take(&mut self.inputs);
        let written = self.write_each(batch, self.buckets[index].capacity.rows, &mut inputs);
        self.inputs = inputs;
        written
    }

    fn write_each(&mut self, batch: &Batch, rows: usize, inputs: &mut Inputs) -> Result<()> {
        let Inputs { words, floats, .. } = inputs;
        let mut column = |runner: &mut Self, name: &str, of: fn(&Row) -> u32| {
            words.clear();
            words.extend(batch.rows.iter().map(of));
            runner.write(name, words)
        };
        self.write(names::LIVE, &[batch.rows.len() as u32, batch.logit_rows.len() as u32])?;
        column(self, names::TOKENS, |r| r.token)?;
        column(self, names::ROW_SEQ, |r| r.seq)?;
        column(self, names::POSITIONS, |r| r.position)?;
        floats.resize(words.len() * self.rope.width(), 0.0);
        self.rope.fill(words, floats);
        self.write(names::ROPE, floats)?;
        if let Some(local) = &mut self.rope_local {
            floats.resize(words.len() * local.width(), 0.0);
            local.fill(words, floats);
            self.write(names::ROPE_LOCAL, floats)?;
        }
        self.write_block_tables(batch, rows, inputs)?;
        self.write_sampling(batch, inputs)
    }

    fn write_block_tables(
        &mut self,
        batch: &Batch,
        rows: usize,
        Inputs { words, slots, .. }: &mut Inputs,
    ) -> Result<()> {
        let block_size = self.options.kv.block_size;
        let width = self.options.max_model_len.div_ceil(block_size);
        words.clear();
        for (i, table) in batch.block_tables.iter().enumerate() {
            words.extend_from_slice(table);
            words.resize((i + 1) * width, 0);
        }
        self.write(names::BLOCK_TABLES, words)?;
        let slot = |r: &Row| {
            let (block, offset) = (r.position as usize / block_size, r.position as usize % block_size);
            (batch.block_tables[r.seq as usize][block] as usize * block_size + offset) as i32
        };
        slots.clear();
        slots.extend(batch.rows.iter().map(slot));
        // Padding rows of the bucket store nothing.
        slots.resize(rows, -1);
        self.write(names::SLOT_MAPPING, slots)
    }

    fn write_sampling(&mut self, batch: &Batch, inputs: &mut Inputs) -> Result<()> {
        let Inputs { words, params, adjust, .. } = inputs;
        let rows = &batch.logit_rows;
        words.clear();
        words.extend(rows.iter().map(|r| r.row));
        self.write(names::LOGIT_ROWS, words)?;
        words.clear();
        adjust.clear();
        params.clear();
        words.push(0);
        let mut masks = Vec::new();
        for row in rows {
            adjust.extend_from_slice(&row.adjust);
            words.push(adjust.len() as u32);
            masks.extend(row.mask.as_deref());
            params.push(SampleRow { mask: row.mask.as_ref().map_or(0, |_| masks.len() as u32), ..row.params });
        }
        let mask_words = self.config.vocab.div_ceil(32);
        assert!(masks.iter().all(|m| m.len() == mask_words), "a mask has a bit for every token");
        self.write(names::SAMPLE_PARAMS, params)?;
        if !masks.is_empty() {
            self.write(names::SAMPLE_MASKS, &masks.concat())?;
        }
        self.write(names::SAMPLE_OFFSETS, words)?;
        self.write(names::SAMPLE_ADJUST, adjust)
    }

    fn read_outputs(&mut self, batch: &Batch) -> Result<BatchOutput> {
        let n = batch.logit_rows.len();
        let mut out = BatchOutput { tokens: vec![0; n], logits: Vec::new(), ..BatchOutput::default() };
        if n > 0 {
            self.backend.read(&self.buffers[names::SAMPLED], bytemuck::cast_slice_mut(&mut out.tokens))?;
            if batch.want_logits {
                out.logits = vec![0.0; n * self.config.vocab];
                self.backend.read(&self.buffers[names::LOGITS], bytemuck::cast_slice_mut(&mut out.logits))?;
            }
        }
        Ok(out)
    }

    /// Runs one step of a program with scratch slots turned into outputs, and returns their live rows.
    /// For looking inside; nothing is cached.
    pub fn inspect(&mut self, batch: &Batch, taps: &[&str]) -> Result<Vec<(SlotDecl, Vec<f32>)>> {
        let index = self.bucket_for(batch)?;
        self.grow_adjust(batch)?;
        let capacity = Capacity { adjust: self.adjust_capacity, ..self.buckets[index].capacity };
        let mut program = lower(&self.program(capacity), |op| self.backend.supports(op));
        let mut bound = self.buffers.clone();
        let mut decls = Vec::new();
        for name in taps {
            let missing = || {
                let known: Vec<&str> = program_scratch(&program).collect();
                Error::invalid("tap", format!("no value {name:?}; there are: {}", known.join(", ")))
            };
            let slot = program.find(name).ok_or_else(missing)?;
            program.tap(name);
            let decl = program.decl(slot).clone();
            if !bound.contains_key(*name) {
                bound.insert(name.to_string(), self.backend.alloc(&decl)?);
            }
            decls.push(decl);
        }
        let plan = self.backend.compile(&program, &bound)?;
        self.write_inputs(batch, index)?;
        let pending = self.backend.launch(&plan)?;
        self.backend.wait(pending)?;
        decls
            .into_iter()
            .map(|decl| {
                let live = if decl.shape[0] == capacity.rows { batch.rows.len() } else { batch.logit_rows.len() };
                let mut values = vec![0f32; live * decl.shape[1..].iter().product::<usize>()];
                self.backend.read(&bound[&decl.name], bytemuck::cast_slice_mut(&mut values))?;
                Ok((decl, values))
            })
            .collect()
    }
}

fn program_scratch(program: &Program) -> impl Iterator<Item = &str> {
    program.slots.iter().filter(|s| s.role == Role::Scratch).map(|s| s.name.as_str())
}

/// The device's row buckets up to the largest step, ending exactly there.
fn buckets<B: Backend>(info: &DeviceInfo, options: &RunnerOptions) -> Vec<Bucket<B>> {
    let max_blocks = options.max_model_len.div_ceil(options.kv.block_size);
    let below = info.row_buckets.iter().copied().filter(|r| *r < options.max_rows && info.row_buckets.len() > 1);
    below
        .chain([options.max_rows])
        .map(|rows| {
            let logit_rows = rows.min(options.max_logit_rows);
            let capacity = Capacity { rows, logit_rows, seqs: options.max_seqs, max_blocks, adjust: 0 };
            Bucket { capacity, plan: None }
        })
        .collect()
}
