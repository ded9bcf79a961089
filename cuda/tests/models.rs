//! The comparison of real models with the CPU backend, rehearsed with the bundled pair on the executed kernels.

use std::path::Path;

use ponder_cuda::EmulatedCuda;
use ponder_cuda::models::{TINY, check};
use ponder_engine::{DeviceFault, Error};

#[test]
fn the_bundled_pair_says_what_it_says_on_the_cpu() {
    for name in ["target", "draft"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name);
        let report = match check(|| EmulatedCuda::new(1), &path, TINY) {
            Ok(report) => report,
            Err(Error::Device { what: DeviceFault::Unsupported(why), .. }) => return println!("SKIP: {why}"),
            Err(error) => panic!("{error}"),
        };
        println!("{}", report.text());
        assert!(report.passes(true), "{}", report.text());
        assert_eq!((report.prompts, report.equal, &report.batches[..]), (4, 4, &[3, 4][..]));
        assert!(report.distance > 0.0 && report.distance < 1e-2, "two backends, one model: {}", report.distance);
        // What a difference would look like.
        let mut broken = report.clone();
        broken.equal = 3;
        assert!(!broken.passes(true) && !broken.passes(false));
    }
}
