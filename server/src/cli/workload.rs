//! `ponder bench --workload`: what guessing brings on real prompts: none, so many guesses, and as many as pay,
//! on one loaded engine. Every setting must give the same tokens; one that differs is an error.
//!
//! A machine is seldom the same for long: clocks change, neighbours come and go. So the prompts are cut into parts, and
//! every part is run with guesses right before or right after it is run without; what counts is the median over the
//! repeats of each such pair.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use ponder::{Engine, Opened, Prompt};
use ponder_engine::Error;
use ponder_engine::request::SamplingParams;
use ponder_engine::schedule::DraftPolicy;
use ponder_engine::spec::SpecReport;
use ponder_engine::text::Message;
use serde_json::{Value, json};

use super::bench::{BenchArgs, middle};
use super::progress::Loading;
use super::speculation::speculation_json;

/// One way to guess, and what it gave.
struct Setting {
    name: String,
    policy: DraftPolicy,
    /// Seconds, by part of the workload and repeat.
    seconds: Vec<Vec<f64>>,
    /// How much longer the run without guesses beside it took, likewise.
    gains: Vec<Vec<f64>>,
    report: SpecReport,
}

impl Setting {
    fn new(policy: DraftPolicy, parts: usize) -> Self {
        let name = match policy {
            DraftPolicy::Off => "off".into(),
            DraftPolicy::Fixed(k) => format!("K={k}"),
            DraftPolicy::Auto(_) => "auto".into(),
        };
        let empty = vec![Vec::new(); parts];
        Self { name, policy, seconds: empty.clone(), gains: empty, report: SpecReport::default() }
    }
    /// Seconds of the whole workload.
    fn whole(&self) -> f64 {
        self.seconds.iter().map(|part| middle(part.clone())).sum()
    }
    /// How much faster the whole workload is than without guesses, where that takes `off` seconds by part.
    fn gain(&self, off: &[f64]) -> f64 {
        let with: f64 = off.iter().zip(&self.gains).map(|(off, gains)| off / middle(gains.clone())).sum();
        off.iter().sum::<f64>() / with
    }
}

/// Requests of a part for each that runs at once, so that most of its time as many run as should.
const TURNS: usize = 4;

