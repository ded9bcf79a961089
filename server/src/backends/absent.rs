//! In the place of a backend that this program was built without.

use ponder_engine::backend::DeviceInfo;
use ponder_engine::{DeviceFault, Error, Result};

use super::WithBackend;

/// No device.
pub fn list() -> Vec<DeviceInfo> {
    Vec::new()
}

/// No.
pub fn is_there() -> bool {
    false
}

/// Always an error.
pub fn open<V: WithBackend>(_: Option<&str>, _: V) -> Result<V::Out> {
    let why = "this program was built without that backend; build it with the features `wgpu` and `cuda`";
    Err(Error::Device { device: "backend".into(), what: DeviceFault::Unsupported(why.into()) })
}
