//! Hundreds of worlds, the seeds that failed once, and worlds that are tampered with.

use super::search::{run_world, shrink};
use super::*;
use crate::step::Reserved;

#[test]
fn hundreds_of_worlds() {
    let mut all = Report::default();
    for seed in 0..400 {
        all += try_seed(seed, None).unwrap_or_else(|found| panic!("{found}"));
    }
    // Everything really happened.
    assert!(all.finished > 2000 && all.cancelled > 100 && all.failed > 20, "{all:?}");
    assert!(all.preempted > 200 && all.lost > 50 && all.refused > 50, "{all:?}");
    assert!(all.hits > 10_000 && all.moved > 500, "{all:?}");
    assert!(all.right > 1000 && all.drafted > 2 * all.right && all.thinking > 2000, "{all:?}");
}

#[test]
fn seeds_that_failed_once() {
    for (seed, keep) in kept() {
        try_seed(seed, keep.as_deref()).unwrap_or_else(|found| panic!("{found}"));
    }
}

#[test]
fn a_seed_is_a_world() {
    assert_eq!(Scenario::new(5), Scenario::new(5));
    assert_eq!(run(Scenario::new(5)).unwrap(), run(Scenario::new(5)).unwrap());
    assert_ne!(Scenario::new(5).options, Scenario::new(6).options);
}

/// Runs worlds whose reservations are tampered with from the third step on, until one notices.
fn noticed(tamper: impl Fn(&mut Reserved) -> bool + Clone + 'static) -> Failure {
    for seed in 0..60 {
        let (tamper, mut done) = (tamper.clone(), false);
        let meddle: Meddle = Box::new(move |step, reserved| done = done || (step >= 3 && tamper(reserved)));
        if let Err(failure) = run_world(World::new(Scenario::new(seed)).with_meddle(meddle)) {
            return failure;
        }
    }
    panic!("nobody noticed");
}

/// One wrong entry in one block table of one step is seen by what the model says.
#[test]
fn a_wrong_block_table_changes_the_answer() {
    let long = |reserved: &Reserved, blocks: usize| reserved.tables.iter().position(|t| t.len() >= blocks);
    let swapped = noticed(move |reserved| {
        let Some(at) = long(reserved, 3) else { return false };
        reserved.tables[at].swap(0, 1);
        true
    });
    let stale = noticed(move |reserved| {
        let Some(at) = long(reserved, 3) else { return false };
        reserved.tables[at][0] = (reserved.tables[at][0] + 1) % 4;
        true
    });
    let foreign = noticed(move |reserved| {
        if reserved.tables.len() < 2 || reserved.tables[0].len() < 2 || reserved.tables[1].is_empty() {
            return false;
        }
        reserved.tables[0][0] = reserved.tables[1][0];
        true
    });
    for failure in [swapped, stale, foreign] {
        assert_eq!(failure.law, Law::OneAnswer, "{failure}");
    }
}

#[test]
fn a_failing_seed_becomes_small() {
    // Worlds in which three requests or more were accepted are "broken".
    let three = |scenario: Scenario| match run(scenario)? {
        Report { accepted: 3.., .. } => {
            Err(Failure { law: Law::Counted, step: 1, at: std::time::Duration::ZERO, detail: "three".into() })
        }
        report => Ok(report),
    };
    let scenario = (0..).map(Scenario::new).find(|s| three(s.clone()).is_err() && s.events.len() > 12).unwrap();
    let failure = three(scenario.clone()).unwrap_err();
    let found = shrink(&scenario, failure, three);
    assert!(found.keep.len() <= 3, "{found}");
    assert!(three(scenario.only(&found.keep)).is_err());
    let told = found.to_string();
    assert!(told.contains(&format!("--seed {} --keep {}", scenario.seed, found.keep[0])), "{told}");
}
