//! How much thinking an answer may have: an exact cap, a reserve for the answer, a soft landing before the cap.
//!
//! Plain arithmetic over counts; [`super::Reasoning`] applies it. Tokens that are held because they may begin
//! a marker count as thinking here, so the cap holds whatever they turn out to be.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Answer tokens that are kept free when the request does not say; half of `max_tokens` if that is less.
pub const DEFAULT_RESERVE: usize = 256;

/// A sentence written into the thinking shortly before its cap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Landing {
    /// Its tokens. They are thinking and count as such.
    pub tokens: Vec<u32>,
    /// At which share of the cap; 1 puts it directly before the close.
    pub at: f32,
}

impl Landing {
    /// Refuses an empty sentence and a share outside (0, 1].
    pub fn validate(&self) -> Result<()> {
        if self.tokens.is_empty() {
            return Err(Error::invalid("soft landing", "is an empty sentence"));
        }
        if !(self.at > 0.0 && self.at <= 1.0) {
            return Err(Error::invalid("soft landing", format!("{} is not a share between 0 and 1", self.at)));
        }
        Ok(())
    }
}

/// A larger cap, taken once where the first is reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extension {
    /// The new cap; `None` is none.
    pub to: Option<usize>,
    /// How likely it was, in advance, that an answer cut at the first cap suffers.
    pub probability: f32,
}

/// Why thinking ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// The model closed it.
    Model,
    /// The thinking budget was used up.
    Budget,
    /// What was left of `max_tokens` is reserved for the answer.
    Reserve,
    /// It went round in a circle.
    Loop,
    /// The model ended its turn inside the thinking.
    EndToken,
    /// A tool call began.
    ToolCall,
    /// The client asked for the answer.
    Asked,
    /// The KV pool was short, and the operator lets that cut thinking.
    Memory,
}

/// What to do before the next token is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steer {
    /// Tokens that are already chosen: they go into the log, and through the model in one step.
    pub forced: Vec<u32>,
    /// Tokens that must not be chosen next: their logits are minus infinity.
    pub forbid: Vec<u32>,
}

/// Reads `thinking_token_budget`: -1 is unlimited.
///
/// # Errors
/// If it is below -1.
pub fn budget_of(field: &str, value: i64) -> Result<Option<usize>> {
    match value {
        -1 => Ok(None),
        0.. => Ok(Some(usize::try_from(value).unwrap_or(usize::MAX))),
        _ => Err(Error::invalid(field, format!("{value} is below -1; -1 is unlimited, 0 is no thinking"))),
    }
}

/// The thinking budget of one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    limit: Option<usize>,
    max_tokens: usize,
    reserve: usize,
    landing: Option<Landing>,
    landed: bool,
    extension: Option<Extension>,
    extended: bool,
}

impl Budget {
    /// A budget of `limit` tokens of thinking in an answer of `max_tokens`, all together. `reserve` of them stay
    /// free for the answer; a reserve as large as `max_tokens` leaves no room to think.
    pub fn new(limit: Option<usize>, max_tokens: usize, reserve: Option<usize>, landing: Option<Landing>) -> Self {
        let reserve = reserve.unwrap_or(DEFAULT_RESERVE.min(max_tokens / 2)).min(max_tokens);
        Self { limit, max_tokens, reserve, landing, landed: false, extension: None, extended: false }
    }
    /// Tokens that stay free for the answer.
    pub fn reserve(&self) -> usize {
        self.reserve
    }
    /// The same with a second, larger cap.
    pub fn with_extension(self, extension: Option<Extension>) -> Self {
        Self { extension, ..self }
    }

    /// Whether any thinking is allowed.
    pub fn any(&self) -> bool {
        self.limit != Some(0)
    }
    /// Whether thinking may be opened after `written` tokens, where the markers take `open` and `close` tokens.
    pub fn can_open(&self, written: usize, open: usize, close: usize) -> bool {
        self.any() && written + open + close + self.reserve.max(1) < self.max_tokens
    }
    /// Whether the extension was taken.
    pub fn extended(&self) -> bool {
        self.extended
    }
    /// Whether the soft landing was written.
    pub fn landed(&self) -> bool {
        self.landed
    }

