//! In a build without the feature `otlp` nobody asks for spans, so there is no value of [`Spans`].

use ponder_engine::{Error, Result};

use super::job::Asked;
use crate::Completion;

/// Where spans would go.
pub enum Spans {}

impl Spans {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn url(_: &str) -> Result<String> {
        Err(absent())
    }
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn new(_: &str) -> Result<Self> {
        Err(absent())
    }
    /// An answer ended as it should.
    pub fn answered(&self, _: &Asked, _: usize, _: &Completion) {
        match *self {}
    }
    /// A request ended before its answers did.
    pub fn broken(&self, _: &Asked, _: &'static str) {
        match *self {}
    }
    /// Sends what has not been sent.
    pub fn end(&self) {
        match *self {}
    }
}

fn absent() -> Error {
    Error::invalid("otlp-traces-endpoint", "this program was built without the feature otlp")
}
