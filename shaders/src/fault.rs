//! Errors of the driver as the engine's faults: nothing panics, and the first thing that went wrong is what
//! the caller hears.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use ponder_engine::error::DeviceFault;

/// The first fault that the driver reported outside an error scope.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<Option<DeviceFault>>>);

impl Faults {
    /// Watches a device.
    pub fn watch(device: &wgpu::Device) -> Self {
        let faults = Self::default();
        let lost = faults.clone();
        device.set_device_lost_callback(move |_, message| lost.report(DeviceFault::Lost(message)));
        let uncaptured = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error| uncaptured.report(fault(error, 0, "the driver"))));
        faults
    }
    /// Keeps the first.
    pub fn report(&self, fault: DeviceFault) {
        tracing::warn!(%fault, "wgpu");
        let mut first = self.0.lock().unwrap_or_else(|p| p.into_inner());
        first.get_or_insert(fault);
    }
    /// What was reported since the last look. A lost device stays lost.
    pub fn take(&self) -> Result<(), DeviceFault> {
        let mut first = self.0.lock().unwrap_or_else(|p| p.into_inner());
        match &*first {
            None => Ok(()),
            Some(lost @ DeviceFault::Lost(_)) => Err(lost.clone()),
            Some(_) => Err(first.take().expect("just seen")),
        }
    }
}

/// wgpu's error as ours; `wanted` bytes for `what`, if memory ran out.
pub(crate) fn fault(error: wgpu::Error, wanted: u64, what: &str) -> DeviceFault {
    match error {
        wgpu::Error::OutOfMemory { .. } => DeviceFault::OutOfMemory { wanted, what: what.to_owned() },
        wgpu::Error::Validation { description, .. } => DeviceFault::Rejected(description),
        wgpu::Error::Internal { description, .. } => DeviceFault::Lost(description),
    }
}

/// Runs `make` with memory and validation errors caught.
pub(crate) fn guarded<T>(
    device: &wgpu::Device,
    wanted: u64,
    what: &str,
    make: impl FnOnce() -> T,
) -> Result<T, DeviceFault> {
    let filters = [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal];
    let scopes = filters.map(|filter| device.push_error_scope(filter));
    let made = make();
    let errors: Vec<_> = scopes.into_iter().rev().filter_map(|scope| ready(scope.pop())).collect();
    match errors.into_iter().next() {
        None => Ok(made),
        Some(error) => Err(fault(error, wanted, what)),
    }
}

/// The value of a future that native wgpu answers at once.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::yield_now();
    }
}
