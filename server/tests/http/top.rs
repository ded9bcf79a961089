//! `ponder top` beside a real server: as text, on a terminal, and while the server is away.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::client::{Server, chat};
use crate::terminal::Terminal;

/// Exit code, stdout and stderr.
fn once(address: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("PONDER_")) {
        command.env_remove(name);
    }
    let output = command.args(["top", "--once", "--url", address]).args(more).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn running(server: &Server) -> std::net::TcpStream {
    let body = chat(json!({ "stream": true, "max_tokens": 30000, "ignore_eos": true })).to_string();
    let stream = server.send("POST", "/v1/chat/completions", &[("authorization", "Bearer secret")], &body);
    stream.set_nonblocking(true).expect("an option");
    // Read, or it would be a slow client.
    let mut reading = stream.try_clone().expect("a socket");
    std::thread::spawn(move || {
        let mut piece = [0; 65536];
        loop {
            match std::io::Read::read(&mut reading, &mut piece) {
                Ok(0) => break,
                Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => break,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    });
    stream
}

#[test]
fn one_snapshot_as_text() {
    let server = Server::with_long_context(&["--max-model-len", "32768", "--max-num-seqs", "1"]);
    let address = format!("http://{}", server.address);
    let (code, idle, stderr) = once(&address, &[]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(idle.contains("\nmodel       tiny\n") && idle.contains("0 running of 1 seats, 0 waiting"), "{idle}");
    assert!(idle.contains("\ntokens/s    0.0\n") && !idle.contains('\x1b'), "{idle}");
    let streams = [running(&server), running(&server)];
    server.until("one runs, one waits", |s| {
        s["lanes"][0]["output_tokens"].as_u64() > Some(0) && s["lanes"][1].is_object()
    });
    let (_, busy, _) = once(&address, &[]);
    assert!(busy.contains("1 running of 1 seats, 1 waiting"), "{busy}");
    let rate = busy.lines().find_map(|l| l.strip_prefix("tokens/s    ")).unwrap();
    assert!(rate.parse::<f64>().unwrap() > 0.0, "{busy}");
    let (_, lanes) = busy
        .split_once(
            "
request ",
        )
        .expect("a table");
    let phases: Vec<_> = lanes.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
    assert_eq!(phases, ["answer", "queued"], "{busy}");
    for stream in streams {
        stream.shutdown(std::net::Shutdown::Both).expect("open");
    }
}

#[test]
fn what_cannot_be_watched_is_said_in_a_line() {
    let server = Server::start(&["--api-key", "secret"]);
    let address = server.address.to_string();
    assert_eq!(once(&address, &["--api-key", "secret", "--served-model-name", "tiny"]).0, Some(0));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", taken.local_addr().unwrap());
    drop(taken);
    for (url, more, part) in [
        (address.as_str(), &[][..], "--api-key"),
        (&address, &["--api-key", "wrong"], "--api-key"),
        (&address, &["--api-key", "secret", "--served-model-name", "other"], "no such model"),
        (&nobody, &[], "refused"),
        ("https://127.0.0.1", &[], "TLS"),
        (&address, &["--interval", "0"], "interval"),
    ] {
        let (code, stdout, stderr) = once(url, more);
        assert_eq!((code, stdout.as_str(), stderr.lines().count()), (Some(1), "", 1), "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(part), "{part}: {stderr}");
    }
}

#[test]
fn on_a_terminal() {
    let server = Server::with_long_context(&["--max-model-len", "32768", "--max-num-seqs", "1", "--api-key", "secret"]);
    let address = server.address.to_string();
    let stream = running(&server);
    let flags = ["top", "--url", &address, "--api-key", "secret", "--interval", "0.1"];
    let Some(mut terminal) = Terminal::ponder(&flags, &[]) else { return };
    // What changes is drawn, not what stays: these are words that are drawn whole.
    terminal.until("/30000");
    terminal.press("\r");
    terminal.until("esc closes");
    stream.shutdown(std::net::Shutdown::Both).expect("open");
    terminal.until("It has ended.");
    // The server goes; it is said, and what was seen last stays.
    drop(server);
    terminal.until("away, trying again");
    terminal.press("q");
    terminal.until("code 0");
    terminal.until(" icanon");
}

#[test]
fn a_signal_restores_the_terminal() {
    let Some(mut terminal) = Terminal::ponder(&["top", "--url", "127.0.0.1:9"], &[]) else { return };
    terminal.until("away, trying again");
    terminal.press("\x03");
    terminal.until("code 0");
    terminal.until(" icanon");
}
