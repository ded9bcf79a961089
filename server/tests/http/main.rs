//! `ponder serve` as its clients see it: the real program over TCP.
mod client;
mod console;
mod fleet;
mod forms;
mod going_away;
mod operation;
mod refusals;
mod spans;
#[path = "../program/terminal.rs"]
mod terminal;
mod top;
mod wire;
