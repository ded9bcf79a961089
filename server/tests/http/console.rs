//! The web console's files, and what it watches.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::client::{Reply, Server, chat};

const POLICY: [&str; 8] = [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
];

/// What a file of the page loads: addresses in quotes that begin with one of ours, or with a dot in modules.
fn loads(path: &str, text: &str) -> Vec<String> {
    let quoted = text.split('"').skip(1).step_by(2);
    let ours = quoted.filter_map(|q| match q.strip_prefix("./") {
        Some(file) if path.ends_with(".js") && file.ends_with(".js") => Some(format!("/console/{file}")),
        _ => q.starts_with("/console/").then(|| q.to_string()),
    });
    ours.collect()
}

/// The page and all that it loads, and what those load.
fn files(server: &Server) -> Vec<(String, Reply)> {
    let (mut found, mut open, mut seen) = (Vec::new(), vec!["/".to_string()], BTreeSet::new());
    while let Some(path) = open.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let reply = server.get(&path);
        assert_eq!(reply.status, 200, "{path}");
        if !path.contains("/vendor/") {
            open.extend(loads(&path, &reply.body));
        }
        found.push((path, reply));
    }
    found
}

#[test]
fn files_have_types_and_a_policy_and_load_nothing_from_elsewhere() {
    let server = Server::start(&["--api-key", "secret"]);
    let files = files(&server);
    assert!(files.len() > 15, "{:?}", files.iter().map(|f| &f.0).collect::<Vec<_>>());
    for (path, reply) in &files {
        let wanted = match path.rsplit_once('.').map(|p| p.1) {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(reply.header("content-type"), Some(wanted), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        let policy: Vec<_> = reply.header("content-security-policy").expect("a policy").split("; ").collect();
        assert_eq!(policy, POLICY, "{path}");
        // A name space is no address, and a comment of the library loads nothing.
        let text = reply.body.replace("http://www.w3.org/2000/svg", "");
        let text = text.replace("/*! https://github.com/leeoniya/uPlot (v1.6.32) */", "");
        for outside in ["http://", "https://", "url(//", "src=\"//", "href=\"//", "@import"] {
            assert!(!text.contains(outside), "{path} has {outside}");
        }
        if !path.contains("/vendor/") {
            for unsafe_way in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
            {
                assert!(!text.contains(unsafe_way), "{path} has {unsafe_way}");
            }
        }
    }
    let page = &files[0].1.body;
    for inline in ["<style", " style=", " onclick=", " onload="] {
        assert!(!page.contains(inline), "{inline}");
    }
    assert!(page.split("<script").skip(1).all(|s| s.contains("src=\"") && s.contains("></script>")));
}

#[test]
fn a_known_file_is_not_sent_again() {
    let server = Server::start(&[]);
    let first = server.get("/console/main.js");
    let tag = first.header("etag").expect("a tag").to_string();
    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}")] {
        let again = server.ask("GET", "/console/main.js", &[("if-none-match", &known)], "");
        assert_eq!((again.status, again.body.as_str()), (304, ""), "{known}");
        assert!(again.header("content-security-policy").is_some());
    }
    assert_eq!(server.ask("GET", "/console/main.js", &[("if-none-match", "\"other\"")], "").status, 200);
    for missing in ["/console/", "/console/x.js", "/console/../main.js", "/console/index.html", "/console//main.js"] {
        server.get(missing).refused(404, "");
    }
    assert_eq!(server.ask("POST", "/", &[], "").status, 405);
    assert_eq!(server.ask("GET", "/", &[("host", "evil.example")], "").status, 403);
    assert!(server.get("/console/vendor/LICENSE-uPlot").body.contains("MIT"));
}

#[test]
fn the_engine_live_and_a_life() {
    let server = Server::with_long_context(&["--max-model-len", "32768", "--kv-memory", "200000000"]);
    let idle = server.get("/debug/live?once=true").good();
    let cells = |v: &Value| v["kv"]["runs"].as_array().unwrap().iter().map(|r| r[2].as_u64().unwrap()).sum::<u64>();
    assert_eq!((idle["lanes"].as_array().unwrap().len(), &idle["totals"]["ended"]), (0, &json!(0)));
    assert!(cells(&idle) <= 4096);
    assert_eq!(idle["kv"]["free"], idle["kv"]["total"]);
    assert_eq!(idle["actors"].as_array().unwrap().len(), 6);

    let body = chat(json!({ "stream": true, "max_tokens": 30000, "ignore_eos": true, "n": 2 })).to_string();
    let running = server.send("POST", "/v1/chat/completions", &[], &body);
    server.until("it runs", |s| s["lanes"][0]["output_tokens"].as_u64() > Some(3));
    let view = server.get("/debug/live?once=true").good();
    let lane = &view["lanes"][0];
    assert!(lane["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")), "{view}");
    assert!(lane["blocks"].as_u64() > Some(0) && lane["lane"].is_string() && lane["counts"].is_object());
    assert!(view["kv"]["runs"].as_array().unwrap().len() > 1 && cells(&view) == cells(&idle));
    assert!(view["totals"]["answer_tokens"].as_u64() > Some(0) && view["totals"]["prefill_tokens"].as_u64() > Some(0));

    let request = lane["request"].as_u64().unwrap();
    let life = server.get(&format!("/debug/life?request={request}&choice=1")).good();
    assert_eq!((&life["id"], &life["ended"]), (&lane["id"], &Value::Null));
    let phases: Vec<&str> =
        life["stretches"].as_array().unwrap().iter().map(|s| s["phase"].as_str().unwrap()).collect();
    assert_eq!(phases[..2], ["queued", "prefill"]);
    assert!(life["now"]["output_tokens"].as_u64() > Some(0));

    drop(running);
    server.until("it is gone", |s| s["lanes"].as_array().unwrap().is_empty());
    // Its end is told with the next step.
    let look = || server.get(&format!("/debug/life?request={request}")).good();
    server.until("its life has ended", |_| !look()["ended"].is_null());
    let life = look();
    assert_eq!(life["ended"]["why"], "cancelled", "{life}");
    let stretches = life["stretches"].as_array().unwrap();
    assert!(stretches.iter().all(|s| s["until_ms"].as_u64() >= s["from_ms"].as_u64()), "{life}");
    assert!(stretches.last().unwrap()["chosen"].as_u64() > Some(3), "{life}");
    server.get("/debug/life?request=999").refused(404, "");
    server.get("/debug/life").refused(400, "query");
    server.get("/debug/live?interval_ms=1").refused(400, "interval_ms");
    server.get("/debug/live?model=other").refused(404, "model");
}

#[test]
fn the_live_stream_goes_on() {
    let server = Server::start(&[]);
    let stream = server.send("GET", "/debug/live?interval_ms=50", &[], "");
    let mut reader = std::io::BufReader::new(stream);
    assert_eq!(crate::client::read_head(&mut reader).0, 200);
    let mut times = Vec::new();
    while times.len() < 3 {
        let chunk = String::from_utf8(crate::client::read_chunk(&mut reader).expect("it goes on")).unwrap();
        let data = chunk.lines().filter_map(|l| l.strip_prefix("data: "));
        times.extend(data.map(|d| serde_json::from_str::<Value>(d).unwrap()["now_ms"].as_u64().unwrap()));
    }
    assert!(times.is_sorted() && times[2] >= times[0] + 100, "{times:?}");
}
