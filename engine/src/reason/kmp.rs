//! Finds marker spellings in a stream of tokens: the Knuth-Morris-Pratt automaton of a *set* of patterns
//! (Knuth, Morris, Pratt 1977; for several patterns Aho and Corasick 1975).
//!
//! The automaton never changes after it was built and its whole memory of a stream is one [`State`], an
//! integer. So taking back k tokens, as speculation must, is writing back an older integer: exact by construction.

/// Where a stream stands: the node of the longest pattern prefix that the stream ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State(u16);

impl State {
    /// Nothing matched yet.
    pub const ROOT: State = State(0);
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    children: Vec<(u32, u16)>,
    depth: u16,
    fail: u16,
    /// A pattern that begins with the path to here.
    pattern: u16,
    /// The pattern that ends here.
    output: Option<u16>,
}

/// A set of token sequences to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns {
    nodes: Vec<Node>,
    patterns: Vec<Vec<u32>>,
}

impl Patterns {
    /// The automaton of `patterns`; empty ones never match. Of equal ones the first counts.
    ///
    /// # Panics
    /// If they have more than 65,535 tokens together.
    pub fn new(patterns: &[Vec<u32>]) -> Self {
        let mut nodes = vec![Node::default()];
        for (index, pattern) in patterns.iter().enumerate().filter(|(_, p)| !p.is_empty()) {
            let mut at = 0;
            for token in pattern {
                at = match nodes[at].child(*token) {
                    Some(next) => next.into(),
                    None => {
                        let next = u16::try_from(nodes.len()).expect("markers are short");
                        let depth = nodes[at].depth + 1;
                        nodes[at].children.push((*token, next));
                        nodes.push(Node { depth, pattern: index as u16, ..Node::default() });
                        next.into()
                    }
                };
            }
            nodes[at].output.get_or_insert(index as u16);
        }
        let mut set = Self { nodes, patterns: patterns.to_vec() };
        set.link();
        set
    }

    /// Failure links, breadth first: the longest proper suffix that is also a prefix.
    fn link(&mut self) {
        let mut queue: Vec<u16> = self.nodes[0].children.iter().map(|c| c.1).collect();
        let mut at = 0;
        while at < queue.len() {
            let node = queue[at];
            at += 1;
            for (token, child) in self.nodes[node as usize].children.clone() {
                let fail = self.step(State(self.nodes[node as usize].fail), token).0;
                self.nodes[child as usize].fail = fail;
                queue.push(child);
            }
        }
    }

    /// The state after one more token. Constant time, amortised over a stream.
    pub fn step(&self, state: State, token: u32) -> State {
        let mut at = state.0;
        loop {
            match self.nodes[at as usize].child(token) {
                Some(next) => return State(next),
                None if at == 0 => return State::ROOT,
                None => at = self.nodes[at as usize].fail,
            }
        }
    }

    /// The longest of the `wanted` patterns that the stream ends with, by index.
    pub fn found(&self, state: State, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        self.chain(state).filter_map(|at| self.nodes[at].output.map(usize::from)).find(|i| wanted(*i))
    }
    /// Tokens at the stream's end that may be the beginning of a pattern.
    pub fn partial(&self, state: State) -> usize {
        self.nodes[state.0 as usize].depth.into()
    }
    /// The state after a whole pattern that was not wanted: only what can still grow is kept.
    pub fn settle(&self, state: State) -> State {
        let grows = |at: &usize| *at == 0 || !self.nodes[*at].children.is_empty();
        State(self.chain(state).find(grows).unwrap_or(0) as u16)
    }
    /// A node, and those of ever shorter suffixes, the root last.
    fn chain(&self, state: State) -> impl Iterator<Item = usize> {
        let next = |at: &usize| (*at > 0).then(|| self.nodes[*at].fail.into());
        std::iter::successors(Some(state.0.into()), next)
    }
    /// How many patterns there are.
    pub fn len(&self) -> usize {
        self.patterns.len()
    }
    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
    /// A pattern.
    pub fn pattern(&self, index: usize) -> &[u32] {
        &self.patterns[index]
    }

    /// How to complete the nearest pattern among those wanted, if the stream ends inside one: how many of its
    /// tokens are there, and the rest.
    pub fn rest(&self, state: State, wanted: impl Fn(usize) -> bool) -> Option<(usize, &[u32])> {
        self.chain(state).filter(|at| *at > 0).find_map(|at| {
            let Node { depth, pattern, .. } = &self.nodes[at];
            let path = &self.patterns[*pattern as usize][..(*depth).into()];
            let candidates = self.patterns.iter().enumerate().filter(|(i, p)| wanted(*i) && p.starts_with(path));
            let rests = candidates.map(|(_, p)| &p[path.len()..]).filter(|rest| !rest.is_empty());
            rests.min_by_key(|rest| rest.len()).map(|rest| (path.len(), rest))
        })
    }

