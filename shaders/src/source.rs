//! The preprocessor: from the files under `wgsl/` and a set of definitions to one WGSL text.
//!
//! Directives are comments, so that editors and formatters keep reading WGSL:
//!
//! ```text
//! //#if EXPR ... //#else ... //#end      keep one branch
//! //#for NAME in EXPR..EXPR ... //#end   repeat the text, NAME being 0, 1, ...
//! //#include FILE NAME=VALUE ...         another file, with definitions of its own
//! $NAME   $[EXPR]                        substitution; a NAME is letters only, so `acc_$r_$t` works,
//!                                        and the longest that is defined, so `$ru` is `r` as a u32
//! ```
//!
//! Repeating text (rather than loops over private arrays) is what keeps accumulators in registers on
//! every driver, and gives subgroup broadcasts the constant lanes that they ask for.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Values of names; numbers are written in decimal.
pub type Defines = BTreeMap<&'static str, String>;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        /// Every WGSL file by stem.
        pub const FILES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../wgsl/", $name, ".wgsl")))),*];
    };
}

files![
    "attention",
    "attention_combine",
    "attention_subgroup",
    "codes",
    "copy",
    "elementwise",
    "embed",
    "f8",
    "fold",
    "format_BF16",
    "format_F16",
    "format_F32",
    "format_F8",
    "format_I4",
    "format_Q4",
    "format_Q4K",
    "format_Q5",
    "format_Q5K",
    "format_Q6K",
    "format_Q8",
    "gather",
    "hadamard",
    "kv",
    "linear",
    "linear_group",
    "linear_main",
    "linear_tile",
    "merge",
    "mlp",
    "norm",
    "qkv",
    "rope",
    "rotate",
    "sample",
    "x",
];

/// What is wrong with a shader's directives: a mistake of ours, named by file and line.
pub type Mistake = String;

/// Composes `stem` under `defines`.
pub fn compose(stem: &str, defines: &Defines) -> Result<String, Mistake> {
    let scope: Scope = defines.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    let mut out = String::new();
    include(stem, &scope, &mut out)?;
    Ok(out)
}

type Scope = BTreeMap<String, String>;

fn include(stem: &str, scope: &Scope, out: &mut String) -> Result<(), Mistake> {
    let text = FILES.iter().find(|(name, _)| *name == stem).ok_or_else(|| format!("no file {stem}.wgsl"))?.1;
    let lines: Vec<&str> = text.lines().collect();
    emit(&lines, scope, out).map_err(|m| format!("{stem}.wgsl: {m}"))
}

/// Writes `lines`, which hold whole blocks.
fn emit(lines: &[&str], scope: &Scope, out: &mut String) -> Result<(), Mistake> {
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        let Some(directive) = line.trim_start().strip_prefix("//#") else {
            out.push_str(&substitute(line, scope).map_err(|m| format!("{line:?}: {m}"))?);
            out.push('\n');
            at += 1;
            continue;
        };
        let (word, rest) = directive.split_once(' ').unwrap_or((directive, ""));
        let fail = |m: Mistake| format!("{line:?}: {m}");
        match word {
            "include" => {
                let (stem, inner) = include_arguments(rest, scope).map_err(fail)?;
                include(&stem, &inner, out)?;
                at += 1;
            }
            "if" => {
                let (otherwise, end) = block_end(lines, at)?;
                let holds = evaluate(rest, scope).map_err(fail)? != 0;
                let branch = if holds {
                    &lines[at + 1..otherwise.unwrap_or(end)]
                } else {
                    &lines[otherwise.map_or(end, |o| o + 1)..end]
                };
                emit(branch, scope, out)?;
                at = end + 1;
            }
            "for" => {
                let (_, end) = block_end(lines, at)?;
                let (name, range) = rest.split_once(" in ").ok_or_else(|| fail("no `in`".into()))?;
                let (from, to) = range.split_once("..").ok_or_else(|| fail("no range".into()))?;
                let (from, to) = (evaluate(from, scope).map_err(fail)?, evaluate(to, scope).map_err(fail)?);
                let mut inner = scope.clone();
                for value in from..to {
                    inner.insert(name.trim().into(), value.to_string());
                    emit(&lines[at + 1..end], &inner, out)?;
                }
                at = end + 1;
            }
            _ => return Err(fail("unknown directive".into())),
        }
    }
    Ok(())
}

