//! Typed access to configuration values, with errors that name the key: GGUF metadata and JSON alike.

use serde_json::Value as Json;

use super::gguf::{Fault, Gguf, Value};

/// Limits of what a configuration may say. They exist so that later arithmetic on sizes cannot overflow
/// and so that a broken file is refused by a message and not by an allocation.
pub mod limits {
    use std::ops::RangeInclusive;
    /// Decoder layers.
    pub const LAYERS: RangeInclusive<u64> = 1..=1024;
    /// Any width: hidden, MLP, head.
    pub const WIDTH: RangeInclusive<u64> = 1..=1 << 20;
    /// Heads.
    pub const HEADS: RangeInclusive<u64> = 1..=4096;
    /// Tokens of a vocabulary.
    pub const VOCAB: RangeInclusive<u64> = 1..=1 << 24;
    /// Tokens of a context.
    pub const CONTEXT: RangeInclusive<u64> = 1..=1 << 30;
}

/// A source of named values.
pub enum Keys<'a> {
    /// GGUF metadata; a leading `%` of a key stands for the architecture.
    Gguf(&'a Gguf, &'a [u8], &'a str),
    /// A JSON object.
    Json(&'a Json),
}

type Result<T> = std::result::Result<T, Fault>;

impl<'a> Keys<'a> {
    /// The key as it stands in the file.
    pub fn full(&self, key: &str) -> String {
        match self {
            Keys::Gguf(_, _, arch) => key.replacen('%', arch, 1),
            Keys::Json(_) => key.to_string(),
        }
    }
    /// A fault of `key`.
    pub fn fault(&self, key: &str, message: impl Into<String>) -> Fault {
        Fault::new(self.full(key), message)
    }
    /// Whether the key is there (and not null).
    pub fn has(&self, key: &str) -> bool {
        match self {
            Keys::Gguf(g, bytes, _) => g.get(bytes, &self.full(key)).is_some(),
            Keys::Json(j) => j.get(key).is_some_and(|v| !v.is_null()),
        }
    }

    /// An integer in `range`.
    pub fn int_opt(&self, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<Option<usize>> {
        if !self.has(key) {
            return Ok(None);
        }
        let value = match self {
            Keys::Gguf(g, bytes, _) => g.get(bytes, &self.full(key)).and_then(uniform_int),
            Keys::Json(j) => j.get(key).and_then(Json::as_u64),
        };
        let value = value.ok_or_else(|| self.fault(key, "not a single non-negative integer"))?;
        if !range.contains(&value) {
            return Err(self.fault(key, format!("{value} is outside {}..={}", range.start(), range.end())));
        }
        Ok(Some(value as usize))
    }
    /// An integer in `range` that must be there.
    pub fn int(&self, key: &str, range: std::ops::RangeInclusive<u64>) -> Result<usize> {
        self.int_opt(key, range)?.ok_or_else(|| self.fault(key, "missing"))
    }
    /// A finite number.
    pub fn float_opt(&self, key: &str) -> Result<Option<f32>> {
        if !self.has(key) {
            return Ok(None);
        }
        let value = match self {
            Keys::Gguf(g, bytes, _) => match g.get(bytes, &self.full(key)) {
                Some(Value::Float(v)) => Some(v),
                Some(Value::Int(v)) => Some(v as f64),
                _ => None,
            },
            Keys::Json(j) => j.get(key).and_then(Json::as_f64),
        };
        let value = value.map(|v| v as f32).filter(|v| v.is_finite());
        value.map(Some).ok_or_else(|| self.fault(key, "not a finite number"))
    }
    /// A finite number above zero.
    pub fn positive_opt(&self, key: &str) -> Result<Option<f32>> {
        match self.float_opt(key)? {
            Some(v) if v <= 0.0 => Err(self.fault(key, format!("{v} is not above zero"))),
            v => Ok(v),
        }
    }
    /// A boolean.
    pub fn bool_opt(&self, key: &str) -> Result<Option<bool>> {
        if !self.has(key) {
            return Ok(None);
        }
        let value = match self {
            Keys::Gguf(g, bytes, _) => match g.get(bytes, &self.full(key)) {
                Some(Value::Bool(v)) => Some(v),
                _ => None,
            },
            Keys::Json(j) => j.get(key).and_then(Json::as_bool),
        };
        value.map(Some).ok_or_else(|| self.fault(key, "not a boolean"))
    }
    /// Text.
    pub fn str_opt(&self, key: &str) -> Result<Option<&'a str>> {
        if !self.has(key) {
            return Ok(None);
        }
        let value = match self {
            Keys::Gguf(g, bytes, _) => match g.get(bytes, &self.full(key)) {
                Some(Value::Str(v)) => Some(v),
                _ => None,
            },
            Keys::Json(j) => j.get(key).and_then(Json::as_str),
        };
        value.map(Some).ok_or_else(|| self.fault(key, "not a string"))
    }
}

/// An integer, or an array that says the same integer for every layer.
fn uniform_int(value: Value<'_>) -> Option<u64> {
    match value {
        Value::Int(v) => u64::try_from(v).ok(),
        Value::Array(a) => {
            let mut ints = a.iter().map(|v| if let Value::Int(v) = v { u64::try_from(v).ok() } else { None });
            let first = ints.next()??;
            ints.all(|v| v == Some(first)).then_some(first)
        }
        _ => None,
    }
}
