//! A suffix automaton over a token log (Blumer et al. 1985): at any time it knows the longest ending
//! of the log that occurred before, and where; amortised constant time per token.

use std::collections::HashMap;

use super::Drafter;

#[derive(Clone, Debug)]
struct State {
    next: HashMap<u32, u32>,
    link: Option<u32>,
    len: u32,
    /// Where an occurrence of this state's strings ended: the latest one seen when it was last visited.
    end: u32,
}

/// All substrings of a growing log.
#[derive(Clone, Debug)]
pub struct SuffixAutomaton {
    states: Vec<State>,
    last: u32,
    len: u32,
    /// State and length of the longest ending of the log that occurred before.
    at: u32,
    matched: u32,
}

impl Default for SuffixAutomaton {
    fn default() -> Self {
        let root = State { next: HashMap::new(), link: None, len: 0, end: 0 };
        Self { states: vec![root], last: 0, len: 0, at: 0, matched: 0 }
    }
}

impl SuffixAutomaton {
    fn state(&self, s: u32) -> &State {
        &self.states[s as usize]
    }

    /// Appends a token. The match is looked up first, among what stood before.
    pub fn push(&mut self, token: u32) {
        self.follow(token);
        self.extend(token);
    }

    fn follow(&mut self, token: u32) {
        loop {
            if let Some(&next) = self.state(self.at).next.get(&token) {
                self.at = next;
                self.matched += 1;
                return;
            }
            match self.state(self.at).link {
                Some(link) => {
                    self.at = link;
                    self.matched = self.state(link).len;
                }
                None => {
                    self.matched = 0;
                    return;
                }
            }
        }
    }

    fn extend(&mut self, token: u32) {
        self.len += 1;
        let new = self.states.len() as u32;
        self.states.push(State { next: HashMap::new(), link: Some(0), len: self.len, end: self.len });
        let mut p = Some(self.last);
        while let Some(s) = p.filter(|s| !self.state(*s).next.contains_key(&token)) {
            self.states[s as usize].next.insert(token, new);
            p = self.state(s).link;
        }
        if let Some(s) = p {
            let q = self.state(s).next[&token];
            let link = if self.state(q).len == self.state(s).len + 1 { q } else { self.split(s, q, token) };
            self.states[new as usize].link = Some(link);
        }
        self.last = new;
    }

    /// Splits off the shorter strings of `q`.
    fn split(&mut self, s: u32, q: u32, token: u32) -> u32 {
        let clone = self.states.len() as u32;
        let mut state = self.state(q).clone();
        state.len = self.state(s).len + 1;
        self.states.push(state);
        self.states[q as usize].link = Some(clone);
        let mut p = Some(s);
        while let Some(s) = p.filter(|s| self.state(*s).next.get(&token) == Some(&q)) {
            self.states[s as usize].next.insert(token, clone);
            p = self.state(s).link;
        }
        // The running match may have stood in the strings that moved.
        if self.at == q && self.matched <= self.state(clone).len {
            self.at = clone;
        }
        clone
    }

    /// (length of the longest ending that occurred before, index of the token after that occurrence).
    pub fn longest_match(&self) -> (usize, usize) {
        (self.matched as usize, self.state(self.at).end as usize)
    }
}

/// Continues the longest ending of the log that occurred before, if it is long enough to trust.
#[derive(Clone, Debug, Default)]
pub struct Suffix {
    automaton: SuffixAutomaton,
}

/// Shorter matches are chance.
const SHORTEST: usize = 3;

impl Drafter for Suffix {
    fn name(&self) -> &'static str {
        "suffix"
    }
    fn observe(&mut self, log: &[u32], new: usize) {
        log[log.len() - new..].iter().for_each(|t| self.automaton.push(*t));
    }
    fn rewind(&mut self, log: &[u32]) {
        *self = Self::default();
        self.observe(log, log.len());
    }
    fn propose(&mut self, log: &[u32], max: usize) -> Vec<u32> {
        let (matched, at) = self.automaton.longest_match();
        // A longer match is trusted further ahead.
        let trusted = max.min(2 * matched);
        if matched < SHORTEST { Vec::new() } else { log[at..].iter().take(trusted).copied().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in quadratic time.
    fn longest_by_hand(log: &[u32]) -> usize {
        (0..log.len()).rev().find(|&n| (n..log.len()).any(|end| log[end - n..end] == log[log.len() - n..])).unwrap_or(0)
    }

    #[test]
    fn finds_the_longest_ending_that_occurred_before() {
        let mut seed = 1u64;
        for alphabet in [2u64, 3, 10] {
            let mut automaton = SuffixAutomaton::default();
            let mut log = Vec::new();
            for _ in 0..300 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let token = ((seed >> 33) % alphabet) as u32;
                log.push(token);
                automaton.push(token);
                let (len, at) = automaton.longest_match();
                assert_eq!(len, longest_by_hand(&log), "{log:?}");
                assert!(at < log.len() || len == 0);
                assert_eq!(log[at - len..at], log[log.len() - len..], "the occurrence is one");
            }
        }
    }

    #[test]
    fn proposes_what_followed() {
        let log: Vec<u32> = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3].to_vec();
        let mut drafter = Suffix::default();
        drafter.observe(&log, log.len());
        assert_eq!(drafter.propose(&log, 3), [4, 5, 6]);
        assert!(drafter.propose(&log, 0).is_empty());
        drafter.rewind(&log[..9]);
        assert!(drafter.propose(&log[..9], 3).is_empty(), "two tokens are chance");
    }
}
