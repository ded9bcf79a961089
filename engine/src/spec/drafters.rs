//! Who guesses for which sequence: the sequence's own log, other answers of its tenant, or a draft model.
//!
//! Looking up costs nothing, so it goes first; a draft model is asked where what was found is not at least
//! as likely to be right as the model has shown itself to be.

use std::str::FromStr;
use std::time::Duration;

use super::follow::Followed;
use super::model::{Books, DraftJob, ModelLimits};
use super::{Drafter, Guess, Ngram, Recent, Rolled, Source, Suffix};
use crate::error::Error;
use crate::request::{SeqId, SeqMap};
use crate::step::{Drafted, Reserved, SeqPlan};

/// Where guesses are looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lookup {
    /// Nowhere.
    #[default]
    None,
    /// In the sequence's own log, by its last few tokens: [`Ngram`].
    Ngram,
    /// In its own log and in those of its tenant, by the longest repeated ending: [`Suffix`], [`Recent`].
    Suffix,
}

impl FromStr for Lookup {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "none" => Ok(Self::None),
            "ngram" => Ok(Self::Ngram),
            "suffix" => Ok(Self::Suffix),
            _ => Err(Error::invalid("draft_lookup", format!("{name:?} is none of none, ngram, suffix"))),
        }
    }
}

impl Lookup {
    fn make(self) -> Option<Box<dyn Drafter>> {
        match self {
            Self::None => None,
            Self::Ngram => Some(Box::<Ngram>::default()),
            Self::Suffix => Some(Box::<Suffix>::default()),
        }
    }
}

/// Who guesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrafterOptions {
    /// What is looked up.
    pub lookup: Lookup,
    /// The draft model, if there is one.
    pub model: Option<ModelLimits>,
}

impl DrafterOptions {
    /// Whether anybody guesses.
    pub fn any(&self) -> bool {
        self.lookup != Lookup::None || self.model.is_some()
    }
}

/// Tokens of an answer after which the others of its tenant may know of them.
const PIECE: usize = 512;
/// A prompt chunk ends in a first token for which somebody waits: the draft model catches up a step later.
const LONG_STEP: usize = 32;

/// How often guesses are right, by what speaks for them: the length of the match, or the model.
#[derive(Clone, Debug, Default)]
struct Trust {
    /// (hits, tries) by the power of two of the match; the last is the model's.
    seen: [(f64, f64); 9],
}

impl Trust {
    fn class(guess: &Guess) -> usize {
        if guess.source == Source::Model { 8 } else { (guess.matched.max(1).ilog2() as usize).min(7) }
    }
    fn observe(&mut self, guess: &Guess, accepted: usize) {
        let (hits, tries) = &mut self.seen[Self::class(guess)];
        *hits = *hits * 0.99 + accepted as f64;
        *tries = *tries * 0.99 + guess.tokens.len().min(accepted + 1) as f64;
    }
    /// Before much was seen: a match of n tokens is right about n times out of n + 4, a model three of four times.
    fn of(&self, guess: &Guess) -> f64 {
        let prior =
            if guess.source == Source::Model { 0.75 } else { guess.matched as f64 / (guess.matched + 4) as f64 };
        let (hits, tries) = self.seen[Self::class(guess)];
        (hits + 8.0 * prior) / (tries + 8.0)
    }
}

/// The drafters of all sequences in flight.
pub struct Drafters {
    options: DrafterOptions,
    seqs: SeqMap<Followed>,
    recent: Recent,
    books: Option<Books>,
    trust: Trust,
    block_size: usize,
    foreseen: u64,
}

impl Drafters {
    /// No sequences yet.
    pub fn new(options: DrafterOptions) -> Self {
        Self {
            options,
            seqs: SeqMap::default(),
            recent: Recent::default(),
            books: options.model.map(Books::new),
            trust: Trust::default(),
            block_size: options.model.map_or(1, |m| m.block_size),
            foreseen: 0,
        }
    }

