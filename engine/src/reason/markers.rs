//! Where thinking begins and ends in a model's tokens: found from its vocabulary and chat template at load.
//!
//! Most models have one added token per marker. Others spell `</think>` with ordinary tokens, and then the
//! neighbours matter: in `Done.</think>` the first token may be `.</`. So a spelled marker is looked for in
//! every form that it takes between usual neighbours. Such a form is the marker as a whole, the full stop
//! too: that is the one case in which text beside a marker is lost.

use serde::{Deserialize, Serialize};

use super::kmp::Patterns;
use crate::error::{Error, Result};
use crate::text::{Piece, Tokenizer};

/// What this module needs of a tokenizer.
pub trait Vocabulary {
    /// The ids of text in which special tokens count (a template's own text).
    fn encode_scaffold(&self, text: &str) -> Result<Vec<u32>>;
    /// The bytes that a token says; none for an unknown id.
    fn bytes_of(&self, id: u32) -> &[u8];
    /// One more than the largest id.
    fn size(&self) -> usize;
}

impl Vocabulary for Tokenizer {
    fn encode_scaffold(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_with_special(text)
    }
    fn bytes_of(&self, id: u32) -> &[u8] {
        self.token_bytes(id)
    }
    fn size(&self) -> usize {
        self.vocab_size()
    }
}

/// What a marker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Thinking begins.
    Open,
    /// Thinking ends.
    Close,
    /// A tool call begins.
    ToolOpen,
    /// A tool call ends.
    ToolClose,
}

/// The markers as text. `Default` is none at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MarkerTexts {
    /// Begins thinking, `<think>` say.
    pub open: Option<String>,
    /// Ends thinking.
    pub close: Option<String>,
    /// Written after a forced close, as the template does: often two newlines.
    pub after_close: Option<String>,
    /// Begins a tool call.
    pub tool_open: Option<String>,
    /// Ends a tool call.
    pub tool_close: Option<String>,
}

/// How the prompt leaves the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// It may open the thinking or skip it.
    #[default]
    Fresh,
    /// The template opened the thinking.
    Thinking,
    /// The template opened and closed it: there is none.
    Closed,
}

/// Known pairs of think markers; the first that a model has is taken.
const THINK: [(&str, &str); 7] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
];
/// Known markers of tool calls; an empty end means that the call lasts to the end of the turn.
const TOOLS: [(&str, &str); 5] = [
    ("<tool_call>", "</tool_call>"),
    ("[TOOL_CALLS]", ""),
    ("<|tool_call_start|>", "<|tool_call_end|>"),
    ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
];
/// Usual neighbours of a marker.
const BEFORE: [&str; 13] = ["", "\n", "\n\n", " ", ".", ".\n", ".\n\n", "!", "?", ":", ")", "\"", "`"];
const AFTER: [&str; 4] = ["", "\n", "\n\n", " "];

/// The markers of one model as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Markers {
    texts: MarkerTexts,
    set: Patterns,
    roles: Vec<Role>,
    close: Vec<u32>,
    open_len: usize,
    /// Sorted ids of tokens that are newlines and spaces only.
    blanks: Vec<u32>,
}

impl Markers {
    /// Finds the markers. `template` is the chat template's source; texts in `given` (from flags) are taken as
    /// they are. `None`: the model has neither thinking nor tool calls.
    ///
    /// # Errors
    /// If one marker of a pair is given without the other or is empty, or a marker cannot be recognised in the model's
    /// tokens.
    pub fn find(vocab: &impl Vocabulary, template: Option<&str>, given: &MarkerTexts) -> Result<Option<Markers>> {
        let mut texts = given.clone();
        let all = [&given.open, &given.close, &given.tool_open, &given.tool_close];
        if all.into_iter().flatten().any(String::is_empty) {
            return Err(Error::invalid("think_start", "a marker of thinking or of tool calls is an empty text"));
        }
        if texts.tool_close.is_some() && texts.tool_open.is_none() {
            return Err(Error::invalid("tool_call_end", "is given without tool_call_start"));
        }
        if texts.open.is_some() != texts.close.is_some() {
            return Err(Error::invalid("think_start", "start and end of thinking are given together or not at all"));
        }
        if texts.open.is_none()
            && let Some((open, close)) = choose(vocab, template, &THINK)?
        {
            (texts.open, texts.close) = (Some(open), close);
        }
        if texts.tool_open.is_none()
            && let Some((open, close)) = choose(vocab, template, &TOOLS)?
        {
            (texts.tool_open, texts.tool_close) = (Some(open), close);
        }
        if texts.after_close.is_none() {
            texts.after_close = texts.close.as_deref().and_then(|c| after_close(template.unwrap_or_default(), c));
        }
        if texts.open.is_none() && texts.tool_open.is_none() {
            return Ok(None);
        }
        Self::of_texts(vocab, texts).map(Some)
    }

