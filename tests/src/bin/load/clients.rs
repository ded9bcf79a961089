//! The clients: what they ask, how they behave, and what they find.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::tally::Tally;
use crate::wire::{self, Reply};

/// A request and what it must say.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    body: Value,
    /// Thinking and answer, in the order in which they come.
    thinking: String,
    answer: String,
    finish: String,
    /// Tokens generated.
    pub tokens: usize,
    reasoning_tokens: usize,
}

/// What came of a stream, as far as it was read.
#[derive(Default)]
struct Got {
    thinking: String,
    answer: String,
    finish: Option<String>,
    usage: Option<(usize, usize)>,
    done: bool,
    /// To the first text, and to the end.
    first: Option<Duration>,
    whole: Duration,
}

impl Got {
    fn take(&mut self, data: &str, begun: Instant) -> Result<()> {
        if data == "[DONE]" {
            (self.done, self.whole) = (true, begun.elapsed());
            return Ok(());
        }
        let event: Value = serde_json::from_str(data).with_context(|| format!("an event: {data:?}"))?;
        if let Some(error) = event.get("error") {
            bail!("an error in the stream: {error}");
        }
        let choice = &event["choices"][0];
        let mut add = |to: &mut String, name: &str| {
            if let Some(text) = choice["delta"][name].as_str().filter(|t| !t.is_empty()) {
                self.first.get_or_insert_with(|| begun.elapsed());
                to.push_str(text);
            }
        };
        add(&mut self.thinking, "reasoning_content");
        add(&mut self.answer, "content");
        self.finish = choice["finish_reason"].as_str().map(String::from).or(self.finish.take());
        if let (Some(all), Some(reasoning)) = (
            event["usage"]["completion_tokens"].as_u64(),
            event["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64(),
        ) {
            self.usage = Some((all as usize, reasoning as usize));
        }
        Ok(())
    }
}

impl Asked {
    /// Request number `i`, asked while nobody else asks. Half of them are greedy, half sampled by a seed.
    pub fn alone(address: SocketAddr, i: usize) -> Result<Self> {
        let (a, b) = (11 + 7 * i, 23 + 5 * i);
        let questions = [
            format!("What is {a}*{b}?"),
            format!("What is {a}+{b}?"),
            format!("Sort {b}, {a}, {}.", a + b),
            format!("What is {}% of {b}0?", 5 * (i % 9 + 1)),
        ];
        let mut body = json!({
            "model": "m", "stream": true, "stream_options": { "include_usage": true },
            "messages": [{ "role": "user", "content": questions[i % 4] }],
            "max_tokens": 64 * (i / 4 % 4 + 1), "temperature": 0,
        });
        if i % 2 == 1 {
            body["temperature"] = json!(0.8);
            body["seed"] = json!(i);
        }
        let mut stream = wire::connect(address, None)?;
        stream.write_all(wire::post(address, "/v1/chat/completions", &body).as_bytes())?;
        let mut reply = Reply::read(stream)?;
        if reply.status != 200 {
            let said = reply.body()?;
            bail!("{body}: status {}: {said}", reply.status);
        }
        let (begun, mut got) = (Instant::now(), Got::default());
        while let Some(data) = reply.event()? {
            got.take(&data, begun)?;
        }
        let (tokens, reasoning_tokens) = got.usage.context("a usage")?;
        let finish = got.finish.context("a finish reason")?;
        Ok(Self { body, thinking: got.thinking, answer: got.answer, finish, tokens, reasoning_tokens })
    }

