//! Where models lie: a path, or the name of one that ships with the project.

use std::path::{Path, PathBuf};

use ponder_engine::{Error, Result};

/// Names of the models that ship with the project, and their folders.
const BUNDLED: [(&str, &str); 2] = [("bundled", "target"), ("bundled-draft", "draft")];

/// The model that runs when none is named.
pub const DEFAULT_MODEL: &str = "bundled";

/// The folder of the bundled models: `$PONDER_MODELS_DIR`, else `models/` beside the program's sources,
/// else `models/` beside the program itself.
fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("PONDER_MODELS_DIR") {
        return folder.into();
    }
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("models");
    if sources.is_dir() {
        return sources;
    }
    let program = std::env::current_exe().ok();
    program.and_then(|p| Some(p.parent()?.join("models"))).filter(|p| p.is_dir()).unwrap_or(sources)
}

/// The path that `model` means: itself, unless it is the name of a bundled model.
///
/// # Errors
/// If it is such a name and the model is not there, or if there is nothing at the path.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let Some((_, name)) = BUNDLED.iter().find(|(n, _)| *n == model) else {
        let path = PathBuf::from(model);
        return match path.try_exists() {
            Ok(true) => Ok(path),
            Ok(false) => Err(Error::checkpoint(path, "model", "no such file or folder")),
            Err(e) => Err(Error::io(path, e)),
        };
    };
    let path = folder().join(name);
    if path.join("config.json").is_file() {
        return Ok(path);
    }
    let why = "the bundled model is not there; name another with --model PATH, or set PONDER_MODELS_DIR";
    Err(Error::checkpoint(path, "model", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_itself_and_a_missing_one_is_named() {
        assert_eq!(resolve("Cargo.toml").unwrap(), Path::new("Cargo.toml"));
        let error = resolve("no/such/model.gguf").unwrap_err().to_string();
        assert_eq!(error, "no/such/model.gguf: model: no such file or folder");
    }
}
