//! The program on a terminal: a pseudo-terminal between it and a person that this test plays.
//! `script` of util-linux makes one; no crate and no unsafe code is needed for it.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A program on a terminal of 100 columns and 30 rows; it ends with this value.
pub struct Terminal {
    child: Child,
    keys: ChildStdin,
    seen: Arc<Mutex<String>>,
    /// Where the next look begins.
    from: usize,
}

impl Terminal {
    /// `ponder` with these arguments and variables (and no other `PONDER_*`); none where `script` is missing.
    pub fn ponder(args: &[&str], variables: &[(&str, &str)]) -> Option<Self> {
        let quoted = |a: &&str| format!("'{}'", a.replace('\'', "'\\''"));
        let words: Vec<String> = [env!("CARGO_BIN_EXE_ponder")].iter().chain(args).map(quoted).collect();
        // Its end is seen, and that the terminal is as it was. Ctrl-C is for it, not for the shell.
        let line = format!(
            "trap : INT; stty cols 100 rows 30; {}; echo code $?; stty -a | grep -o '.icanon'",
            words.join(" ")
        );
        let mut command = Command::new("script");
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("PONDER_") || n == "NO_COLOR") {
            command.env_remove(name);
        }
        command.args(["-qc", &line, "/dev/null"]).env("TERM", "xterm-256color").env("SHELL", "/bin/sh");
        command.envs(variables.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut child) = command.spawn() else {
            eprintln!("SKIP: no `script` here (util-linux)");
            return None;
        };
        let seen = Arc::new(Mutex::new(String::new()));
        let (mut out, shared) = (child.stdout.take().expect("piped"), seen.clone());
        std::thread::spawn(move || {
            let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
            while let Ok(n @ 1..) = out.read(&mut piece) {
                bytes.extend(&piece[..n]);
                *shared.lock().expect("no panic") = String::from_utf8_lossy(&bytes).into_owned();
            }
        });
        let keys = child.stdin.take().expect("piped");
        Some(Self { child, keys, seen, from: 0 })
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).and_then(|()| self.keys.flush()).expect("it reads");
    }

    /// Waits until this is printed after what was waited for last, and returns what came until then.
    #[track_caller]
    pub fn until(&mut self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let seen = self.seen.lock().expect("no panic").clone();
            if let Some(at) = seen[self.from..].find(text) {
                let end = self.from + at + text.len();
                return seen[std::mem::replace(&mut self.from, end)..end].to_string();
            }
            if begun.elapsed() > Duration::from_secs(60) {
                let end: Vec<char> = seen[self.from..].chars().rev().take(2000).collect();
                panic!("no {text:?} at the end of {:?}", end.iter().rev().collect::<String>());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
