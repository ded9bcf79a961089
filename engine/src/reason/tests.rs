//! The reasoning core against a model that is a hash, with random markers, budgets, drafts and chunks.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::op::threefry2x32;

/// Tokens of the random model; markers are made of them too. The last is blank.
const ALPHABET: u32 = 9;
const BLANK: u32 = ALPHABET - 1;
const END: u32 = 100;
const LANDING: [u32; 2] = [200, 201];

#[derive(Clone, Debug)]
struct Case {
    seed: u32,
    spellings: Vec<(Role, Vec<u32>)>,
    after_close: bool,
    start: Start,
    budget: Option<usize>,
    max_tokens: usize,
    reserve: Option<usize>,
    landing: Option<f32>,
    extension: Option<usize>,
    tools: bool,
    loops: bool,
    /// How often, of 256, the model goes on with a marker.
    eager: u32,
    /// The model goes round in a circle of this length.
    circle: Option<usize>,
}

/// A stream of random numbers from a seed.
struct Rng(u32, u32);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.1 += 1;
        threefry2x32([self.0, 77], [self.1, 0])[0] as usize % n
    }
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

impl Case {
    fn random(seed: u32) -> Case {
        let mut r = Rng(seed, 0);
        let mut spellings: Vec<(Role, Vec<u32>)> = Vec::new();
        let roles = [Role::Open, Role::Close, Role::ToolOpen, Role::ToolClose];
        for role in roles.into_iter().chain([Role::Close, Role::Open]) {
            for _ in 0..50 {
                let tokens: Vec<u32> = (0..1 + r.below(3)).map(|_| r.below(BLANK as usize) as u32).collect();
                let inside = |a: &[u32], b: &[u32]| b.windows(a.len()).any(|w| w == a);
                if spellings.iter().all(|(_, s)| !inside(s, &tokens) && !inside(&tokens, s)) {
                    spellings.push((role, tokens));
                    break;
                }
            }
        }
        let budget = r.one(&[None, Some(0), Some(1), Some(2), Some(3), Some(7), Some(20), Some(50)]);
        Case {
            seed,
            spellings,
            after_close: r.below(2) == 0,
            start: r.one(&[Start::Fresh, Start::Thinking, Start::Thinking, Start::Closed]),
            budget,
            max_tokens: 8 + r.below(90),
            reserve: r.one(&[None, None, Some(1), Some(3)]),
            landing: r.one(&[None, Some(0.5), Some(1.0)]),
            extension: r.one(&[None, None, Some(30)]),
            tools: r.below(3) == 0,
            loops: r.below(3) == 0,
            eager: r.one(&[0, 20, 90, 200]),
            circle: r.one(&[None, None, None, Some(5)]),
        }
    }

    fn reasoning(&self) -> Reasoning {
        let after: &[u32] = if self.after_close { &[BLANK] } else { &[] };
        let markers = Arc::new(Markers::from_ids(&self.spellings, after, &[BLANK]));
        let loops = LoopOptions { max_period: 8, min_repeats: 3, min_tokens: 6 };
        let thinking = Thinking {
            phase: PhaseOptions { tools: self.tools, ..PhaseOptions::default() },
            loops: self.loops.then_some(loops),
            ..Thinking::new(markers, self.start)
        };
        let landing = self.landing.map(|at| Landing { tokens: LANDING.to_vec(), at });
        let extension = self.extension.map(|to| Extension { to: Some(to), probability: 1.0 });
        let budget = Budget::new(self.budget, self.max_tokens, self.reserve, landing).with_extension(extension);
        Reasoning::new(&thinking, budget, [END].into())
    }

    fn cap(&self) -> usize {
        let extended = self.budget.map(|b| b.max(self.extension.unwrap_or(0)));
        extended.unwrap_or(usize::MAX)
    }

    /// The token after `log`, a function of it and of what is forbidden alone.
    fn next(&self, log: &[u32], forbid: &[u32]) -> u32 {
        if let Some(circle) = self.circle {
            let wish = threefry2x32([self.seed, 6], [(log.len() % circle) as u32, 0])[0] % BLANK;
            return (0..BLANK).map(|i| (wish + i) % BLANK).find(|t| !forbid.contains(t)).unwrap_or(BLANK);
        }
        let hash = log.iter().fold(self.seed, |h, t| h.wrapping_mul(31).wrapping_add(*t + 1));
        let dice = threefry2x32([self.seed, 5], [hash, log.len() as u32]);
        let mut wish = dice[0] % ALPHABET;
        if dice[1] % 256 < self.eager {
            // Goes on with a marker if one has begun, else begins one.
            let (_, marker) = &self.spellings[dice[1] as usize / 256 % self.spellings.len()];
            let begun = (0..marker.len()).rev().find(|n| log.ends_with(&marker[..*n])).unwrap_or(0);
            wish = marker[begun];
        } else if dice[1] % 256 > 245 {
            wish = END;
        }
        let choices = (0..ALPHABET).map(|i| (wish + i) % ALPHABET);
        [wish].into_iter().chain(choices).find(|t| !forbid.contains(t)).unwrap_or(BLANK)
    }
}