    /// Whether what came is what must come: all of it at the end, a beginning of it before.
    fn check(&self, got: &Got) -> Result<()> {
        let begins = |name: &str, got: &str, all: &str| {
            if !all.starts_with(got) {
                bail!("{name}: {got:?} is no beginning of {all:?}, which is the answer to {}", self.body);
            }
            Ok(())
        };
        begins("thinking", &got.thinking, &self.thinking)?;
        begins("answer", &got.answer, &self.answer)?;
        if !got.answer.is_empty() && got.thinking != self.thinking {
            bail!("the answer begins before the thinking has ended: {:?}", self.body);
        }
        if !got.done {
            return Ok(());
        }
        if (&got.thinking, &got.answer) != (&self.thinking, &self.answer) {
            bail!("{:?} {:?} is not all of {:?} {:?}", got.thinking, got.answer, self.thinking, self.answer);
        }
        if (got.usage, got.finish.as_deref()) != (Some((self.tokens, self.reasoning_tokens)), Some(&self.finish)) {
            let (usage, finish) = (got.usage, &got.finish);
            bail!("usage {usage:?}, {finish:?} is not {}, {}, {}", self.tokens, self.reasoning_tokens, self.finish);
        }
        Ok(())
    }
}

/// What a client does with its request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// Reads to the end.
    Good,
    /// Closes after so many events; unread data makes a reset of it.
    Close(usize),
    /// Closes its half after so many events, and listens.
    HalfClose(usize),
    /// Pauses after every event, with a small buffer.
    Slow,
    /// Stops reading for longer than the server bears, then reads on.
    Stalled,
    /// Sends half a head, or half a body, and waits.
    Silent,
}

/// All clients of one load.
pub struct Crowd<'a> {
    pub address: SocketAddr,
    pub asked: &'a [Asked],
    pub until: Instant,
    pub seed: u64,
}

