//! A server of the real program over a tiny model, and a client that speaks HTTP by hand, so that a test can
//! close, reset, dawdle and misbehave as clients do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ponder_tests::tiny_model::{self, TinyModel};
use serde_json::{Value, json};

/// A running server; it is killed with this value.
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Reads its log, for a full pipe would hold it up.
    log: Option<JoinHandle<String>>,
    _model: TinyModel,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    /// Its JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {} {:?}", self.status, self.body))
    }
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
    /// Its JSON, if it went well.
    #[track_caller]
    pub fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }
    /// Asserts an error in OpenAI's shape with this status, about this field.
    #[track_caller]
    pub fn refused(&self, status: u16, param: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        let error = self.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{}", self.body);
        assert!(error["type"].is_string() && error.get("code").is_some(), "{}", self.body);
        let about = error["param"].as_str().unwrap_or_default();
        assert_eq!(about, param, "{}", self.body);
        error
    }
    /// The JSON objects of its events, and whether it ended with `[DONE]`.
    #[track_caller]
    pub fn events(&self) -> (Vec<Value>, bool) {
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{}", self.body);
        assert!(self.body.ends_with("\n\n"), "cut: {:?}", self.body);
        let lines = self.body.split("\n\n").filter(|l| !l.is_empty() && !l.starts_with(':'));
        let data: Vec<&str> = lines.map(|l| l.lines().find_map(|l| l.strip_prefix("data: ")).expect("data")).collect();
        let done = data.last() == Some(&"[DONE]");
        let json = data[..data.len() - usize::from(done)].iter().map(|d| serde_json::from_str(d).expect("JSON"));
        (json.collect(), done)
    }
}

impl Server {
    /// A server over a tiny model of 512 tokens.
    pub fn start(flags: &[&str]) -> Self {
        Self::over(tiny_model::hugging_face("llama", safetensors::Dtype::F32), flags)
    }
    /// A server whose answers can be long enough to be in the way of something.
    pub fn with_long_context(flags: &[&str]) -> Self {
        Self::over(tiny_model::hugging_face_of_context("llama", 1 << 15), flags)
    }

    /// A server of a tiny model's instances, as a configuration file describes them; `model` is given outside of it.
    pub fn with_config(config: &str, flags: &[&str]) -> Self {
        let model = tiny_model::hugging_face("llama", safetensors::Dtype::F32);
        let file = model.path().join("models.toml");
        std::fs::write(&file, config).expect("a file");
        let file = file.display().to_string();
        Self::over(model, &[&["--config", &file], flags].concat())
    }

    /// A server over a model that a test has changed.
    pub fn over(model: TinyModel, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
        for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("PONDER_")) {
            command.env_remove(name);
        }
        let path = model.arg();
        command.args(["serve", "--model", &path, "--port", "0", "--json"]);
        if !flags.contains(&"--config") {
            command.args(["--served-model-name", "tiny"]);
        }
        command.args(["--backend", "cpu", "--threads", "1"]).args(flags);
        if !flags.contains(&"--max-num-seqs") {
            command.args(["--max-num-seqs", "4"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut stderr = child.stderr.take().expect("piped");
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).expect("text");
            log
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let Ok(told) = serde_json::from_str::<Value>(&line) else {
            panic!("it does not serve: {}", log.join().expect("a reader"));
        };
        let address = told["address"].as_str().expect("an address").parse().expect("an address");
        Self { child, address, log: Some(log), _model: model }
    }

    /// A connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        stream
    }