    fn of_texts(vocab: &impl Vocabulary, texts: MarkerTexts) -> Result<Markers> {
        let mut patterns = Vec::new();
        let mut roles = Vec::new();
        let parts = [
            (Role::Open, &texts.open),
            (Role::Close, &texts.close),
            (Role::ToolOpen, &texts.tool_open),
            (Role::ToolClose, &texts.tool_close),
        ];
        let (mut close, mut open_len) = (Vec::new(), 0);
        for (role, text) in parts.into_iter().filter_map(|(r, t)| Some((r, t.as_deref()?))) {
            let spellings = spellings(vocab, text)?;
            match role {
                Role::Open => open_len = spellings[0].len(),
                Role::Close => close = spellings[0].clone(),
                _ => {}
            }
            roles.extend(spellings.iter().map(|_| role));
            patterns.extend(spellings);
        }
        if let (Some(_), Some(after)) = (&texts.close, &texts.after_close) {
            close.extend(vocab.encode_scaffold(after)?);
        }
        let blank = |id: &u32| {
            let bytes = vocab.bytes_of(*id);
            !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_whitespace())
        };
        let blanks = (0..vocab.size() as u32).filter(blank).collect();
        let markers = Markers { texts, set: Patterns::new(&patterns), roles, close, open_len, blanks };
        markers.self_test(vocab)?;
        Ok(markers)
    }

    /// Markers from token ids alone, the first of `close` being the one that is forced, followed by `after_close`.
    /// Start detection, which needs text, finds nothing.
    pub fn from_ids(spellings: &[(Role, Vec<u32>)], after_close: &[u32], blanks: &[u32]) -> Markers {
        let first = |role| spellings.iter().find(|s| s.0 == role).map(|s| s.1.clone()).unwrap_or_default();
        let mut blanks = blanks.to_vec();
        blanks.sort_unstable();
        let patterns: Vec<Vec<u32>> = spellings.iter().map(|s| s.1.clone()).collect();
        Markers {
            texts: MarkerTexts::default(),
            set: Patterns::new(&patterns),
            roles: spellings.iter().map(|s| s.0).collect(),
            close: [first(Role::Close), after_close.to_vec()].concat(),
            open_len: first(Role::Open).len(),
            blanks,
        }
    }

    /// Every marker is recognised between neighbours, or generation would leak it.
    fn self_test(&self, vocab: &impl Vocabulary) -> Result<()> {
        let texts = [&self.texts.open, &self.texts.close, &self.texts.tool_open, &self.texts.tool_close];
        for text in texts.into_iter().flatten() {
            for (before, after) in [("", ""), ("x.\n", "\n\nx"), ("x", "\nx")] {
                let mut state = Default::default();
                let ids = vocab.encode_scaffold(&format!("{before}{text}{after}"))?;
                let found = ids.iter().any(|id| {
                    state = self.set.step(state, *id);
                    self.set.found(state, |_| true).is_some()
                });
                if !found {
                    let message = format!("{text:?} cannot be recognised in this model's tokens; choose other markers");
                    return Err(Error::invalid("think_start", message));
                }
            }
        }
        Ok(())
    }

    /// How a rendered chat starts the answer: only the template's own text after the last content counts, so
    /// that no message moves it.
    pub fn start_of(&self, pieces: &[Piece]) -> Start {
        let tail = pieces.iter().rev().take_while(|p| matches!(p, Piece::Scaffold(_)));
        let tail: Vec<&str> = tail.map(Piece::text).collect();
        self.start(&tail.into_iter().rev().collect::<String>())
    }

    /// The same from text: `tail` is the template's own text after the last message's content.
    pub fn start(&self, tail: &str) -> Start {
        let last = |text: &Option<String>| text.as_deref().and_then(|t| tail.rfind(t));
        match (last(&self.texts.open), last(&self.texts.close)) {
            (Some(open), Some(close)) if close > open => Start::Closed,
            (Some(_), _) => Start::Thinking,
            (None, Some(_)) => Start::Closed,
            (None, None) => Start::Fresh,
        }
    }

    /// The texts that were found or given.
    pub fn texts(&self) -> &MarkerTexts {
        &self.texts
    }
    /// Whether the model can think at all.
    pub fn thinks(&self) -> bool {
        !self.close.is_empty()
    }
    /// The tokens that a forced close writes: the marker and what follows it.
    pub fn close(&self) -> &[u32] {
        &self.close
    }
    /// Most tokens that a forced close may write, whatever the model has begun.
    pub fn close_len(&self) -> usize {
        let spelled =
            self.roles.iter().enumerate().filter(|r| *r.1 == Role::Close).map(|r| self.set.pattern(r.0).len());
        spelled.max().unwrap_or(0).max(self.close.len())
    }
    /// Tokens of the marker that opens thinking.
    pub fn open_len(&self) -> usize {
        self.open_len
    }
    /// The automaton over all spellings.
    pub fn patterns(&self) -> &Patterns {
        &self.set
    }
    /// What the pattern with this index does.
    pub fn role(&self, pattern: usize) -> Role {
        self.roles[pattern]
    }
    /// Whether a token is nothing but whitespace.
    pub fn is_blank(&self, token: u32) -> bool {
        self.blanks.binary_search(&token).is_ok()
    }
}

