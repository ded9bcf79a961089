//! Reasoning efforts: a word in the request, a budget and a hint to the model.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How hard to think.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effort {
    /// Not at all.
    None,
    /// A line.
    Minimal,
    /// A few steps.
    Low,
    /// Ordinary.
    #[default]
    Medium,
    /// With checks.
    High,
    /// As long as it takes.
    Max,
    /// As the question needs: see [`super::decide`].
    Auto,
}

impl Effort {
    /// All of them, in order.
    pub const ALL: [Effort; 7] =
        [Effort::None, Effort::Minimal, Effort::Low, Effort::Medium, Effort::High, Effort::Max, Effort::Auto];

    /// The word.
    pub fn name(self) -> &'static str {
        ["none", "minimal", "low", "medium", "high", "max", "auto"][self as usize]
    }
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Effort {
    type Err = Error;

    /// Reads the word; `xhigh`, which some clients send, is `max`.
    fn from_str(word: &str) -> Result<Effort> {
        let word = if word == "xhigh" { "max" } else { word };
        Effort::ALL.into_iter().find(|e| e.name() == word).ok_or_else(|| {
            let known: Vec<&str> = Effort::ALL.iter().map(|e| e.name()).collect();
            Error::invalid("reasoning_effort", format!("{word:?} is none of {}", known.join(", ")))
        })
    }
}

/// What an effort asks of engine and model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Level {
    /// Cap in tokens; -1 is none.
    pub budget: i64,
    /// Added to the system prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Budget and hint of each fixed effort; a model with another sense of length brings its own, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EffortTable {
    /// For [`Effort::Minimal`].
    pub minimal: Level,
    /// For [`Effort::Low`].
    pub low: Level,
    /// For [`Effort::Medium`].
    pub medium: Level,
    /// For [`Effort::High`].
    pub high: Level,
    /// For [`Effort::Max`].
    pub max: Level,
}

impl Default for EffortTable {
    fn default() -> Self {
        let level = |budget, hint: &str| Level { budget, hint: (!hint.is_empty()).then(|| hint.to_string()) };
        Self {
            minimal: level(128, "Think in one or two short lines at most, then answer."),
            low: level(512, "Think briefly: only the steps that are needed, without checking them twice. Then answer."),
            medium: level(4096, ""),
            high: level(16_384, "Think carefully and check the result before you answer."),
            max: level(-1, "Think as long as it takes; consider other ways and check every step before you answer."),
        }
    }
}

impl EffortTable {
    /// Refuses budgets below -1 and levels that fall as the effort rises.
    pub fn validate(&self) -> Result<()> {
        let levels = [&self.minimal, &self.low, &self.medium, &self.high, &self.max];
        let mut last = 0;
        for (level, effort) in levels.into_iter().zip(&Effort::ALL[1..]) {
            let budget = super::budget_of(&format!("efforts.{effort}"), level.budget)?.unwrap_or(usize::MAX);
            if budget < last {
                return Err(Error::invalid(format!("efforts.{effort}"), "is below the effort before it"));
            }
            last = budget;
        }
        Ok(())
    }

    /// The cap and the hint of a fixed effort; `Auto` has none here. `None` thinks nothing.
    pub fn level(&self, effort: Effort) -> (Option<usize>, Option<&str>) {
        let level = match effort {
            Effort::None => return (Some(0), None),
            Effort::Auto => return (None, None),
            Effort::Minimal => &self.minimal,
            Effort::Low => &self.low,
            Effort::Medium => &self.medium,
            Effort::High => &self.high,
            Effort::Max => &self.max,
        };
        (usize::try_from(level.budget).ok(), level.hint.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_both_ways() {
        for effort in Effort::ALL {
            assert_eq!(effort.name().parse::<Effort>().unwrap(), effort);
            assert_eq!(serde_json::to_value(effort).unwrap(), effort.name());
        }
        assert_eq!("xhigh".parse::<Effort>().unwrap(), Effort::Max);
        let message = "hihg".parse::<Effort>().unwrap_err().to_string();
        assert!(message.contains("\"hihg\"") && message.contains("minimal, low"), "{message}");
    }

    #[test]
    fn levels_rise() {
        let table = EffortTable::default();
        table.validate().unwrap();
        assert_eq!(table.level(Effort::None).0, Some(0));
        assert_eq!(table.level(Effort::Max).0, None);
        assert_eq!(table.level(Effort::Low).0, Some(512));
        let bad: EffortTable = serde_json::from_str(r#"{"high": {"budget": 10}}"#).unwrap();
        assert!(bad.validate().unwrap_err().to_string().starts_with("efforts.high"));
        let worse: EffortTable = serde_json::from_str(r#"{"low": {"budget": -2}}"#).unwrap();
        assert!(worse.validate().is_err());
    }
}
