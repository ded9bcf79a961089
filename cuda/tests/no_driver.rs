//! Without a driver the backend says so and nothing panics.

use ponder_cuda::CudaBackend;
use ponder_engine::{DeviceFault, Error};

#[test]
fn what_is_missing_is_named() {
    match CudaBackend::new(0) {
        Ok(_) => println!("SKIP: there is a GPU"),
        Err(Error::Device { device, what: DeviceFault::Unsupported(words) }) => {
            assert_eq!(device, "cuda");
            println!("{words}");
            assert!(words.contains("libcuda.so") || words.contains("nvcuda.dll") || words.contains("GPU"), "{words}");
        }
        Err(error) => panic!("{error}"),
    }
}
