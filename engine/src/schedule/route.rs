//! Which instance answers: several models, or one in several sizes, each for requests of a range of lengths.
//!
//! Long thinking holds memory that fifty short answers could use, so long and short do better apart. Instances are
//! sorted by the expected length that they are meant for. A request goes to the smallest one that is large enough
//! (its home), or to one that holds its beginning in its prefix cache. Where that is full it overflows to the next
//! larger one; where all are full it waits in the queue of its home, and whichever of those frees a slot first takes
//! it, its home's own requests going first. Nothing here blocks or knows the time.

use std::collections::{HashMap, VecDeque};

use crate::error::{Error, Result};
use crate::sim::mix;

/// An instance, as far as routing goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Its name, unique.
    pub name: String,
    /// It is meant for requests of so many tokens at most, prompt and expected answer; `None` is no bound.
    pub up_to: Option<usize>,
    /// Longest prompt and answer together.
    pub max_model_len: usize,
    /// Requests that it takes before others overflow.
    pub slots: usize,
}

/// What is asked of the router.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Only this instance may answer.
    pub named: Option<&'a str>,
    /// The prompt's tokens as each instance reads them, in the order of the instances.
    pub prompts: &'a [Vec<u32>],
    /// Tokens that the answer is expected to take, thinking included.
    pub expected: f64,
    /// Most tokens of the answer, if the request says so.
    pub max_tokens: Option<usize>,
    /// Whose request it is: nobody is drawn to what others computed.
    pub salt: u64,
}

/// A request on its way, from [`Router::route`] until [`Router::leave`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Tokens between two places at which a prompt is recognised.
const STRIDE: usize = 64;
/// Beginnings that are remembered.
const REMEMBERED: usize = 16_384;

struct Instance {
    place: Place,
    in_flight: usize,
    queue: VecDeque<Ticket>,
}

/// Where a ticket is.
#[derive(Clone, Copy)]
struct Way {
    /// Where it runs; `None` while it waits.
    runs: Option<usize>,
    /// Where it waits, or did.
    home: usize,
    /// It asked for its home by name.
    named: bool,
}

/// The instances, and who is where.
pub struct Router {
    instances: Vec<Instance>,
    tickets: HashMap<Ticket, Way>,
    next: u64,
    /// Who computed a beginning last, and in which order they were learnt.
    prefixes: HashMap<u64, usize>,
    learnt: VecDeque<u64>,
}

impl Router {
    /// Instances in any order; they keep their indices.
    ///
    /// # Errors
    /// If there is none, if two have the same name, or if one has no slot.
    pub fn new(places: Vec<Place>) -> Result<Self> {
        if places.is_empty() {
            return Err(Error::invalid("instances", "there is none"));
        }
        for (i, place) in places.iter().enumerate() {
            if places[..i].iter().any(|p| p.name == place.name) {
                return Err(Error::invalid("instances", format!("two have the name {:?}", place.name)));
            }
            if place.slots == 0 {
                return Err(Error::invalid(format!("instances.{}.slots", place.name), "must be at least 1"));
            }
        }
        let instances =
            places.into_iter().map(|place| Instance { place, in_flight: 0, queue: VecDeque::new() }).collect();
        Ok(Self { instances, tickets: HashMap::new(), next: 1, prefixes: HashMap::new(), learnt: VecDeque::new() })
    }

    /// Requests that run on each instance, and that wait for it.
    pub fn counts(&self) -> Vec<(&str, usize, usize)> {
        self.instances.iter().map(|i| (i.place.name.as_str(), i.in_flight, i.queue.len())).collect()
    }

    /// Finds an instance, or a place in a queue (`None`: [`Router::leave`] of another will say where it goes).
    ///
    /// # Errors
    /// If no instance has that name, or none is long enough.
    pub fn route(&mut self, ask: &Ask) -> Result<(Ticket, Option<usize>)> {
        let by_size = self.suitable(ask)?;
        // The smallest that is meant for so many, else the largest that there is.
        let meant = |i: &usize| self.instances[*i].place.up_to.is_none_or(|most| self.wants(*i, ask) <= most as f64);
        let home = by_size.iter().position(meant).unwrap_or(by_size.len() - 1);
        let candidates = &by_size[home..];
        let free = |i: &usize| self.instances[*i].in_flight < self.instances[*i].place.slots;
        let kin = self.longest_known(ask, candidates).filter(free);
        let chosen = kin.or_else(|| candidates.iter().copied().find(free));
        let (ticket, home) = (Ticket(self.next), candidates[0]);
        self.next += 1;
        match chosen {
            Some(i) => self.instances[i].in_flight += 1,
            None => self.instances[home].queue.push_back(ticket),
        }
        self.tickets.insert(ticket, Way { runs: chosen, home, named: ask.named.is_some() });
        if let Some(i) = chosen {
            self.remember(i, &ask.prompts[i], ask.salt);
        }
        Ok((ticket, chosen))
    }

