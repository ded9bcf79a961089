//! A dispatch list on the driver: captured once into a graph, launched as one call; as a list of
//! launches where capturing is refused.

use std::ffi::c_void;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::rc::Rc;

use cudarc::driver::sys::{
    self, CUfunction, CUgraphExec, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchConfig, CUstreamCaptureMode,
};
use ponder_engine::error::Result;

use super::fault::check;
use super::{Context, Stream};
use crate::device::Dispatch;

/// A dispatch with its kernel found.
pub struct Prepared {
    pub function: CUfunction,
    pub dispatch: Dispatch,
}

/// A launchable program.
pub struct Work {
    name: Rc<str>,
    list: Vec<Prepared>,
    graph: Option<CUgraphExec>,
    _context: Rc<Context>,
}

impl Work {
    /// Captures `list` on `stream`, where nothing is under way that could not be.
    pub(super) fn capture(
        name: &str,
        list: Vec<Prepared>,
        stream: &Stream,
        dependent: bool,
        context: Rc<Context>,
    ) -> Self {
        let mut work = Self { name: name.into(), list, graph: None, _context: context };
        match work.try_capture(stream, dependent) {
            Ok(graph) => work.graph = graph,
            Err(error) => tracing::warn!("{name}: no graph, launched as a list: {error}"),
        }
        work
    }

    fn try_capture(&self, stream: &Stream, dependent: bool) -> Result<Option<CUgraphExec>> {
        if self.list.is_empty() {
            return Ok(None);
        }
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let (mut graph, mut executable) = (null_mut(), null_mut());
        // SAFETY: the stream is this thread's; the capture is ended whatever the launches say.
        unsafe {
            check(sys::cuStreamBeginCapture_v2(stream.0, mode), "beginning a capture")?;
            let launched = self.list.iter().try_for_each(|p| p.launch(stream, dependent));
            let ended = check(sys::cuStreamEndCapture(stream.0, &mut graph), "ending a capture");
            let made = launched
                .and(ended)
                .and_then(|()| check(sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0), "making a graph"));
            if !graph.is_null() {
                let _ = sys::cuGraphDestroy(graph); // the executable graph is a copy
            }
            made.map(|()| Some(executable))
        }
    }

    /// Puts the work on the stream.
    pub(super) fn enqueue(&self, stream: &Stream, dependent: bool) -> Result<()> {
        match self.graph {
            // SAFETY: the graph and everything it names live as long as the plan.
            Some(graph) => check(unsafe { sys::cuGraphLaunch(graph, stream.0) }, &self.name),
            None => self.list.iter().try_for_each(|p| p.launch(stream, dependent)),
        }
    }
    pub(super) fn name(&self) -> &str {
        &self.name
    }
    pub(super) fn shared_name(&self) -> Rc<str> {
        self.name.clone()
    }
    /// Whether it is a graph.
    pub fn is_graph(&self) -> bool {
        self.graph.is_some()
    }
    /// Number of kernels.
    pub fn kernels(&self) -> usize {
        self.list.len()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(graph) = self.graph {
            // SAFETY: made in `try_capture`, destroyed once; the driver lets a running launch end.
            let _ = unsafe { sys::cuGraphExecDestroy(graph) };
        }
    }
}

impl Prepared {
    /// `dependent`: may begin before the kernel before it has ended (programmatic dependent launch; every
    /// kernel waits by itself before it reads what others wrote).
    fn launch(&self, stream: &Stream, dependent: bool) -> Result<()> {
        let dispatch = &self.dispatch;
        let mut values = dispatch.args.clone();
        let mut args: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        let [x, y, z] = dispatch.grid;
        // SAFETY: zeros are valid for these C structures of numbers and pointers; the driver copies each
        // argument, by the size in the kernel's signature, before it returns. Arguments are words of at
        // least that size in the order of the signature (record.rs).
        unsafe {
            let mut attribute: CUlaunchAttribute = zeroed();
            attribute.id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attribute.value.programmaticStreamSerializationAllowed = 1;
            let mut config: CUlaunchConfig = zeroed();
            (config.gridDimX, config.gridDimY, config.gridDimZ) = (x, y, z);
            (config.blockDimX, config.blockDimY, config.blockDimZ) = (dispatch.threads, 1, 1);
            config.hStream = stream.0;
            config.attrs = &mut attribute;
            config.numAttrs = u32::from(dependent);
            check(sys::cuLaunchKernelEx(&config, self.function, args.as_mut_ptr(), null_mut()), &dispatch.kernel)
        }
    }
}
