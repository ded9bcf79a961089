//! The drafters as a step sees them: plans go in, guesses and work for the draft model come out.

use super::*;
use crate::op::SampleRow;
use crate::request::RequestId;
use crate::spec::RolloutLimits;
use crate::step::{Opening, SamplePlan, StepPlan};

const SEQ: SeqId = SeqId { request: RequestId(1), choice: 0 };

fn reserved(seq: SeqId, start: usize, tokens: &[u32], open: bool, released: &[SeqId]) -> Reserved {
    let sample = Some(SamplePlan { params: SampleRow::default(), adjust: Vec::new(), guide: None });
    let plan = SeqPlan { seq, start, tokens: tokens.into(), max_drafts: 2, sample, parts: Default::default() };
    let opening = Opening { seq, log: tokens.to_vec(), prompt_len: 2, tenant: "t".into(), sample: None };
    let openings = if open { vec![opening] } else { Vec::new() };
    let plan = StepPlan { seqs: vec![plan], released: released.to_vec(), openings, ..StepPlan::default() };
    Reserved { plan, tables: vec![(0..8).collect()], preempted: Vec::new(), copies: Default::default() }
}

fn propose(drafters: &mut Drafters, start: usize, tokens: &[u32], open: bool, released: &[SeqId]) -> Vec<u32> {
    drafters.propose(reserved(SEQ, start, tokens, open, released), true).0.drafts.remove(0)
}

#[test]
fn the_log_follows_accepted_guesses_and_restarts() {
    for lookup in [Lookup::Ngram, Lookup::Suffix] {
        let mut drafters = Drafters::new(DrafterOptions { lookup, model: None });
        let d = &mut drafters;
        assert_eq!(propose(d, 0, &[1, 2, 3, 4, 5, 6, 1, 2, 3], true, &[]), [4, 5], "{lookup:?}");
        // Both guesses were right, and the target said 6 after them.
        assert_eq!(propose(d, 11, &[6], false, &[]), [1, 2]);
        // One of two was right.
        assert_eq!(propose(d, 13, &[9], false, &[]), [0u32; 0]);
        // Preempted: everything again.
        assert_eq!(propose(d, 0, &[1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 9], true, &[]), [0u32; 0]);
        assert_eq!(propose(d, 14, &[1], false, &[]), [0u32; 0]);
        assert_eq!(propose(d, 15, &[2], false, &[]).len(), if lookup == Lookup::Ngram { 2 } else { 0 });
        // Another request under the same id.
        assert_eq!(propose(d, 0, &[7, 8], true, &[SEQ]), [0u32; 0]);
        // A plan that cannot be followed is nobody's fault, and nobody guesses.
        assert_eq!(propose(d, 30, &[7], false, &[]), [0u32; 0]);
        assert_eq!(propose(d, 31, &[8], false, &[]), [0u32; 0]);
    }
}

#[test]
fn what_one_answer_said_serves_the_next_of_its_tenant() {
    let mut d = Drafters::new(DrafterOptions { lookup: Lookup::Suffix, model: None });
    let other = SeqId { request: RequestId(2), choice: 0 };
    let said: Vec<u32> = (50..70).collect();
    propose(&mut d, 0, &said, true, &[]);
    // The prompt of the first, [50, 51], is nobody's business.
    let (drafted, _) = d.propose(reserved(other, 0, &[1, 2, 56, 57, 58, 59, 60], true, &[SEQ]), true);
    assert_eq!((drafted.drafts[0].as_slice(), drafted.sources[0]), (&[61, 62][..], Source::Recent));
}

/// A rollout whose guesses count up from the last token.
fn counting(job: &DraftJob) -> Rolled {
    let guess = |a: &crate::spec::Ask| (1..=a.wanted as u32).map(|i| a.tokens[a.tokens.len() - 1] + i).collect();
    let guesses: Vec<Vec<u32>> = job.asks.iter().map(guess).collect();
    let cached = guesses.iter().map(|g| g.len() - 1).collect();
    Rolled { passes: 2, cached, guesses, broken: 0 }
}

fn with_model(lookup: Lookup) -> Drafters {
    let rollout = RolloutLimits { max_rows: 64, vocab: 100, target_vocab: 100 };
    let model = ModelLimits { rollout, max_model_len: 30, blocks: 8, block_size: 4 };
    Drafters::new(DrafterOptions { lookup, model: Some(model) })
}

