//! Every example runs and says something. They are built as part of this test's package graph, so the
//! programs lie beside the test.

use std::path::PathBuf;
use std::process::Command;

use ponder_engine::format::Format;
use ponder_tests::tiny_model;

/// `target/release/examples`, next to the `deps` folder that this test runs from.
fn examples() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    me.parent().and_then(|deps| deps.parent()).unwrap().join("examples")
}

fn run(name: &str, model: &str) -> String {
    let program = examples().join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let missing = "build it first: cargo build --release -p ponder-examples --examples (cargo test --workspace does)";
    assert!(program.is_file(), "{} is not there; {missing}", program.display());
    let ran = Command::new(program).arg(model).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{name}: {err}");
    out.into_owned()
}

#[test]
fn every_example_runs() {
    let model = tiny_model::gguf(Format::Q8_0);
    assert!(run("embed", &model.arg()).contains(" tokens at "));
    assert!(run("stream", &model.arg()).contains(" tokens]"));
    assert_eq!(run("batch", &model.arg()).lines().filter(|l| l.contains(": ")).count(), 8);
    let inspect = run("inspect", &model.arg());
    assert!(inspect.contains("residual") && inspect.contains("next token: "), "{inspect}");
}
