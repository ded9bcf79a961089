//! Several instances behind one name.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Server, chat};

const CONFIG: &str = r#"
[[models]]
names = ["tiny", "also"]
threads = 1

[[models.instances]]
name = "short"
up-to = 150
max-model-len = 160
max-num-seqs = 1

[[models.instances]]
name = "long"
max-num-seqs = 1
"#;

fn named(model: &str, max_tokens: usize) -> Value {
    let mut asked = chat(json!({ "max_tokens": max_tokens, "temperature": 0 }));
    asked["model"] = json!(model);
    asked
}

/// Answers that an instance has finished, by its metrics.
fn finished(server: &Server) -> [f64; 2] {
    let metrics = server.get("/metrics").body;
    ["short", "long"].map(|name| {
        let of = format!("model_name=\"tiny/{name}\"");
        let lines = metrics.lines().filter(|l| l.starts_with("vllm:request_success_total{") && l.contains(&of));
        lines.map(|l| l.rsplit(' ').next().expect("a value").parse::<f64>().expect("a number")).sum()
    })
}

#[test]
fn requests_go_where_their_length_belongs_and_answer_the_same_there() {
    let server = Server::with_config(CONFIG, &[]);
    let names = server.get("/v1/models").good();
    let names: Vec<&str> = names["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny", "also", "tiny/short", "tiny/long"]);

    let ask = |model: &str, n: usize| server.post("/v1/chat/completions", &named(model, n)).good();
    let short = ask("tiny", 20);
    assert_eq!(finished(&server), [1.0, 0.0], "20 tokens are for the short one");
    let long = ask("also", 200);
    assert_eq!(finished(&server), [1.0, 1.0], "200 tokens fit the long one alone");
    assert_eq!((short["model"].as_str(), long["model"].as_str()), (Some("tiny"), Some("also")));
    let text = |reply: &Value| reply["choices"][0]["message"]["content"].as_str().unwrap().to_string();
    assert_eq!(text(&ask("tiny/long", 20)), text(&short), "an instance can be asked for by name, and says the same");
    assert_eq!(finished(&server), [1.0, 2.0]);
    // Other routes know the name too.
    let tokens = server.post("/tokenize", &json!({ "model": "also", "prompt": "Once" })).good();
    assert_eq!(tokens["max_model_len"], 512);
    server
        .post("/v1/completions", &json!({ "model": "also", "prompt": ["Once", "upon a time"], "max_tokens": 3 }))
        .good();
    assert_eq!(finished(&server).iter().sum::<f64>(), 5.0);
    server.post("/v1/chat/completions", &named("tiny/none", 5)).refused(404, "model");
    server.post("/v1/chat/completions", &named("tiny", 5000)).good();

    let metrics = server.get("/metrics").body;
    let families: Vec<&str> = metrics.lines().filter(|l| l.starts_with("# TYPE ")).collect();
    let mut once = families.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), families.len(), "every family once, whatever the number of models");
    assert!(metrics.ends_with("# EOF\n"));
}

#[test]
fn who_finds_all_instances_taken_waits_and_who_leaves_the_queue_leaves_nothing() {
    let server = Server::with_config(CONFIG, &["--queue-timeout", "0.4"]);
    // Of those who wait, some give up, and some are told that it takes too long.
    let busy = json!({ "max_tokens": 100, "temperature": 0, "stream": true, "ignore_eos": true });
    let open = |model: &str| {
        let mut asked = chat(busy.clone());
        asked["model"] = json!(model);
        server.send("POST", "/v1/chat/completions", &[("connection", "close")], &asked.to_string())
    };
    let replies: Vec<u16> = std::thread::scope(|scope| {
        let crowd: Vec<_> =
            (0..12).map(|_| scope.spawn(|| server.post("/v1/chat/completions", &named("tiny", 60)).status)).collect();
        (0..4).for_each(|_| drop(open("tiny")));
        crowd.into_iter().map(|c| c.join().expect("a reply")).collect()
    });
    assert!(replies.iter().all(|status| [200, 503].contains(status)), "{replies:?}");
    assert!(replies.contains(&200), "{replies:?}");
    // Nothing is lost: afterwards each instance serves as before.
    server.until("idle", |state| state["lanes"].as_array().is_some_and(Vec::is_empty));
    std::thread::sleep(Duration::from_millis(50));
    for model in ["tiny", "tiny/short", "tiny/long", "also"] {
        server.post("/v1/chat/completions", &named(model, 10)).good();
    }
}
