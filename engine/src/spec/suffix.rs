//! A suffix automaton over a token log (Blumer et al. 1985): at any time it knows the longest ending
//! of the log that occurred before, and where; amortised constant time per token.

use std::collections::HashMap;

use super::{Drafter, Guess, Source};

#[derive(Clone, Debug)]
struct State {
    next: HashMap<u32, u32>,
    link: Option<u32>,
    len: u32,
    /// Where the first occurrence of this state's strings ended.
    end: u32,
}

/// How far the end of some text agrees with a place in the automaton's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    state: u32,
    /// Length of the agreement.
    pub matched: usize,
}

/// All substrings of a growing log.
#[derive(Clone, Debug)]
pub struct SuffixAutomaton {
    states: Vec<State>,
    last: u32,
    len: u32,
    /// The longest ending of the log itself that occurred before.
    own: Cursor,
}

impl Default for SuffixAutomaton {
    fn default() -> Self {
        let root = State { next: HashMap::new(), link: None, len: 0, end: 0 };
        Self { states: vec![root], last: 0, len: 0, own: Cursor::default() }
    }
}

impl SuffixAutomaton {
    fn state(&self, s: u32) -> &State {
        &self.states[s as usize]
    }

    /// Appends a token. The log's own match is looked up first, among what stood before.
    pub fn push(&mut self, token: u32) {
        self.own = self.follow(self.own, token);
        self.extend(token);
    }

    /// The longest ending of (the text of `cursor`, then `token`) that is in the log.
    pub fn follow(&self, mut cursor: Cursor, token: u32) -> Cursor {
        loop {
            if let Some(&next) = self.state(cursor.state).next.get(&token) {
                return Cursor { state: next, matched: cursor.matched + 1 };
            }
            match self.state(cursor.state).link {
                Some(link) => cursor = Cursor { state: link, matched: self.state(link).len as usize },
                None => return Cursor::default(),
            }
        }
    }

    /// Appends a token and looks nothing up.
    pub fn extend(&mut self, token: u32) {
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
        if self.own.state == q && self.own.matched <= self.state(clone).len as usize {
            self.own.state = clone;
        }
        clone
    }

    /// Tokens pushed so far.
    pub fn len(&self) -> usize {
        self.len as usize
    }
    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Index of the token after the place that `cursor` agrees with.
    pub fn after(&self, cursor: Cursor) -> usize {
        self.state(cursor.state).end as usize
    }
    /// (length of the longest ending that occurred before, index of the token after that occurrence).
    pub fn longest_match(&self) -> (usize, usize) {
        (self.own.matched, self.after(self.own))
    }
}

/// Continues the longest ending of the log that occurred before, if it is long enough to trust.
#[derive(Clone, Debug, Default)]
pub struct Suffix {
    automaton: SuffixAutomaton,
}

/// Shorter matches are chance.
pub(super) const SHORTEST: usize = 3;

impl Drafter for Suffix {
    fn observe(&mut self, log: &[u32], new: usize) {
        log[log.len() - new..].iter().for_each(|t| self.automaton.push(*t));
    }
    fn rewind(&mut self, log: &[u32]) {
        *self = Self::default();
        self.observe(log, log.len());
    }
    fn propose(&mut self, log: &[u32], max: usize) -> Guess {
        let (matched, at) = self.automaton.longest_match();
        if matched < SHORTEST {
            return Guess::default();
        }
        // A longer match is trusted further ahead.
        let tokens = log[at..].iter().take(max.min(2 * matched)).copied().collect();
        Guess { tokens, source: Source::Suffix, matched }
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
        assert_eq!(drafter.propose(&log, 3), Guess { tokens: vec![4, 5, 6], source: Source::Suffix, matched: 3 });
        assert!(drafter.propose(&log, 0).tokens.is_empty());
        drafter.rewind(&log[..9]);
        assert!(drafter.propose(&log[..9], 3).tokens.is_empty(), "two tokens are chance");
    }
}
