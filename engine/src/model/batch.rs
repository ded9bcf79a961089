//! The facts of one step, as the host states them: what the input slots of a program are filled from.

use std::sync::Arc;
use std::time::Duration;

use crate::kv::Copies;
use crate::op::{Adjust, SampleRow};

/// One token to process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Token id.
    pub token: u32,
    /// Position in its sequence, from 0.
    pub position: u32,
    /// Index into [`Batch::block_tables`].
    pub seq: u32,
}

/// One row whose logits are wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitRow {
    /// Index into [`Batch::rows`].
    pub row: u32,
    /// How to choose the next token.
    pub params: SampleRow,
    /// Penalties and biases, each token once.
    pub adjust: Vec<Adjust>,
    /// Tokens to choose from, a bit each; all of them if `None`. `params.mask` is the runner's to fill.
    pub mask: Option<Arc<[u32]>>,
}

/// A ragged batch: prefill chunks, single decodes and rows to verify, mixed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Tokens, those of a sequence in ascending positions.
    pub rows: Vec<Row>,
    /// Physical blocks of each sequence, in order of position.
    pub block_tables: Vec<Vec<u32>>,
    /// Rows to sample from.
    pub logit_rows: Vec<LogitRow>,
    /// Blocks that move first.
    pub copies: Copies,
    /// Whether the logits themselves are wanted too.
    pub want_logits: bool,
}

/// What a step made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchOutput {
    /// One id per logit row; [`crate::op::ERROR_TOKEN`] where the row's numbers are broken.
    pub tokens: Vec<u32>,
    /// `[logit_rows, vocab]` if wanted, else empty.
    pub logits: Vec<f32>,
    /// What the batch's copies took.
    pub copy_time: Duration,
}
