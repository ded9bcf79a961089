//! Keys, hosts, overload, deadlines, logs and the end of a server.

use std::io::BufReader;
use std::time::{Duration, Instant};

use ponder_tests::tiny_model;
use serde_json::json;

use crate::client::{Server, chat, read_chunk, read_head, read_reply};

const ROUTES: [(&str, &str); 12] = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions/control"),
    ("GET", "/v1/models"),
    ("POST", "/tokenize"),
    ("GET", "/metrics"),
    ("GET", "/debug/engine"),
    ("GET", "/debug/live"),
    ("GET", "/debug/life?request=1"),
    ("GET", "/console/nothing.js"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
];

#[test]
fn keys_and_hosts() {
    let server = Server::start(&["--api-key", "secret-one", "--api-key", "secret-two", "--allowed-host", "ponder.lan"]);
    for (method, path) in ROUTES {
        for key in ["", "Bearer", "Bearer wrong", "Basic secret-one", "Bearer secret-on", "secret-one"] {
            let reply = server.ask(method, path, &[("authorization", key)], "");
            assert_eq!(
                (reply.status, reply.json()["error"]["code"].as_str()),
                (401, Some("invalid_api_key")),
                "{path} {key}"
            );
        }
        let reply = server.ask(method, path, &[("host", "evil.example"), ("authorization", "Bearer secret-one")], "");
        assert_eq!(reply.status, 403, "{path}");
    }
    // Paths that mean something else than they look.
    for path in [
        "//v1/models",
        "/v1//models",
        "/V1/models",
        "/v1/models/",
        "/health/../v1/models",
        "/health%2f..%2fv1/models",
        "http://localhost/v1/models",
    ] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    let good = [("authorization", "Bearer secret-two")];
    assert_eq!(server.ask("GET", "/v1/models", &good, "").status, 200);
    assert_eq!(server.ask("GET", "/v1/models", &[("x-api-key", "secret-one")], "").status, 200);
    assert_eq!(server.ask("GET", "/v1/models", &[("host", "ponder.lan"), good[0]], "").status, 200);
    assert_eq!((server.get("/health").status, server.get("/ready").status), (200, 200));
    let reply = server.ask("GET", "/v1/models", &[("origin", "http://evil.example"), good[0]], "");
    assert_eq!(reply.header("access-control-allow-origin"), None);
    let reply = server.ask("OPTIONS", "/v1/models", &[("origin", "http://evil.example")], "");
    assert!(reply.status >= 400 && reply.header("access-control-allow-origin").is_none());
}

#[test]
fn overload_is_refused_with_a_time() {
    let server = Server::with_long_context(&["--max-model-len", "32768", "--max-num-seqs", "1", "--max-queued", "2"]);
    let body = chat(json!({ "stream": true, "max_tokens": 30000, "ignore_eos": true })).to_string();
    let running: Vec<_> = (0..3).map(|_| server.send("POST", "/v1/chat/completions", &[], &body)).collect();
    server.until("three are in", |s| s["admitted"]["answers"] == 3);
    for _ in 0..20 {
        let reply = server.chat(json!({ "max_tokens": 1 }));
        assert_eq!(reply.refused(503, "")["code"], "overloaded");
        let seconds: u64 = reply.header("retry-after").expect("a time").parse().expect("seconds");
        assert!((1..=120).contains(&seconds));
    }
    assert_eq!(server.metric("ponder:requests_refused_total"), 20.0);
    drop(running);
    server.until("all are gone", |s| s["admitted"]["answers"] == 0);
    server.chat(json!({ "max_tokens": 1 })).good();
}

