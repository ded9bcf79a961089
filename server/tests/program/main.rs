//! The program from outside: what scripts rely on, and what becomes of bad input.

mod bad_input;
mod chat;
mod cli;
mod common;
#[cfg(feature = "cuda")]
mod cuda;
mod terminal;
