//! The driver's codes as the engine's faults: each is mended differently.

use cudarc::driver::sys::CUresult;
use ponder_engine::error::{DeviceFault, Error, Result};

/// Turns a code into an error that says what was being done.
pub fn check(code: CUresult, doing: &str) -> Result<()> {
    match fault_of(code, doing) {
        None => Ok(()),
        Some(what) => Err(Error::Device { device: "cuda".into(), what }),
    }
}

/// As [`check`], for an allocation: `wanted` bytes for `what`.
pub fn check_memory(code: CUresult, wanted: usize, what: &str) -> Result<()> {
    if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        let what = DeviceFault::OutOfMemory { wanted: wanted as u64, what: what.into() };
        return Err(Error::Device { device: "cuda".into(), what });
    }
    check(code, &format!("allocating {wanted} bytes for {what}"))
}

fn fault_of(code: CUresult, doing: &str) -> Option<DeviceFault> {
    use CUresult::*;
    let words = format!("{doing}: {code:?}");
    Some(match code {
        CUDA_SUCCESS => return None,
        CUDA_ERROR_OUT_OF_MEMORY => DeviceFault::OutOfMemory { wanted: 0, what: doing.into() },
        // The context is of no more use, whatever is asked of it: make another and replay.
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_LAUNCH_TIMEOUT
        | CUDA_ERROR_ASSERT
        | CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUDA_ERROR_DEINITIALIZED
        | CUDA_ERROR_DEVICE_UNAVAILABLE
        | CUDA_ERROR_UNKNOWN => DeviceFault::Lost(words),
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION => DeviceFault::Unsupported(format!(
            "{words}: the driver is older than the compiler of this PTX; update it, or use an NVRTC of its CUDA version"
        )),
        CUDA_ERROR_NO_BINARY_FOR_GPU | CUDA_ERROR_INVALID_IMAGE => DeviceFault::Unsupported(format!(
            "{words}: the driver does not take this image; its CUDA major version must be NVRTC's"
        )),
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            DeviceFault::Unsupported(format!(
                "{words}: the driver's library and its kernel module are of different versions; restart the machine"
            ))
        }
        CUDA_ERROR_STUB_LIBRARY
        | CUDA_ERROR_NO_DEVICE
        | CUDA_ERROR_INVALID_DEVICE
        | CUDA_ERROR_INVALID_PTX
        | CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | CUDA_ERROR_NOT_SUPPORTED => DeviceFault::Unsupported(words),
        _ => DeviceFault::Rejected(words),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_kept_apart() {
        let fault = |code| fault_of(code, "launching decode");
        assert!(fault(CUresult::CUDA_SUCCESS).is_none());
        assert!(
            matches!(fault(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS), Some(DeviceFault::Lost(w)) if w.contains("decode"))
        );
        assert!(
            matches!(fault(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION), Some(DeviceFault::Unsupported(w)) if w.contains("older"))
        );
        assert!(matches!(fault(CUresult::CUDA_ERROR_INVALID_VALUE), Some(DeviceFault::Rejected(_))));
        let error = check_memory(CUresult::CUDA_ERROR_OUT_OF_MEMORY, 1 << 30, "k_cache").unwrap_err().to_string();
        assert!(error.contains("1073741824 bytes for k_cache"), "{error}");
    }
}
