//! Deterministic simulation: thousands of small worlds in which everything happens that may happen to an engine.
//!
//! A seed makes a [`Scenario`]: limits, a drafter, requests that come, are cancelled, want their answer now, break
//! the device or have no numbers. A [`World`] drives the scheduler, the block pool, the drafters and the
//! verification through the same sequence as the actors' step, under a virtual clock, with a device whose cache
//! bears [`witness`]. The laws in [`check`] hold after every step, and every answer is the one that
//! the request gets alone ([`oracle`]). A seed that breaks a law is made small and printed as a command.
//!
//! [`overload`] is another simulation with the same scheduler: what the policies are worth when too much comes.

pub mod check;
mod dice;
pub mod oracle;
pub mod overload;
pub mod scenario;
mod search;
pub mod witness;
mod world;

pub use check::{Failure, Law};
pub use dice::{Dice, mix};
pub use scenario::Scenario;
pub use search::{Found, kept, run, try_seed};
pub use world::{Meddle, Report, World};

#[cfg(test)]
mod tests;
