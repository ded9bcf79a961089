//! `ponder chat`: a conversation over several turns.

use std::io::{BufRead, IsTerminal};

use anyhow::{Context, Result};
use clap::Args;
use ponder::{Completion, Engine, Generation, Opened, Prompt, Update};
use ponder_engine::request::{Finish, SamplingParams};
use ponder_engine::text::Message;
use rustyline::error::ReadlineError;

use super::args::{ModelArgs, OutputArgs, SamplingArgs};
use super::progress::Loading;
use super::run::Screen;

/// Flags of `ponder chat`.
#[derive(Args)]
#[command(after_help = "Ctrl-C stops an answer; Ctrl-D or /exit ends the conversation; /reset forgets it; /help says
more. Thinking is shown dimmed and is not sent back to the model in later turns.

Examples:
  ponder chat
  ponder chat --model ./QwQ-32B --temperature 0.6 --system \"Answer in French.\"
  printf 'Hello\\nAnd again\\n' | ponder chat           one message per line of stdin")]
pub struct ChatArgs {
    /// A system message before the conversation
    #[arg(long, env = "PONDER_SYSTEM", value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    output: OutputArgs,
}

const HELP: &str = "  /exit          end the conversation (so does Ctrl-D)
  /reset         forget the conversation, keep the system message
  /system TEXT   another system message, and a new conversation
  /help          this
Ctrl-C stops an answer.
";

/// Talks.
pub fn chat(args: ChatArgs) -> Result<()> {
    let mut options = args.model.options(1)?;
    options.trace.clone_from(&args.output.trace);
    let opened = Opened::open(options)?;
    let params = args.sampling.params(&opened.checkpoint.generation);
    params.validate(opened.checkpoint.config.vocab)?;
    // A model without a chat template is refused before it is loaded.
    opened.prompter.render(&Prompt::user("Hello"))?;
    let mut loading = Loading::new(&args.output);
    let engine = opened.load(|p| loading.show(p))?;
    loading.done();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("async runtime")?;
    let mut lines = Lines::new()?;
    let mut talk = Talk { engine, runtime, params, system: args.system, messages: Vec::new(), json: args.output.json };
    talk.reset();
    if lines.interactive() && !args.output.quiet {
        eprintln!("/help lists commands, Ctrl-D ends");
    }
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/reset" => talk.reset(),
            "/help" => eprint!("{HELP}"),
            command if command.starts_with("/system ") => {
                talk.system = Some(command["/system ".len()..].trim().to_string());
                talk.reset();
            }
            // A turn that failed (the context is full, say) does not end the conversation of a person.
            text => match talk.turn(text) {
                Err(error) if lines.interactive() => eprintln!("error: {error:#}"),
                turned => turned?,
            },
        }
    }
    talk.engine.write_trace()?;
    Ok(())
}

struct Talk {
    engine: Engine,
    runtime: tokio::runtime::Runtime,
    params: SamplingParams,
    system: Option<String>,
    messages: Vec<Message>,
    json: bool,
}

impl Talk {
    fn reset(&mut self) {
        self.messages = self.system.iter().map(|s| Message::new("system", s)).collect();
    }

    /// One question and its answer; a question without an answer is forgotten.
    fn turn(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::new("user", text));
        let answered = self.answer();
        match &answered {
            Ok(answer) => self.messages.push(Message::new("assistant", answer.as_str())),
            Err(_) => drop(self.messages.pop()),
        }
        answered.map(drop)
    }

    fn answer(&self) -> Result<String> {
        let generation = self.engine.generate(Prompt::chat(self.messages.clone()), self.params.clone())?;
        let mut screen = Screen::new(!self.json);
        let (text, completion) = self.runtime.block_on(follow(generation, &mut screen));
        screen.end();
        if let Some(Completion { finish: Finish::Failed { reason }, .. }) = &completion {
            anyhow::bail!("request: {reason}");
        }
        if let (Some(c), true) = (&completion, self.json) {
            super::print_json(&super::run::completion_json(c));
        }
        Ok(text)
    }
}

/// Shows an answer while it comes, until its end or Ctrl-C. Returns what was answered.
async fn follow(mut generation: Generation, screen: &mut Screen) -> (String, Option<Completion>) {
    let mut text = String::new();
    loop {
        let update = tokio::select! {
            update = generation.next_update() => update,
            // Where signals cannot be watched, Ctrl-C ends the program as ever.
            Ok(()) = tokio::signal::ctrl_c() => None,
        };
        match update {
            Some(Update::Thinking(more)) => screen.thinking(&more),
            Some(Update::Answer(more)) => {
                screen.answer(&more);
                text.push_str(&more);
            }
            Some(Update::Done(completion)) => return (text, Some(*completion)),
            None => return (text, None),
        }
    }
}

/// Where messages come from: a line editor on a terminal, else stdin as it is.
enum Lines {
    Editor(Box<rustyline::DefaultEditor>),
    Plain(std::io::StdinLock<'static>),
}

impl Lines {
    fn new() -> Result<Self> {
        if std::io::stdin().is_terminal() {
            return Ok(Self::Editor(Box::new(rustyline::DefaultEditor::new().context("line editor")?)));
        }
        Ok(Self::Plain(std::io::stdin().lock()))
    }
    fn interactive(&self) -> bool {
        matches!(self, Self::Editor(_))
    }
    /// The next message; `None` at the end of the conversation.
    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Self::Editor(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        // A history that is full or off is no reason to stop.
                        let _ = editor.add_history_entry(&line);
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("line editor"),
                }
            },
            Self::Plain(stdin) => {
                let mut line = String::new();
                let read = stdin.read_line(&mut line).context("stdin")?;
                Ok((read > 0).then_some(line))
            }
        }
    }
}
