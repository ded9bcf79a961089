//! A conversation: what was said, how it is asked, and what it cost. No screen and no model.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use ponder::Completion;
use ponder_engine::request::SamplingParams;
use ponder_engine::text::Message;
use serde_json::json;

/// What came of a question.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The answer, as far as it came.
    pub text: String,
    /// The thinking before it, as far as it came.
    pub reasoning: String,
    /// The end; none if it was stopped.
    pub completion: Option<Completion>,
}

/// A conversation.
pub struct Talk {
    /// How the next question is asked.
    pub params: SamplingParams,
    system: Option<String>,
    messages: Vec<Message>,
    question: Option<String>,
    /// How often the last question was asked again.
    again: u64,
    last: Option<Reply>,
    total: Usage,
}

/// Counts of all answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    answers: usize,
    prompt: usize,
    cached: usize,
    thinking: usize,
    answer: usize,
}

impl Talk {
    /// One that has not begun.
    pub fn new(system: Option<String>, params: SamplingParams) -> Self {
        let mut talk = Self {
            params,
            system,
            messages: Vec::new(),
            question: None,
            again: 0,
            last: None,
            total: Usage::default(),
        };
        talk.clear();
        talk
    }

    /// Forgets what was said; the system message stays.
    pub fn clear(&mut self) {
        self.messages = self.system.iter().map(|s| Message::new("system", s)).collect();
        self.question = None;
    }

    /// The system message, if there is one.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Begins anew under another system message.
    pub fn set_system(&mut self, text: String) {
        self.system = Some(text);
        self.clear();
    }

    /// A new question: the messages to send, and how.
    pub fn ask(&mut self, text: &str) -> (Vec<Message>, SamplingParams) {
        self.question = Some(text.into());
        self.again = 0;
        self.asked(self.messages.clone())
    }

    /// The last question once more, with another seed; `None` if there was none.
    pub fn ask_again(&mut self) -> Option<(Vec<Message>, SamplingParams)> {
        self.question.as_ref()?;
        self.again += 1;
        let before = self.before_question();
        Some(self.asked(before))
    }

    fn asked(&self, mut messages: Vec<Message>) -> (Vec<Message>, SamplingParams) {
        messages.extend(self.question.iter().map(|q| Message::new("user", q)));
        let seed = self.params.seed.wrapping_add(self.again);
        (messages, SamplingParams { seed, ..self.params.clone() })
    }

    /// What was said before the last question, if that was answered: else all.
    fn before_question(&self) -> Vec<Message> {
        let mut messages = self.messages.clone();
        let question = self.question.as_deref();
        if let [.., asked, answered] = &messages[..]
            && answered.role == "assistant"
            && Some(asked.content.as_str()) == question
        {
            messages.truncate(messages.len() - 2);
        }
        messages
    }

    /// An answer to what was asked last. One without a text is forgotten, and its question with it; an earlier
    /// answer to the same question stays then. Returns whether it was kept.
    pub fn answered(&mut self, reply: Reply) -> bool {
        if let Some(done) = &reply.completion {
            self.total.answers += 1;
            self.total.prompt += done.prompt_tokens;
            self.total.cached += done.cached_tokens;
            self.total.thinking += done.reasoning_tokens;
            self.total.answer += done.completion_tokens - done.reasoning_tokens;
        }
        let kept = !reply.text.is_empty() || reply.completion.is_some();
        if kept {
            let before = if self.again > 0 { self.before_question() } else { self.messages.clone() };
            self.messages = self.asked(before).0;
            let reasoning_content = (!reply.reasoning.is_empty()).then(|| reply.reasoning.clone());
            self.messages.push(Message { reasoning_content, ..Message::new("assistant", reply.text.as_str()) });
        }
        self.last = Some(reply);
        kept
    }

    /// The last thinking, whole.
    pub fn thinking(&self) -> Option<&str> {
        self.last.as_ref().map(|r| r.reasoning.as_str()).filter(|r| !r.is_empty())
    }

    /// What `/usage` prints.
    pub fn usage(&self) -> String {
        let mut out = String::new();
        match self.last.as_ref().map(|r| &r.completion) {
            None => out += "no answer yet\n",
            Some(None) => out += "last  stopped before its end: not counted\n",
            Some(Some(done)) => {
                let (t, thinking) = (&done.timings, done.reasoning_tokens);
                let (prompt, cached, answer) =
                    (done.prompt_tokens, done.cached_tokens, done.completion_tokens - thinking);
                let first = t.first_answer_ms.map_or(String::new(), |ms| format!(", answer after {ms:.0} ms"));
                let _ = writeln!(
                    out,
                    "last  prompt {prompt} tokens ({cached} cached), thinking {thinking}, answer {answer}\n      \
                     first token after {:.0} ms{first}, {:.1} tokens/s",
                    t.ttft_ms, t.decode_tokens_per_second
                );
            }
        }
        let Usage { answers, prompt, cached, thinking, answer } = self.total;
        let noun = if answers == 1 { "answer" } else { "answers" };
        let _ = writeln!(
            out,
            "all   {answers} {noun}: prompts {prompt} tokens ({cached} cached), thinking {thinking}, answers {answer}"
        );
        out
    }