    /// How many more tokens of thinking there may be, and what ends it then. `used`: tokens of thinking, held ones
    /// included; `written`: all tokens of the answer; `close`: tokens that closing it takes at most.
    pub fn room(&self, used: usize, written: usize, close: usize) -> (usize, CloseReason) {
        let by_budget = self.limit.map_or(usize::MAX, |l| l.saturating_sub(used));
        let by_reserve = self.max_tokens.saturating_sub(written + close + self.reserve);
        if by_budget <= by_reserve { (by_budget, CloseReason::Budget) } else { (by_reserve, CloseReason::Reserve) }
    }

    /// Takes the extension if there is one left: the cap is higher now.
    pub fn extend(&mut self) -> bool {
        match self.extension {
            Some(extension) if !self.extended && extension.to.is_none_or(|to| self.limit.is_some_and(|l| to > l)) => {
                (self.limit, self.extended) = (extension.to, true);
                true
            }
            _ => false,
        }
    }

    /// The landing's tokens, once, when it is time for them: they fit, leave most of the cap to the model, and no
    /// extension is to come.
    pub fn land(&mut self, used: usize, room: usize) -> Vec<u32> {
        let Some(landing) = self.landing.as_ref().filter(|_| !self.landed) else { return Vec::new() };
        let waits = self.extension.is_some() && !self.extended;
        let (len, cap) = (landing.tokens.len(), used.saturating_add(room));
        let due = ((cap as f64 * f64::from(landing.at)) as usize).min(cap.saturating_sub(len));
        if waits || used < due || len > room || len > cap / 4 {
            return Vec::new();
        }
        self.landed = true;
        landing.tokens.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_budget_and_reserve_counts() {
        let budget = Budget::new(Some(100), 1000, None, None);
        assert_eq!(budget.room(0, 0, 1), (100, CloseReason::Budget));
        assert_eq!(budget.room(40, 700, 1), (43, CloseReason::Reserve));
        assert_eq!(budget.room(100, 100, 1), (0, CloseReason::Budget));
        assert_eq!(budget.room(101, 5000, 1), (0, CloseReason::Budget), "never below nothing");
        assert_eq!(Budget::new(None, 1000, Some(0), None).room(0, 0, 3), (997, CloseReason::Reserve));
        assert_eq!(Budget::new(None, 100, None, None).room(0, 0, 1), (49, CloseReason::Reserve), "half is kept");
        assert!(!Budget::new(Some(0), 100, None, None).can_open(0, 1, 1));
        assert!(Budget::new(Some(1), 4, Some(1), None).can_open(0, 1, 1));
        assert!(!Budget::new(Some(1), 3, Some(1), None).can_open(0, 1, 1));
    }

    #[test]
    fn the_landing_comes_once_and_fits() {
        let landing = Landing { tokens: vec![1, 2, 3], at: 0.8 };
        let mut budget = Budget::new(Some(100), 10_000, None, Some(landing.clone()));
        assert!(budget.land(79, 21).is_empty());
        assert_eq!(budget.land(80, 20), [1, 2, 3]);
        assert!(budget.land(83, 17).is_empty());
        let mut late = Budget::new(Some(20), 10_000, None, Some(Landing { at: 1.0, ..landing.clone() }));
        assert!(late.land(16, 4).is_empty());
        assert_eq!(late.land(17, 3), [1, 2, 3]);
        let mut small = Budget::new(Some(8), 10_000, None, Some(landing));
        assert!((0..=8).all(|used| small.land(used, 8 - used).is_empty()), "it would eat the thinking");
    }

    #[test]
    fn an_extension_is_taken_once() {
        let extension = Some(Extension { to: Some(50), probability: 0.9 });
        let mut budget = Budget::new(Some(10), 1000, None, None).with_extension(extension);
        assert!(budget.extend());
        assert_eq!(budget.room(10, 10, 1).0, 40);
        assert!(!budget.extend());
        let lower = Some(Extension { to: Some(5), probability: 0.9 });
        assert!(!Budget::new(Some(10), 1000, None, None).with_extension(lower).extend(), "never a smaller cap");
    }

    #[test]
    fn budgets_on_the_wire() {
        assert_eq!(budget_of("b", -1).unwrap(), None);
        assert_eq!(budget_of("b", 0).unwrap(), Some(0));
        assert_eq!(budget_of("b", i64::MAX).unwrap(), Some(i64::MAX as usize));
        assert!(
            budget_of("thinking_token_budget", -2).unwrap_err().to_string().starts_with("thinking_token_budget: -2")
        );
    }
}
