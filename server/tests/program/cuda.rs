//! `ponder cuda compile`, where NVRTC is at hand and where it is not.

use std::path::Path;

use super::common::{ponder, ponder_with};

#[test]
fn what_stops_the_compiler_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (out, nowhere) = (folder.path().join("out"), folder.path().join("nowhere"));
    let (out, nowhere) = (out.to_str().unwrap(), nowhere.to_str().unwrap());
    let unknown = ponder(&["cuda", "compile", "--arch", "80,sm_90", "--out", out]);
    unknown.refused("an architecture that is none", &["arch", "\"sm_90\"", "90a", "ptx"]);
    let absent = ponder_with(&["cuda", "compile", "--out", out], "", &[("PONDER_NVRTC", nowhere)]);
    absent.refused("no NVRTC", &["no NVRTC", "PONDER_NVRTC", nowhere]);
    ponder(&["cuda", "compile"]).refused("no folder", &["--out"]);
}

#[test]
fn kernels_are_compiled_and_reported() {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.models/nvrtc");
    let Some(nvrtc) = fetched.to_str().filter(|_| fetched.join("libnvrtc.so.13").exists()) else {
        return println!("SKIP: no NVRTC (run cuda/fetch-nvrtc.sh)");
    };
    let folder = tempfile::tempdir().unwrap();
    let variables = [("PONDER_NVRTC", nvrtc)];
    let file = folder.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let under_a_file = file.join("images");
    let compile = |arch: &str, out: &Path, json: &[&str]| {
        ponder_with(
            &[&["cuda", "compile", "--arch", arch, "--out", out.to_str().unwrap()], json].concat(),
            "",
            &variables,
        )
    };
    compile("ptx", &under_a_file, &[]).refused("a folder that cannot be", &["a file/images"]);
    compile("35", folder.path(), &[]).refused("too old for NVRTC", &["arch", "\"35\"", "compiles for", "90"]);
    // PTX alone: nothing is allocated yet, so it takes a few seconds and tells of no kernel.
    let images = folder.path().join("images");
    let report = compile("ptx", &images, &["--json"]).json();
    let count = report["modules"].as_u64().unwrap();
    assert!(count > 40 && report["kernels"].as_array().unwrap().is_empty(), "{report}");
    let ends = |with: &str| {
        let names = std::fs::read_dir(&images).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
        names.filter(|n| n.ends_with(with)).count() as u64
    };
    assert_eq!((ends(".ptx"), ends("report.json")), (count, 1));
    let again = compile("ptx,ptx", &images, &[]).stdout;
    assert!(again.contains(&format!("{count} modules by NVRTC")), "{again}");
}
