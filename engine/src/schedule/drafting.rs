//! The scheduler's part in guessing: how many guesses each sequence gets, and what became of them.

use super::{DraftPolicy, Sequence};
use crate::request::{SeqId, SeqMap};
use crate::spec::{Candidate, DraftLength, LengthOptions, Rates, Source, SpecReport};
use crate::step::{Settled, StepPlan};

/// What is known of one sequence: little that every step touches, and thousands of bytes once somebody guessed for it.
#[derive(Default)]
struct Known {
    /// Who guessed for it last: who will probably guess next.
    source: Source,
    /// Whether it thought when the step in flight was planned.
    thinking: bool,
    /// Tokens that the draft model has read, as far as it is known here.
    read: usize,
    /// As in [`SpecReport`].
    passes: u64,
    chosen: u64,
    draft_us: u64,
    verify_us: u64,
    guessed: Option<Box<Guessed>>,
}

/// What a sequence's rates keep over a step without guesses: one that was hard to guess for a while is tried again.
const FADE: f64 = 0.95;

/// What became of the guesses for one sequence.
#[derive(Clone, Default)]
struct Guessed {
    rates: Rates,
    report: SpecReport,
}

/// Guessing, as the scheduler sees it.
pub(super) struct Drafting {
    policy: DraftPolicy,
    usual: Source,
    length: DraftLength,
    known: SeqMap<Known>,
    /// Of sequences for which nobody has guessed.
    fresh: Rates,
    /// Of the step in flight: rows without guesses, sequences that choose, tokens cached.
    rows: usize,
    choosing: usize,
    context: usize,
    total: SpecReport,
}

impl Drafting {
    pub fn new(policy: DraftPolicy, usual: Source) -> Self {
        let length = match policy {
            DraftPolicy::Auto(length) => length,
            DraftPolicy::Off | DraftPolicy::Fixed(_) => LengthOptions::default(),
        };
        let length = DraftLength::new(length);
        let (known, total) = (SeqMap::default(), SpecReport::default());
        Self { policy, usual, length, known, fresh: Rates::default(), rows: 0, choosing: 0, context: 0, total }
    }

    /// From the next plan on; sequences in flight that no drafter follows stay without guesses.
    pub fn set_policy(&mut self, policy: DraftPolicy) {
        self.policy = policy;
    }

    /// Guesses for the sequences of the plan that choose a token, at most `budget` rows of them and `logit_rows`
    /// rows that choose. Returns what is left of the budget.
    pub fn plan(&mut self, plan: &mut StepPlan, seqs: &SeqMap<Sequence>, budget: usize, logit_rows: usize) -> usize {
        for seq in &plan.released {
            self.known.remove(seq);
        }
        self.rows = plan.seqs.iter().map(|s| s.tokens.len()).sum();
        self.context = plan.seqs.iter().map(|s| s.start).sum();
        let choosing: Vec<usize> = (0..plan.seqs.len()).filter(|i| plan.seqs[*i].sample.is_some()).collect();
        self.choosing = choosing.len();
        for i in &choosing {
            let seq = plan.seqs[*i].seq;
            let usual = self.usual;
            let known = self.known.entry(seq).or_insert_with(|| Known { source: usual, ..Known::default() });
            known.thinking = seqs[&seq].is_thinking();
            // What the target has found in its cache the draft probably finds too.
            known.read = known.read.max(seqs[&seq].hit.unwrap_or(0));
        }
        if self.policy == DraftPolicy::Off {
            return budget;
        }
        // The token after the guesses comes for free: a guess beyond what may be chosen is in vain.
        let useful = |i: usize| seqs[&plan.seqs[i].seq].free_tokens().saturating_sub(1);
        // One that starts may choose as well, if most of its prompt is cached.
        let limit = budget.min(logit_rows.saturating_sub(choosing.len() + plan.openings.len()));
        let lengths = match self.policy {
            DraftPolicy::Fixed(k) => {
                let (each, more) = (limit / choosing.len().max(1), limit % choosing.len().max(1));
                (0..choosing.len()).map(|i| k.min(each + usize::from(i < more))).collect()
            }
            _ => {
                let candidates: Vec<Candidate<'_>> = choosing
                    .iter()
                    .map(|i| {
                        let plan = &plan.seqs[*i];
                        let known = &self.known[&plan.seq];
                        let rates = known.guessed.as_ref().map_or(&self.fresh, |g| &g.rates);
                        let (thinking, source) = (known.thinking, known.source);
                        let behind = (plan.start + plan.tokens.len()).saturating_sub(known.read);
                        let expected = seqs[&plan.seq].expected;
                        Candidate { rates, thinking, source, behind, expected, most: useful(*i) }
                    })
                    .collect();
                self.length.choose(&candidates, self.rows - choosing.len(), self.context, limit)
            }
        };
        let lengths: Vec<usize> = choosing.iter().zip(lengths).map(|(i, length)| length.min(useful(*i))).collect();
        for (i, length) in choosing.into_iter().zip(&lengths) {
            plan.seqs[i].max_drafts = *length;
        }
        budget - lengths.iter().sum::<usize>()
    }