    /// Instances that can take it, the smallest first.
    fn suitable(&self, ask: &Ask) -> Result<Vec<usize>> {
        let named = |i: &usize| ask.named.is_none_or(|name| self.instances[*i].place.name == name);
        let mut found: Vec<usize> = (0..self.instances.len()).filter(named).collect();
        if found.is_empty() {
            let names: Vec<&str> = self.instances.iter().map(|i| i.place.name.as_str()).collect();
            let message = format!("{:?} is none of {}", ask.named.unwrap_or_default(), names.join(", "));
            return Err(Error::invalid("model", message));
        }
        let needs = |i: usize| ask.prompts[i].len() + ask.max_tokens.unwrap_or(1);
        let most = found.iter().map(|i| self.instances[*i].place.max_model_len).max().unwrap_or(0);
        let least = found.iter().map(|i| needs(*i)).min().unwrap_or(0);
        found.retain(|i| needs(*i) <= self.instances[*i].place.max_model_len);
        if found.is_empty() {
            let message = format!("{least} tokens with the answer, but the longest instance takes {most}");
            return Err(Error::invalid("prompt", message));
        }
        found.sort_by_key(|i| (self.instances[*i].place.up_to.unwrap_or(usize::MAX), *i));
        Ok(found)
    }

    fn wants(&self, i: usize, ask: &Ask) -> f64 {
        ask.prompts[i].len() as f64 + ask.expected.min(ask.max_tokens.map_or(f64::MAX, |m| m as f64))
    }

    /// Hashes of a prompt's beginnings, the longest last.
    fn beginnings(instance: usize, prompt: &[u32], salt: u64) -> Vec<u64> {
        let mut hash = mix(salt, instance as u64);
        let strides = prompt.chunks_exact(STRIDE);
        strides
            .map(|tokens| {
                hash = tokens.iter().fold(hash, |h, t| mix(h, (*t).into()));
                hash
            })
            .collect()
    }

    /// Which of `candidates` knows the longest beginning of its prompt, if one does.
    fn longest_known(&self, ask: &Ask, candidates: &[usize]) -> Option<usize> {
        let known = |i: usize| {
            let beginnings = Self::beginnings(i, &ask.prompts[i], ask.salt);
            beginnings.iter().rposition(|b| self.prefixes.contains_key(b)).map(|at| at + 1)
        };
        let best = candidates.iter().filter_map(|i| Some((known(*i)?, *i)));
        best.min_by_key(|(len, _)| std::cmp::Reverse(*len)).map(|(_, i)| i)
    }

    fn remember(&mut self, instance: usize, prompt: &[u32], salt: u64) {
        for beginning in Self::beginnings(instance, prompt, salt) {
            if self.prefixes.insert(beginning, instance).is_none() {
                self.learnt.push_back(beginning);
            }
        }
        while self.learnt.len() > REMEMBERED {
            let oldest = self.learnt.pop_front().expect("it is not empty");
            self.prefixes.remove(&oldest);
        }
    }