#[test]
fn deadlines_and_shares() {
    let server = Server::with_long_context(&[
        "--max-model-len",
        "32768",
        "--max-num-seqs",
        "1",
        // Any other policy lets a short request go first.
        "--scheduling-policy",
        "fcfs",
        "--queue-timeout",
        "0.5",
        "--request-timeout",
        "2",
        "--max-per-key",
        "3",
    ]);
    let body = chat(json!({ "stream": true, "max_tokens": 32000, "ignore_eos": true })).to_string();
    let begun = Instant::now();
    let running = server.send("POST", "/v1/chat/completions", &[], &body);
    server.until("it runs", |s| s["lanes"][0]["output_tokens"].as_u64() > Some(0));
    let waited = server.chat(json!({ "max_tokens": 1 }));
    let quick = begun.elapsed() < Duration::from_secs(2);
    if quick {
        assert_eq!(waited.refused(503, "")["code"], "queue_timeout");
        assert!(waited.header("retry-after").is_some());
    }
    // The stream ends with an error and without [DONE].
    let mut reader = BufReader::new(running);
    assert_eq!(read_head(&mut reader).0, 200);
    let mut text = String::new();
    while let Some(chunk) = read_chunk(&mut reader) {
        text += &String::from_utf8(chunk).unwrap();
    }
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.contains("\"code\":\"timeout\""), "{last}");
    assert!(begun.elapsed() < Duration::from_secs(15));
    let over = server.chat(json!({ "n": 4, "max_tokens": 1 }));
    assert_eq!(over.refused(429, "")["code"], "rate_limit_exceeded");
    assert!(over.header("retry-after").is_some());
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let server = Server::start(&[]);
    let idle: Vec<_> = (0..300).map(|_| server.connect()).collect();
    assert_eq!(server.get("/health").status, 200);
    drop(idle);
}

#[test]
fn a_signal_lets_requests_finish() {
    let mut server = Server::with_long_context(&["--max-model-len", "32768"]);
    let body = chat(json!({ "max_tokens": 3000, "ignore_eos": true })).to_string();
    let mut running = server.send("POST", "/v1/chat/completions", &[("connection", "close")], &body);
    server.until("it runs", |s| s["lanes"][0]["output_tokens"].as_u64() > Some(0));
    server.signal("TERM");
    let begun = Instant::now();
    let mut refused = false;
    while begun.elapsed() < Duration::from_secs(5) && !refused {
        match std::net::TcpStream::connect(server.address) {
            Ok(_) => {
                let ready = server.get("/ready");
                refused |= ready.status == 503 && ready.header("retry-after").is_some();
            }
            Err(_) => break,
        }
    }
    let reply = read_reply(&mut running);
    assert_eq!(reply.good()["usage"]["completion_tokens"], 3000, "it was finished");
    assert!(refused, "while it drains, it says that it is not ready");
    assert_eq!(server.ended(Duration::from_secs(10)), Some(0));
}

#[test]
fn a_second_signal_stops_at_once() {
    let mut server = Server::with_long_context(&["--max-model-len", "32768"]);
    let body = chat(json!({ "stream": true, "max_tokens": 32000, "ignore_eos": true })).to_string();
    let _running = server.send("POST", "/v1/chat/completions", &[], &body);
    server.until("it runs", |s| s["lanes"][0]["output_tokens"].as_u64() > Some(0));
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.ended(Duration::ZERO), None, "it drains");
    server.signal("TERM");
    assert_eq!(server.ended(Duration::from_secs(10)), Some(1));
}

#[test]
fn logs_have_ids_and_no_prompts() {
    let server = Server::start(&["--log-json"]);
    let headers = [("x-request-id", "my-id.7")];
    let body =
        chat(json!({ "messages": [{ "role": "user", "content": "a secret wish" }], "max_tokens": 2 })).to_string();
    let reply = server.ask("POST", "/v1/chat/completions", &headers, &body);
    assert_eq!((reply.status, reply.header("x-request-id")), (200, Some("my-id.7")));
    let odd = server.ask("GET", "/v1/\u{1b}[31mred", &[("x-request-id", "a b")], "");
    assert!(odd.status >= 400 && odd.header("x-request-id") != Some("a b"));
    let log = server.log();
    assert!(!log.contains("secret wish") && !log.contains('\u{1b}'), "{log}");
    let lines = log.lines().filter(|l| l.contains("my-id.7"));
    let lines: Vec<serde_json::Value> = lines.map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert!(lines.iter().any(|l| l["target"] == "ponder::request" && l["completion_tokens"] == 2), "{log}");
    assert!(lines.iter().any(|l| l["target"] == "ponder::http" && l["status"] == 200), "{log}");
}

