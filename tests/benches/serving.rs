//! What serving and watching cost beside generating, with the bundled model on one thread of the CPU backend:
//! the time that HTTP adds to the first token, the processor time of streaming, and the price of traces and spans.
//!
//! `cargo build --release -p ponder && cargo bench -p ponder-tests --bench serving`, on a machine that does nothing
//! else. What is compared alternates, and medians are told, because a machine's speed wanders. Nothing is judged
//! here: figures belong to a machine.

#[allow(dead_code)] // the load program's, which looks at more of a reply
#[path = "../src/bin/load/wire.rs"]
mod wire;

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ponder::{BackendChoice, Engine, EngineOptions, Prompt};
use ponder_actors::trace::{Span, Tracer};
use ponder_engine::request::SamplingParams;
use serde_json::{Value, json};

/// The bundled model.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/target");
/// Pairs of first tokens.
const FIRSTS: usize = 200;
/// Rounds of everything else, each with and without what is measured.
const ROUNDS: usize = 12;
/// Requests at once, and tokens of each.
const CLIENTS: usize = 8;
const TOKENS: usize = 192;

fn main() -> Result<()> {
    let engine =
        Engine::load(EngineOptions { backend: BackendChoice::Cpu, threads: 1, ..EngineOptions::new(MODEL) }, |_| {})?;
    let plain = Server::start(&[])?;
    first_token(&engine, &plain)?;
    streaming(&plain)?;
    actor_traces(&engine)?;
    let collector = collector()?;
    spans(&plain, &Server::start(&["--otlp-traces-endpoint", &collector])?)
}

/// (a) Asked in this process and over HTTP, in turns.
fn first_token(engine: &Engine, server: &Server) -> Result<()> {
    let (mut within, mut over, mut told, mut added) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for i in 0..FIRSTS + 20 {
        let question = format!("What is {}+{}?", 11 + i, 23 + 5 * i);
        let params = SamplingParams { max_tokens: Some(4), ignore_eos: true, ..SamplingParams::default() };
        let begun = Instant::now();
        let mut generation = engine.generate(Prompt::user(&question), params)?;
        generation.next().context("a first token")?;
        let here = begun.elapsed();
        generation.complete()?;
        let (there, timings) = server.ask(&question, 4, true)?;
        // The first ones warm both up.
        if i >= 20 {
            within.push(ms(here));
            over.push(ms(there));
            added.push(ms(there) - ms(here));
            told.push(timings["ttft_ms"].as_f64().context("a time")?);
        }
    }
    println!("first token, batch 1, medians of {FIRSTS}");
    println!(
        "  in process {:.3} ms; over HTTP {:.3} ms, by the server's clock {:.3} ms",
        median(&within),
        median(&over),
        median(&told)
    );
    println!("  HTTP adds {:.3} ms (bar 2 ms)", median(&added));
    Ok(())
}

/// (b) Processor time of the server for the same answers, streamed and whole.
fn streaming(server: &Server) -> Result<()> {
    let mut costs = Vec::new();
    let mut each = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        let mut spent = [0.0; 2];
        for stream in [round % 2 == 0, round % 2 != 0] {
            let before = server.cpu()?;
            server.crowd(CLIENTS, TOKENS, stream, round)?;
            spent[usize::from(stream)] = (server.cpu()? - before) / (CLIENTS * TOKENS) as f64;
        }
        if round > 0 {
            costs.push(spent[1] - spent[0]);
            (0..2).for_each(|i| each[i].push(spent[i]));
        }
    }
    println!("streaming, {CLIENTS} clients, medians of {ROUNDS} rounds");
    println!(
        "  processor time per token: whole {:.1} us, streamed {:.1} us",
        median(&each[0]) * 1e6,
        median(&each[1]) * 1e6
    );
    println!("  1,000 streamed tokens a second cost {:.1}% of a core (bar 15%)", median(&costs) * 1000.0 * 100.0);
    Ok(())
}

/// (c) The same batch, recorded and not; and what an event costs that nobody records.
fn actor_traces(engine: &Engine) -> Result<()> {
    let tracer = engine.handle().tracer();
    let mut ratios = Vec::new();
    let (mut messages, mut steps, mut time) = (0, 0, Duration::ZERO);
    for round in 0..=ROUNDS {
        let mut took = [Duration::ZERO; 2];
        for on in [round % 2 == 0, round % 2 != 0] {
            tracer.listen(on);
            let count = || (tracer.actors().iter().map(|a| a.messages).sum::<u64>(), tracer.totals().steps);
            let (before, begun) = (count(), Instant::now());
            batch(engine, round)?;
            took[usize::from(on)] = begun.elapsed();
            if !on {
                let now = count();
                (messages, steps, time) =
                    (messages + now.0 - before.0, steps + now.1 - before.1, time + begun.elapsed());
            }
            tracer.listen(false);
            tracer.clear();
        }
        if round > 0 {
            ratios.push(took[1].as_secs_f64() / took[0].as_secs_f64());
        }
    }
    let (event, per_step) = (silent_event(), messages as f64 / steps as f64);
    let step = time.as_secs_f64() / steps as f64;
    println!("actor traces, {CLIENTS} answers, medians of {ROUNDS} rounds");
    println!("  on: time x {:.4} (bar 1.03)", median(&ratios));
    let share = event * per_step / step;
    println!(
        "  off: {:.0} ns an event, {per_step:.1} events a step of {:.0} us: {:.3}% (bar 0.3%)",
        event * 1e9,
        step * 1e6,
        share * 100.0
    );
    Ok(())
}

