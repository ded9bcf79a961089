//! What a line of a conversation asks for: a message, or a command that starts with a slash.

use std::path::PathBuf;

use anyhow::{Result, bail};
use ponder_engine::reason::Effort;

/// A line, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// Nothing.
    Empty,
    /// Something to say to the model.
    Say(String),
    /// `/help`
    Help,
    /// `/quit`
    Quit,
    /// `/clear`
    Clear,
    /// `/regenerate`
    Regenerate,
    /// `/usage`
    Usage,
    /// `/system TEXT`; none without a text: it is shown.
    System(Option<String>),
    /// `/effort E`
    Effort(Setting<Effort>),
    /// `/budget N`
    Budget(Setting<i64>),
    /// `/thinking on|off`; none without a word: the last thinking is shown.
    Thinking(Option<bool>),
    /// `/save FILE`
    Save(PathBuf),
}

/// What to do with a setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Setting<T> {
    /// Say what it is.
    Show,
    /// Leave it to the model again.
    Default,
    /// This value from now on.
    To(T),
}

/// What `/help` prints.
pub const HELP: &str = "  /effort E        how hard to think: none, minimal, low, medium, high, max, auto, default
  /budget N        most tokens of thinking, exactly: 0 is none at all, -1 no cap, default
  /system TEXT     another system message, and a new conversation
  /clear           forget the conversation, keep the system message
  /regenerate      answer the last question once more, with another seed
  /thinking        show the last thinking whole; /thinking on shows all of it as it comes, off folds it
  /usage           tokens and times of the last answer, and of all
  /save FILE       write the conversation: as JSON if the name ends in .json, else as Markdown
  /quit            end the conversation (so do Ctrl-D, and Ctrl-C at an empty prompt)
Ctrl-C while the model thinks makes it answer now; once more, or while it answers, it stops.
A message that begins with a slash is written with two: //effort is no command.
";

/// Understands a line.
///
/// # Errors
/// If it is a command that does not exist, or one with a value that it cannot take.
pub fn parse(line: &str) -> Result<Line> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Line::Empty);
    }
    let Some(rest) = line.strip_prefix('/') else { return Ok(Line::Say(line.into())) };
    if rest.starts_with('/') {
        return Ok(Line::Say(rest.into()));
    }
    let (word, value) = rest.split_once(char::is_whitespace).map_or((rest, ""), |(w, v)| (w, v.trim()));
    // Paths and the like are talk: a command is one word of letters.
    if word.is_empty() || !word.chars().all(|c| c.is_ascii_alphabetic()) {
        return Ok(Line::Say(line.into()));
    }
    let alone = |line: Line| if value.is_empty() { Ok(line) } else { bail!("/{word}: takes no value") };
    match word {
        "help" => alone(Line::Help),
        "quit" | "exit" => alone(Line::Quit),
        "clear" | "reset" => alone(Line::Clear),
        "regenerate" => alone(Line::Regenerate),
        "usage" => alone(Line::Usage),
        "system" => Ok(Line::System((!value.is_empty()).then(|| value.into()))),
        "effort" => Ok(Line::Effort(setting(word, value, |v| v.parse().map_err(said))?)),
        "budget" => Ok(Line::Budget(setting(word, value, budget)?)),
        "thinking" => match value {
            "" => Ok(Line::Thinking(None)),
            "on" => Ok(Line::Thinking(Some(true))),
            "off" => Ok(Line::Thinking(Some(false))),
            other => bail!("/thinking: {other:?} is neither on nor off"),
        },
        "save" if value.is_empty() => bail!("/save: needs the name of a file"),
        "save" => Ok(Line::Save(value.into())),
        _ => bail!("/{word}: no such command; /help lists them, and //{word} says it to the model"),
    }
}

fn setting<T>(word: &str, value: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Setting<T>> {
    match value {
        "" => Ok(Setting::Show),
        "default" => Ok(Setting::Default),
        value => read(value).map(Setting::To).map_err(|why| anyhow::anyhow!("/{word}: {why}, nor default")),
    }
}

fn budget(value: &str) -> Result<i64, String> {
    match value.parse() {
        Ok(n) if n >= -1 => Ok(n),
        _ => Err(format!("{value:?} is no number of tokens, not -1")),
    }
}

/// An error of the engine without the name of the request's field, which is not what was typed.
fn said(error: ponder_engine::Error) -> String {
    let text = error.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_talk_or_commands() {
        for (line, meant) in [
            ("", Line::Empty),
            ("  \n", Line::Empty),
            ("Hello /help\n", Line::Say("Hello /help".into())),
            ("/etc/passwd holds what?", Line::Say("/etc/passwd holds what?".into())),
            ("/ alone", Line::Say("/ alone".into())),
            ("/2 is what", Line::Say("/2 is what".into())),
            ("//help", Line::Say("/help".into())),
            ("/help", Line::Help),
            ("/quit", Line::Quit),
            ("/exit", Line::Quit),
            ("  /reset ", Line::Clear),
            ("/clear", Line::Clear),
            ("/regenerate", Line::Regenerate),
            ("/usage", Line::Usage),
            ("/system", Line::System(None)),
            ("/system  Be  brief. ", Line::System(Some("Be  brief.".into()))),
            ("/effort", Line::Effort(Setting::Show)),
            ("/effort low", Line::Effort(Setting::To(Effort::Low))),
            ("/effort\tdefault", Line::Effort(Setting::Default)),
            ("/budget 0", Line::Budget(Setting::To(0))),
            ("/budget -1", Line::Budget(Setting::To(-1))),
            ("/thinking", Line::Thinking(None)),
            ("/thinking off", Line::Thinking(Some(false))),
            ("/save my talk.md", Line::Save("my talk.md".into())),
        ] {
            assert_eq!(parse(line).unwrap(), meant, "{line:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        for (line, parts) in [
            ("/nonsense 1", &["/nonsense", "no such command"][..]),
            ("/effort enormous", &["/effort", "\"enormous\"", "medium", "default"]),
            ("/budget many", &["/budget", "\"many\""]),
            ("/budget -2", &["/budget", "\"-2\""]),
            ("/budget 1.5", &["/budget", "\"1.5\""]),
            ("/clear all", &["/clear", "no value"]),
            ("/thinking maybe", &["/thinking", "\"maybe\""]),
            ("/save", &["/save", "file"]),
        ] {
            let said = parse(line).unwrap_err().to_string();
            assert!(parts.iter().all(|p| said.contains(p)) && said.lines().count() == 1, "{line}: {said}");
        }
    }
}