    /// Follows the plan; what can be looked up is a guess already, the rest is work for the draft model, if that
    /// is there at present.
    pub fn propose(&mut self, reserved: Reserved, model: bool) -> (Drafted, DraftJob) {
        if !self.options.any() {
            let drafts = vec![Vec::new(); reserved.plan.seqs.len()];
            return (Drafted::by(Source::Nobody, reserved, drafts), DraftJob::default());
        }
        self.release(&reserved);
        self.open(&reserved);
        let guesses: Vec<Guess> = reserved.plan.seqs.iter().map(|seq| self.look_up(seq)).collect();
        let job = if model { self.job(&reserved, &guesses) } else { DraftJob::default() };
        let mut drafted = Drafted::by(Source::Nobody, reserved, Vec::new());
        for (i, guess) in guesses.into_iter().enumerate() {
            // What the model is asked for is not looked up too; what it foresaw goes before what was looked up.
            let guess = if job.places.contains(&i) { Guess::default() } else { self.foreseen(&drafted, i, guess) };
            drafted.sources.push(guess.source);
            drafted.drafts.push(guess.tokens.clone());
            self.remember(drafted.reserved.plan.seqs[i].seq, guess);
        }
        (drafted, job)
    }

    /// What the draft model guessed ahead, where that serves and nothing surer was looked up.
    fn foreseen(&mut self, drafted: &Drafted, place: usize, looked_up: Guess) -> Guess {
        let plan = &drafted.reserved.plan.seqs[place];
        let Some(seq) = self.seqs.get(&plan.seq).filter(|_| plan.sample.is_some() && plan.max_drafts > 0) else {
            return looked_up;
        };
        let model = Guess { source: Source::Model, ..Guess::default() };
        let sure = !looked_up.tokens.is_empty() && self.trust.of(&looked_up) >= self.trust.of(&model);
        if sure || seq.ahead.is_empty() {
            return looked_up;
        }
        let tokens = seq.ahead[..plan.max_drafts.min(seq.ahead.len())].to_vec();
        self.foreseen += tokens.len() as u64;
        Guess { tokens, ..model }
    }

    /// Guesses so far that were made while the target verified those before them.
    pub fn foreseen_guesses(&self) -> u64 {
        self.foreseen
    }

    /// Work for the draft model while the target verifies what it guessed: the next guesses, should these be right.
    pub fn ahead(&mut self, drafted: &Drafted) -> DraftJob {
        let mut more = DraftJob::default();
        let Some(books) = &mut self.books else { return more };
        let reserved = &drafted.reserved;
        for (place, (plan, guesses)) in reserved.plan.seqs.iter().zip(&drafted.drafts).enumerate() {
            let whole = drafted.sources[place] == Source::Model && guesses.len() == plan.max_drafts;
            let Some(seq) = self.seqs.get(&plan.seq).filter(|_| whole) else { continue };
            let Some(sample) = &plan.sample else { continue };
            // One for the token that the target adds, and as many guesses again.
            let wanted = 1 + plan.max_drafts;
            if let Some(ask) = books.ask_ahead(seq, &reserved.tables[place], sample, guesses, wanted) {
                more.asks.push(ask);
                more.places.push(place);
                more.seqs.push(plan.seq);
            }
        }
        more
    }

    /// The draft model has gone ahead, as far as it was let.
    pub fn went_ahead(&mut self, job: &DraftJob, rolled: &Rolled) {
        let Some(books) = &mut self.books else { return };
        for (index, (ask, seq)) in job.asks.iter().zip(&job.seqs).enumerate() {
            let Some(seq) = self.seqs.get_mut(seq) else { continue };
            let guesses = seq.last.tokens.clone();
            books.done_ahead(seq, ask, &guesses, rolled, index);
            seq.ahead.clone_from(&rolled.guesses[index]);
        }
    }

    fn remember(&mut self, seq: SeqId, guess: Guess) {
        if let Some(seq) = self.seqs.get_mut(&seq) {
            seq.last = guess;
        }
    }

    fn release(&mut self, reserved: &Reserved) {
        for seq in &reserved.plan.released {
            if let Some(seq) = self.seqs.remove(seq)
                && self.options.lookup == Lookup::Suffix
            {
                self.recent.publish(&seq.tenant, &seq.log[seq.published..]);
            }
        }
    }

