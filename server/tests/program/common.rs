//! Runs the program as a user or a script would.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a run of the program left behind.
pub struct Ran {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it took.
    took: Duration,
    /// The same run once more, for its time.
    again: Box<dyn Fn() -> Duration>,
}

impl Ran {
    /// The JSON object that it printed, if it went well.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    /// Asserts that it refused with exit code 1 and one line that holds all of `parts`, quickly and without a panic.
    pub fn refused(&self, case: &str, parts: &[&str]) {
        let (code, stderr) = (self.code, &self.stderr);
        assert_eq!(code, Some(1), "{case}: {stderr}{}", self.stdout);
        assert_eq!(stderr.lines().count(), 1, "{case}: one line, not {stderr:?}");
        assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{case}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{case}: {part:?} is not in {stderr:?}");
        }
        assert!(self.stdout.is_empty(), "{case}: nothing on stdout, not {:?}", self.stdout);
        // A busy machine may hold up one run for a second, but hardly four.
        let slow = |took: &Duration| *took >= Duration::from_secs(1);
        let is_slow = slow(&self.took) && (0..3).map(|_| (self.again)()).all(|t| slow(&t));
        assert!(!is_slow, "{case}: took {:?}", self.took);
    }
}

/// Runs `ponder` with these arguments and nothing on stdin.
pub fn ponder(args: &[&str]) -> Ran {
    ponder_with(args, "", &[])
}

/// Runs `ponder` with these arguments, this stdin and these variables (and no other `PONDER_*`).
pub fn ponder_with(args: &[&str], stdin: &str, variables: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("PONDER_")) {
        command.env_remove(name);
    }
    command.args(args).envs(variables.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().expect("the program starts");
    // It may refuse without reading.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("the program ends");
    let took = begun.elapsed();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program writes UTF-8");
    let owned = |s: &&str| s.to_string();
    let (args, stdin): (Vec<String>, String) = (args.iter().map(owned).collect(), stdin.into());
    let variables: Vec<(String, String)> = variables.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    let again = move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let variables: Vec<(&str, &str)> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        ponder_with(&args, &stdin, &variables).took
    };
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    Ran { code: output.status.code(), stdout, stderr, took, again: Box::new(again) }
}
