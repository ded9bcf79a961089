//! What to do when a device fails: replay the token logs, and find the request that breaks it by letting
//! suspects run alone. A device may also fail by itself, so nobody is found guilty for one failure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::request::SeqId;

/// What the loop does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A new device thread, everything replayed; this sequence ends as the culprit if there is one.
    Replay {
        /// Guilty, with the reason.
        culprit: Option<(SeqId, String)>,
        /// The sequence that may run next, alone.
        only: Option<SeqId>,
    },
    /// Too many failures that nobody explains: end everything.
    GiveUp {
        /// Why.
        reason: String,
    },
}

/// The rules, as plain state.
#[derive(Debug, Default)]
pub struct Supervision {
    /// When the device failed without a culprit.
    failures: VecDeque<Duration>,
    /// Sequences of the last failed step that still have to prove themselves alone.
    suspects: VecDeque<SeqId>,
}

/// Unexplained failures within [`WINDOW`] after which the engine gives up.
const LIMIT: usize = 3;
/// See [`LIMIT`].
const WINDOW: Duration = Duration::from_secs(60);

impl Supervision {
    /// A step with `seqs` broke the device at `now`.
    pub fn failed(&mut self, reason: &str, seqs: &[SeqId], now: Duration) -> Verdict {
        if let [culprit] = seqs
            && self.suspects.front() == Some(culprit)
        {
            // It failed before, and now alone: it is the one. The rest of the suspects need no trial.
            self.suspects.clear();
            return Verdict::Replay { culprit: Some((*culprit, reason.into())), only: None };
        }
        self.failures.push_back(now);
        while self.failures.front().is_some_and(|t| now.saturating_sub(*t) > WINDOW) {
            self.failures.pop_front();
        }
        if self.failures.len() > LIMIT {
            return Verdict::GiveUp { reason: format!("the device failed {} times: {reason}", self.failures.len()) };
        }
        self.suspects = seqs.iter().copied().collect();
        Verdict::Replay { culprit: None, only: self.suspects.front().copied() }
    }

    /// A step with `seqs` went well; returns who must run alone next.
    pub fn succeeded(&mut self, seqs: &[SeqId], chose: bool) -> Option<SeqId> {
        if chose || seqs.is_empty() {
            // It got past the point where the device broke (or it ended meanwhile).
            if self.suspects.front().is_some_and(|s| seqs.is_empty() || seqs.contains(s)) {
                self.suspects.pop_front();
            }
        }
        self.suspects.front().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestId;

    fn seq(n: u64) -> SeqId {
        SeqId { request: RequestId(n), choice: 0 }
    }

    #[test]
    fn the_culprit_is_found_by_elimination() {
        let mut rules = Supervision::default();
        let all = [seq(1), seq(2), seq(3)];
        let at = Duration::from_secs(1);
        assert_eq!(rules.failed("boom", &all, at), Verdict::Replay { culprit: None, only: Some(seq(1)) });
        assert_eq!(rules.succeeded(&[seq(1)], false), Some(seq(1)), "still inside its log");
        assert_eq!(rules.succeeded(&[seq(1)], true), Some(seq(2)));
        let guilty = rules.failed("boom", &[seq(2)], at);
        assert_eq!(guilty, Verdict::Replay { culprit: Some((seq(2), "boom".into())), only: None });
        assert_eq!(rules.succeeded(&[seq(1), seq(3)], true), None);
    }

    #[test]
    fn a_lone_request_gets_a_second_trial() {
        let (mut rules, at) = (Supervision::default(), Duration::from_secs(1));
        assert_eq!(rules.failed("lost", &[seq(1)], at), Verdict::Replay { culprit: None, only: Some(seq(1)) });
        let mut again = Supervision::default();
        again.failed("lost", &[seq(1)], at);
        assert_eq!(again.succeeded(&[seq(1)], true), None, "the device was to blame");
        let guilty = rules.failed("lost", &[seq(1)], at);
        assert_eq!(guilty, Verdict::Replay { culprit: Some((seq(1), "lost".into())), only: None });
    }

    #[test]
    fn a_device_that_fails_for_everybody_is_given_up() {
        let mut rules = Supervision::default();
        for i in 0..4 {
            let verdict = rules.failed("boom", &[seq(1), seq(2)], Duration::from_secs(i));
            assert_eq!(matches!(verdict, Verdict::GiveUp { .. }), i == 3);
        }
        let later = rules.failed("boom", &[seq(1), seq(2)], Duration::from_secs(600));
        assert!(matches!(later, Verdict::Replay { .. }), "old failures are forgotten");
    }
}
