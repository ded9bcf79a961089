//! Helpers of the tests that run across crates: tiny models made on the spot, the real ones where they
//! were fetched.

use std::path::{Path, PathBuf};

pub mod packed;
pub mod tiny_model;

/// Root of the sources.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace")
}

/// Where `tests/fetch-models.sh` puts real models.
fn models_folder() -> PathBuf {
    std::env::var_os("PONDER_MODELS").map_or_else(|| root().join(".models"), PathBuf::from)
}

/// A real model by its file name; if it is not there, `None`, and a line that says which test is skipped.
pub fn real_model(test: &str, file: &str) -> Option<PathBuf> {
    let path = models_folder().join(file);
    if path.is_file() {
        return Some(path);
    }
    println!("SKIP: {test}: {} is not there; tests/fetch-models.sh fetches it", path.display());
    None
}

/// SmolLM2-135M-Instruct in Q4_1, if it was fetched.
pub fn smollm2(test: &str) -> Option<PathBuf> {
    real_model(test, "smollm2-135m-instruct-q4_1.gguf")
}
