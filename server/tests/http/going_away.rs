//! Clients that leave, by every way there is: their requests end within a step and leave nothing behind.

use std::io::BufReader;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Leave, Server, chat, leave, read_chunk, read_head};

const WAYS: [Leave; 3] = [Leave::Close, Leave::Reset, Leave::HalfClose];
const CONNECTION: [(&str, &str); 1] = [("connection", "keep-alive")];

fn long(stream: bool) -> String {
    chat(json!({ "stream": stream, "max_tokens": 30000, "ignore_eos": true })).to_string()
}

fn server() -> Server {
    Server::with_long_context(&["--max-model-len", "32768", "--max-num-seqs", "1"])
}

/// Nothing runs, nothing waits, and every block is free again.
fn at_rest(state: &serde_json::Value) -> bool {
    state["lanes"].as_array().is_some_and(Vec::is_empty)
        && state["kv"]["free"] == state["kv"]["total"]
        && state["admitted"]["answers"] == 0
}

#[test]
fn during_a_stream() {
    let server = server();
    for (i, how) in WAYS.into_iter().enumerate() {
        let stream = server.send("POST", "/v1/chat/completions", &CONNECTION, &long(true));
        let mut reader = BufReader::new(stream);
        assert_eq!(read_head(&mut reader).0, 200);
        (0..5).for_each(|_| assert!(read_chunk(&mut reader).is_some()));
        let left = Instant::now();
        let _kept = leave(reader.into_inner(), how);
        server.until(&format!("{how:?}"), at_rest);
        assert!(left.elapsed() < Duration::from_secs(3), "{how:?}: {:?}", left.elapsed());
        assert_eq!(server.metric("ponder:requests_cancelled_total"), (i + 1) as f64, "{how:?}");
    }
}

#[test]
fn before_the_whole_reply() {
    let server = server();
    for (i, how) in WAYS.into_iter().enumerate() {
        let stream = server.send("POST", "/v1/chat/completions", &CONNECTION, &long(false));
        server.until("it runs", |s| s["lanes"][0]["output_tokens"].as_u64() > Some(3));
        let left = Instant::now();
        let _kept = leave(stream, how);
        server.until(&format!("{how:?}"), at_rest);
        assert!(left.elapsed() < Duration::from_secs(3), "{how:?}: {:?}", left.elapsed());
        assert_eq!(server.metric("ponder:requests_cancelled_total"), (i + 1) as f64, "{how:?}");
    }
}

#[test]
fn while_they_wait() {
    let server = server();
    let runs = server.send("POST", "/v1/chat/completions", &CONNECTION, &long(true));
    server.until("it runs", |s| s["lanes"][0]["output_tokens"].as_u64() > Some(0));
    for how in WAYS {
        let waits = server.send("POST", "/v1/chat/completions", &CONNECTION, &long(matches!(how, Leave::Reset)));
        let state = server.until("it waits", |s| s["lanes"].as_array().is_some_and(|l| l.len() == 2));
        assert_eq!((&state["lanes"][1]["lane"], &state["lanes"][1]["cached_tokens"]), (&json!("queued"), &json!(0)));
        let _kept = leave(waits, how);
        let state = server.until("it is gone", |s| s["lanes"].as_array().is_some_and(|l| l.len() == 1));
        assert_eq!(state["lanes"][0]["lane"], "answer", "the other goes on");
    }
    drop(runs);
    server.until("all are gone", at_rest);
}

#[test]
fn or_stop_reading() {
    let server =
        Server::with_long_context(&["--max-model-len", "32768", "--max-num-seqs", "3", "--slow-client-timeout", "1"]);
    let before = server.memory();
    // Its receive buffer fills, then ours, then it is cut off.
    let body = chat(json!({ "stream": true, "max_tokens": 30000, "ignore_eos": true, "n": 2 })).to_string();
    let idle = server.send_into(2048, "/v1/chat/completions", &body);
    server.until("it runs", |s| s["lanes"][0]["output_tokens"].as_u64() > Some(0));
    let other = server.chat(json!({ "max_tokens": 20 }));
    assert_eq!(other.status, 200, "others are not held up");
    server.until("it is cut off", at_rest);
    assert_eq!(server.metric("ponder:requests_cancelled_total"), 1.0);
    assert!(server.memory() < before + (64 << 20), "{} after {before}", server.memory());
    drop(idle);
}
