//! Builds problems: slots, their seeded contents, and what is expected of them.

use std::collections::HashMap;

use super::{Expected, Problem, noise};
use crate::format::Format;
use crate::program::{Elem, Program, Role, Slot};

/// Builds a problem around one or two programs.
pub(super) struct Maker {
    pub(super) seed: u64,
    pub(super) live: usize,
    pub(super) problem: Problem,
    pub(super) inputs: HashMap<String, Vec<u8>>,
}

impl Maker {
    pub(super) fn new(name: impl Into<String>, rows: usize, live: usize) -> Self {
        assert!(live <= rows);
        let program = Program::new("problem", rows, rows);
        let problem = Problem {
            name: name.into(),
            programs: vec![program],
            weights: HashMap::new(),
            launches: Vec::new(),
            outputs: Vec::new(),
        };
        let mut maker = Self { seed: 1, live, problem, inputs: HashMap::new() };
        maker.set("live", vec![live as u32, live as u32]);
        maker
    }
    pub(super) fn program(&mut self) -> &mut Program {
        self.problem.programs.last_mut().expect("a maker has a program")
    }
    pub(super) fn rows(&mut self) -> usize {
        self.program().rows
    }
    pub(super) fn set<T: bytemuck::NoUninit>(&mut self, name: &str, values: Vec<T>) {
        self.inputs.insert(name.into(), bytemuck::cast_slice(&values).to_vec());
    }
    pub(super) fn u32s(&mut self, name: &str, shape: &[usize], values: Vec<u32>) -> Slot {
        self.set(name, values);
        self.program().slot(name, Role::Input, Elem::U32, shape)
    }
    /// An f32 input `[rows, width]`; padding rows are NaN.
    pub(super) fn input(&mut self, name: &str, width: usize) -> Slot {
        let (seed, live, rows) = (self.seed, self.live, self.rows());
        let at = |i: usize| if i / width < live { noise(seed, name, i / width, i % width) } else { f32::NAN };
        self.set(name, (0..rows * width).map(at).collect());
        self.program().slot(name, Role::Input, Elem::F32, &[rows, width])
    }
    pub(super) fn weight(&mut self, name: &str, format: Format, shape: &[usize]) -> Slot {
        let k = *shape.last().expect("a weight has a shape");
        let mut bytes = Vec::new();
        for row in 0..shape.iter().product::<usize>() / k {
            let x: Vec<f32> = (0..k).map(|c| noise(self.seed, name, row, c) * (1.0 + row as f32 * 0.01)).collect();
            format.encode(&x, &mut bytes);
        }
        self.problem.weights.insert(name.into(), bytes);
        self.program().slot(name, Role::Weight, Elem::Weight(format), shape)
    }
    pub(super) fn output(&mut self, name: &str, width: usize, tolerance: f64) -> Slot {
        let rows = self.rows();
        let len = self.live * width;
        self.problem.outputs.push(Expected { slot: name.into(), len, width, tolerance: Some(tolerance) });
        self.program().slot(name, Role::Output, Elem::F32, &[rows, width])
    }
    /// Ends the present program and starts the next, which shares slots by name.
    pub(super) fn next_program(&mut self, rows: usize, live: usize) {
        let inputs = std::mem::take(&mut self.inputs);
        self.problem.launches.push((self.problem.programs.len() - 1, inputs));
        self.problem.programs.push(Program::new("problem", rows, rows));
        self.live = live;
        self.set("live", vec![live as u32, live as u32]);
    }
    pub(super) fn finish(mut self) -> Problem {
        self.problem.launches.push((self.problem.programs.len() - 1, self.inputs));
        self.problem
    }
}
