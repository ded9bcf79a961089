//! A set of problems: JSON Lines, ours or other people's.

use std::path::Path;

use ponder_engine::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

use super::matcher::Matcher;

/// A question whose answer is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Its name; the line's number if the set gives none.
    pub id: String,
    /// What it is about; empty if the set does not say.
    pub kind: String,
    /// How deep it is; empty if the set does not say.
    pub depth: String,
    /// What is asked.
    pub question: String,
    /// The known answer.
    pub answer: String,
    /// How answers are compared.
    pub matcher: Matcher,
}

/// A line, under the names that public sets use. Fields that are not here are ignored.
#[derive(Deserialize)]
struct Line {
    id: Option<Value>,
    #[serde(alias = "subject", alias = "category", alias = "type")]
    kind: Option<Value>,
    #[serde(alias = "level", alias = "difficulty")]
    depth: Option<Value>,
    #[serde(alias = "prompt", alias = "problem", alias = "query")]
    question: Option<String>,
    #[serde(alias = "target", alias = "solution", alias = "label")]
    answer: Option<Value>,
    matcher: Option<String>,
}

/// Reads a set.
///
/// # Errors
/// Names the file and the line that is no problem, and what is wrong with it.
pub fn read_problems(path: &Path) -> Result<Vec<Problem>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let problems = lines.map(|(at, line)| {
        parse(line, at + 1).map_err(|what| Error::checkpoint(path, format!("line {}", at + 1), what))
    });
    let problems = problems.collect::<Result<Vec<Problem>>>()?;
    if problems.is_empty() {
        return Err(Error::checkpoint(path, "problems", "the file holds none"));
    }
    Ok(problems)
}

fn parse(line: &str, number: usize) -> std::result::Result<Problem, String> {
    let line: Line = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let words = |value: Option<Value>| match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(format!("{other} is neither text nor a number")),
    };
    let question = line.question.filter(|q| !q.trim().is_empty()).ok_or("there is no \"question\"")?;
    let answer = words(line.answer)?.ok_or("there is no \"answer\"")?;
    // GSM8K writes its worked solution before the answer.
    let answer = answer.rsplit("####").next().unwrap_or(&answer).trim().to_string();
    if answer.is_empty() {
        return Err("the \"answer\" is empty".into());
    }
    let matcher = match line.matcher {
        Some(word) => word.parse()?,
        None => Matcher::for_answer(&answer),
    };
    if matcher == Matcher::Number && Matcher::for_answer(&answer) != Matcher::Number {
        return Err(format!("matcher \"number\", but the answer {answer:?} is none"));
    }
    let id = words(line.id)?.unwrap_or_else(|| number.to_string());
    let (kind, depth) = (words(line.kind)?.unwrap_or_default(), words(line.depth)?.unwrap_or_default());
    Ok(Problem { id, kind, depth, question, answer, matcher })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_others_are_read() {
        let p = parse(r##"{"question": "How many?", "answer": "3 + 4 = 7\n#### 7"}"##, 12).unwrap();
        assert_eq!((p.id.as_str(), p.answer.as_str(), p.matcher), ("12", "7", Matcher::Number));
        let p = parse(r#"{"problem": "Which?", "solution": "B", "level": 5, "matcher": "choice"}"#, 1).unwrap();
        assert_eq!((p.depth.as_str(), p.matcher), ("5", Matcher::Choice));
        let p = parse(r#"{"question": "When?", "answer": "12:30", "more": [1, 2]}"#, 1).unwrap();
        assert_eq!(p.matcher, Matcher::Exact);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |line: &str| parse(line, 1).unwrap_err();
        assert!(wrong("{\"question\": \"x\",").contains("EOF"));
        assert!(wrong(r#"{"question": "x"}"#).contains("answer"));
        assert!(wrong(r#"{"answer": "x"}"#).contains("question"));
        assert!(wrong(r#"{"question": "x", "answer": " "}"#).contains("empty"));
        assert!(wrong(r#"{"question": "x", "answer": "1", "matcher": "fuzzy"}"#).contains("fuzzy"));
        assert!(wrong(r#"{"question": "x", "answer": "red", "matcher": "number"}"#).contains("red"));
        assert!(wrong(r#"{"question": "x", "answer": [1]}"#).contains("neither"));
    }

    #[test]
    fn the_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.jsonl");
        std::fs::write(&path, "{\"question\": \"x\", \"answer\": 1}\n\n{\"question\": \"y\"}\n").unwrap();
        let error = read_problems(&path).unwrap_err().to_string();
        assert!(error.contains("set.jsonl") && error.contains("line 3"), "{error}");
        std::fs::write(&path, "\n").unwrap();
        assert!(read_problems(&path).unwrap_err().to_string().contains("none"));
    }
}
