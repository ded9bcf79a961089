//! Numbers in few columns; a dash where there is none.

use super::snapshot::{Lane, Phase, Snapshot};

/// What stands where nothing is known.
pub const NONE: &str = "–";

/// A count, or a dash.
pub fn count(value: Option<u64>) -> String {
    value.map_or(NONE.into(), |v| v.to_string())
}

/// A rate: more digits the smaller it is.
pub fn rate(value: Option<f64>) -> String {
    value.map_or(NONE.into(), |v| if v < 10.0 { format!("{v:.1}") } else { format!("{v:.0}") })
}

/// A share in percent.
pub fn percent(value: Option<f64>) -> String {
    value.map_or(NONE.into(), |v| format!("{:.0}%", v * 100.0))
}

/// Seconds as people say them: `1.2 ms`, `3.4 s`, `2:05`.
pub fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => NONE.into(),
        Some(s) if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        Some(s) if s < 0.1 => format!("{:.1} ms", s * 1e3),
        Some(s) if s < 1.0 => format!("{:.0} ms", s * 1e3),
        Some(s) if s < 100.0 => format!("{s:.1} s"),
        Some(s) if s < 3600.0 => format!("{}:{:02}", s as u64 / 60, s as u64 % 60),
        Some(s) => format!("{}:{:02}:{:02}", s as u64 / 3600, s as u64 / 60 % 60, s as u64 % 60),
    }
}

/// Milliseconds as [`time`].
pub fn millis(ms: Option<u64>) -> String {
    time(ms.map(|ms| ms as f64 / 1e3))
}

/// The latencies that are shown, and their metrics.
pub const LATENCIES: [(&str, &str); 4] = [
    ("first token", "vllm:time_to_first_token_seconds"),
    ("first answer", "ponder:time_to_first_answer_token_seconds"),
    ("between texts", "vllm:inter_token_latency_seconds"),
    ("whole", "vllm:e2e_request_latency_seconds"),
];
/// And at which quantiles.
pub const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];

/// A latency at the quantiles.
pub fn quantiles(snapshot: &Snapshot, metric: &str) -> [String; 3] {
    QUANTILES.map(|q| time(snapshot.metrics.quantile(metric, None, q)))
}

/// A bar of a lane: its prompt, its thinking, its answer, and what it may still write.
pub fn bar(lane: &Lane, width: usize) -> [String; 4] {
    let (prompt, max) = (lane.prompt.unwrap_or(0), lane.max.unwrap_or(0));
    let output = lane.output.unwrap_or(0);
    let thinking = if lane.phase == Phase::Thinking { output } else { lane.thinking.unwrap_or(0).min(output) };
    let all = (prompt + max).max(prompt + output).max(1);
    // Ends, not lengths, are rounded: so the pieces add up, and what is there is never rounded away.
    let end = |tokens: u64| (tokens as f64 / all as f64 * width as f64).ceil() as usize;
    let ends = [end(prompt), end(prompt + thinking), end(prompt + output), width];
    let piece = |i: usize, glyph: &str| glyph.repeat(ends[i] - if i == 0 { 0 } else { ends[i - 1] });
    [piece(0, "░"), piece(1, "▒"), piece(2, "█"), piece(3, "·")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let times = [2e-6, 0.0012, 0.25, 3.44, 125.0, 7322.0].map(|s| time(Some(s)));
        assert_eq!(times, ["2 µs", "1.2 ms", "250 ms", "3.4 s", "2:05", "2:02:02"]);
        assert_eq!(
            (time(None), count(None), rate(None), percent(None)),
            (NONE.into(), NONE.into(), NONE.into(), NONE.into())
        );
        assert_eq!(
            (rate(Some(3.21)), rate(Some(321.4)), percent(Some(0.756))),
            ("3.2".into(), "321".into(), "76%".into())
        );
    }

    #[test]
    fn bars_add_up() {
        let lane = |prompt, output, thinking, max| Lane {
            prompt: Some(prompt),
            output: Some(output),
            thinking: Some(thinking),
            max: Some(max),
            phase: Phase::Answer,
            ..Lane::default()
        };
        assert_eq!(bar(&lane(10, 40, 20, 90), 10).concat(), "░▒▒██·····");
        for l in [lane(0, 0, 0, 0), lane(7, 3, 9, 1), lane(1, 100, 100, 100), lane(5, 0, 0, 1 << 40), Lane::default()] {
            for width in [0, 1, 7, 40] {
                assert_eq!(bar(&l, width).concat().chars().count(), width, "{l:?}");
            }
        }
    }
}
