//! A world: the engine's plain structs, driven through the same sequence as the step of the actors, under a
//! virtual clock, with a device that bears witness and everything checked after every step.

use std::collections::BTreeMap;
use std::time::Duration;

use super::check::{Answer, Failure, Law};
use super::dice::Dice;
use super::oracle;
use super::scenario::{Arrival, Guesses, Scenario, What};
use super::witness::{VOCAB, Witness};
use crate::kv::BlockPool;
use crate::model::batch::{Batch, BatchOutput};
use crate::op::ERROR_TOKEN;
use crate::request::SeqId;
use crate::schedule::{Event, Scheduler, Supervision, Verdict};
use crate::spec::{DrafterOptions, Drafters, Lookup, batch_of, chosen_of};
use crate::step::{Drafted, Reserved, Verified};

/// What a run was like: a world in which nothing happens proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Steps, those that broke the device too.
    pub steps: usize,
    /// Answers accepted.
    pub accepted: usize,
    /// Requests refused.
    pub refused: usize,
    /// Answers that ended by themselves, and were compared whole.
    pub finished: usize,
    /// Answers cancelled.
    pub cancelled: usize,
    /// Answers that failed.
    pub failed: usize,
    /// Times that a sequence lost its blocks.
    pub preempted: usize,
    /// Times that the device was lost.
    pub lost: usize,
    /// Guesses, and those that were right.
    pub drafted: usize,
    /// See `drafted`.
    pub right: usize,
    /// Tokens of thinking in all answers.
    pub thinking: usize,
    /// Tokens of prompts that were in the cache already.
    pub hits: usize,
    /// Blocks copied, saved to host memory or brought back.
    pub moved: usize,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, o: Self) {
        self.steps += o.steps;
        self.accepted += o.accepted;
        self.refused += o.refused;
        self.finished += o.finished;
        self.cancelled += o.cancelled;
        self.failed += o.failed;
        self.preempted += o.preempted;
        self.lost += o.lost;
        self.drafted += o.drafted;
        self.right += o.right;
        self.thinking += o.thinking;
        self.hits += o.hits;
        self.moved += o.moved;
    }
}

/// What a test does to a reservation on its way to the device.
pub type Meddle = Box<dyn FnMut(u64, &mut Reserved)>;

/// The engine without actors, and everything that it deals with.
pub struct World {
    pub(super) scenario: Scenario,
    pub(super) scheduler: Scheduler,
    pub(super) pool: BlockPool,
    drafters: Drafters,
    rules: Supervision,
    witness: Witness,
    dice: Dice,
    now: Duration,
    next_event: usize,
    /// The only sequence that may run.
    only: Option<SeqId>,
    lose_next: bool,
    pub(super) gave_up: bool,
    pub(super) answers: BTreeMap<SeqId, Answer>,
    pub(super) report: Report,
    meddle: Option<Meddle>,
}

impl World {
    /// Before its first event.
    pub fn new(scenario: Scenario) -> Self {
        let options = scenario.options;
        let kind = match scenario.guesses {
            Guesses::Kind(kind) => kind,
            _ => Lookup::None,
        };
        Self {
            scheduler: Scheduler::new(options),
            pool: BlockPool::with(options.blocks, options.block_size, scenario.cache),
            drafters: Drafters::new(DrafterOptions { lookup: kind, model: None }),
            rules: Supervision::default(),
            witness: Witness::new(options.blocks, options.block_size),
            dice: Dice::new(scenario.seed, 3),
            now: Duration::ZERO,
            next_event: 0,
            only: None,
            lose_next: false,
            gave_up: false,
            answers: BTreeMap::new(),
            report: Report::default(),
            meddle: None,
            scenario,
        }
    }

    /// The same with something that tampers with reservations: tests of the simulation itself.
    pub fn with_meddle(self, meddle: Meddle) -> Self {
        Self { meddle: Some(meddle), ..self }
    }

    /// Runs until nothing happens any more.
    ///
    /// # Errors
    /// The first law that was broken.
    pub fn run(mut self) -> Result<Report, Failure> {
        let mut quiet = 0;
        // Enough for every answer alone, several times over.
        let patience: usize = 200 + 40 * self.scenario.events.len() * self.scenario.options.max_model_len;
        loop {
            self.happen()?;
            let stepped = self.step()?;
            self.check()?;
            match self.scenario.events.get(self.next_event) {
                Some(event) if !stepped => self.now = self.now.max(event.at),
                Some(_) => {}
                None if !stepped => break,
                None => quiet += 1,
            }
            if quiet > patience {
                let (running, waiting) = self.scheduler.counts();
                return Err(self.broken(Law::Progress, format!("{running} run and {waiting} wait for ever")));
            }
        }
        self.check_end()?;
        Ok(self.report)
    }

    pub(super) fn broken(&self, law: Law, detail: String) -> Failure {
        Failure { law, step: self.report.steps, at: self.now, detail }
    }

    /// Whatever is due.
    fn happen(&mut self) -> Result<(), Failure> {
        while let Some(event) = self.scenario.events.get(self.next_event).filter(|e| e.at <= self.now) {
            self.next_event += 1;
            match event.what.clone() {
                What::Arrives(arrival) => self.arrive(*arrival),
                What::Cancelled(request) => {
                    self.answers.values_mut().filter(|a| a.id.request == request).for_each(|a| a.cancelled = true);
                    self.scheduler.cancel(request);
                }
                What::AnswerNow(request) => {
                    self.answers.values_mut().filter(|a| a.id.request == request).for_each(|a| a.asked = true);
                    self.scheduler.end_thinking(request);
                }
                What::DeviceLost => self.lose_next = true,
            }
        }
        Ok(())
    }

