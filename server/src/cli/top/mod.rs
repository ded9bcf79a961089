//! `ponder top`: a running server on a terminal.
//!
//! [`source`] asks the server, [`snapshot`] and [`metrics`] read what it says, [`rates`] compares two of them,
//! [`app`] is the state behind the keys, [`draw`] the screen and [`plain`] the same as text.

mod app;
mod draw;
mod metrics;
mod plain;
mod rates;
mod snapshot;
mod source;
mod words;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use app::{App, Next};
use draw::Palette;
use rates::Rates;
use source::Source;

/// Flags of `ponder top`.
#[derive(Args)]
#[command(after_help = "Keys: q ends, p pauses, up and down choose a request, enter shows its details.

Examples:
  ponder top                                           the server on this machine
  ponder top --url http://gpu-7:8000 --api-key secret
  ponder top --once                                    one snapshot as text, for scripts")]
pub struct TopArgs {
    /// Where the server is; plain HTTP
    #[arg(long, env = "PONDER_URL", default_value = "http://127.0.0.1:8000", value_name = "URL")]
    url: String,
    /// The key that it wants
    #[arg(long, env = "PONDER_API_KEY", hide_env_values = true, value_delimiter = ',', value_name = "KEY")]
    api_key: Vec<String>,
    /// Which of its models [default: the first]
    #[arg(long, env = "PONDER_SERVED_MODEL_NAME", value_delimiter = ',', value_name = "NAME")]
    served_model_name: Vec<String>,
    /// Seconds between two looks
    #[arg(long, env = "PONDER_INTERVAL", default_value_t = 0.5, value_name = "S")]
    interval: f64,
    /// Print one snapshot as plain text
    #[arg(long, env = "PONDER_ONCE", value_parser = FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    once: bool,
}

/// How long a snapshot that is printed once watches, to know rates.
const GLANCE: Duration = Duration::from_millis(300);
/// Between two looks at the keyboard.
const KEYS: Duration = Duration::from_millis(50);

/// Watches.
pub fn top(args: TopArgs) -> Result<()> {
    if !(0.1..=60.0).contains(&args.interval) {
        bail!("interval: {} is not between 0.1 and 60", args.interval);
    }
    let first = |values: Vec<String>| values.into_iter().next();
    let source = Source::new(&args.url, first(args.api_key), first(args.served_model_name))?;
    if args.once {
        let before = source.look()?;
        std::thread::sleep(GLANCE);
        let now = source.look()?;
        super::print_text(&plain::text(source.url(), &now, &Rates::between(&before, &now)));
        return Ok(());
    }
    if !std::io::stdout().is_terminal() {
        bail!("stdout is no terminal; --once prints a snapshot");
    }
    let ended = until_signalled()?;
    let mut app = App::new(source.url());
    // It restores the terminal when something panics, and below when it does not.
    let mut terminal = ratatui::try_init().context("terminal")?;
    let watched = watch(&mut terminal, &mut app, source, Duration::from_secs_f64(args.interval), &ended);
    ratatui::restore();
    watched.context("terminal")
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    app: &mut App,
    source: Source,
    every: Duration,
    ended: &AtomicBool,
) -> std::io::Result<()> {
    let palette = Palette { colour: std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) };
    let looks = source.watch(every);
    while !ended.load(Ordering::Relaxed) {
        looks.try_iter().for_each(|look| app.looked(look));
        terminal.draw(|frame| draw::draw(frame, app, palette))?;
        // Whatever else happens (a size that changed, say) is drawn in the next turn.
        if event::poll(KEYS)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && app.key(key) == Next::Quit
        {
            break;
        }
    }
    Ok(())
}

/// Becomes true with a signal to end: on a raw terminal Ctrl-C is a key, but somebody else may send one.
fn until_signalled() -> Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("async runtime")?;
    let ended = Arc::new(AtomicBool::new(false));
    let flag = ended.clone();
    std::thread::spawn(move || {
        if runtime.block_on(signalled()).is_ok() {
            flag.store(true, Ordering::Relaxed);
            // The main thread ends by itself, unless its terminal is gone: the end of that is read without end.
            std::thread::sleep(Duration::from_secs(1));
            std::process::exit(0);
        }
    });
    Ok(ended)
}

#[cfg(unix)]
async fn signalled() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

#[cfg(not(unix))]
async fn signalled() -> std::io::Result<()> {
    tokio::signal::ctrl_c().await
}
