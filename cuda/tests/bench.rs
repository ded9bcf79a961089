//! The timing command runs to its end on the CPU, in tiny shapes: its times mean nothing there.

use ponder_cuda::EmulatedCuda;
use ponder_cuda::bench::peers::{Shape, lines, run_beside};
use ponder_cuda::bench::{Scale, Table, run};
use ponder_engine::{DeviceFault, Error};

fn table() -> Option<(usize, Table)> {
    let mut backend = match EmulatedCuda::new(9) {
        Ok(backend) => backend,
        Err(Error::Device { what: DeviceFault::Unsupported(why), .. }) => {
            println!("SKIP: {why}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let mut said = 0;
    let table = run(&mut backend, Scale::Tiny, &mut |_| said += 1).unwrap_or_else(|e| panic!("{e}"));
    Some((said, table))
}

#[test]
fn every_case_runs() {
    let Some((said, mut table)) = table() else { return };
    assert_eq!(said, table.rows.len() + 1, "a line for each case and the matrix rate");
    assert!(table.rows.len() >= 40 && table.skipped.is_empty(), "{} rows", table.rows.len());
    assert!(table.mma_tflop_per_s > 0.0);
    for stem in [
        "copy",
        "linear",
        "gated mlp",
        "attention",
        "latent attention",
        "add rms norm",
        "sample",
        "decode step, tiny, F8_E4M3, BF16 cache",
        "decode step, tiny, F8_E4M3, E2M5 cache",
        "prefill step",
    ] {
        assert!(table.rows.iter().any(|r| r.case.starts_with(stem) && r.us > 0.0 && r.bytes > 0.0), "{stem}");
    }
    assert!(table.rows.iter().all(|r| r.host_us.is_some() == r.case.contains(" step, ")));
    let linear = Shape::Linear { format: "F8_E4M3".into(), n: 48, k: 256, rows: 64 };
    assert!(table.rows.iter().any(|r| r.shape.as_ref() == Some(&linear)));
    assert!(serde_json::to_string(&table).unwrap().contains("copy_gb_per_s"));
    others_run_beside(&mut table);
}

/// A Python without PyTorch, none at all, and one that answers.
fn others_run_beside(table: &mut Table) {
    run_beside(table, "no-such-python");
    assert!(table.beside.contains("no-such-python does not start"), "{}", table.beside);
    run_beside(table, "python3");
    println!("{}", lines(table).join("\n"));
    assert!(!table.beside.contains("ended with"), "the script itself is broken: {}", table.beside);
    if !cfg!(unix) {
        return;
    }
    let shapes = table.rows.iter().filter(|r| r.shape.is_some()).count();
    let times = vec![r#"[{"by": "it", "us": 2.5}, {"by": "that", "why": "it cannot"}]"#; shapes].join(",");
    let answer = format!(r#"{{"why": null, "versions": {{"it": "1"}}, "times": [{times}]}}"#);
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-that-answers");
    std::fs::write(&path, format!("#!/bin/sh\ncat > /dev/null\necho '{answer}'\n")).unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    run_beside(table, path.to_str().unwrap());
    let said = lines(table);
    assert_eq!(said.len(), 1 + 2 * shapes, "{said:?}");
    assert!(said[1].contains("it:        2.5 us") && said[2].contains("that: none: it cannot"), "{said:?}");
}