#[derive(Debug, PartialEq)]
struct Outcome {
    log: Vec<u32>,
    labels: Vec<Label>,
    ended: bool,
    report: ThinkingReport,
}

/// Generates an answer as the scheduler does, with spans of `span()` verified tokens.
fn generate(case: &Case, mut span: impl FnMut() -> usize) -> Outcome {
    let (mut r, mut log, mut labels) = (case.reasoning(), Vec::new(), Vec::new());
    let mut ended = false;
    let mut put = |step: phase::Step| {
        step.iter().for_each(|s| labels.extend(std::iter::repeat_n(s.label, s.len)));
    };
    'answer: loop {
        let mut steer = r.steer();
        while !steer.forced.is_empty() {
            for token in steer.forced {
                log.push(token);
                put(r.push(token));
            }
            steer = r.steer();
        }
        if log.len() >= case.max_tokens {
            break;
        }
        // What a verifier accepts: each token under the mask of its own place.
        let mut chosen = Vec::new();
        for _ in 0..span() {
            let forbid = r.forbid_along(&chosen).pop().unwrap();
            assert!(!chosen.is_empty() || forbid == steer.forbid);
            chosen.push(case.next(&[&log[..], &chosen].concat(), &forbid));
        }
        for token in chosen {
            if token == END {
                ended = !r.end_becomes_close();
                if ended { break 'answer } else { break }
            }
            log.push(token);
            put(r.push(token));
            if log.len() >= case.max_tokens {
                break 'answer;
            }
            let free = r.free_tokens();
            let before = r.clone();
            if !r.steer().forced.is_empty() {
                assert!(free == 0 || case.loops || r.report().landed != before.report().landed, "{case:?}");
                r = before;
                break;
            }
        }
    }
    put(r.finish());
    Outcome { log, labels, ended, report: r.report() }
}

fn check(case: &Case, out: &Outcome) {
    let Outcome { log, labels, report, .. } = out;
    assert_eq!(log.len(), labels.len(), "every token has one label: {case:?}");
    assert!(log.len() <= case.max_tokens, "{case:?}");
    let count = |label| labels.iter().filter(|l| **l == label).count();
    let c = report.counts;
    let counted = [c.reasoning, c.content, c.tool_call, c.marker];
    assert_eq!(counted, [Label::Reasoning, Label::Content, Label::ToolCall, Label::Marker].map(count));
    assert!(c.reasoning <= case.cap(), "{} tokens over {}: {case:?} {out:?}", c.reasoning, case.cap());
    let reserve = case.reserve.unwrap_or(DEFAULT.min(case.max_tokens / 2));
    assert!(c.reasoning <= case.max_tokens - reserve, "{case:?}");
    assert!(report.ended_in != Phase::Thinking && report.ended_in != Phase::Closing, "cut inside thinking: {case:?}");
    let said = log.iter().zip(labels).any(|(t, l)| *l == Label::ToolCall || (*l == Label::Content && *t != BLANK));
    if case.start != Start::Fresh || report.closed_by.is_some() {
        let room = out.ended || case.reserve != Some(1);
        assert!(said || !room, "an empty answer: {case:?} {out:?}");
        assert!(c.content + c.tool_call + c.marker > 0, "{case:?}");
    }
    if case.start == Start::Closed {
        assert_eq!(c.reasoning, 0);
    }
    leaks(case, out);
}

const DEFAULT: usize = budget::DEFAULT_RESERVE;

/// No spelling of a think marker lies wholly inside one stream.
fn leaks(case: &Case, out: &Outcome) {
    for (role, marker) in case.spellings.iter().filter(|s| matches!(s.0, Role::Open | Role::Close)) {
        for (tokens, labels) in out.log.windows(marker.len()).zip(out.labels.windows(marker.len())) {
            let leak = tokens == marker && labels.iter().all(|l| *l == labels[0]) && labels[0] != Label::Marker;
            assert!(!leak || labels[0] == Label::ToolCall, "{role:?} {marker:?} leaked: {case:?} {out:?}");
        }
    }
}

