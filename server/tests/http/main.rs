//! `ponder serve` as its clients see it: the real program over TCP.
mod client;
mod going_away;
mod operation;
mod refusals;
mod wire;
