//! Spans of requests, as a collector gets them.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Server, chat, read_chunk, read_head};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A collector that takes every span, and its address.
fn collector() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, spans) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            while let Some(body) = read_request(&mut reader) {
                let told: Value = serde_json::from_slice(&body).expect("JSON");
                for span in told["resourceSpans"].as_array().expect("resources").iter().flat_map(spans_of) {
                    // A test that has seen enough is gone.
                    let _ = sender.send(span);
                }
                let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
                reader.get_mut().write_all(answer.as_bytes()).expect("it reads");
            }
        }
    });
    (url, spans)
}

/// The body of a POST to `/v1/traces`; `None` at the end of the connection.
fn read_request(reader: &mut BufReader<std::net::TcpStream>) -> Option<Vec<u8>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        std::io::BufRead::read_line(reader, &mut head).ok().filter(|n| *n > 0)?;
    }
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    let head = head.to_ascii_lowercase();
    assert!(head.contains("content-type: application/json"), "{head}");
    let length = head.split("content-length: ").nth(1).and_then(|l| l.lines().next()).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

fn spans_of(resource: &Value) -> Vec<Value> {
    let scopes = resource["scopeSpans"].as_array().expect("scopes");
    assert_eq!(attributes(&resource["resource"])["service.name"], "ponder");
    scopes.iter().flat_map(|s| s["spans"].as_array().expect("spans").clone()).collect()
}

/// Attributes by name, without OTLP's words for their types.
fn attributes(of: &Value) -> HashMap<String, Value> {
    let plain = |value: &Value| match value.as_object().and_then(|v| v.iter().next()) {
        Some((kind, int)) if kind == "intValue" => json!(
            int.as_str()
                .map_or_else(|| int.as_i64().expect("an integer"), |text| text.parse::<i64>().expect("an integer"))
        ),
        Some((kind, list)) if kind == "arrayValue" => list["values"][0]["stringValue"].clone(),
        Some((_, value)) => value.clone(),
        None => Value::Null,
    };
    let list = of["attributes"].as_array().expect("attributes");
    list.iter().map(|a| (a["key"].as_str().expect("a key").to_string(), plain(&a["value"]))).collect()
}

fn nanos(span: &Value, which: &str) -> u64 {
    span[which].as_str().expect("a time").parse().expect("a number")
}

/// Ends the server, which sends what it has, and gives all spans.
fn all(server: Server, spans: &Receiver<Value>) -> Vec<Value> {
    server.log();
    // It was sent before the program ended; the collector's thread may still have to hand it on.
    let mut got: Vec<Value> = spans.recv_timeout(Duration::from_secs(10)).into_iter().collect();
    while let Ok(span) = spans.recv_timeout(Duration::from_millis(300)) {
        got.push(span);
    }
    got
}