    fn open(&mut self, reserved: &Reserved) {
        for opening in &reserved.plan.openings {
            match self.seqs.get_mut(&opening.seq) {
                Some(seq) => seq.reopen(opening, self.block_size),
                None => drop(self.seqs.insert(opening.seq, Followed::new(opening, self.options.lookup.make()))),
            }
        }
    }

    fn look_up(&mut self, plan: &SeqPlan) -> Guess {
        let Some(seq) = self.seqs.get_mut(&plan.seq) else { return Guess::default() };
        let Some(accepted) = seq.follow(plan, self.block_size) else {
            self.seqs.remove(&plan.seq);
            return Guess::default();
        };
        if !seq.last.tokens.is_empty() {
            self.trust.observe(&seq.last, accepted);
        }
        if plan.sample.is_none() || plan.max_drafts == 0 {
            return Guess::default();
        }
        let own = seq.guess(plan.max_drafts);
        if self.options.lookup != Lookup::Suffix {
            return own;
        }
        if seq.log.len() >= seq.published + PIECE {
            self.recent.publish(&seq.tenant, &seq.log[seq.published..]);
            seq.published = seq.log.len();
        }
        let other = self.recent.propose(&seq.tenant, &seq.log, plan.max_drafts);
        if other.matched > own.matched && !other.tokens.is_empty() { other } else { own }
    }

    fn job(&mut self, reserved: &Reserved, guesses: &[Guess]) -> DraftJob {
        let mut job = DraftJob::default();
        let Some(books) = &mut self.books else { return job };
        let model = self.trust.of(&Guess { source: Source::Model, ..Guess::default() });
        let plans = reserved.plan.seqs.iter().zip(&reserved.tables);
        for (i, ((plan, table), guess)) in plans.zip(guesses).enumerate() {
            let Some(sample) = plan.sample.as_ref().filter(|_| plan.max_drafts > 0) else { continue };
            let sure = !guess.tokens.is_empty() && self.trust.of(guess) >= model;
            let Some(seq) = self.seqs.get_mut(&plan.seq).filter(|_| !sure && plan.tokens.len() <= LONG_STEP) else {
                continue;
            };
            if seq.ahead.len() >= plan.max_drafts {
                // Foreseen: the guesses are there already.
                continue;
            }
            if let Some(ask) = books.ask(seq, table, sample, plan.max_drafts) {
                job.asks.push(ask);
                job.places.push(i);
                job.seqs.push(plan.seq);
            }
        }
        job
    }

    /// The draft model has done its work: its guesses join the others.
    pub fn finish(&mut self, drafted: &mut Drafted, job: &DraftJob, rolled: Rolled, took: Duration) {
        let Some(books) = &mut self.books else { return };
        for (index, (ask, place)) in job.asks.iter().zip(&job.places).enumerate() {
            let Some(seq) = self.seqs.get_mut(&drafted.reserved.plan.seqs[*place].seq) else { continue };
            books.done(seq, ask, &rolled, index);
            let tokens = rolled.guesses[index].clone();
            drafted.drafts[*place].clone_from(&tokens);
            if !tokens.is_empty() {
                drafted.sources[*place] = Source::Model;
                seq.last = Guess { tokens, source: Source::Model, matched: 0 };
            }
        }
        drafted.draft_time = took;
        (drafted.passes, drafted.caught_up) = (rolled.passes, job.behind());
    }

    /// The draft model's cache is gone; its sequences catch up when it answers again.
    pub fn lost_cache(&mut self) {
        self.books.iter_mut().for_each(Books::clear);
        self.seqs.values_mut().for_each(|seq| seq.ahead.clear());
    }

    /// A block's contents were copied, in the draft's cache too.
    pub fn copied(&mut self, from: u32, to: u32) {
        self.books.iter_mut().for_each(|books| books.copied(from, to));
    }
}

#[cfg(test)]
#[path = "drafters_tests.rs"]
mod tests;
