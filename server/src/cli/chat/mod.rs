//! `ponder chat`: a conversation over several turns.
//!
//! [`command`] understands a line, [`talk`] remembers, [`fold`] shows, [`lines`] reads; here they meet the engine.

mod command;
mod fold;
mod lines;
mod talk;

use std::future::Future;
use std::io::IsTerminal;
use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use ponder::{Choices, Engine, Opened, Prompt, Update};
use ponder_engine::request::{Finish, SamplingParams};
use ponder_engine::text::Message;

use super::args::{ModelArgs, OutputArgs, SamplingArgs};
use super::progress::Loading;
use command::{HELP, Line, Setting};
use fold::{End, Fold, Look, harmless};
use lines::Lines;
use talk::{Reply, Talk};

/// Flags of `ponder chat`.
#[derive(Args)]
#[command(after_help = "Thinking is folded into one line that counts; /thinking shows it whole. It is not sent back to
the model in later turns, unless the model's template asks for it. /help lists the commands (/effort, /budget,
/regenerate, /save and more). Ctrl-C while the model thinks makes it answer now; once more, or while it answers,
it stops; at an empty prompt it ends the conversation, as Ctrl-D and /quit do. NO_COLOR is respected.

Examples:
  ponder chat
  ponder chat --model ./QwQ-32B --temperature 0.6 --system \"Answer in French.\"
  ponder chat --reasoning-effort low --show-thinking
  printf 'Hello\\nAnd again\\n' | ponder chat           one message per line of stdin, one answer on stdout each")]
pub struct ChatArgs {
    /// A system message before the conversation
    #[arg(long, env = "PONDER_SYSTEM", value_name = "TEXT")]
    pub system: Option<String>,
    /// Show the thinking whole as it comes, not folded
    #[arg(long, env = "PONDER_SHOW_THINKING", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub show_thinking: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Between two looks at the clock while a reply comes.
const TICK: Duration = Duration::from_millis(100);

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
    let interactive = lines.interactive();
    let mut chat = Chat {
        engine,
        runtime,
        talk: Talk::new(args.system, params),
        show_thinking: args.show_thinking,
        json: args.output.json,
        interactive,
    };
    if interactive && !args.output.quiet {
        eprintln!("/help lists commands, Ctrl-D ends");
    }
    while let Some(line) = lines.next()? {
        // What failed (a typing error, a context that is full) does not end the conversation of a person.
        match chat.line(&line) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) if interactive => eprintln!("error: {error:#}"),
            Err(error) => return Err(error),
        }
    }
    chat.engine.write_trace()?;
    Ok(())
}

struct Chat {
    engine: Engine,
    runtime: tokio::runtime::Runtime,
    talk: Talk,
    show_thinking: bool,
    json: bool,
    interactive: bool,
}

impl Chat {
    /// Does what a line says; false ends the conversation. What commands print goes to stderr: stdout has
    /// answers only.
    fn line(&mut self, line: &str) -> Result<bool> {
        match command::parse(line)? {
            Line::Empty => {}
            Line::Quit => return Ok(false),
            Line::Help => eprint!("{HELP}"),
            Line::Clear => self.talk.clear(),
            Line::Usage => eprint!("{}", self.talk.usage()),
            Line::System(None) => eprintln!("{}", self.talk.system().unwrap_or("there is no system message")),
            Line::System(Some(text)) => self.talk.set_system(text),
            Line::Effort(Setting::Show) => {
                eprintln!("effort {}", self.talk.params.reasoning_effort.map_or("default", |e| e.name()));
            }
            Line::Effort(to) => self.set(|p| p.reasoning_effort = value(to))?,
            Line::Budget(Setting::Show) => {
                let budget = self.talk.params.thinking_token_budget;
                eprintln!("budget {}", budget.map_or("default".into(), |b| b.to_string()));
            }
            Line::Budget(to) => self.set(|p| p.thinking_token_budget = value(to))?,
            Line::Thinking(Some(whole)) => self.show_thinking = whole,
            Line::Thinking(None) => match self.talk.thinking() {
                Some(thought) => eprintln!("{}", harmless(thought).trim_end()),
                None => eprintln!("there was no thinking"),
            },
            Line::Save(path) => self.talk.save(&path)?,
            Line::Say(text) => {
                let (messages, params) = self.talk.ask(&text);
                self.turn(messages, params)?;
            }
            Line::Regenerate => match self.talk.ask_again() {
                Some((messages, params)) => self.turn(messages, params)?,
                None => bail!("/regenerate: nothing was asked yet"),
            },
        }
        Ok(true)
    }

    /// Changes how questions are asked, if they can be asked so.
    fn set(&mut self, change: impl FnOnce(&mut SamplingParams)) -> Result<()> {
        let mut params = self.talk.params.clone();
        change(&mut params);
        params.validate(self.engine.config().vocab)?;
        self.engine.prompter().prepare(&Prompt::user("Hello"), &params)?;
        self.talk.params = params;
        Ok(())
    }