/// Seconds of an event that nobody records: the clock read three times, and the counts.
fn silent_event() -> f64 {
    const EVENTS: u32 = 1_000_000;
    let tracer = Tracer::default();
    let begun = Instant::now();
    for step in 0..EVENTS {
        let (sent, taken, done) = (Instant::now(), Instant::now(), Instant::now());
        tracer.message(black_box(Span { actor: "kv", name: "Reserve", step: step.into(), sent, taken, done }));
    }
    begun.elapsed().as_secs_f64() / f64::from(EVENTS)
}

/// Several answers at once in this process.
fn batch(engine: &Engine, round: usize) -> Result<()> {
    let params = SamplingParams { max_tokens: Some(TOKENS), ignore_eos: true, ..SamplingParams::default() };
    let asked = |i| engine.generate(Prompt::user(question(round, i)), params.clone());
    let all = (0..CLIENTS).map(asked).collect::<Result<Vec<_>, _>>()?;
    for generation in all {
        generation.complete()?;
    }
    Ok(())
}

/// (d) Two servers, of which one tells a collector of every answer.
fn spans(plain: &Server, spans: &Server) -> Result<()> {
    let mut ratios = Vec::new();
    for round in 0..=ROUNDS {
        let mut took = [0.0; 2];
        for told in [round % 2 == 0, round % 2 != 0] {
            let begun = Instant::now();
            let server = if told { spans } else { plain };
            (0..4).try_for_each(|i| server.crowd(CLIENTS, TOKENS / 4, true, 100 + 4 * round + i))?;
            took[usize::from(told)] = begun.elapsed().as_secs_f64();
        }
        if round > 0 {
            ratios.push(took[1] / took[0]);
        }
    }
    println!("spans of every answer, {CLIENTS} clients, answers of {} tokens, medians of {ROUNDS} rounds", TOKENS / 4);
    println!("  on: time x {:.4} (bar 1.03)", median(&ratios));
    Ok(())
}

fn question(round: usize, i: usize) -> String {
    format!("What is {}*{}?", 11 + 7 * i, 23 + 5 * round)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// A collector that takes everything, and its URL.
fn collector() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
            let mut length = 0;
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
                let head = line.trim_end().to_ascii_lowercase();
                if let Some(n) = head.strip_prefix("content-length: ") {
                    length = n.parse().expect("a number");
                } else if head.is_empty() {
                    std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink()).expect("a body");
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").expect("it reads");
                }
                line.clear();
            }
        }
    });
    Ok(url)
}

/// A running server; it is killed with this value.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// The `ponder` that was built beside this program.
    fn start(flags: &[&str]) -> Result<Self> {
        let beside = std::env::current_exe()?.ancestors().nth(2).map(|dir| dir.join("ponder"));
        let program: PathBuf =
            beside.filter(|p| p.exists()).context("no ponder is built: cargo build --release -p ponder")?;
        let seats = CLIENTS.to_string();
        let mut command = Command::new(program);
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("PONDER_") || n.starts_with("OTEL_")) {
            command.env_remove(name);
        }
        command.args(["serve", "--backend", "cpu", "--threads", "1", "--port", "0", "--json", "--quiet"]);
        command.args(["--served-model-name", "m", "--max-num-seqs", &seats]).args(flags);
        command.env("PONDER_LOG", "warn").stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let told: Value = serde_json::from_str(&line).context("the server does not start")?;
        let address = told["address"].as_str().context("an address")?.parse()?;
        Ok(Self { child, address })
    }

    /// Seconds of processor time so far.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // Fields 14 and 15, counted behind the name, which may hold anything; hundredths of a second on every Linux.
        let mut fields = stat.rsplit_once(')').context("a name")?.1.split_whitespace().skip(11);
        let mut ticks = || -> Result<f64> { Ok(fields.next().context("a field")?.parse()?) };
        Ok((ticks()? + ticks()?) / 100.0)
    }

    /// Asks; the time to the first text (or to the end, if not streamed), and what the server says of times.
    fn ask(&self, question: &str, tokens: usize, stream: bool) -> Result<(Duration, Value)> {
        let body = json!({
            "model": "m", "messages": [{ "role": "user", "content": question }], "stream": stream,
            "max_tokens": tokens, "temperature": 0, "ignore_eos": true,
        });
        let begun = Instant::now();
        let mut connection = wire::connect(self.address, None)?;
        connection.write_all(wire::post(self.address, "/v1/chat/completions", &body).as_bytes())?;
        let mut reply = wire::Reply::read(connection)?;
        if reply.status != 200 {
            let said = reply.body()?;
            bail!("status {}: {said}", reply.status);
        }
        if !stream {
            let whole: Value = serde_json::from_str(&reply.body()?)?;
            return Ok((begun.elapsed(), whole["timings"].clone()));
        }
        let (mut first, mut timings) = (None, Value::Null);
        while let Some(event) = reply.event()? {
            // Read as it came, so that reading costs the clients little.
            if first.is_none() && !event.contains("\"role\"") {
                first = Some(begun.elapsed());
            }
            if event.contains("\"timings\"") {
                timings = serde_json::from_str::<Value>(&event)?["timings"].clone();
            }
        }
        Ok((first.context("a first token")?, timings))
    }

    /// Several clients at once.
    fn crowd(&self, clients: usize, tokens: usize, stream: bool, round: usize) -> Result<()> {
        std::thread::scope(|scope| {
            let ask = |i| move || self.ask(&question(round, i), tokens, stream);
            let all: Vec<_> = (0..clients).map(|i| scope.spawn(ask(i))).collect();
            all.into_iter().try_for_each(|one| {
                let (_, timings) = one.join().expect("a client")?;
                match timings["predicted_n"].as_u64() == Some(tokens as u64) {
                    true => Ok(()),
                    false => bail!("{tokens} tokens were asked for: {timings}"),
                }
            })
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
