//! Small programs that use Ponder: `cargo run --release -p ponder-examples --example NAME -- [MODEL]`.
//!
//! - `embed`: the shortest useful program;
//! - `stream`: thinking and answer apart, as they come;
//! - `batch`: many requests at once;
//! - `inspect`: intermediate values of a forward pass.
//!
//! Each takes the path of a model, or runs the bundled one.

use std::path::PathBuf;

/// The model named as the program's first argument, else the bundled one.
///
/// # Errors
/// If there is nothing at that path.
pub fn model() -> anyhow::Result<PathBuf> {
    let name = std::env::args().nth(1).unwrap_or_else(|| ponder::models::DEFAULT_MODEL.into());
    Ok(ponder::models::resolve(&name)?)
}