/// The first pair that the model has as single tokens, else the first that its template writes out.
fn choose(
    vocab: &impl Vocabulary,
    template: Option<&str>,
    table: &[(&str, &str)],
) -> Result<Option<(String, Option<String>)>> {
    let single = |text: &str| -> Result<bool> {
        let ids = vocab.encode_scaffold(text)?;
        Ok(text.is_empty() || (ids.len() == 1 && vocab.bytes_of(ids[0]) == text.as_bytes()))
    };
    let owned = |pair: &(&str, &str)| (pair.0.to_string(), (!pair.1.is_empty()).then(|| pair.1.to_string()));
    for pair in table {
        if single(pair.0)? && single(pair.1)? {
            return Ok(Some(owned(pair)));
        }
    }
    let template = template.unwrap_or_default();
    Ok(table.iter().find(|p| template.contains(p.0) && template.contains(p.1)).map(owned))
}

/// The newlines that the template writes after the close marker, as characters or as `\n` in a string literal.
fn after_close(template: &str, close: &str) -> Option<String> {
    let newlines = |after: &str| {
        let after = after.replace("\\n", "\n");
        after.len() - after.trim_start_matches('\n').len()
    };
    let most = template.match_indices(close).map(|(at, _)| newlines(&template[at + close.len()..])).max()?;
    (most > 0).then(|| "\n".repeat(most.min(2)))
}

/// Every form of a marker between usual neighbours, the plain one first.
fn spellings(vocab: &impl Vocabulary, text: &str) -> Result<Vec<Vec<u32>>> {
    let mut forms: Vec<Vec<u32>> = Vec::new();
    for (before, after) in BEFORE.iter().flat_map(|b| AFTER.iter().map(move |a| (b, a))) {
        let ids = vocab.encode_scaffold(&format!("{before}{text}{after}"))?;
        let known = |form: &Vec<u32>| ids.windows(form.len()).any(|w| w == form);
        if !ids.is_empty() && !forms.iter().any(known) {
            forms.push(trim(vocab, ids, before.len(), before.len() + text.len()));
        }
    }
    if forms.is_empty() {
        return Err(Error::invalid("think_start", format!("{text:?} has no tokens in this model")));
    }
    Ok(forms)
}