    /// Sends a request whole and leaves the connection to the caller.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        let host = ("host", &*self.address.to_string());
        let hosts = if headers.iter().any(|(n, _)| *n == "host") { vec![] } else { vec![host] };
        for (name, value) in hosts.iter().chain(headers) {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            head += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        }
        // It may refuse before it has read everything.
        let _ = stream.write_all(format!("{head}\r\n{body}").as_bytes());
        stream
    }

    /// Sends a request over a connection with a small receive buffer.
    pub fn send_into(&self, buffer: usize, path: &str, body: &str) -> TcpStream {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(buffer).expect("an option");
        socket.connect(&self.address.into()).expect("it listens");
        let mut stream = TcpStream::from(socket);
        let (host, len) = (self.address, body.len());
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len}");
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).expect("it reads");
        stream
    }

    /// A request and its reply.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let headers: Vec<_> = headers.iter().copied().chain([("connection", "close")]).collect();
        read_reply(&mut self.send(method, path, &headers, body))
    }
    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], "")
    }
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.ask("POST", path, &[], &body.to_string())
    }
    /// A chat with one user message and further fields. It has a seed: what a model with random weights says decides what
    /// many tests see, such as whether it begins to think.
    pub fn chat(&self, fields: Value) -> Reply {
        self.post("/v1/chat/completions", &chat(fields))
    }
    /// A metric's value; 0 if it is not there yet.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|l| l.starts_with(name) && !l.starts_with('#'));
        line.map_or(0.0, |l| l.rsplit_once(' ').expect("a value").1.parse().expect("a number"))
    }
    /// The engine's state.
    pub fn engine(&self) -> Value {
        self.get("/debug/engine?once=true").good()
    }
    /// Waits until `done` holds of the engine's state.
    #[track_caller]
    pub fn until(&self, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let state = self.engine();
            if done(&state) {
                return state;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {state}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }
    /// Whether it has ended, within a time; its exit code.
    pub fn ended(&mut self, within: Duration) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < within {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return Some(status.code().unwrap_or(-1));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
    /// Bytes of main memory that it has.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|l| l.starts_with("VmRSS")).expect("a line");
        line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") * 1024
    }
    /// Ends it and returns its log.
    pub fn log(mut self) -> String {
        self.signal("TERM");
        self.log.take().expect("it is read once").join().expect("a reader")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A chat with one user message and further fields. It has a seed: what a model with random weights says decides what
/// many tests see, such as whether it begins to think.
pub fn chat(fields: Value) -> Value {
    let mut body = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "Hello there" }], "seed": 7 });
    for (key, value) in fields.as_object().expect("fields") {
        body[key] = value.clone();
    }
    body
}

/// Reads a whole reply.
pub fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut reader = BufReader::new(stream);
    let (status, headers) = read_head(&mut reader);
    let find = |name: &str| headers.iter().find(|(n, _): &&(String, String)| n == name).map(|(_, v)| v.clone());
    let body = if find("transfer-encoding").is_some_and(|t| t == "chunked") {
        let mut body = Vec::new();
        while let Some(chunk) = read_chunk(&mut reader) {
            body.extend(chunk);
        }
        body
    } else if let Some(len) = find("content-length") {
        let mut body = vec![0; len.parse().expect("a length")];
        reader.read_exact(&mut body).expect("the whole body");
        body
    } else {
        let mut body = Vec::new();
        let _ = reader.read_to_end(&mut body);
        body
    };
    Reply { status, headers, body: String::from_utf8(body).expect("UTF-8") }
}

/// Status and headers; status 0 if the connection was closed without an answer.
pub fn read_head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(n) if n > 0 && line.trim_end() != "" => lines.push(line.trim_end().to_string()),
            _ => break,
        }
    }
    let Some(first) = lines.first() else { return (0, Vec::new()) };
    let status = first.split(' ').nth(1).expect("a status").parse().expect("a status");
    let header = |l: &String| l.split_once(": ").map(|(n, v)| (n.to_ascii_lowercase(), v.to_string()));
    (status, lines[1..].iter().filter_map(header).collect())
}

/// The next chunk of a chunked body; `None` at its end, or where it breaks off.
pub fn read_chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let len = usize::from_str_radix(line.trim(), 16).ok()?;
    let mut chunk = vec![0; len + 2];
    reader.read_exact(&mut chunk).ok()?;
    chunk.truncate(len);
    (len > 0).then_some(chunk)
}

/// How a client goes away.
#[derive(Clone, Copy, Debug)]
pub enum Leave {
    Close,
    Reset,
    HalfClose,
}

/// Goes away. What is returned must be kept until the effect was seen.
pub fn leave(stream: TcpStream, how: Leave) -> Option<TcpStream> {
    match how {
        Leave::Close => drop(stream),
        // Unread data when it is closed makes a reset of it; there is some, because a stream was running.
        Leave::Reset => {
            std::thread::sleep(Duration::from_millis(30));
            drop(stream);
        }
        Leave::HalfClose => {
            stream.shutdown(Shutdown::Write).expect("open");
            return Some(stream);
        }
    }
    None
}
