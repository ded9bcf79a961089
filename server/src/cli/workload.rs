//! `ponder bench --workload`: what guessing brings on real prompts: none, 1 to 8 guesses, and as many as pay,
//! on one loaded engine. Every setting must give the same tokens; one that differs is an error.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use ponder::{Engine, Opened, Prompt};
use ponder_engine::Error;
use ponder_engine::request::SamplingParams;
use ponder_engine::schedule::DraftPolicy;
use ponder_engine::spec::{LengthOptions, SpecReport};
use ponder_engine::text::Message;
use serde_json::{Value, json};

use super::bench::{BenchArgs, middle};
use super::progress::Loading;
use super::speculation::speculation_json;

/// One way to guess, and what it gave.
struct Setting {
    name: String,
    policy: DraftPolicy,
    rates: Vec<f64>,
    report: SpecReport,
}

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
    let mut settings = vec![setting("off", DraftPolicy::Off)];
    settings.extend((1..=8).map(|k| setting(&format!("K={k}"), DraftPolicy::Fixed(k))));
    settings.push(setting("auto", DraftPolicy::Auto(LengthOptions::default())));
    let bar = loading.bar((args.repeats * settings.len()) as u64, "settings");
    // Every pass is a tenant of its own: what the same prompts were answered before must not serve as guesses.
    let want = run(&engine, args, &prompts, "warm-up")?;
    for repeat in 0..args.repeats {
        for setting in &mut settings {
            engine.handle().set_drafts(setting.policy)?;
            let (before, begun) = (engine.handle().tracer().speculation(), Instant::now());
            let got = run(&engine, args, &prompts, &format!("{} {repeat}", setting.name))?;
            let seconds = begun.elapsed().as_secs_f64();
            let tokens: usize = got.iter().map(Vec::len).sum();
            setting.rates.push(tokens as f64 / seconds);
            setting.report.add(&engine.handle().tracer().speculation().since(&before));
            if let Some(i) = got.iter().zip(&want).position(|(got, want)| got != want) {
                let why = format!("{}: the answer to prompt {} is not the one without guesses", setting.name, i + 1);
                return Err(Error::invalid("speculation", why).into());
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    engine.write_trace()?;
    show(args, &settings, &want);
    Ok(())
}

fn setting(name: &str, policy: DraftPolicy) -> Setting {
    Setting { name: name.into(), policy, rates: Vec::new(), report: SpecReport::default() }
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

/// Answers to all prompts, `batch` at a time, for one tenant.
fn run(engine: &Engine, args: &BenchArgs, prompts: &[Prompt], tenant: &str) -> Result<Vec<Vec<u32>>> {
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(vec![Vec::new(); prompts.len()]);
    let work = || -> ponder_engine::Result<()> {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(prompt) = prompts.get(i) else { return Ok(()) };
            let params = SamplingParams {
                temperature: args.workload_temperature,
                max_tokens: Some(args.workload_tokens),
                seed: i as u64,
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

fn show(args: &BenchArgs, settings: &[Setting], answers: &[Vec<u32>]) {
    let off = middle(settings[0].rates.clone());
    let rows: Vec<(&Setting, f64)> = settings.iter().map(|s| (s, middle(s.rates.clone()))).collect();
    let tokens: usize = answers.iter().map(Vec::len).sum();
    if args.output.json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(s, rate)| {
                json!({ "setting": s.name, "tokens_per_second": rate, "speed_up": rate / off,
                        "tokens_per_second_each": s.rates, "tokens_per_pass": s.report.tokens_per_pass(),
                        "speculation": speculation_json(&s.report) })
            })
            .collect();
        super::print_json(&json!({ "prompts": answers.len(), "tokens": tokens, "batch": args.batch,
            "temperature": args.workload_temperature, "settings": rows }));
        return;
    }
    let mut out = format!("{} prompts, {tokens} tokens, {} at once\n", answers.len(), args.batch);
    out += "setting   tokens/s  speed-up  tokens/pass  accepted/step  draft ms  verify ms\n";
    for (s, rate) in rows {
        let (r, accepted) = (&s.report, s.report.total().mean_accepted());
        let [draft, verify] = [r.draft_us, r.verify_us].map(|us| us as f64 / 1e3 / args.repeats as f64);
        let (pass, gain) = (r.tokens_per_pass(), rate / off);
        out += &format!(
            "{:<8} {rate:>9.1} {gain:>9.2} {pass:>12.2} {accepted:>14.2} {draft:>9.1} {verify:>10.1}\n",
            s.name
        );
    }
    super::print_text(&out);
}