    fn arrive(&mut self, arrival: Arrival) {
        let Arrival { request, salt, breaks_at, nan_at } = arrival;
        let refused = request.params.validate(VOCAB as usize).is_err()
            || self.scheduler.submit(self.now, &request, || None).is_err();
        if refused {
            self.report.refused += 1;
            return;
        }
        for choice in 0..request.params.n {
            let id = SeqId { request: request.id, choice };
            let longest = self.scenario.options.max_model_len;
            let expected = oracle::answer(&request, choice, longest, salt);
            self.answers.insert(id, Answer::new(id, &request, expected, salt, breaks_at, nan_at, longest));
            self.report.accepted += 1;
        }
    }

    /// One step, as `actors/src/step.rs` has it; false if there was nothing to do.
    fn step(&mut self) -> Result<bool, Failure> {
        let Some(plan) = self.scheduler.plan(self.now, self.only) else {
            let ended = self.scheduler.drain_ended();
            self.tell(ended)?;
            let suspected = self.only.is_some();
            if suspected {
                // The suspect has left: the next one, or everybody, goes on.
                self.only = self.rules.succeeded(&[], true);
            }
            return Ok(suspected);
        };
        self.report.steps += 1;
        self.check_plan(&plan)?;
        let mut reserved = self.pool.reserve(plan);
        self.check_reserved(&reserved)?;
        if let Some(meddle) = &mut self.meddle {
            meddle(self.report.steps as u64, &mut reserved);
        }
        let seqs: Vec<SeqId> = reserved.plan.seqs.iter().map(|s| s.seq).collect();
        let mut drafted = self.propose(reserved);
        self.check_drafted(&drafted)?;
        let batch = batch_of(&mut drafted);
        let device_time = Duration::from_micros(2000 + 50 * batch.rows.len() as u64);
        self.now += device_time;
        let Some(output) = self.device(&batch, &seqs) else { return self.recover(&seqs).map(|()| true) };
        let chosen = chosen_of(&drafted, &output);
        let copy_time = Duration::from_micros(3 * batch.copies.swapped() as u64);
        self.report.moved += batch.copies.swapped() + batch.copies.copy.len();
        let settled = self.pool.settle(Verified { drafted, chosen, device_time, copy_time });
        self.check_settled(&settled)?;
        let events = self.scheduler.apply(&settled);
        let chose = !events.is_empty();
        self.tell(events)?;
        if self.only.is_some() {
            self.only = self.rules.succeeded(&seqs, chose);
        }
        Ok(true)
    }

    fn propose(&mut self, reserved: Reserved) -> Drafted {
        let (mut drafted, _) = self.drafters.propose(reserved, false);
        if matches!(self.scenario.guesses, Guesses::Kind(_)) {
            return drafted;
        }
        for (seq, drafts) in drafted.reserved.plan.seqs.iter().zip(&mut drafted.drafts) {
            let how = match self.scenario.guesses {
                Guesses::Flaky => self.dice.pick(&[Guesses::Good, Guesses::Bad, Guesses::Flaky]),
                same => same,
            };
            let most = if seq.sample.is_some() { seq.max_drafts } else { 0 };
            *drafts = match how {
                Guesses::Good => self.answers[&seq.seq].after(seq.start + seq.tokens.len(), most),
                Guesses::Bad => (0..self.dice.between(0, most)).map(|_| self.dice.roll() as u32 % VOCAB).collect(),
                _ => Vec::new(),
            };
        }
        drafted
    }

    /// The device; `None` if it is lost.
    fn device(&mut self, batch: &Batch, seqs: &[SeqId]) -> Option<BatchOutput> {
        let reaches = |row: &crate::model::batch::Row, limit: Option<usize>| {
            limit.is_some_and(|limit| row.position as usize + 1 >= limit)
        };
        let answer = |seq: u32| &self.answers[&seqs[seq as usize]];
        let breaks = batch.rows.iter().any(|row| reaches(row, answer(row.seq).breaks_at));
        if !batch.rows.is_empty() && (std::mem::take(&mut self.lose_next) || breaks) {
            return None;
        }
        let salts: Vec<u64> = seqs.iter().map(|s| self.answers[s].salt).collect();
        let mut output = self.witness.run(batch, &salts);
        for (token, logit) in output.tokens.iter_mut().zip(&batch.logit_rows) {
            let row = &batch.rows[logit.row as usize];
            if reaches(row, self.answers[&seqs[row.seq as usize]].nan_at) {
                *token = ERROR_TOKEN;
            }
        }
        Some(output)
    }

    /// A new device and an empty cache, as the loop around the step does it.
    fn recover(&mut self, suspects: &[SeqId]) -> Result<(), Failure> {
        self.report.lost += 1;
        for seq in suspects {
            self.answers.get_mut(seq).expect("it ran").faults += 1;
        }
        let verdict = self.rules.failed("lost", suspects, self.now);
        self.pool.clear();
        self.witness.clear();
        self.answers.values_mut().for_each(|a| a.cached = 0);
        let events = match verdict {
            Verdict::Replay { culprit, only } => {
                self.only = only;
                self.scheduler.replay();
                if let Some((seq, reason)) = culprit {
                    self.scheduler.fail(seq, &reason);
                }
                Vec::new()
            }
            Verdict::GiveUp { reason } => {
                (self.only, self.gave_up) = (None, true);
                self.scheduler.fail_all(&reason)
            }
        };
        self.tell(events)
    }

    fn tell(&mut self, events: Vec<Event>) -> Result<(), Failure> {
        events.into_iter().try_for_each(|event| self.check_event(event))
    }
}
