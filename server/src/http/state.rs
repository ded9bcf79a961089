//! What all handlers share.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use ponder_engine::request::RequestId;
use ponder_engine::{Error, Result};

use super::admission::Admission;
use super::auth::Access;
use super::error::ApiError;
use super::fleet::Group;
use super::guide::Compiler;
use super::metrics::Metrics;
use super::options::ServeOptions;
use super::otlp::Spans;
use super::wire;
use crate::Engine;

/// A model as it is to be served: its names, and one or more instances of it.
pub struct Offer {
    /// What requests call it.
    pub names: Vec<String>,
    /// Its instances, at least one; where there are several, each has a name of its own too.
    pub instances: Vec<Instance>,
}

/// An engine of an [`Offer`].
pub struct Instance {
    /// Requests call it `MODEL/NAME`, if they want it and no other.
    pub name: String,
    /// It is meant for requests of so many tokens at most, prompt and expected answer.
    pub up_to: Option<usize>,
    /// The loaded model.
    pub engine: Engine,
}

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
    /// A trace is being recorded for somebody.
    pub tracing: AtomicBool,
    compiler: OnceLock<std::result::Result<Compiler, String>>,
}

impl Served {
    /// Compiles the grammars of this model; made when the first is wanted, for `field`.
    ///
    /// # Errors
    /// 400 if the model cannot keep to any.
    pub fn compiler(&self, field: &str) -> std::result::Result<&Compiler, ApiError> {
        let make = || {
            let (engine, ends) = (&self.engine, &self.engine.generation_defaults().eos);
            Compiler::new(engine.tokenizer(), engine.config().vocab, ends)
        };
        let made = self.compiler.get_or_init(make);
        made.as_ref().map_err(|why| ApiError::invalid(field, format!("cannot be kept to by this model: {why}")))
    }
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
    /// Those of them that share names.
    groups: Vec<Arc<Group>>,
    /// The name that is meant where a request says none.
    usual: String,
    /// Where spans of requests go, if anywhere.
    pub spans: Option<Spans>,
    running: Mutex<HashMap<String, Running>>,
    draining: AtomicBool,
}

impl State {
    /// Serves `offers`.
    ///
    /// # Errors
    /// If there is nothing to serve, or two have the same name.
    pub fn new(options: ServeOptions, offers: Vec<Offer>) -> Result<Self> {
        let serve = |names: Vec<String>, engine: Engine| {
            let admission = Admission::new(engine.seats(), &options.limits);
            let metrics = Metrics::new(&names[0]);
            Arc::new(Served {
                names,
                engine,
                created: wire::now(),
                admission,
                metrics,
                tracing: AtomicBool::new(false),
                compiler: OnceLock::new(),
            })
        };
        let (mut models, mut groups) = (Vec::new(), Vec::new());
        let usual = offers.first().and_then(|o| o.names.first()).cloned();
        let usual = usual.ok_or_else(|| Error::invalid("models", "there is none, or one without a name"))?;
        for Offer { names, mut instances } in offers {
            if instances.len() == 1 {
                models.extend(instances.pop().map(|only| serve(names, only.engine)));
                continue;
            }
            let up_to: Vec<_> = instances.iter().map(|i| i.up_to).collect();
            let own = |i: Instance| serve(vec![format!("{}/{}", names[0], i.name)], i.engine);
            let members: Vec<_> = instances.into_iter().map(own).collect();
            models.extend(members.iter().cloned());
            groups.push(Arc::new(Group::new(names, members, &up_to, &options.limits)?));
        }
        let names = models.iter().flat_map(|m| &m.names).chain(groups.iter().flat_map(|g| &g.names));
        let mut seen = HashSet::new();
        if let Some(twice) = names.into_iter().find(|name| !seen.insert(name.as_str())) {
            return Err(Error::invalid("models", format!("two have the name {twice:?}")));
        }
        Ok(Self {
            access: Access::new(&options),
            spans: options.otlp_traces_endpoint.as_deref().map(Spans::new).transpose()?,
            usual,
            models,
            groups,
            options,
            running: Mutex::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// The model of a name, or of the first one; where several instances have it, the one that takes most.
    ///
    /// # Errors
    /// 404 if there is none of that name.
    pub fn model(&self, name: Option<&str>) -> std::result::Result<(&Arc<Served>, String), ApiError> {
        let asked = name.unwrap_or(&self.usual);
        let found = match self.group(name) {
            Some(group) => group.members.iter().max_by_key(|m| m.engine.max_model_len()),
            None => self.models.iter().find(|m| m.names.iter().any(|n| n == asked)),
        };
        found.map(|m| (m, asked.to_string())).ok_or_else(|| ApiError::no_model(asked))
    }

    /// The instances that share this name (or the first one), if several do.
    pub fn group(&self, name: Option<&str>) -> Option<&Arc<Group>> {
        let asked = name.unwrap_or(&self.usual);
        self.groups.iter().find(|g| g.names.iter().any(|n| n == asked))
    }

    /// Every name, with the model that it means.
    pub fn all_names(&self) -> impl Iterator<Item = (&Arc<Served>, &str)> {
        let names = self.groups.iter().flat_map(|g| &g.names).chain(self.models.iter().flat_map(|m| &m.names));
        names.filter_map(|name| Some((self.model(Some(name)).ok()?.0, name.as_str())))
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
