//! A snapshot as plain text, for scripts and reports.

use std::fmt::Write as _;

use super::rates::Rates;
use super::snapshot::{Phase, Snapshot};
use super::words::{LATENCIES, count, millis, percent, quantiles, rate, time};

/// All of it.
pub fn text(url: &str, s: &Snapshot, rates: &Rates) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut out, url, s, rates);
    out
}

fn write(out: &mut String, url: &str, s: &Snapshot, rates: &Rates) -> std::fmt::Result {
    let (running, waiting) = s.counts();
    writeln!(out, "server      {url}{}", if s.draining { ", draining" } else { "" })?;
    writeln!(out, "model       {}", s.model.as_deref().unwrap_or("–"))?;
    writeln!(out, "up          {}, step {}", millis(s.now_ms), count(s.step))?;
    writeln!(out, "requests    {running} running of {} seats, {waiting} waiting", count(s.seats))?;
    let phases = Phase::ALL.map(|p| (p, s.lanes.iter().filter(|l| l.phase == p).count()));
    let phases = phases.iter().filter(|(p, n)| *n > 0 || *p != Phase::Other);
    let phases: Vec<String> = phases.map(|(p, n)| format!("{} {n}", p.name())).collect();
    writeln!(out, "phases      {}", phases.join(", "))?;
    let held = s.blocks.map(|(total, free)| total.saturating_sub(free));
    let (total, cached) =
        (count(s.blocks.map(|b| b.0)), s.cached_blocks.map_or(String::new(), |c| format!(", {c} cached")));
    writeln!(out, "kv          {} of {total} blocks held{cached}", count(held))?;
    writeln!(out, "tokens/s    {}", rate(rates.tokens))?;
    writeln!(out, "steps/s     {}, device busy {}", rate(rates.steps), percent(rates.device))?;
    writeln!(out, "acceptance  {}", percent(rates.acceptance))?;
    writeln!(out, "\n{:<14} {:>9} {:>9} {:>9}", "latency", "p50", "p90", "p99")?;
    for (name, metric) in LATENCIES {
        let [p50, p90, p99] = quantiles(s, metric);
        writeln!(out, "{name:<14} {p50:>9} {p90:>9} {p99:>9}")?;
    }
    writeln!(out, "\n{:<14} {:>10} {:>10} {:>10} {:>6}", "actor", "messages", "queue mean", "queue p99", "busy")?;
    let unknown = Default::default();
    for (i, actor) in s.actors.iter().enumerate() {
        let r = rates.actors.get(i).unwrap_or(&unknown);
        let p99 = s.metrics.quantile("ponder:actor_queue_seconds", Some(("actor", &actor.name)), 0.99);
        writeln!(
            out,
            "{:<14} {:>10} {:>10} {:>10} {:>6}",
            actor.name,
            count(actor.messages),
            time(r.queue_us.map(|us| us / 1e6)),
            time(p99),
            percent(r.busy)
        )?;
    }
    if !s.lanes.is_empty() {
        writeln!(
            out,
            "\n{:<10} {:<10} {:>8} {:>7} {:>8} {:>8} {:>8} {:>6}",
            "request", "phase", "age", "prompt", "thinking", "output", "max", "blocks"
        )?;
    }
    for l in &s.lanes {
        writeln!(
            out,
            "{:<10} {:<10} {:>8} {:>7} {:>8} {:>8} {:>8} {:>6}",
            l.short(),
            l.phase.name(),
            millis(l.age_ms),
            count(l.prompt),
            count(l.thinking),
            count(l.output),
            count(l.max),
            count(l.blocks)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::tests::recorded;
    use super::*;

    #[test]
    fn the_recorded_one() {
        let text = text("http://there", &recorded(), &Rates::default());
        for line in [
            "server      http://there",
            "requests    3 running of 4 seats, 2 waiting",
            "phases      queued 1, preempted 1, prefill 1, thinking 1, answer 1, tool_call 0",
            "tokens/s    –",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        assert!(text.lines().any(|l| l.starts_with("scheduler ") && l.contains("µs")), "{text}");
        assert!(text.lines().any(|l| l.starts_with("first token ") && l.ends_with(" ms")), "{text}");
        assert!(text.chars().all(|c| !c.is_control() || c == '\n'));
    }

    #[test]
    fn nothing_known_is_dashes() {
        let text = text("http://there", &Snapshot::default(), &Rates::default());
        assert!(text.contains("0 running of – seats") && text.contains("– of – blocks"), "{text}");
    }
}