/// The file and the scope of an `include`.
fn include_arguments(rest: &str, scope: &Scope) -> Result<(String, Scope), Mistake> {
    let rest = substitute(rest, scope)?;
    let mut words = rest.split_whitespace();
    let stem = words.next().ok_or("no file")?.to_owned();
    let mut inner = scope.clone();
    for word in words {
        let (name, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is no NAME=VALUE"))?;
        inner.insert(name.into(), value.into());
    }
    Ok((stem, inner))
}

/// The lines of `//#else` (if any) and `//#end` that belong to the block opened at `start`.
fn block_end(lines: &[&str], start: usize) -> Result<(Option<usize>, usize), Mistake> {
    let (mut depth, mut otherwise) = (0, None);
    for (i, line) in lines.iter().enumerate().skip(start) {
        let line = line.trim_start();
        if line.starts_with("//#if") || line.starts_with("//#for") {
            depth += 1;
        } else if line.starts_with("//#else") && depth == 1 {
            otherwise = Some(i);
        } else if line.starts_with("//#end") {
            depth -= 1;
            if depth == 0 {
                return Ok((otherwise, i));
            }
        }
    }
    Err(format!("{:?} has no end", lines[start]))
}

fn substitute(line: &str, scope: &Scope) -> Result<String, Mistake> {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(inner) = rest.strip_prefix('[') {
            let end = inner.find(']').ok_or("`$[` has no `]`")?;
            write!(out, "{}", evaluate(&inner[..end], scope)?).expect("a string takes text");
            rest = &inner[end + 1..];
        } else {
            // The longest name that is defined, so that `$Tu` may be the number of tokens as a u32.
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            let known = (1..=end).rev().find_map(|n| Some((n, scope.get(&rest[..n])?)));
            let (length, value) = known.ok_or_else(|| format!("{:?} is not defined", &rest[..end]))?;
            out.push_str(value);
            rest = &rest[length..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// An integer expression: names, numbers, `!`, parentheses, and the operators of the table below.
fn evaluate(text: &str, scope: &Scope) -> Result<i64, Mistake> {
    let mut parser = Parser { rest: text.trim(), scope };
    let value = parser.binary(0)?;
    if parser.rest.is_empty() { Ok(value) } else { Err(format!("{:?} is left over", parser.rest)) }
}

struct Parser<'a> {
    rest: &'a str,
    scope: &'a Scope,
}

type Operator = (&'static str, fn(i64, i64) -> i64);

/// Operators by precedence, loosest first.
const OPERATORS: [&[Operator]; 5] = [
    &[("||", |a, b| (a != 0 || b != 0) as i64)],
    &[("&&", |a, b| (a != 0 && b != 0) as i64)],
    &[
        ("==", |a, b| (a == b) as i64),
        ("!=", |a, b| (a != b) as i64),
        ("<", |a, b| (a < b) as i64),
        (">", |a, b| (a > b) as i64),
    ],
    &[("+", |a, b| a + b), ("-", |a, b| a - b)],
    &[("*", |a, b| a * b), ("/", |a, b| a / b), ("%", |a, b| a % b)],
];

impl Parser<'_> {
    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }
    fn binary(&mut self, level: usize) -> Result<i64, Mistake> {
        let Some(operators) = OPERATORS.get(level) else { return self.unary() };
        let mut value = self.binary(level + 1)?;
        while let Some((_, apply)) = operators.iter().find(|(token, _)| self.eat(token)) {
            value = apply(value, self.binary(level + 1)?);
        }
        Ok(value)
    }
    fn unary(&mut self) -> Result<i64, Mistake> {
        if self.eat("!") {
            return Ok((self.unary()? == 0) as i64);
        }
        if self.eat("(") {
            let value = self.binary(0)?;
            return if self.eat(")") { Ok(value) } else { Err("no `)`".into()) };
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        if let Ok(number) = word.parse() {
            return Ok(number);
        }
        let value = self.scope.get(word).ok_or_else(|| format!("{word:?} is not defined"))?;
        value.parse().map_err(|_| format!("{word} is {value:?}, no number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(pairs: &[(&str, &str)]) -> Scope {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }
    fn expand(text: &str, pairs: &[(&str, &str)]) -> Result<String, Mistake> {
        let mut out = String::new();
        emit(&text.lines().collect::<Vec<_>>(), &scope(pairs), &mut out).map(|()| out)
    }

    #[test]
    fn expressions() {
        let s = scope(&[("A", "3")]);
        for (text, value) in [("1 + 2 * A", 7), ("(1+2)*A % 4", 1), ("A == 3 && !(A > 3)", 1), ("A < 3 || 0", 0)] {
            assert_eq!(evaluate(text, &s), Ok(value), "{text}");
        }
        assert!(evaluate("B", &s).is_err() && evaluate("1 2", &s).is_err());
    }

    #[test]
    fn blocks_nest_and_substitute() {
        let text = "//#for r in 0..2\n//#if r == N\nx_$r_$[r*4+1]\n//#else\ny_$r;\n//#end\n//#end";
        assert_eq!(expand(text, &[("N", "1")]).unwrap(), "y_0;\nx_1_5\n");
        assert!(expand("//#if 1\n", &[]).is_err() && expand("$missing", &[]).is_err());
    }
}
