//! What all handlers share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ponder_engine::reason::{Policy, Survival};
use ponder_engine::request::RequestId;

use super::admission::Admission;
use super::auth::Access;
use super::error::ApiError;
use super::metrics::Metrics;
use super::options::ServeOptions;
use super::wire;
use crate::Engine;

/// A loaded model under its names.
pub struct Served {
    /// What requests call it; the first is told in `/v1/models` first.
    pub names: Vec<String>,
    /// The model.
    pub engine: Engine,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// What is in flight.
    pub admission: Arc<Admission>,
    /// What happened.
    pub metrics: Metrics,
    /// How efforts become budgets.
    pub policy: Policy,
    /// How long thinking takes.
    pub survival: Survival,
}

/// Where a request in flight can be reached.
#[derive(Clone)]
pub struct Running {
    /// Its model.
    pub model: Arc<Served>,
    /// Its requests in the engine.
    pub requests: Vec<RequestId>,
}

/// What all handlers share.
pub struct State {
    /// How the server is run.
    pub options: ServeOptions,
    /// Who may ask.
    pub access: Access,
    /// The models; at least one.
    pub models: Vec<Arc<Served>>,
    running: Mutex<HashMap<String, Running>>,
    draining: AtomicBool,
}

impl State {
    /// Serves `models`: each with its names.
    pub fn new(options: ServeOptions, models: Vec<(Vec<String>, Engine)>) -> Self {
        let served = models.into_iter().map(|(names, engine)| {
            let admission = Admission::new(engine.seats(), &options.limits);
            let metrics = Metrics::new(&names[0]);
            let (policy, survival) = (Policy::default(), Survival::default());
            Arc::new(Served { names, engine, created: wire::now(), admission, metrics, policy, survival })
        });
        Self {
            access: Access::new(&options),
            models: served.collect(),
            options,
            running: Mutex::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// The model of a name, or the first one.
    ///
    /// # Errors
    /// 404 if there is none of that name.
    pub fn model(&self, name: Option<&str>) -> Result<(&Arc<Served>, String), ApiError> {
        let Some(name) = name else { return Ok((&self.models[0], self.models[0].names[0].clone())) };
        let found = self.models.iter().find(|m| m.names.iter().any(|n| n == name));
        found.map(|m| (m, name.to_string())).ok_or_else(|| ApiError::no_model(name))
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, Running>> {
        // A panic elsewhere cannot leave the map half-changed.
        self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    /// Notes a request in flight.
    pub fn enter(&self, id: &str, running: Running) {
        self.running().insert(id.to_string(), running);
    }
    /// A request ended.
    pub fn leave(&self, id: &str) {
        self.running().remove(id);
    }
    /// A request in flight.
    pub fn find(&self, id: &str) -> Option<Running> {
        self.running().get(id).cloned()
    }
    /// How many are in flight.
    pub fn in_flight(&self) -> usize {
        self.running().len()
    }
    /// Ids on the wire of requests in flight, by the engine's own.
    pub fn names(&self, model: &Arc<Served>) -> HashMap<u64, String> {
        let running = self.running();
        let of = running.iter().filter(|(_, r)| Arc::ptr_eq(&r.model, model));
        of.flat_map(|(id, r)| r.requests.iter().map(move |q| (q.0, id.clone()))).collect()
    }

    /// Takes no more requests.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
    /// Whether it was told to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