/// Measures every setting over the whole workload and prints a table.
pub fn compare(args: &BenchArgs, file: &Path) -> Result<()> {
    let prompts = read(file)?;
    let mut options = args.model.options(args.batch)?;
    options.trace.clone_from(&args.output.trace);
    if options.draft.is_none() && options.lookup == ponder_engine::spec::Lookup::None {
        return Err(Error::invalid("draft_model", "is none; a workload compares a drafter with none").into());
    }
    let opened = Opened::open(options)?;
    let mut loading = Loading::new(&args.output);
    let engine = opened.load(|p| loading.show(p))?;
    loading.done();
    let part = TURNS * args.batch;
    let parts: Vec<usize> = (0..prompts.len()).step_by(part).collect();
    let mut off = Setting::new(DraftPolicy::Off, parts.len());
    let lengths = args.workload_lengths.iter();
    let mut settings: Vec<Setting> = lengths.map(|policy| Setting::new(*policy, parts.len())).collect();
    let bar = loading.bar((args.repeats * settings.len()) as u64, "settings");
    // Every pass is a tenant of its own: what the same prompts were answered before must not serve as guesses.
    let want = run(&engine, args, &prompts, 0, "warm-up")?;
    for repeat in 0..args.repeats {
        for setting in &mut settings {
            let tenant = format!("{} {repeat}", setting.name);
            for (place, start) in parts.iter().enumerate() {
                let range = *start..prompts.len().min(start + part);
                let measure = |setting: &mut Setting, beside: &str| -> Result<f64> {
                    engine.handle().set_drafts(setting.policy)?;
                    let (before, begun) = (engine.handle().tracer().speculation(), Instant::now());
                    let got = run(&engine, args, &prompts[range.clone()], *start, &format!("{tenant} {beside}"))?;
                    let seconds = begun.elapsed().as_secs_f64();
                    setting.seconds[place].push(seconds);
                    setting.report.add(&engine.handle().tracer().speculation().since(&before));
                    if let Some(i) = got.iter().zip(&want[range.clone()]).position(|(got, want)| got != want) {
                        let (name, prompt) = (&setting.name, start + i + 1);
                        let why = format!("{name}: the answer to prompt {prompt} is not the one without guesses");
                        return Err(Error::invalid("speculation", why).into());
                    }
                    Ok(seconds)
                };
                // Whoever goes second finds warmer caches: they take turns.
                let (plain, guessed) = if (repeat + place) % 2 == 0 {
                    let plain = measure(&mut off, "off")?;
                    (plain, measure(setting, "on")?)
                } else {
                    let guessed = measure(setting, "on")?;
                    (measure(&mut off, "off")?, guessed)
                };
                setting.gains[place].push(plain / guessed);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    engine.write_trace()?;
    show(args, &off, &settings, &want);
    Ok(())
}

/// Prompts of a file, one JSON object a line.
pub(super) fn read(file: &Path) -> Result<Vec<Prompt>> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
    let mut prompts = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let bad = |why: &str| Error::invalid(format!("workload line {}", i + 1), why.to_string());
        let value: Value = serde_json::from_str(line).map_err(|e| bad(&e.to_string()))?;
        let said = ["prompt", "question", "problem"].iter().find_map(|name| value[*name].as_str());
        let prompt = match (said, value["messages"].as_array()) {
            (Some(text), None) => Prompt::user(text),
            (None, Some(messages)) => {
                let word = |m: &Value, name: &str| m[name].as_str().map(String::from);
                let message = |m: &Value| Some(Message::new(word(m, "role")?, word(m, "content")?));
                let messages: Option<Vec<Message>> = messages.iter().map(message).collect();
                Prompt::chat(messages.ok_or_else(|| bad("a message has no role or no content"))?)
            }
            _ => return Err(bad("has neither prompt nor messages").into()),
        };
        prompts.push(prompt);
    }
    match prompts.len() {
        0 => Err(Error::invalid("workload", "has no prompt").into()),
        _ => Ok(prompts),
    }
}

/// Answers to prompts, `batch` at a time, for one tenant; `start` is the place of the first in the workload.
fn run(engine: &Engine, args: &BenchArgs, prompts: &[Prompt], start: usize, tenant: &str) -> Result<Vec<Vec<u32>>> {
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(vec![Vec::new(); prompts.len()]);
    let work = || -> ponder_engine::Result<()> {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(prompt) = prompts.get(i) else { return Ok(()) };
            let params = SamplingParams {
                temperature: args.workload_temperature,
                max_tokens: Some(args.workload_tokens),
                seed: (start + i) as u64,
                cache_salt: tenant.into(),
                ..SamplingParams::default()
            };
            let done = engine.generate(prompt.clone(), params)?.complete()?;
            answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())[i] = done.token_ids;
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..args.batch).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;
    Ok(answers.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

fn show(args: &BenchArgs, off: &Setting, settings: &[Setting], answers: &[Vec<u32>]) {
    let tokens: usize = answers.iter().map(Vec::len).sum();
    let plain: Vec<f64> = off.seconds.iter().map(|part| middle(part.clone())).collect();
    let row = |s: &Setting, gain: f64| (tokens as f64 / s.whole(), gain, s.seconds[0].len() as f64);
    let rows = settings.iter().map(|s| (s, row(s, s.gain(&plain))));
    let rows: Vec<(&Setting, (f64, f64, f64))> = [(off, row(off, 1.0))].into_iter().chain(rows).collect();
    if args.output.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(s, (rate, gain, _))| {
                json!({ "setting": s.name, "tokens_per_second": rate, "speed_up": gain,
                        "seconds_by_part": s.seconds, "speed_up_by_part": s.gains,
                        "tokens_per_pass": s.report.tokens_per_pass(), "speculation": speculation_json(&s.report) })
            })
            .collect();
        super::print_json(&json!({ "prompts": answers.len(), "tokens": tokens, "batch": args.batch,
            "temperature": args.workload_temperature, "settings": rows }));
        return;
    }
    let mut out = format!("{} prompts, {tokens} tokens, {} at once\n", answers.len(), args.batch);
    out += "setting   tokens/s  speed-up  tokens/pass  accepted/step  draft ms  verify ms\n";
    for (s, (rate, gain, runs)) in rows {
        let (r, accepted) = (&s.report, s.report.total().mean_accepted());
        let [draft, verify] = [r.draft_us, r.verify_us].map(|us| us as f64 / 1e3 / runs);
        let pass = r.tokens_per_pass();
        out += &format!(
            "{:<8} {rate:>9.1} {gain:>9.2} {pass:>12.2} {accepted:>14.2} {draft:>9.1} {verify:>10.1}\n",
            s.name
        );
    }
    super::print_text(&out);
}