    /// Writes the conversation to a file that does not exist yet.
    ///
    /// # Errors
    /// If it does, or cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        let text = if json { self.as_json() } else { self.as_markdown() };
        let file = std::fs::File::options().write(true).create_new(true).open(path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| path.display().to_string())
    }

    /// Messages as OpenAI has them.
    fn as_json(&self) -> String {
        let message = |m: &Message| {
            let mut json = json!({ "role": m.role, "content": m.content });
            if let Some(reasoning) = &m.reasoning_content {
                json["reasoning_content"] = json!(reasoning);
            }
            json
        };
        let messages: Vec<_> = self.messages.iter().map(message).collect();
        format!("{:#}\n", json!({ "messages": messages }))
    }

    fn as_markdown(&self) -> String {
        let mut out = String::new();
        for m in &self.messages {
            let _ = write!(out, "## {}\n\n", m.role);
            if let Some(reasoning) = &m.reasoning_content {
                for line in reasoning.trim().lines() {
                    let _ = writeln!(out, "> {line}");
                }
                out.push('\n');
            }
            let _ = write!(out, "{}\n\n", m.content.trim());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str, thought: &str) -> Reply {
        Reply { text: text.into(), reasoning: thought.into(), completion: None }
    }
    fn contents(messages: &[Message]) -> Vec<&str> {
        messages.iter().map(|m| m.content.as_str()).collect()
    }
    fn talk() -> Talk {
        Talk::new(Some("Be brief.".into()), SamplingParams { seed: 5, ..Default::default() })
    }

    #[test]
    fn answers_are_remembered_and_unanswered_questions_are_not() {
        let mut talk = talk();
        assert!(talk.ask_again().is_none());
        assert_eq!(contents(&talk.ask("One").0), ["Be brief.", "One"]);
        assert!(talk.answered(reply("1", "")));
        talk.ask("Two");
        assert!(!talk.answered(reply("", "hm")));
        assert_eq!(talk.thinking(), Some("hm"), "but what was thought can be seen");
        assert_eq!(contents(&talk.ask("Three").0), ["Be brief.", "One", "1", "Three"]);
        talk.answered(reply("3", ""));
        talk.set_system("Be long.".into());
        assert_eq!(contents(&talk.ask("Four").0), ["Be long.", "Four"]);
    }

    #[test]
    fn an_answer_can_be_had_again() {
        let mut talk = talk();
        talk.ask("One");
        talk.answered(reply("1", ""));
        let (messages, params) = talk.ask_again().unwrap();
        assert_eq!((contents(&messages), params.seed), (vec!["Be brief.", "One"], 6));
        talk.answered(reply("uno", ""));
        let (messages, params) = talk.ask_again().unwrap();
        assert_eq!((contents(&messages), params.seed), (vec!["Be brief.", "One"], 7));
        assert!(!talk.answered(reply("", "")), "it was stopped: the earlier answer stays");
        let (messages, params) = talk.ask("Two");
        assert_eq!((contents(&messages), params.seed), (vec!["Be brief.", "One", "uno", "Two"], 5));
        // The question was stopped; the one that was answered is not taken for it.
        talk.answered(reply("", ""));
        assert_eq!(contents(&talk.ask_again().unwrap().0), ["Be brief.", "One", "uno", "Two"]);
    }

    #[test]
    fn it_is_saved_once() {
        let mut talk = talk();
        talk.ask("One?");
        talk.answered(reply("1", "first\nsecond"));
        assert_eq!(
            talk.as_markdown(),
            "## system\n\nBe brief.\n\n## user\n\nOne?\n\n## assistant\n\n> first\n> second\n\n1\n\n"
        );
        let json: serde_json::Value = serde_json::from_str(&talk.as_json()).unwrap();
        let last = json!({ "role": "assistant", "content": "1", "reasoning_content": "first\nsecond" });
        assert_eq!(json["messages"][2], last);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("talk.md");
        talk.save(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), talk.as_markdown());
        let said = format!("{:#}", talk.save(&path).unwrap_err());
        assert!(said.contains("talk.md") && said.lines().count() == 1, "{said}");
    }
}
