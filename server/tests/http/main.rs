//! `ponder serve` as its clients see it: the real program over TCP.
mod client;
mod console;
mod forms;
mod going_away;
mod operation;
mod refusals;
mod wire;