#[test]
fn a_request_is_a_tree_under_its_caller() {
    let (url, spans) = collector();
    let server = Server::start(&["--otlp-traces-endpoint", &url, "--log-json"]);
    let parent = format!("00-{TRACE}-{PARENT}-01");
    // It begins to think at once, and must stop after 9 tokens.
    let asked = json!({ "logit_bias": { "259": 100 }, "thinking_token_budget": 9, "seed": 3, "temperature": 0.5,
        "max_tokens": 30, "ignore_eos": true });
    let body = chat(asked).to_string();
    let reply = server.ask("POST", "/v1/chat/completions", &[("traceparent", &parent)], &body).good();
    let spans = all(server, &spans);
    let (roots, children): (Vec<_>, Vec<_>) = spans.iter().partition(|s| s["name"] == "llm_request");
    let [root] = roots[..] else { panic!("one request: {roots:?}") };
    assert_eq!((&root["traceId"], &root["parentSpanId"]), (&json!(TRACE), &json!(PARENT)));
    let told = attributes(root);
    assert_eq!(told["gen_ai.request.id"], reply["id"]);
    assert_eq!(told["gen_ai.request.model"], "tiny");
    assert_eq!(told["gen_ai.request.max_tokens"], 30);
    assert_eq!(told["gen_ai.request.temperature"], 0.5);
    assert_eq!(told["gen_ai.usage.prompt_tokens"], reply["usage"]["prompt_tokens"]);
    assert_eq!(told["gen_ai.usage.completion_tokens"], 30);
    assert_eq!(told["gen_ai.response.finish_reasons"], "length");
    assert_eq!((&told["ponder.usage.cached_tokens"], &told["ponder.usage.thinking_tokens"]), (&json!(0), &json!(9)));
    let whole = reply["timings"]["total_ms"].as_f64().expect("a time");
    assert!((told["gen_ai.latency.e2e"].as_f64().expect("a time") * 1e3 - whole).abs() < 1e-6, "{told:?} {whole}");
    assert!(told["gen_ai.latency.time_to_first_token"].as_f64() <= told["gen_ai.latency.e2e"].as_f64());
    // What it did, without a gap, from arrival to end.
    let names: Vec<_> = children.iter().map(|c| c["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["prompt", "queue", "prefill", "thinking", "answer"]);
    assert!(children.iter().all(|c| c["parentSpanId"] == root["spanId"] && c["traceId"] == TRACE), "{children:?}");
    let (start, end) = ("startTimeUnixNano", "endTimeUnixNano");
    assert_eq!(nanos(children[0], start), nanos(root, start));
    assert!(children.windows(2).all(|w| nanos(w[0], end) == nanos(w[1], start)), "{children:?}");
    assert_eq!(nanos(children[4], end), nanos(root, end));
    let text = json!(spans).to_string();
    let said = reply["choices"][0]["message"]["content"].as_str().expect("an answer");
    assert!(!text.contains("Hello there") && !said.is_empty() && !text.contains(said), "no text of anybody");
}

#[test]
fn callers_decide_what_is_recorded() {
    let (url, spans) = collector();
    let server = Server::start(&["--otlp-traces-endpoint", &url]);
    let body = chat(json!({ "max_tokens": 3 })).to_string();
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    server.ask("POST", "/v1/chat/completions", &[("traceparent", &unsampled)], &body).good();
    let own = server.ask("POST", "/v1/chat/completions", &[], &body).good();
    // A client that leaves: a span with an error, and nothing of what it might have done.
    let long = chat(json!({ "stream": true, "max_tokens": 400, "ignore_eos": true, "n": 3 })).to_string();
    let mut leaves = BufReader::new(server.send("POST", "/v1/chat/completions", &[], &long));
    assert_eq!(read_head(&mut leaves).0, 200);
    assert!(read_chunk(&mut leaves).is_some());
    drop(leaves);
    server.until("it is gone", |s| s["admitted"]["answers"] == 0);
    let spans = all(server, &spans);
    let roots: Vec<_> = spans.iter().filter(|s| s["name"] == "llm_request").collect();
    let [answered, left] = roots[..] else { panic!("two are recorded: {roots:?}") };
    assert_eq!(attributes(answered)["gen_ai.request.id"], own["id"]);
    assert!(answered["parentSpanId"].as_str().is_none_or(str::is_empty), "{answered}");
    assert!(spans.iter().all(|s| s["traceId"] != TRACE), "{spans:?}");
    assert_eq!(attributes(left)["error.type"], "client_left");
    assert_eq!(left["status"]["code"], 2, "{left}");
    assert!(spans.iter().all(|s| s["parentSpanId"] != left["spanId"]), "{spans:?}");
}

#[test]
fn a_collector_that_is_away_is_told_once() {
    // A port that was free a moment ago.
    let away = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let server = Server::start(&["--otlp-traces-endpoint", &format!("http://{away}/v1/traces")]);
    for _ in 0..5 {
        server.chat(json!({ "max_tokens": 3 })).good();
    }
    let log = server.log();
    assert_eq!(log.matches("the collector takes no spans").count(), 1, "{log}");
    assert!(log.contains(&away.to_string()), "{log}");
}
