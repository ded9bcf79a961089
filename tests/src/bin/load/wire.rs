//! HTTP by hand, so that a client can misbehave in the middle of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A connection that gives up where a server says nothing for a minute.
pub fn connect(address: SocketAddr, buffer: Option<usize>) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.connect(&address.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Head and body of a POST.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A page.
pub fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = connect(address, None)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut reply = Reply::read(stream)?;
    let body = reply.body()?;
    if reply.status != 200 {
        bail!("{path}: status {}: {body}", reply.status);
    }
    Ok(body)
}

/// A reply whose head has come.
pub struct Reply {
    reader: BufReader<TcpStream>,
    pub status: u16,
    headers: Vec<(String, String)>,
    /// What is left of the chunk that is read.
    chunk: Vec<u8>,
}

impl Reply {
    /// Reads the head.
    pub fn read(stream: TcpStream) -> Result<Self> {
        // Small, or a slow reader would not be one.
        let mut reader = BufReader::with_capacity(2048, stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                bail!("closed without an answer");
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_string()),
            }
        }
        let status = lines.first().and_then(|l| l.split(' ').nth(1)?.parse().ok()).context("a status")?;
        let header = |l: &String| l.split_once(": ").map(|(n, v)| (n.to_ascii_lowercase(), v.to_string()));
        Ok(Self { reader, status, headers: lines.iter().skip(1).filter_map(header).collect(), chunk: Vec::new() })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The connection, whatever was not read of it.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// The whole body.
    pub fn body(&mut self) -> Result<String> {
        let mut body = Vec::new();
        match self.header("content-length") {
            Some(len) => {
                body.resize(len.parse()?, 0);
                self.reader.read_exact(&mut body)?;
            }
            None => {
                while let Some(chunk) = self.chunk()? {
                    body.extend(chunk);
                }
            }
        }
        Ok(String::from_utf8(body)?)
    }

    fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("cut off");
        }
        let len = usize::from_str_radix(line.trim(), 16).context("the length of a chunk")?;
        let mut chunk = vec![0; len + 2];
        self.reader.read_exact(&mut chunk).context("cut off")?;
        chunk.truncate(len);
        Ok((len > 0).then_some(chunk))
    }

    /// The data of the next event; `None` at the end. Comments are passed over.
    pub fn event(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.chunk.windows(2).position(|w| w == b"\n\n") {
                let event = String::from_utf8(self.chunk.drain(..end + 2).collect())?;
                if let Some(data) = event.trim_end().strip_prefix("data: ") {
                    return Ok(Some(data.to_string()));
                }
                continue;
            }
            match self.chunk()? {
                Some(more) => self.chunk.extend(more),
                None if self.chunk.is_empty() => return Ok(None),
                None => bail!("half an event"),
            }
        }
    }
}
