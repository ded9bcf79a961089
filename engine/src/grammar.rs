//! Answers that keep to a grammar: what the engine asks of one, and how it is carried through a step.
//!
//! The engine knows no grammars. Somebody gives a [`Grammar`] per answer; it says which tokens may come next,
//! takes tokens and takes them back. The scheduler moves it with the answer's own tokens; while a step is verified
//! it looks ahead along the guesses, so that every place has the mask that it would have had alone.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

/// How the reason begins where an answer failed because its grammar did.
pub const GRAMMAR_ERROR: &str = "grammar error";

/// Which tokens may come next, as a bit each, the lowest first; shared by whoever needs it.
pub type TokenMask = Arc<[u32]>;

/// The state of one answer in its grammar.
pub trait Grammar: Send {
    /// Tokens that may come next; those that end the model's turn are among them where the text may end.
    ///
    /// # Errors
    /// If the grammar got too large to be followed.
    fn mask(&mut self) -> Result<TokenMask, String>;
    /// Words of a mask.
    fn words(&self) -> usize;
    /// Takes the next token; false, and nothing taken, if it may not come.
    fn push(&mut self, token: u32) -> bool;
    /// Takes back the last tokens.
    fn rollback(&mut self, tokens: usize);
}

/// Makes the grammar of each of a request's answers.
#[derive(Clone)]
pub struct GrammarSource(Arc<dyn Fn() -> Box<dyn Grammar> + Send + Sync>);

impl GrammarSource {
    /// From a function.
    pub fn new(make: impl Fn() -> Box<dyn Grammar> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }
    /// A grammar at its beginning.
    pub fn start(&self) -> Guide {
        Guide { state: Arc::new(Mutex::new(State { grammar: (self.0)(), fault: None })), also: Arc::new([]) }
    }
}

impl fmt::Debug for GrammarSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GrammarSource")
    }
}

impl PartialEq for GrammarSource {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

struct State {
    grammar: Box<dyn Grammar>,
    /// Why it had no mask, when it was last asked for some.
    fault: Option<String>,
}

/// A grammar on its way through a step. The parts of a step come one after the other, so nobody waits for it.
#[derive(Clone)]
pub struct Guide {
    state: Arc<Mutex<State>>,
    /// Tokens that may come first of all besides: they open the thinking.
    also: Arc<[u32]>,
}

impl Guide {
    /// The same, with tokens that may come next besides.
    pub fn or(&self, tokens: &[u32]) -> Self {
        Self { state: self.state.clone(), also: tokens.into() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic inside a grammar ends its request; the state is not used again.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes a token of the answer; false if it may not come.
    pub fn push(&self, token: u32) -> bool {
        self.state().grammar.push(token)
    }
    /// Takes back tokens.
    pub fn rollback(&self, tokens: usize) {
        self.state().grammar.rollback(tokens);
    }

    /// The masks of the next place and of those behind each guess, as far as the guesses may come; a place behind
    /// a guess that may not come has none, and its choice never counts. A grammar that fails allows nothing, and
    /// [`Guide::fault`] says why.
    pub fn along(&self, guesses: &[u32]) -> Vec<Option<TokenMask>> {
        let mut state = self.state();
        let State { grammar, fault } = &mut *state;
        *fault = None;
        let mut taken = 0;
        let nothing: TokenMask = vec![0; grammar.words()].into();
        let mut mask = |grammar: &mut dyn Grammar| {
            grammar.mask().unwrap_or_else(|why| {
                fault.get_or_insert(why);
                nothing.clone()
            })
        };
        let mut masks = vec![Some(with(mask(&mut **grammar), &self.also))];
        for guess in guesses {
            if masks.len() > taken + 1 || !grammar.push(*guess) {
                masks.push(None);
                continue;
            }
            taken += 1;
            masks.push(Some(mask(&mut **grammar)));
        }
        grammar.rollback(taken);
        masks
    }

    /// Why the grammar had no mask for one of the last places.
    pub fn fault(&self) -> Option<String> {
        self.state().fault.clone()
    }
}

/// A mask with more tokens.
fn with(mask: TokenMask, also: &[u32]) -> TokenMask {
    if also.is_empty() {
        return mask;
    }
    let mut mask = mask.to_vec();
    for token in also {
        if let Some(word) = mask.get_mut(*token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }
    mask.into()
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guide(also {:?})", self.also)
    }
}

impl PartialEq for Guide {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state) && self.also == other.also
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A text of exactly these tokens, and an end token after them.
    pub(crate) struct Exactly {
        pub text: Vec<u32>,
        pub at: usize,
        pub end: u32,
    }

    impl Grammar for Exactly {
        fn mask(&mut self) -> Result<TokenMask, String> {
            let next = self.text.get(self.at).copied().unwrap_or(self.end);
            Ok(with(Arc::new([0; 8]), &[next]))
        }
        fn words(&self) -> usize {
            8
        }
        fn push(&mut self, token: u32) -> bool {
            let fits = self.text.get(self.at) == Some(&token);
            self.at += usize::from(fits);
            fits
        }
        fn rollback(&mut self, tokens: usize) {
            self.at -= tokens;
        }
    }

    pub(crate) fn exactly(text: &[u32], end: u32) -> GrammarSource {
        let text = text.to_vec();
        GrammarSource::new(move || Box::new(Exactly { text: text.clone(), at: 0, end }))
    }

    #[test]
    fn guesses_are_followed_as_far_as_they_may_come() {
        let guide = exactly(&[3, 40, 5], 9).start();
        let allowed = |mask: &Option<TokenMask>| -> Option<Vec<u32>> {
            let mask = mask.as_ref()?;
            Some((0..256).filter(|t| mask[*t as usize / 32] >> (t % 32) & 1 == 1).collect())
        };
        let along = |guesses: &[u32]| guide.along(guesses).iter().map(allowed).collect::<Vec<_>>();
        assert_eq!(along(&[3, 40]), [Some(vec![3]), Some(vec![40]), Some(vec![5])]);
        assert_eq!(along(&[3, 7, 5]), [Some(vec![3]), Some(vec![40]), None, None]);
        assert_eq!(along(&[]), [Some(vec![3])], "nothing was taken");
        assert!(guide.push(3) && !guide.push(3));
        assert_eq!(
            guide.or(&[8]).along(&[40, 5]).iter().map(allowed).collect::<Vec<_>>(),
            [Some(vec![8, 40]), Some(vec![5]), Some(vec![9])]
        );
    }

    /// Any token, then an error.
    struct Breaks(usize);

    impl Grammar for Breaks {
        fn mask(&mut self) -> Result<TokenMask, String> {
            if self.0 < 2 { Ok([u32::MAX].into()) } else { Err("too many states".into()) }
        }
        fn words(&self) -> usize {
            1
        }
        fn push(&mut self, _: u32) -> bool {
            self.0 += 1;
            true
        }
        fn rollback(&mut self, tokens: usize) {
            self.0 -= tokens;
        }
    }

    #[test]
    fn a_grammar_that_fails_says_why_as_long_as_it_does() {
        let guide = GrammarSource::new(|| Box::new(Breaks(0))).start();
        assert_eq!(guide.along(&[1]), [Some([u32::MAX].into()), Some([u32::MAX].into())]);
        assert_eq!(guide.fault(), None);
        assert_eq!(guide.along(&[1, 1])[2], Some([0].into()), "nothing is allowed");
        assert_eq!(guide.fault().as_deref(), Some("too many states"));
        guide.along(&[]);
        assert_eq!(guide.fault(), None, "the guesses were taken back");
    }
}
