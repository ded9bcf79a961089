//! The timing command runs to its end on the CPU, in tiny shapes: its times mean nothing there.

use ponder_cuda::EmulatedCuda;
use ponder_cuda::bench::{Scale, run};
use ponder_engine::{DeviceFault, Error};

#[test]
fn every_case_runs() {
    let mut backend = match EmulatedCuda::new(9) {
        Ok(backend) => backend,
        Err(Error::Device { what: DeviceFault::Unsupported(why), .. }) => return println!("SKIP: {why}"),
        Err(error) => panic!("{error}"),
    };
    let mut lines = 0;
    let table = run(&mut backend, Scale::Tiny, &mut |_| lines += 1).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(lines, table.rows.len());
    assert!(table.rows.len() >= 21 && table.skipped.is_empty(), "{} rows", table.rows.len());
    for stem in
        ["copy", "linear", "gated mlp", "attention", "latent attention", "add rms norm", "sample", "decode step"]
    {
        assert!(table.rows.iter().any(|r| r.case.starts_with(stem) && r.us > 0.0 && r.bytes > 0.0), "{stem}");
    }
    assert!(serde_json::to_string(&table).unwrap().contains("copy_gb_per_s"));
}