    /// Every token that would complete a wanted pattern now, with that pattern's index.
    pub fn completions(&self, state: State, wanted: impl Fn(usize) -> bool) -> Vec<(u32, usize)> {
        let mut seen: Vec<(u32, usize)> = Vec::new();
        for (token, _) in self.chain(state).flat_map(|at| &self.nodes[at].children) {
            // The longest match decides, as in `push`.
            let found = self.found(self.step(state, *token), &wanted);
            if let Some(index) = found.filter(|_| seen.iter().all(|s| s.0 != *token)) {
                seen.push((*token, index));
            }
        }
        seen
    }
}

impl Node {
    fn child(&self, token: u32) -> Option<u16> {
        self.children.iter().find(|c| c.0 == token).map(|c| c.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pattern_that_overlaps_itself() {
        let set = Patterns::new(&[vec![1, 1, 2], vec![3]]);
        let mut state = State::ROOT;
        let mut found = Vec::new();
        for token in [1, 1, 1, 2, 3] {
            state = set.step(state, token);
            found.push((set.partial(state), set.found(state, |_| true)));
        }
        assert_eq!(found, [(1, None), (2, None), (2, None), (3, Some(0)), (1, Some(1))]);
        let two = set.step(set.step(State::ROOT, 1), 1);
        assert_eq!(set.completions(two, |_| true), [(2, 0), (3, 1)]);
        assert_eq!(set.completions(State::ROOT, |_| true), [(3, 1)]);
    }

    #[test]
    fn empty_patterns_and_no_patterns() {
        for set in [Patterns::new(&[]), Patterns::new(&[vec![]])] {
            assert_eq!(set.step(State::ROOT, 7), State::ROOT);
            assert_eq!(set.found(State::ROOT, |_| true), None);
        }
    }

    #[test]
    fn the_rest_of_a_pattern_that_has_begun() {
        let set = Patterns::new(&[vec![1, 2, 3, 4], vec![2, 9, 9], vec![3, 5]]);
        let at = |text: &[u32]| text.iter().fold(State::ROOT, |s, t| set.step(s, *t));
        assert_eq!(set.rest(at(&[1, 2]), |i| i == 0), Some((2, &[3, 4][..])));
        assert_eq!(set.rest(at(&[1, 2]), |i| i == 1), Some((1, &[9, 9][..])), "a shorter end counts too");
        assert_eq!(set.rest(at(&[1, 2, 3]), |i| i > 0), Some((1, &[5][..])));
        assert_eq!(set.rest(at(&[1, 2]), |i| i == 2), None);
        assert_eq!(set.rest(State::ROOT, |_| true), None);
    }

    #[test]
    fn unwanted_patterns_hide_nothing() {
        // 7 6 is unwanted: it neither swallows the 6 of 6 6 nor the 7 6 of 7 6 5.
        let set = Patterns::new(&[vec![7, 6], vec![6, 6], vec![7, 6, 5], vec![6]]);
        let run = |text: &[u32], wanted: &dyn Fn(usize) -> bool| {
            let state = text.iter().fold(State::ROOT, |s, t| set.step(set.settle(s), *t));
            set.found(state, wanted)
        };
        assert_eq!(run(&[7, 6], &|i| i != 0), Some(3));
        assert_eq!(run(&[7, 6, 5], &|i| i == 2), Some(2));
        assert_eq!(set.completions(set.step(State::ROOT, 7), |i| i == 1), []);
        let after = set.settle(set.step(set.step(State::ROOT, 7), 6));
        assert_eq!(set.completions(after, |i| i == 1), [(6, 1)]);
    }

    proptest! {
        /// Against looking at every suffix of the text.
        #[test]
        fn agrees_with_the_obvious_way(
            patterns in proptest::collection::vec(proptest::collection::vec(0u32..3, 1..5), 1..4),
            text in proptest::collection::vec(0u32..3, 0..60),
        ) {
            let set = Patterns::new(&patterns);
            let mut state = State::ROOT;
            for end in 1..=text.len() {
                let before = state;
                state = set.step(state, text[end - 1]);
                let suffixes = patterns.iter().filter(|p| text[..end].ends_with(p));
                let want = suffixes.max_by_key(|p| p.len());
                prop_assert_eq!(set.found(state, |_| true).map(|i| set.pattern(i)), want.map(Vec::as_slice));
                let longest = patterns.iter().flat_map(|p| (0..=p.len()).filter(|n| text[..end].ends_with(&p[..*n])));
                prop_assert_eq!(set.partial(state), longest.max().unwrap());
                let completes = set.completions(before, |_| true).iter().any(|(t, _)| *t == text[end - 1]);
                prop_assert_eq!(completes, want.is_some());
            }
        }
    }
}
