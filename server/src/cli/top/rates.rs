//! What happened between two snapshots, by the server's own clock.

use super::snapshot::{Actor, Snapshot};

/// Rates between two snapshots. `None` where it cannot be said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// Tokens generated per second.
    pub tokens: Option<f64>,
    /// Steps per second.
    pub steps: Option<f64>,
    /// Share of the time that the device worked.
    pub device: Option<f64>,
    /// Share of guesses that were right; none where nothing was guessed.
    pub acceptance: Option<f64>,
    /// By actor, in the order of the newer snapshot.
    pub actors: Vec<ActorRates>,
}

/// Of one actor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActorRates {
    /// Messages per second.
    pub messages: Option<f64>,
    /// Mean time in the mailbox, in microseconds; none where no message came.
    pub queue_us: Option<f64>,
    /// Share of the time that it worked.
    pub busy: Option<f64>,
}

impl Rates {
    /// From the older to the newer; all `None` if the server started anew in between.
    pub fn between(old: &Snapshot, new: &Snapshot) -> Self {
        let ms = old.now_ms.zip(new.now_ms).and_then(|(a, b)| b.checked_sub(a)).filter(|ms| *ms > 0);
        let Some(seconds) = ms.map(|ms| ms as f64 / 1e3) else { return Self::default() };
        let change = |of: fn(&Snapshot) -> Option<u64>| Some(of(new)?.checked_sub(of(old)?)? as f64);
        let of_lanes = |of: fn(&super::snapshot::Lane) -> Option<u64>, total: &str| generated(old, new, of, total);
        let guessed = of_lanes(|l| l.drafted, "vllm:spec_decode_num_draft_tokens_total").filter(|n| *n > 0.0);
        let right = of_lanes(|l| l.accepted, "vllm:spec_decode_num_accepted_tokens_total");
        let actor = |now: &Actor| {
            let then = old.actors.iter().find(|a| a.name == now.name);
            then.map_or(ActorRates::default(), |then| actor_rates(then, now, seconds))
        };
        Self {
            tokens: of_lanes(|l| l.output, "vllm:generation_tokens_total").map(|n| n / seconds),
            steps: change(|s| s.step).map(|n| n / seconds),
            device: change(|s| s.device_us).map(|us| (us / 1e6 / seconds).min(1.0)),
            acceptance: right.zip(guessed).map(|(right, guessed)| (right / guessed).min(1.0)),
            actors: new.actors.iter().map(actor).collect(),
        }
    }
}

/// Tokens between two snapshots. Counters hear of an answer when it has ended, lanes show those that run: their
/// sum falls when a request is cancelled, the lanes alone miss what came and went. Neither counts too much, so the
/// larger one is nearer.
fn generated(
    old: &Snapshot,
    new: &Snapshot,
    of: fn(&super::snapshot::Lane) -> Option<u64>,
    total: &str,
) -> Option<f64> {
    let in_lanes = |s: &Snapshot| s.lanes.iter().filter_map(of).sum::<u64>() as f64;
    let grown = new.lanes.iter().filter_map(|now| {
        let before = old.lanes.iter().find(|l| l.key == now.key).map_or(Some(0), of)?;
        Some(of(now)?.saturating_sub(before))
    });
    let grown = grown.sum::<u64>() as f64;
    let (before, now) = (old.metrics.value(total), new.metrics.value(total));
    let counted = before.zip(now).map(|(a, b)| (b + in_lanes(new)) - (a + in_lanes(old)));
    match counted {
        Some(counted) => Some(counted.max(grown)),
        None if new.lanes.iter().all(|l| of(l).is_none()) => None,
        None => Some(grown),
    }
}

fn actor_rates(then: &Actor, now: &Actor, seconds: f64) -> ActorRates {
    let change = |of: fn(&Actor) -> Option<u64>| Some(of(now)?.checked_sub(of(then)?)? as f64);
    let messages = change(|a| a.messages);
    let waited = change(|a| a.queue_us).zip(messages.filter(|n| *n > 0.0));
    ActorRates {
        messages: messages.map(|n| n / seconds),
        queue_us: waited.map(|(us, n)| us / n),
        busy: change(|a| a.busy_us).map(|us| (us / 1e6 / seconds).min(1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::recorded;
    use super::*;

    #[test]
    fn per_second_of_the_server() {
        let old = recorded();
        let mut new = old.clone();
        new.now_ms = old.now_ms.map(|t| t + 500);
        new.step = old.step.map(|s| s + 100);
        new.device_us = old.device_us.map(|us| us + 250_000);
        new.lanes[0].output = old.lanes[0].output.map(|n| n + 60);
        new.lanes[0].drafted = Some(200);
        new.lanes[0].accepted = Some(150);
        new.actors[0].messages = old.actors[0].messages.map(|n| n + 50);
        new.actors[0].queue_us = old.actors[0].queue_us.map(|us| us + 100);
        let rates = Rates::between(&old, &new);
        assert_eq!((rates.tokens, rates.steps, rates.device), (Some(120.0), Some(200.0), Some(0.5)));
        assert_eq!(rates.acceptance, Some(0.75));
        assert_eq!((rates.actors[0].messages, rates.actors[0].queue_us), (Some(100.0), Some(2.0)));
        assert_eq!((rates.actors[1].messages, rates.actors[1].queue_us), (Some(0.0), None));
        // A cancelled request takes its tokens along; what the others wrote still counts.
        new.lanes.remove(1);
        assert_eq!(Rates::between(&old, &new).tokens, Some(120.0));
    }

    #[test]
    fn a_server_that_started_anew_has_no_past() {
        let (old, mut new) = (recorded(), recorded());
        assert_eq!(Rates::between(&old, &new), Rates::default());
        new.now_ms = Some(5);
        assert_eq!(Rates::between(&old, &new), Rates::default());
        assert_eq!(Rates::between(&Snapshot::default(), &old), Rates::default());
    }
}
