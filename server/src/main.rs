//! The program `ponder`. A failure is one line on stderr and exit code 1, never a panic.

mod cli;

use std::io::IsTerminal;

use clap::Parser;
use clap::error::ErrorKind;

fn main() {
    quiet_drivers();
    let cli = cli::Cli::try_parse().unwrap_or_else(|e| misused(&e));
    init_log(&cli.command);
    if let Err(error) = cli.command.execute() {
        fail(&format!("{error:#}"));
    }
}

/// Mesa's layer that ranks GPUs asks a display server for its opinion and complains on stderr where there is
/// none. Ponder ranks adapters itself, so the layer stays out.
fn quiet_drivers() {
    const VARIABLE: &str = "NODEVICE_SELECT";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

/// Help and version are what was asked for; everything else is a mistake, told in one line.
fn misused(error: &clap::Error) -> ! {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        std::process::exit(0);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        std::process::exit(1);
    }
    let text = error.to_string();
    // clap's message is a paragraph, then tips and usage; the paragraph and the first tip say it all.
    let told = text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:"));
    let line = told.filter(|l| !l.is_empty() && !l.starts_with("For more")).collect::<Vec<_>>().join(" ");
    fail(line.strip_prefix("error: ").unwrap_or(&line))
}

fn fail(message: &str) -> ! {
    let line = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    eprintln!("error: {line}");
    std::process::exit(1)
}

/// Events on stderr: warnings, and of a server its requests, or what `PONDER_LOG` says (`info` shows a line
/// per step).
fn init_log(command: &cli::Command) {
    use tracing_subscriber::EnvFilter;
    let (default, json) = match command {
        cli::Command::Serve(args) => {
            ("warn,ponder::http=info,ponder::request=info,ponder::prompt=info", args.json_log())
        }
        _ => ("warn", false),
    };
    let filter = EnvFilter::try_from_env("PONDER_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // A log that nobody reads any more must not stop anything.
    let log = tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json { log.json().flatten_event(true).init() } else { log.compact().init() }
}