#[test]
fn ten_thousand_requests() {
    let (mut capped, mut reserved, mut model, mut cut, mut tool, mut looped, mut landed, mut extended) =
        Default::default();
    for seed in 0..10_000u32 {
        let case = Case::random(seed);
        let mut r = Rng(seed, 1 << 20);
        let longest = 1 + r.below(9);
        let out = generate(&case, || 1 + r.below(longest));
        check(&case, &out);
        assert_eq!(out, generate(&case, || 1), "speculation changed the answer: {case:?}");
        let by = |reason, n: &mut u32| *n += u32::from(out.report.closed_by == Some(reason));
        by(CloseReason::Budget, &mut capped);
        by(CloseReason::Reserve, &mut reserved);
        by(CloseReason::Model, &mut model);
        by(CloseReason::EndToken, &mut cut);
        by(CloseReason::ToolCall, &mut tool);
        by(CloseReason::Loop, &mut looped);
        landed += u32::from(out.report.landed);
        extended += u32::from(out.report.extended);
    }
    let all: [u32; 8] = [capped, reserved, model, cut, tool, looped, landed, extended];
    assert!(all.iter().all(|n| *n > 50), "every way to close was taken: {all:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Pushing k tokens and taking them back changes nothing, and pushing them again gives the same labels.
    #[test]
    fn rollback_is_exact(
        seed in any::<u32>(),
        tokens in proptest::collection::vec(0..ALPHABET, 0..80),
        more in proptest::collection::vec(0..ALPHABET, 0..phase::HISTORY),
    ) {
        let case = Case::random(seed);
        let mut machine = case.reasoning().phase().clone();
        for token in tokens {
            machine.push(token);
        }
        for closing in [false, true] {
            if closing && machine.phase() == Phase::Thinking {
                machine.begin_close();
            }
            let before = machine.clone();
            let labels: Vec<phase::Step> = more.iter().map(|t| machine.push(*t)).collect();
            machine.rollback(more.len());
            prop_assert_eq!(&machine, &before);
            prop_assert_eq!(machine.held(), before.held());
            let again: Vec<phase::Step> = more.iter().map(|t| machine.push(*t)).collect();
            prop_assert_eq!(labels, again);
            machine = before;
        }
    }

    /// Chunks of any size give the same labels: there is no state but the machine's.
    #[test]
    fn held_tokens_are_decided_in_order(seed in any::<u32>(), tokens in proptest::collection::vec(0..ALPHABET, 0..200)) {
        let mut machine = Case::random(seed).reasoning().phase().clone();
        let mut decided = 0;
        for (i, token) in tokens.iter().enumerate() {
            decided += machine.push(*token).iter().map(|s| s.len).sum::<usize>();
            prop_assert_eq!(decided + machine.held(), i + 1);
        }
        decided += machine.finish().iter().map(|s| s.len).sum::<usize>();
        prop_assert_eq!(decided, tokens.len());
    }
}

/// `<` 1 2 `>`: one token opens, three close. Thinking is 5s, the answer 6s.
fn plain(start: Start, budget: Option<usize>) -> Reasoning {
    let spellings = [(Role::Open, vec![0]), (Role::Close, vec![1, 2, 3]), (Role::ToolOpen, vec![4])];
    let thinking = Thinking::new(Arc::new(Markers::from_ids(&spellings, &[], &[BLANK])), start);
    Reasoning::new(&thinking, Budget::new(budget, 1000, None, None), [END].into())
}

/// Pushes what the model says, forced tokens as they come; returns the log.
fn say(r: &mut Reasoning, says: &[u32]) -> Vec<u32> {
    let (mut log, mut says) = (Vec::new(), says.iter());
    loop {
        let forced = r.steer().forced;
        if forced.is_empty() {
            let Some(token) = says.next() else { return log };
            log.push(*token);
            r.push(*token);
        } else {
            forced.iter().for_each(|t| {
                r.push(*t);
            });
            log.extend(forced);
        }
    }
}

#[test]
fn budgets_around_the_natural_end() {
    let natural = [5, 5, 5, 1, 2, 3];
    for (budget, thinking, by, log) in [
        (0, 0, CloseReason::Budget, &[1u32, 2, 3][..]),
        (1, 1, CloseReason::Budget, &[5, 1, 2, 3]),
        (2, 2, CloseReason::Budget, &[5, 5, 1, 2, 3]),
        (3, 3, CloseReason::Budget, &natural),
        (4, 3, CloseReason::Budget, &natural), // the close had begun: it is completed, not doubled
        (5, 3, CloseReason::Budget, &natural),
        (6, 3, CloseReason::Model, &natural),
    ] {
        let mut r = plain(Start::Thinking, Some(budget));
        // The model closes after three, unless it was closed before.
        let mut got = Vec::new();
        for token in natural {
            got.extend(say(&mut r, &[]));
            if r.phase().phase() == Phase::Thinking {
                got.extend(say(&mut r, &[token]));
            }
        }
        assert_eq!((r.report().counts.reasoning, r.report().closed_by), (thinking, Some(by)), "budget {budget}");
        assert_eq!(got, log, "budget {budget}");
        // After a natural end the same number of answer tokens is not capped.
        say(&mut r, &[6; 50]);
        assert_eq!(r.report().counts.content, 50);
    }
}

#[test]
fn after_the_close_no_marker_comes_back_and_the_answer_is_not_empty() {
    let mut r = plain(Start::Thinking, Some(2));
    say(&mut r, &[5, 5]);
    assert_eq!(r.steer().forbid, [0, END], "no second opening, no empty answer");
    say(&mut r, &[BLANK]);
    assert_eq!(r.steer().forbid, [0, END], "a newline is no answer");
    say(&mut r, &[6]);
    assert_eq!(r.steer().forbid, [0]);
    say(&mut r, &[1, 2]);
    assert_eq!(r.steer().forbid, [0, 3], "nor a second close");
    // A device without the mask: the marker is swallowed, nothing reopens.
    say(&mut r, &[3, 0, 6]);
    r.finish();
    let report = r.report();
    assert_eq!((report.counts.reasoning, report.counts.content, report.ended_in), (2, 2, Phase::Answering));
}

#[test]
fn a_model_may_open_late_skip_or_end_inside() {
    let mut opened = plain(Start::Fresh, None);
    say(&mut opened, &[BLANK, 0, 5, 5, 1, 2, 3, BLANK, 6]);
    let counts = opened.report().counts;
    assert_eq!((counts.reasoning, counts.content, counts.marker), (2, 1, 6));

    let mut skipped = plain(Start::Fresh, None);
    say(&mut skipped, &[BLANK, 6, 6]);
    assert_eq!(skipped.report().counts.content, 3, "without thinking the first newline is the answer's");
    assert_eq!(skipped.steer().forbid, [0], "too late to think");
    assert_eq!(skipped.report().closed_by, None);

    let mut ended = plain(Start::Thinking, None);
    say(&mut ended, &[5, 1]);
    assert!(ended.end_becomes_close());
    assert_eq!(ended.steer().forced, [2, 3], "the close had begun");
    assert!(!plain(Start::Fresh, None).end_becomes_close());

    let mut none = plain(Start::Fresh, Some(0));
    assert_eq!(none.steer().forbid, [0]);
}

#[test]
fn tool_calls() {
    let spellings =
        [(Role::Open, vec![0]), (Role::Close, vec![1, 2]), (Role::ToolOpen, vec![4, 4]), (Role::ToolClose, vec![3])];
    let markers = Arc::new(Markers::from_ids(&spellings, &[], &[]));
    let run = |options: PhaseOptions| {
        let mut m = PhaseMachine::new(markers.clone(), Start::Thinking, options);
        let mut labels = Vec::new();
        for token in [5, 4, 4, 7, 0, 3, 6] {
            labels.extend(m.push(token).iter().flat_map(|s| vec![s.label; s.len]));
        }
        (labels, m.phase())
    };
    use Label::{Content as C, Marker as M, Reasoning as R, ToolCall as T};
    let tools = PhaseOptions { tools: true, ..PhaseOptions::default() };
    assert_eq!(run(tools), (vec![R, T, T, T, T, T, C], Phase::Answering));
    let kept = PhaseOptions { tool_ends_thinking: false, ..tools };
    assert_eq!(run(kept), (vec![R, R, R, R, M, R, R], Phase::Thinking));
    assert_eq!(run(PhaseOptions::default()).1, Phase::Thinking, "no tools in the request");
}

#[test]
fn a_loop_is_closed_and_the_reason_told() {
    let mut r = plain(Start::Thinking, None);
    let circle: Vec<u32> = [5, 6, 7].into_iter().cycle().take(300).collect();
    say(&mut r, &circle);
    let report = r.report();
    assert_eq!(report.closed_by, Some(CloseReason::Loop));
    assert_eq!(report.looped.map(|l| l.period), Some(3));
    assert!(report.counts.reasoning < 3 + 128 + 20);
}

#[test]
fn the_answer_can_be_asked_for() {
    let mut r = plain(Start::Thinking, None);
    say(&mut r, &[5, 5]);
    r.close_thinking(CloseReason::Asked);
    assert_eq!(say(&mut r, &[]), [1, 2, 3]);
    assert_eq!(r.report().closed_by, Some(CloseReason::Asked));
    r.close_thinking(CloseReason::Asked);
    assert!(r.steer().forced.is_empty());
}

#[test]
fn a_partial_marker_at_the_end_is_text() {
    let mut r = plain(Start::Closed, None);
    say(&mut r, &[6, 1, 2]);
    assert_eq!(r.report().counts.content, 1);
    assert_eq!(r.finish().iter().map(|s| s.len).sum::<usize>(), 2);
    assert_eq!(r.report().counts.content, 3);
}
