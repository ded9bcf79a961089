//! What the other answers of a tenant said lately, as a source of guesses.
//!
//! Answers to like questions restate like steps. Their tokens are kept per tenant in two suffix automata,
//! a young one that grows and an old one that is dropped when the young one is full, so that memory is
//! bounded and what is recent stays. Tenants never see each other's tokens, not even as a matter of time.

use std::collections::HashMap;
use std::sync::Arc;

use super::suffix::Cursor;
use super::{Guess, Source, SuffixAutomaton};

/// Tokens of one automaton.
const CAPACITY: usize = 1 << 15;
/// Longest ending that is looked for: a longer one is no better.
const LONGEST: usize = 32;
/// Shortest that counts: short ones are everywhere in what others said.
const SHORTEST: usize = 5;
/// Stands between two pieces; no token.
const BORDER: u32 = u32::MAX;

#[derive(Default)]
struct Half {
    automaton: SuffixAutomaton,
    log: Vec<u32>,
}

impl Half {
    fn push(&mut self, token: u32) {
        self.automaton.extend(token);
        self.log.push(token);
    }
    fn guess(&self, ending: &[u32], max: usize) -> Guess {
        let cursor = ending.iter().fold(Cursor::default(), |c, t| self.automaton.follow(c, *t));
        if cursor.matched < SHORTEST {
            return Guess::default();
        }
        let follows = self.log[self.automaton.after(cursor)..].iter().take_while(|t| **t != BORDER);
        let tokens = follows.take(max.min(2 * cursor.matched)).copied().collect();
        Guess { tokens, source: Source::Recent, matched: cursor.matched }
    }
}

#[derive(Default)]
struct Tenant {
    young: Half,
    old: Half,
}

/// The recent answers of all tenants.
#[derive(Default)]
pub struct Recent {
    tenants: HashMap<Arc<str>, Tenant>,
}

impl Recent {
    /// A piece of an answer of `tenant`.
    pub fn publish(&mut self, tenant: &Arc<str>, piece: &[u32]) {
        if piece.len() < SHORTEST {
            return;
        }
        let tenant = self.tenants.entry(tenant.clone()).or_default();
        if tenant.young.log.len() + piece.len() > CAPACITY {
            tenant.old = std::mem::take(&mut tenant.young);
        }
        piece.iter().take(CAPACITY - 1).for_each(|t| tenant.young.push(*t));
        tenant.young.push(BORDER);
    }

    /// What followed the end of `log` in the answers of `tenant`; the longer agreement wins, then the younger.
    pub fn propose(&self, tenant: &Arc<str>, log: &[u32], max: usize) -> Guess {
        let Some(tenant) = self.tenants.get(tenant) else { return Guess::default() };
        let ending = &log[log.len().saturating_sub(LONGEST)..];
        let (young, old) = (tenant.young.guess(ending, max), tenant.old.guess(ending, max));
        if old.matched > young.matched { old } else { young }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_sees_its_own_and_nobody_else_s() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut recent = Recent::default();
        let piece: Vec<u32> = (0..40).collect();
        recent.publish(&a, &piece);
        let log: Vec<u32> = [99, 98].into_iter().chain(3..10).collect();
        let guess = recent.propose(&a, &log, 4);
        assert_eq!(guess, Guess { tokens: vec![10, 11, 12, 13], source: Source::Recent, matched: 7 });
        assert_eq!(recent.propose(&b, &log, 4), Guess::default());
        assert_eq!(recent.propose(&a, &log[..5], 4), Guess::default(), "three tokens are chance");
        assert_eq!(recent.propose(&a, &piece, 4).tokens, [0u32; 0], "nothing beyond the border");
    }

    #[test]
    fn memory_is_bounded_and_the_young_replace_the_old() {
        let a: Arc<str> = "a".into();
        let mut recent = Recent::default();
        for piece in 0..100u32 {
            recent.publish(&a, &(0..2000).map(|i| piece * 2000 + i).collect::<Vec<_>>());
        }
        let tenant = &recent.tenants[&a];
        assert!(tenant.young.log.len() <= CAPACITY + 1 && tenant.old.log.len() <= CAPACITY + 1);
        let at = |piece: u32| recent.propose(&a, &(0..8).map(|i| piece * 2000 + i).collect::<Vec<_>>(), 2).tokens;
        assert_eq!(at(99), [198_008, 198_009]);
        assert_eq!(at(80), [160_008, 160_009], "the old half still answers");
        assert!(at(10).is_empty());
    }
}