#[test]
fn the_draft_is_asked_for_what_its_cache_lacks() {
    let mut d = with_model(Lookup::None);
    let mut step = |start, tokens: &[u32], open| {
        let (mut drafted, job) = d.propose(reserved(SEQ, start, tokens, open, &[]), true);
        let asked: Vec<(usize, Vec<u32>, usize)> =
            job.asks.iter().map(|a| (a.from, a.tokens.clone(), a.wanted)).collect();
        let rolled = counting(&job);
        d.finish(&mut drafted, &job, rolled, Duration::ZERO);
        (asked, drafted.drafts.remove(0))
    };
    assert_eq!(step(0, &[10, 11, 12], true), (vec![(0, vec![10, 11, 12], 2)], vec![13, 14]));
    // Both right; the second was never an input of the draft.
    assert_eq!(step(5, &[15], false), (vec![(4, vec![14, 15], 2)], vec![16, 17]));
    // None right: the cache holds a wrong token at 6, which is written over.
    assert_eq!(step(6, &[40], false), (vec![(6, vec![40], 2)], vec![41, 42]));
    // Preempted and back under the same blocks: the draft's cache is still true.
    assert_eq!(step(0, &[10, 11, 12, 13, 14, 15, 40, 41], true).0, [(7, vec![41], 2)]);
    // Beyond its context it is silent; near it, it guesses less.
    let long: Vec<u32> = (0..30).collect();
    assert_eq!(step(0, &long, true).0[0].2, 1);
    assert_eq!(step(30, &[30], false).0, []);
}

#[test]
fn a_lost_cache_is_caught_up_and_foreign_tokens_are_not_read() {
    let mut d = with_model(Lookup::None);
    let (mut drafted, job) = d.propose(reserved(SEQ, 0, &[10, 11, 12], true, &[]), true);
    d.finish(&mut drafted, &job, counting(&job), Duration::ZERO);
    d.lost_cache();
    let (_, job) = d.propose(reserved(SEQ, 3, &[99], false, &[]), true);
    assert_eq!((job.asks[0].from, job.asks[0].tokens.len()), (0, 4));
    // That job failed: nothing of it counts.
    let (_, job) = d.propose(reserved(SEQ, 4, &[98], false, &[]), true);
    assert_eq!((job.asks[0].from, job.asks[0].tokens.len()), (0, 5));
    let (_, job) = d.propose(reserved(SEQ, 5, &[100], false, &[]), true);
    assert!(job.asks.is_empty(), "the draft has no token 100");
}

#[test]
fn a_sure_lookup_goes_before_the_model() {
    let mut d = with_model(Lookup::Suffix);
    let period: Vec<u32> = [1, 2, 3, 4, 5, 6, 7, 8].repeat(3);
    let (drafted, job) = d.propose(reserved(SEQ, 0, &period[..23], true, &[]), true);
    assert_eq!((drafted.sources[0], drafted.drafts[0].as_slice(), job.asks.len()), (Source::Suffix, &[8, 1][..], 0));
    let (drafted, job) = d.propose(reserved(SEQ, 23, &[60], false, &[]), true);
    assert_eq!((drafted.drafts[0].len(), job.asks.len()), (0, 1), "nothing to look up");
}

#[test]
fn guesses_made_ahead_serve_if_all_came_as_foreseen() {
    let mut d = with_model(Lookup::None);
    let mut step = |start, tokens: &[u32], open| {
        let (mut drafted, job) = d.propose(reserved(SEQ, start, tokens, open, &[]), true);
        let asked = job.asks.len();
        d.finish(&mut drafted, &job, counting(&job), Duration::ZERO);
        let ahead = d.ahead(&drafted);
        d.went_ahead(&ahead, &counting(&ahead));
        let ahead: Vec<(usize, Vec<u32>, usize)> =
            ahead.asks.iter().map(|a| (a.from, a.tokens.clone(), a.wanted)).collect();
        (asked, ahead, drafted.drafts.remove(0))
    };
    assert_eq!(step(0, &[10, 11, 12], true), (1, vec![(4, vec![14], 3)], vec![13, 14]));
    // All right, and 15 as foreseen: 16 and 17 are there without asking, and so on.
    assert_eq!(step(5, &[15], false), (0, vec![(7, vec![17], 3)], vec![16, 17]));
    let (asked, _, drafts) = step(8, &[18], false);
    assert_eq!((asked, drafts), (0, vec![19, 20]));
    // The token after the guesses is another: what was guessed ahead is void.
    let (asked, _, drafts) = step(11, &[50], false);
    assert_eq!((asked, drafts), (1, vec![51, 52]));
    // One guess of two was right.
    let (asked, _, drafts) = step(13, &[60], false);
    assert_eq!((asked, drafts), (1, vec![61, 62]));
}
