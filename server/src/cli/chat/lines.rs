//! Where messages come from: a line editor on a terminal, else stdin as it is.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, Result};
use rustyline::error::ReadlineError;
use rustyline::{Cmd, ConditionalEventHandler, DefaultEditor, Event, EventContext, EventHandler, KeyEvent, Movement};

/// The lines of a conversation.
pub enum Lines {
    /// A person writes. What was written before comes back with the arrow keys; none of it goes to a file.
    Editor(Box<DefaultEditor>),
    /// A script writes.
    Plain(std::io::StdinLock<'static>),
}

impl Lines {
    /// The editor needs a terminal on both sides, for it echoes.
    pub fn new() -> Result<Self> {
        if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            return Ok(Self::Plain(std::io::stdin().lock()));
        }
        let mut editor = DefaultEditor::new().context("line editor")?;
        editor.bind_sequence(KeyEvent::ctrl('C'), EventHandler::Conditional(Box::new(ClearOrLeave)));
        Ok(Self::Editor(Box::new(editor)))
    }

    /// Whether a person writes.
    pub fn interactive(&self) -> bool {
        matches!(self, Self::Editor(_))
    }

    /// The next line; `None` at the end of the conversation.
    pub fn next(&mut self) -> Result<Option<String>> {
        match self {
            Self::Editor(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // A history that is full or off is no reason to stop.
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(ReadlineError::Interrupted | ReadlineError::Eof) => Ok(None),
                Err(error) => Err(error).context("line editor"),
            },
            Self::Plain(stdin) => {
                let mut line = String::new();
                let read = stdin.read_line(&mut line).context("stdin")?;
                Ok((read > 0).then_some(line))
            }
        }
    }
}

/// Ctrl-C takes back what was typed; where nothing was, it leaves.
struct ClearOrLeave;

impl ConditionalEventHandler for ClearOrLeave {
    fn handle(&self, _: &Event, _: u16, _: bool, context: &EventContext) -> Option<Cmd> {
        Some(if context.line().is_empty() { Cmd::Interrupt } else { Cmd::Kill(Movement::WholeBuffer) })
    }
}