/// Drops tokens that lie wholly in the neighbours: before byte `start`, or from byte `end` on.
fn trim(vocab: &impl Vocabulary, ids: Vec<u32>, start: usize, end: usize) -> Vec<u32> {
    let mut at = 0;
    let inside = |id: &u32| {
        let from = at;
        at += vocab.bytes_of(*id).len();
        at > start && from < end
    };
    let kept: Vec<bool> = ids.iter().map(inside).collect();
    // A tokenizer that adds or drops bytes (a leading space, say) is taken by its word.
    if at != 0 && kept.iter().any(|k| *k) {
        return ids.into_iter().zip(kept).filter_map(|(id, keep)| keep.then_some(id)).collect();
    }
    ids
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Greedy longest-match over a list of tokens: enough like a byte-pair vocabulary to have neighbours merge.
    pub(crate) struct Toy(pub Vec<&'static str>);

    impl Vocabulary for Toy {
        fn encode_scaffold(&self, text: &str) -> Result<Vec<u32>> {
            let (mut rest, mut ids) = (text, Vec::new());
            while !rest.is_empty() {
                let fits = self.0.iter().enumerate().filter(|(_, t)| rest.starts_with(**t));
                let longest = fits.max_by_key(|(_, t)| t.len());
                let len = longest.map_or(rest.chars().next().map_or(0, char::len_utf8), |(_, t)| t.len());
                ids.push(longest.map_or(u32::MAX, |(id, _)| id as u32));
                rest = &rest[len..];
            }
            Ok(ids)
        }
        fn bytes_of(&self, id: u32) -> &[u8] {
            self.0.get(id as usize).map_or(&b"?"[..], |t| t.as_bytes())
        }
        fn size(&self) -> usize {
            self.0.len()
        }
    }

    const LETTERS: [&str; 32] = [
        "\n", " ", ".", "!", "?", ":", ")", "\"", "`", "x", "<", ">", "/", "think", "\n\n", "[", "]", "a", "t", "h",
        "i", "n", "k", "o", "l", "c", "_", "T", "O", "L", "s", "e",
    ];
    fn toy(more: &[&'static str]) -> Toy {
        Toy(LETTERS.iter().chain(more).copied().collect())
    }

    #[test]
    fn single_tokens_are_found_without_a_template() {
        let vocab = toy(&["<think>", "</think>", "<tool_call>", "</tool_call>"]);
        let markers = Markers::find(&vocab, None, &MarkerTexts::default()).unwrap().unwrap();
        assert_eq!(markers.texts().open.as_deref(), Some("<think>"));
        assert_eq!(markers.texts().tool_close.as_deref(), Some("</tool_call>"));
        assert_eq!(markers.close(), [33]);
        assert_eq!(markers.patterns().completions(Default::default(), |_| true).len(), 4, "one spelling each");
        assert!(markers.is_blank(0) && markers.is_blank(14) && !markers.is_blank(9));
    }

    #[test]
    fn spelled_markers_come_in_every_form_between_neighbours() {
        let vocab = toy(&[".</", "\n</", ">\n\n", "<think"]);
        let template = "{{ '<think>\\n\\n</think>\\n\\n' }}";
        let markers = Markers::find(&vocab, Some(template), &MarkerTexts::default()).unwrap().unwrap();
        assert_eq!(markers.texts().after_close.as_deref(), Some("\n\n"));
        let find = |text: &str| {
            let mut state = Default::default();
            let ids = vocab.encode_scaffold(text).unwrap();
            ids.iter().find_map(|id| {
                state = markers.patterns().step(state, *id);
                markers.patterns().found(state, |_| true).map(|p| markers.role(p))
            })
        };
        for text in ["x</think>", "x.</think>x", "x\n</think>\n\nx", "x.</think>\n\n", "x!</think>\n"] {
            assert_eq!(find(text), Some(Role::Close), "{text:?}");
        }
        assert_eq!(find("<think>\n"), Some(Role::Open));
        assert_eq!(find("x</thin"), None);
        let plain = vocab.encode_scaffold("</think>").unwrap();
        assert!(markers.close().starts_with(&plain));
    }

    /// A real tokenizer: bytes, one merge, and think tokens that are not flagged special.
    #[test]
    fn a_tokenizer_from_its_file() {
        let letters: String = (33u8..127).map(char::from).filter(|c| *c != '"' && *c != '\\').collect();
        let mut vocab: serde_json::Map<String, serde_json::Value> = Default::default();
        for token in letters.chars().map(String::from).chain(["Ġ".into(), "Ċ".into(), "</".into()]) {
            vocab.insert(token, vocab.len().into());
        }
        let added = |id: usize, text: &str| serde_json::json!({"id": id, "content": text, "special": false});
        let n = vocab.len();
        let json = serde_json::json!({
            "added_tokens": [added(n, "<think>"), added(n + 1, "</think>")],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": [["<", "/"]]},
        });
        let tokenizer = Tokenizer::from_json(&json.to_string()).map_err(|f| f.message).expect("a sound file");
        let template = "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}";
        let markers = Markers::find(&tokenizer, Some(template), &MarkerTexts::default()).unwrap().unwrap();
        let newline = tokenizer.encode("\n").unwrap();
        assert_eq!(markers.close(), [vec![n as u32 + 1], newline.repeat(2)].concat());
        // Typed by a user: ordinary tokens, and no thinking.
        let typed =
            [Piece::Scaffold("<|user|>".into()), Piece::Content("<think>".into()), Piece::Scaffold("\n".into())];
        assert!(!tokenizer.encode_pieces(&typed).unwrap().contains(&(n as u32)));
        assert_eq!(markers.start_of(&typed), Start::Fresh);
        let opened =
            [Piece::Content("hi".into()), Piece::Scaffold("<|assistant|>".into()), Piece::Scaffold("<think>\n".into())];
        assert_eq!(markers.start_of(&opened), Start::Thinking);
        // The same markers spelled out.
        let given =
            MarkerTexts { open: Some("<reason>".into()), close: Some("</reason>".into()), ..MarkerTexts::default() };
        let spelled = Markers::find(&tokenizer, None, &given).unwrap().unwrap();
        assert_eq!(tokenizer.decode(spelled.close()), "</reason>");
    }

    #[test]
    fn a_model_that_does_not_think() {
        assert_eq!(Markers::find(&toy(&[]), Some("{{ messages }}"), &MarkerTexts::default()).unwrap(), None);
    }

    #[test]
    fn given_markers_win_and_come_in_pairs() {
        let vocab = toy(&["<think>", "</think>"]);
        let given = MarkerTexts { open: Some("[x]".into()), close: Some("[/x]".into()), ..MarkerTexts::default() };
        let markers = Markers::find(&vocab, None, &given).unwrap().unwrap();
        assert_eq!(markers.close(), vocab.encode_scaffold("[/x]").unwrap());
        let half = MarkerTexts { close: None, ..given };
        assert!(Markers::find(&vocab, None, &half).unwrap_err().to_string().contains("together"));
        let empty = MarkerTexts { open: Some("a".into()), close: Some(String::new()), ..MarkerTexts::default() };
        assert!(Markers::find(&vocab, None, &empty).unwrap_err().to_string().contains("empty"));
        let end = MarkerTexts { tool_close: Some("[/c]".into()), ..MarkerTexts::default() };
        assert!(Markers::find(&vocab, None, &end).unwrap_err().to_string().starts_with("tool_call_end"));
    }

    #[test]
    fn the_scaffold_says_how_an_answer_starts() {
        let vocab = toy(&["<think>", "</think>"]);
        let markers = Markers::find(&vocab, None, &MarkerTexts::default()).unwrap().unwrap();
        assert_eq!(markers.start("<|assistant|>\n"), Start::Fresh);
        assert_eq!(markers.start("<|assistant|>\n<think>\n"), Start::Thinking);
        assert_eq!(markers.start("<|assistant|>\n<think>\n\n</think>\n\n"), Start::Closed);
        assert_eq!(markers.start("</think><|end|><|assistant|><think>"), Start::Thinking);
    }
}
