//! The server under load: started, watched, and asked what it holds.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Args;
use crate::wire;

/// A running server; it is killed with this value.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    begun: Instant,
}

/// Its vital signs.
#[derive(Clone, Copy, Debug)]
pub struct Vital {
    pub at: Duration,
    /// Resident bytes.
    pub memory: u64,
    pub descriptors: usize,
    pub threads: usize,
}

impl Server {
    pub fn start(program: &Path, args: &Args) -> Result<Self> {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("PONDER_")) {
            command.env_remove(name);
        }
        let number = |n: usize| n.to_string();
        command.args(["serve", "--backend", "cpu", "--port", "0", "--json", "--served-model-name", "m"]);
        command.args(["--max-model-len", "1024", "--slow-client-timeout", "5", "--arrival-timeout", "5"]);
        command.args(["--threads", &number(args.threads), "--max-num-seqs", &number(args.seats)]);
        command.args(["--max-queued", &number(args.queue)]).args(&args.serve);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A line per request would be a load of its own.
        command.env("PONDER_LOG", "warn");
        let mut child = command.spawn().with_context(|| program.display().to_string())?;
        let (out, err) = (child.stdout.take().context("piped")?, child.stderr.take().context("piped")?);
        let log = Arc::new(Mutex::new(String::new()));
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                let mut log = kept.lock().unwrap_or_else(|p| p.into_inner());
                // A server that complains without end is not to fill this program's memory.
                if log.len() < 1 << 20 {
                    *log += &format!("{line}\n");
                }
            }
        });
        let mut line = String::new();
        let mut out = BufReader::new(out);
        out.read_line(&mut line)?;
        let Ok(told) = serde_json::from_str::<Value>(&line) else {
            // Its last words come right after.
            let _ = child.wait();
            std::thread::sleep(Duration::from_millis(100));
            let log = log.lock().unwrap_or_else(|p| p.into_inner());
            bail!("the server does not start: {}", log.trim_end());
        };
        let address = told["address"].as_str().context("an address")?.parse()?;
        std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
        Ok(Self { child, address, log, begun: Instant::now() })
    }

    /// How it is now.
    pub fn vital(&self) -> Result<Vital> {
        let process = format!("/proc/{}", self.child.id());
        let status = std::fs::read_to_string(format!("{process}/status")).context("the server has ended")?;
        let number = |name: &str| -> Result<u64> {
            let line = status.lines().find(|l| l.starts_with(name)).context("a line of /proc")?;
            Ok(line.split_whitespace().nth(1).context("a value")?.parse()?)
        };
        Ok(Vital {
            at: self.begun.elapsed(),
            memory: number("VmRSS:").context("the server has ended")? * 1024,
            descriptors: std::fs::read_dir(format!("{process}/fd"))?.count(),
            threads: number("Threads:")? as usize,
        })
    }

    /// Waits until nothing runs, nothing waits, and no block is held.
    pub fn rests(&self, within: Duration) -> Result<()> {
        let begun = Instant::now();
        loop {
            let state: Value = serde_json::from_str(&wire::get(self.address, "/debug/engine?once=true")?)?;
            let kv = &state["kv"];
            // Blocks that are kept for their content are held by nobody, whether or not they count as free.
            let count = |name: &str| kv[name].as_u64().unwrap_or(0);
            let unused = [count("free"), count("free") + count("cached")].contains(&count("total"));
            let idle = state["lanes"].as_array().is_some_and(Vec::is_empty) && state["admitted"]["answers"] == 0;
            if idle && unused && count("total") > 0 {
                return Ok(());
            }
            if begun.elapsed() > within {
                let lanes = state["lanes"].as_array().map_or(0, Vec::len);
                bail!("{lanes} sequences, {} admitted, blocks {kv}", state["admitted"]);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What its log complains of.
    pub fn panics(&self) -> Option<String> {
        let log = self.log.lock().unwrap_or_else(|p| p.into_inner());
        let bad = log.lines().find(|l| l.contains("panicked") || l.contains("ERROR"));
        bad.map(|l| format!("the server's log: {l}"))
    }

    /// Its own counts.
    pub fn counters(&self) -> Result<String> {
        let page = wire::get(self.address, "/metrics")?;
        let value = |name: &str| {
            let lines = page.lines().filter(|l| l.starts_with(name));
            lines.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>()
        };
        Ok(format!(
            "{} answers, {} cancelled, {} refused, {} tokens, {} steps",
            value("vllm:request_success_total"),
            value("ponder:requests_cancelled_total"),
            value("ponder:requests_refused_total"),
            value("vllm:generation_tokens_total"),
            value("ponder:steps_total")
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
