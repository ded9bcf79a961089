//! `docs/faults.md` and `docs/complaints.md` name tests; they are there.

use std::path::Path;

/// All Rust of a folder.
fn sources(folder: &Path, out: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder of ours") {
        let path = entry.expect("readable").path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            *out += &std::fs::read_to_string(&path).expect("UTF-8");
        }
    }
}

#[test]
fn every_test_that_the_lists_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut all = String::new();
    ["engine", "actors", "server", "shaders", "cuda", "tests"]
        .iter()
        .for_each(|krate| sources(&root.join(krate), &mut all));
    for page in ["docs/faults.md", "docs/complaints.md"] {
        let text = std::fs::read_to_string(root.join(page)).expect("it is there");
        // Names of tests are sentences; codes of errors and parameters are two words.
        let named = text.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 1);
        let tests: Vec<&str> = named.filter(|w| w.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).collect();
        assert!(tests.len() > 20, "vacuous: {tests:?}");
        for test in tests {
            assert!(all.contains(&format!("fn {test}()")), "{page}: no test {test}");
        }
    }
}