    /// Learns from a step how long steps take and which guesses were right.
    pub fn observe(&mut self, settled: &Settled) {
        let us = |time: std::time::Duration| time.as_secs_f64() * 1e6;
        let drafted: usize = settled.seqs.iter().map(|s| s.drafted).sum();
        let step = settled.took.saturating_sub(settled.draft_time).max(settled.device_time);
        if settled.rows == self.choosing {
            self.length.observe_step(settled.rows + drafted, drafted, self.context, us(step));
        }
        let chosen: usize = settled.seqs.iter().map(|s| s.chosen.as_ref().map_or(0, |c| c.len())).sum();
        // Steps that prefill too take as long as their prompts do; and a length that somebody fixed is not on trial.
        let tried = drafted == 0 || matches!(self.policy, DraftPolicy::Auto(_));
        let seqs = settled.seqs.iter().filter(|s| s.source == Source::Model).count();
        let catching_up = match settled.passes {
            0 => 0.0,
            passes => self.length.observe_draft(seqs, passes, settled.caught_up, us(settled.draft_time)),
        };
        if tried && settled.rows == self.choosing && self.choosing > 0 {
            let (seqs, took) = (self.choosing, us(settled.took));
            self.length.observe_outcome(seqs, self.context, drafted > 0, chosen, took, catching_up);
        }
        let (draft_us, verify_us) = (us(settled.draft_time) as u64, us(settled.device_time) as u64);
        self.total.took(draft_us, verify_us);
        for result in &settled.seqs {
            let chosen = result.chosen.as_ref().map_or(0, |c| c.len());
            let Some(known) = self.known.get_mut(&result.seq).filter(|_| chosen > 0) else { continue };
            (known.draft_us, known.verify_us) = (known.draft_us + draft_us, known.verify_us + verify_us);
            (known.passes, known.chosen) = (known.passes + 1, known.chosen + chosen as u64);
            self.total.pass(known.thinking, result.source, result.drafted, chosen);
            if result.drafted == 0 {
                known.guessed.iter_mut().for_each(|guessed| guessed.rates.fade(FADE));
            } else {
                let guessed = known.guessed.get_or_insert_default();
                guessed.report.pass(known.thinking, result.source, result.drafted, chosen);
                known.source = result.source;
                if result.source == Source::Model {
                    known.read = result.cached;
                }
                let (thinking, accepted) = (known.thinking, chosen - 1);
                self.length.observe_guesses(&mut guessed.rates, thinking, result.source, result.drafted, accepted);
            }
        }
    }

    /// What guessing did for one answer.
    pub fn report(&self, seq: SeqId) -> SpecReport {
        let Some(known) = self.known.get(&seq) else { return SpecReport::default() };
        let report = known.guessed.as_ref().map(|g| g.report.clone()).unwrap_or_default();
        let Known { passes, chosen, draft_us, verify_us, .. } = *known;
        SpecReport { passes, chosen, draft_us, verify_us, ..report }
    }
    /// What guessing did for all.
    pub fn total(&self) -> &SpecReport {
        &self.total
    }
}