impl Crowd<'_> {
    /// Runs so many until the time is over and their last request has ended.
    pub fn run(&self, clients: usize) -> Tally {
        let all = Mutex::new(Tally::default());
        std::thread::scope(|scope| {
            for client in 0..clients {
                let all = &all;
                let small = std::thread::Builder::new().stack_size(512 << 10);
                let run = move || {
                    let mine = self.client(client as u64);
                    all.lock().unwrap_or_else(|p| p.into_inner()).add(mine);
                };
                small.spawn_scoped(scope, run).expect("a thread");
            }
        });
        all.into_inner().unwrap_or_else(|p| p.into_inner())
    }

    fn client(&self, client: u64) -> Tally {
        let mut dice = Dice(self.seed << 32 | client);
        let mut tally = Tally::default();
        // Not all in one moment.
        std::thread::sleep(Duration::from_millis(dice.below(1000)));
        while Instant::now() < self.until {
            let asked = &self.asked[dice.below(self.asked.len() as u64) as usize];
            let manner = match dice.below(100) {
                0..70 => Manner::Good,
                70..80 => Manner::Close(dice.below(40) as usize),
                80..86 => Manner::HalfClose(dice.below(40) as usize),
                86..93 => Manner::Slow,
                93..96 => Manner::Stalled,
                _ => Manner::Silent,
            };
            if let Err(error) = self.request(asked, manner, &mut dice, &mut tally) {
                tally.broken.push(format!("{manner:?}: {error:#}"));
            }
        }
        tally
    }

    fn request(&self, asked: &Asked, manner: Manner, dice: &mut Dice, tally: &mut Tally) -> Result<()> {
        let buffer = matches!(manner, Manner::Slow | Manner::Stalled).then_some(2048);
        let begun = Instant::now();
        let mut stream = wire::connect(self.address, buffer).context("cannot connect")?;
        let text = wire::post(self.address, "/v1/chat/completions", &asked.body);
        if manner == Manner::Silent {
            tally.silent += 1;
            let part = dice.below(text.len() as u64 - 1) as usize + 1;
            stream.write_all(&text.as_bytes()[..part])?;
            // It may be told 408, or closed; it must not matter.
            stream.set_read_timeout(Some(Duration::from_millis(500 + dice.below(2000))))?;
            let _ = stream.read(&mut [0; 256]);
            return Ok(());
        }
        stream.write_all(text.as_bytes()).context("reset while it asked")?;
        if manner == Manner::Close(0) {
            tally.left += 1;
            return Ok(());
        }
        let mut reply = Reply::read(stream).context("no answer")?;
        match reply.status {
            200 => {}
            429 | 503 => return self.refused(reply, dice, tally),
            other => bail!("status {other}: {}", reply.body()?),
        }
        let mut got = Got::default();
        let read = self.stream(&mut reply, manner, &mut got, begun);
        asked.check(&got)?;
        tally.tokens += if got.done { asked.tokens } else { 0 };
        match manner {
            Manner::Good => {
                read?;
                if !got.done {
                    bail!("ended without [DONE]");
                }
                tally.whole += 1;
                tally.first.push(got.first.unwrap_or(got.whole));
                tally.all.push(got.whole);
            }
            Manner::Slow => {
                read?;
                if !got.done {
                    bail!("ended without [DONE]");
                }
                tally.slow += 1;
            }
            // These answers fit into the kernel's buffers on loopback, so the server rarely has to cut it off
            // (server/tests/http/going_away.rs makes it); whatever came was checked above.
            Manner::Stalled => tally.stalled += 1,
            Manner::Close(_) | Manner::HalfClose(_) => tally.left += 1,
            Manner::Silent => {}
        }
        Ok(())
    }

    fn stream(&self, reply: &mut Reply, manner: Manner, got: &mut Got, begun: Instant) -> Result<()> {
        let mut events = 0;
        while let Some(data) = reply.event()? {
            got.take(&data, begun)?;
            events += 1;
            match manner {
                Manner::Close(after) if events >= after => return Ok(()),
                Manner::HalfClose(after) if events == after.max(1) => reply.stream().shutdown(Shutdown::Write)?,
                Manner::Slow => std::thread::sleep(Duration::from_millis(8)),
                Manner::Stalled if events == 5 => std::thread::sleep(Duration::from_secs(7)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits as it was told, but no longer than a test can.
    fn refused(&self, mut reply: Reply, dice: &mut Dice, tally: &mut Tally) -> Result<()> {
        *tally.refused.entry(reply.status).or_default() += 1;
        let seconds: u64 = reply.header("retry-after").context("refused without a time")?.parse()?;
        if !(1..=120).contains(&seconds) {
            bail!("retry-after: {seconds}");
        }
        let error: Value = serde_json::from_str(&reply.body()?)?;
        if !error["error"]["message"].is_string() {
            bail!("refused without a reason: {error}");
        }
        let wait = Duration::from_millis(500 * seconds.min(4) + dice.below(1500));
        std::thread::sleep(wait.min(self.until.saturating_duration_since(Instant::now())));
        Ok(())
    }
}

/// SplitMix64 (Steele et al. 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        Asked {
            body: json!({}),
            thinking: "one two".into(),
            answer: "three".into(),
            finish: "stop".into(),
            tokens: 3,
            reasoning_tokens: 2,
        }
    }
    fn got(thinking: &str, answer: &str, done: bool) -> Got {
        let (finish, usage) = (done.then(|| "stop".into()), done.then_some((3, 2)));
        Got { thinking: thinking.into(), answer: answer.into(), finish, usage, done, ..Got::default() }
    }

    #[test]
    fn a_beginning_will_do_until_the_end() {
        for good in
            [got("", "", false), got("one", "", false), got("one two", "thr", false), got("one two", "three", true)]
        {
            asked().check(&good).unwrap();
        }
    }

    #[test]
    fn what_is_lost_doubled_or_miscounted_is_found() {
        for bad in [
            got("one one", "", false),
            got("ne", "", false),
            got("one", "three", false),
            got("one two", "threee", false),
            got("one two", "thre", true),
            Got { usage: Some((4, 2)), ..got("one two", "three", true) },
            Got { usage: None, ..got("one two", "three", true) },
            Got { finish: Some("length".into()), ..got("one two", "three", true) },
        ] {
            assert!(asked().check(&bad).is_err(), "{:?} {:?}", bad.thinking, bad.answer);
        }
    }
}