    /// One question and its answer.
    fn turn(&mut self, messages: Vec<Message>, params: SamplingParams) -> Result<()> {
        let choices = self.engine.generate_choices(Prompt::chat(messages), params)?;
        let mut screen = Screen::new(!self.json, self.show_thinking, self.interactive);
        let follow = follow(&self.engine, choices, &mut screen, self.interactive);
        let reply = self.runtime.block_on(follow);
        let finish = reply.completion.as_ref().map(|c| &c.finish);
        screen.print(|f| f.end(end_of(&reply)));
        if let Some(Finish::Failed { reason }) = finish {
            bail!("request: {reason}");
        }
        if let (Some(c), true) = (&reply.completion, self.json) {
            super::print_json(&super::run::completion_json(c));
        }
        if !self.talk.answered(reply) && self.interactive {
            eprintln!("nothing was answered: the question is forgotten; /regenerate asks it again");
        }
        Ok(())
    }
}

fn value<T>(setting: Setting<T>) -> Option<T> {
    match setting {
        Setting::To(value) => Some(value),
        Setting::Show | Setting::Default => None,
    }
}

fn end_of(reply: &Reply) -> End {
    match &reply.completion {
        None => End::Stopped,
        Some(c) if c.finish == Finish::Length => End::CutOff(c.completion_tokens),
        Some(_) => End::Done,
    }
}

/// Where a reply is shown.
struct Screen {
    show: bool,
    fold: Fold,
    begun: Instant,
}

impl Screen {
    fn new(show: bool, open: bool, keys: bool) -> Self {
        let look = if std::io::stdout().is_terminal() { terminal(keys) } else { Look::PLAIN };
        Self { show, fold: Fold::new(look, open, None), begun: Instant::now() }
    }

    /// An event: what the fold says to it is printed.
    fn print(&mut self, event: impl FnOnce(&mut Fold) -> String) {
        let text = event(&mut self.fold);
        if self.show && !text.is_empty() {
            super::print_text(&text);
        }
    }
}

/// What the terminal can do: <https://no-color.org> takes colour away, `TERM=dumb` everything.
fn terminal(keys: bool) -> Look {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let live = std::env::var_os("TERM").is_none_or(|t| t != "dumb");
    // A terminal that does not know its size says 0.
    let width = ratatui::crossterm::terminal::size().map_or(0, |(columns, _)| usize::from(columns));
    let width = if width == 0 { 80 } else { width };
    Look { live, colour: live && !set("NO_COLOR"), width, keys }
}

/// Shows an answer while it comes, until its end or until it is stopped.
async fn follow(engine: &Engine, mut choices: Choices, screen: &mut Screen, interactive: bool) -> Reply {
    let mut reply = Reply::default();
    let mut interrupts = Interrupts::new(interactive);
    let mut clock = tokio::time::interval(TICK);
    let (mut hurried, mut looked) = (false, false);
    loop {
        tokio::select! {
            update = choices.next_update() => match update.map(|(_, update)| update) {
                Some(Update::Thinking(more)) => {
                    if !std::mem::replace(&mut looked, true) {
                        screen.fold.set_budget(budget(engine, &choices).await);
                    }
                    let (tokens, at) = (choices.generated(0), screen.begun.elapsed());
                    screen.print(|f| f.thinking(&more, tokens, at));
                    reply.reasoning.push_str(&more);
                }
                Some(Update::Answer(more) | Update::ToolCall(more)) => {
                    screen.print(|f| f.answer(&more));
                    reply.text.push_str(&more);
                }
                Some(Update::Done(completion)) => {
                    reply.completion = Some(*completion);
                    return reply;
                }
                None => return reply,
            },
            _ = clock.tick() => {
                let (tokens, at) = (choices.generated(0), screen.begun.elapsed());
                screen.print(|f| f.tick(tokens, at));
            }
            () = interrupts.next() => {
                // An engine that does not hear it is stopped like any other.
                let ends = screen.fold.is_thinking() && !std::mem::replace(&mut hurried, true);
                if !(ends && engine.handle().end_thinking(choices.id()).await.is_ok()) {
                    return reply;
                }
                screen.print(Fold::hurry);
            }
        }
    }
}

/// Most tokens that the reply may think, if there is a bound: the engine knows what an effort means.
async fn budget(engine: &Engine, choices: &Choices) -> Option<usize> {
    let view = engine.handle().view().await.ok()?;
    view.lanes.iter().find(|l| l.seq.request == choices.id().0).and_then(|l| l.seq.thinking_budget)
}

/// Ctrl-C, as often as it comes. Where no person is, or signals cannot be watched, it ends the program as ever.
struct Interrupts(Option<Pin<Box<dyn Future<Output = std::io::Result<()>>>>>);

impl Interrupts {
    fn new(watch: bool) -> Self {
        Self(watch.then(|| Box::pin(tokio::signal::ctrl_c()) as _))
    }

    /// The next one. Cancel safe.
    async fn next(&mut self) {
        let Some(signal) = &mut self.0 else { return std::future::pending().await };
        let seen = signal.await;
        self.0 = seen.is_ok().then(|| Box::pin(tokio::signal::ctrl_c()) as _);
        if seen.is_err() {
            std::future::pending().await
        }
    }
}