#[test]
fn numbers_that_break_are_an_error_of_their_request() {
    // Finite weights of the last matrix, so large that every logit overflows.
    let model = tiny_model::hugging_face("llama", safetensors::Dtype::F32);
    let path = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let place = |i: usize| 8 + header + json["lm_head.weight"]["data_offsets"][i].as_u64().unwrap() as usize;
    for value in bytes[place(0)..place(1)].chunks_exact_mut(4) {
        value.copy_from_slice(&3e38f32.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let server = Server::over(model, &[]);
    for _ in 0..3 {
        let reply = server.chat(json!({ "max_tokens": 4 }));
        assert_eq!(reply.refused(500, "")["code"], "numerical_error");
        assert_eq!(reply.header("x-should-retry"), Some("false"), "{reply:?}");
    }
    assert_eq!((server.get("/health").status, server.get("/ready").status), (200, 200));
    server.until("nothing is left", |s| s["lanes"] == json!([]) && s["kv"]["free"] == s["kv"]["total"]);
    let state = server.engine();
    assert_eq!(state["admitted"], json!({ "answers": 0, "tokens": 0 }), "{state}");
}

#[test]
fn what_cannot_be_served_is_said_in_one_line() {
    let run = |flags: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_ponder")).arg("serve").args(flags).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["--host", "0.0.0.0"]);
    assert!(code == Some(1) && said.contains("--api-key") && said.lines().count() == 1, "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, said) = run(&["--port", &port]);
    assert!(code == Some(1) && said.starts_with("error: port: cannot listen"), "{said}");
    let (code, said) = run(&["--api-key", "with space"]);
    assert!(code == Some(1) && said.contains("api-key"), "{said}");
}

#[test]
fn traces_on_demand() {
    let server = Server::with_long_context(&["--max-model-len", "32768"]);
    let body = chat(json!({ "stream": true, "max_tokens": 30000, "ignore_eos": true })).to_string();
    let running = server.send("POST", "/v1/chat/completions", &[], &body);
    server.until("it runs", |s| s["lanes"][0]["output_tokens"].as_u64() > Some(0));
    let trace = server.ask("POST", "/debug/trace?seconds=1", &[], "").good();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().filter(|e| e["name"] == "Verify").count() > 5, "{} events", events.len());
    // What began before the recording and goes on behind it is in it too.
    assert!(events.iter().any(|e| e["cat"] == "request" && e["name"] == "answer" && e["dur"].as_f64() > Some(5e5)));
    drop(running);
    server.until("all are gone", |s| s["admitted"]["answers"] == 0);
    server.ask("POST", "/debug/trace?seconds=0", &[], "").refused(400, "seconds");
    let later = server.ask("POST", "/debug/trace?seconds=1", &[], "").good();
    let verified = |e: &&serde_json::Value| e["name"] == "Verify";
    let count = later["traceEvents"].as_array().unwrap().iter().filter(verified).count();
    assert!(count < 5, "the old one is forgotten: {count}");
}

#[test]
fn the_callers_trace_is_in_the_log() {
    let server = Server::start(&["--log-json"]);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let body = chat(json!({ "max_tokens": 2 })).to_string();
    assert_eq!(server.ask("POST", "/v1/chat/completions", &[("traceparent", &parent)], &body).status, 200);
    for wrong in ["00-xyz-b7ad6b7169203331-01", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00"] {
        assert_eq!(server.ask("GET", "/health", &[("traceparent", wrong)], "").status, 200);
    }
    let log = server.log();
    let traced = log.lines().filter(|l| l.contains(trace)).count();
    assert!(traced >= 2, "{log}");
    assert!(!log.contains("xyz"), "{log}");
}