    /// A request ended, was cancelled, or gave up waiting. Returns who may start now, and where.
    pub fn leave(&mut self, ticket: Ticket) -> Vec<(Ticket, usize)> {
        match self.tickets.remove(&ticket) {
            Some(Way { runs: Some(instance), .. }) => {
                self.instances[instance].in_flight -= 1;
                self.start_waiting(instance).into_iter().collect()
            }
            Some(Way { runs: None, home, .. }) => {
                self.instances[home].queue.retain(|t| *t != ticket);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// The next for a free slot of `instance`: of its own queue, else of the largest queue for smaller ones.
    fn start_waiting(&mut self, instance: usize) -> Option<(Ticket, usize)> {
        let size = |i: usize| self.instances[i].place.up_to.unwrap_or(usize::MAX);
        let long_enough =
            |i: usize| self.instances[i].place.max_model_len <= self.instances[instance].place.max_model_len;
        let helped = |i: usize| i != instance && size(i) < size(instance) && long_enough(i);
        let willing = |i: usize| self.instances[i].queue.iter().position(|t| !self.tickets[t].named);
        let smaller = (0..self.instances.len()).filter(|i| helped(*i)).filter_map(|i| Some((i, willing(i)?)));
        let most = smaller.max_by_key(|(i, _)| (self.instances[*i].queue.len(), std::cmp::Reverse(*i)));
        let own = (!self.instances[instance].queue.is_empty()).then_some((instance, 0));
        let (from, at) = own.or(most)?;
        let ticket = self.instances[from].queue.remove(at)?;
        self.instances[instance].in_flight += 1;
        self.tickets.get_mut(&ticket).expect("it waited").runs = Some(instance);
        Some((ticket, instance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, up_to: Option<usize>, max_model_len: usize, slots: usize) -> Place {
        Place { name: name.into(), up_to, max_model_len, slots }
    }
    fn router() -> Router {
        let large = place("large", None, 10_000, 2);
        Router::new(vec![large, place("small", Some(500), 1000, 1), place("middle", Some(2000), 4000, 1)]).unwrap()
    }
    fn ask<'a>(prompts: &'a [Vec<u32>], expected: f64) -> Ask<'a> {
        Ask { named: None, prompts, expected, max_tokens: None, salt: 0 }
    }
    const LARGE: Option<usize> = Some(0);
    const SMALL: Option<usize> = Some(1);
    const MIDDLE: Option<usize> = Some(2);

    #[test]
    fn the_smallest_that_is_large_enough_and_overflow() {
        let (mut r, prompts) = (router(), vec![vec![1; 20]; 3]);
        let (first, at) = r.route(&ask(&prompts, 300.0)).unwrap();
        assert_eq!(at, SMALL);
        assert_eq!(r.route(&ask(&prompts, 300.0)).unwrap().1, MIDDLE, "full: the next larger");
        assert_eq!(r.route(&ask(&prompts, 9000.0)).unwrap().1, LARGE);
        let (third, at) = r.route(&ask(&prompts, 1000.0)).unwrap();
        assert_eq!(at, LARGE);
        // All are full: two wait for small, one for middle.
        let waiting: Vec<Ticket> = [300.0, 200.0, 1500.0].map(|e| r.route(&ask(&prompts, e)).unwrap().0).to_vec();
        assert_eq!(r.counts(), [("large", 2, 0), ("small", 1, 2), ("middle", 1, 1)]);
        assert_eq!(r.leave(first), [(waiting[0], 1)]);
        assert_eq!(r.leave(third), [(waiting[1], 0)], "the larger one helps the longest queue");
        assert!(r.leave(waiting[2]).is_empty(), "who waits may go");
        assert!(r.leave(waiting[2]).is_empty(), "once");
        assert_eq!(r.leave(waiting[0]), []);
        assert_eq!(r.counts(), [("large", 2, 0), ("small", 0, 0), ("middle", 1, 0)]);
    }

    #[test]
    fn what_cannot_fit_is_refused_and_names_count() {
        let (mut r, prompts) = (router(), vec![vec![1; 900]; 3]);
        assert_eq!(r.route(&Ask { max_tokens: Some(200), ..ask(&prompts, 50.0) }).unwrap().1, MIDDLE);
        let long = Ask { max_tokens: Some(20_000), ..ask(&prompts, 50.0) };
        assert!(r.route(&long).unwrap_err().to_string().contains("20900 tokens"), "all are too short");
        let named = Ask { named: Some("small"), ..ask(&prompts, 9000.0) };
        assert_eq!(r.route(&named).unwrap().1, SMALL, "whoever names one gets it");
        // It waits for that one, whoever else is free.
        let (waits, at) = r.route(&named).unwrap();
        assert_eq!(at, None);
        let (other, at) = r.route(&ask(&prompts, 9000.0)).unwrap();
        assert_eq!((at, r.leave(other)), (LARGE, Vec::new()));
        assert!(r.leave(waits).is_empty());
        let unknown = Ask { named: Some("huge"), ..ask(&prompts, 1.0) };
        assert_eq!(r.route(&unknown).unwrap_err().to_string(), "model: \"huge\" is none of large, small, middle");
        assert!(Router::new(vec![place("a", None, 9, 1), place("a", None, 9, 1)]).is_err());
        assert!(Router::new(Vec::new()).is_err() && Router::new(vec![place("a", None, 9, 0)]).is_err());
    }

    #[test]
    fn a_conversation_stays_where_its_beginning_is() {
        let mut r = router();
        let turn = |len: u32| vec![(0..len).collect::<Vec<u32>>(); 3];
        // The first turn is long and goes to the large one; the next is short, but its beginning is there.
        let (first, at) = r.route(&ask(&turn(200), 3000.0)).unwrap();
        assert_eq!(at, LARGE);
        r.leave(first);
        assert_eq!(r.route(&ask(&turn(300), 50.0)).unwrap().1, LARGE);
        // Another tenant's conversation with the same words does not follow it.
        assert_eq!(r.route(&Ask { salt: 7, ..ask(&turn(300), 50.0) }).unwrap().1, SMALL);
        // Nor does one whose home is full of others: it waits for nobody.
        assert_eq!(r.route(&ask(&turn(310), 50.0)).unwrap().1, LARGE);
        assert_eq!(r.route(&ask(&turn(320), 50.0)).unwrap().1, MIDDLE);
    }
}
