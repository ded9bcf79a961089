//! Answers of a given form: JSON of a schema, by llguidance. The engine asks for masks, token by token.
//!
//! A schema is a client's: it is compiled off the event loop, on a thread of its own with room on its stack and a
//! deadline. What llguidance cannot keep to is refused, never approximated.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use ponder_engine::grammar::{Grammar, GrammarSource, TokenMask};
use ponder_engine::text::Tokenizer;
use serde_json::{Value, json};

use super::error::ApiError;

/// Stack of a compiling thread; schemas nest at most 128 deep, which is serde_json's bound.
const STACK: usize = 8 << 20;
/// Until a schema must be compiled.
const DEADLINE: Duration = Duration::from_secs(5);

/// Compiles grammars for one model.
pub struct Compiler {
    factory: Arc<ParserFactory>,
    words: usize,
}

impl Compiler {
    /// For a model with this tokenizer and vocabulary, whose turns end with `ends`.
    ///
    /// # Errors
    /// If the model has no end token, or the vocabulary cannot be used.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, ends: &[u32]) -> Result<Self, String> {
        let end = *ends.first().ok_or("the model has no end token")?;
        let word = |id: u32| {
            if tokenizer.is_special(id) || ends.contains(&id) {
                // No text of an answer: named, so that no grammar can match it by its bytes.
                return [&[TokTrie::SPECIAL_TOKEN_MARKER][..], format!("<{id}>").as_bytes()].concat();
            }
            tokenizer.token_bytes(id).to_vec()
        };
        let words: Vec<Vec<u8>> = (0..vocab as u32).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, end), &words).with_eos_tokens(ends);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
        factory.quiet();
        Ok(Self { factory: Arc::new(factory), words: vocab.div_ceil(32) })
    }

    /// A grammar of JSON that keeps to `schema`; `field` is where the client gave it.
    ///
    /// # Errors
    /// 400 if the schema is none, or asks for what cannot be kept to.
    pub fn json(&self, field: &str, schema: &Value) -> Result<GrammarSource, ApiError> {
        let mut schema = schema.clone();
        let Some(object) = schema.as_object_mut() else {
            return Err(ApiError::invalid(field, "is no schema: an object is expected"));
        };
        // Blanks between tokens are where small models lose their way.
        object.insert("x-guidance".into(), json!({ "whitespace_flexible": false, "coerce_one_of": true }));
        let (sender, receiver) = mpsc::channel();
        let factory = self.factory.clone();
        let compile = move || {
            let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema));
            let _ = sender.send(parser.map(|p| Matcher::new(Ok(p))).map_err(|e| e.to_string()));
        };
        let spawned = std::thread::Builder::new().name("schema".into()).stack_size(STACK).spawn(compile);
        spawned.map_err(|_| ApiError::internal("no thread for a schema"))?;
        let compiled = receiver.recv_timeout(DEADLINE).unwrap_or_else(|_| Err("it takes too long".into()));
        let mut matcher = compiled.map_err(|e| refused(field, &e))?;
        // A schema that nothing keeps to shows at its first mask.
        let first = matcher.compute_mask_or_eos().map_err(|e| refused(field, &e.to_string()))?;
        if first.is_zero() {
            return Err(refused(field, "nothing keeps to it"));
        }
        let (prototype, words) = (std::sync::Mutex::new(matcher), self.words);
        Ok(GrammarSource::new(move || {
            let prototype = prototype.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            Box::new(Guided { matcher: prototype.deep_clone(), words })
        }))
    }
}

fn refused(field: &str, why: &str) -> ApiError {
    let why: String = why.lines().next().unwrap_or_default().chars().take(300).collect();
    ApiError::invalid(field, format!("cannot be kept to: {why}"))
}

/// One answer.
struct Guided {
    matcher: Matcher,
    words: usize,
}

impl Grammar for Guided {
    fn mask(&mut self) -> Result<TokenMask, String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| e.to_string())?;
        let mut words = mask.as_slice().to_vec();
        words.resize(self.words, 0);
        Ok(words.into())
    }
    fn words(&self) -> usize {
        self.words
    }
    fn push(&mut self, token: u32) -> bool {
        let fits = matches!(self.matcher.validate_tokens(&[token]), Ok(1));
        fits && self.matcher.consume_token(token).is_ok()
    }
    fn rollback(&mut self, tokens: usize) {
        if self.matcher.rollback(tokens).is_err() {
            tracing::error!(target: "ponder::http", "a grammar could not be taken back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ponder_engine::checkpoint::Checkpoint;

    fn compiler() -> (Compiler, Tokenizer) {
        let model = ponder_tests::tiny_model::hugging_face("llama", safetensors::Dtype::F32);
        let checkpoint = Checkpoint::open(&model.path()).unwrap();
        let tokenizer = checkpoint.tokenizer().unwrap();
        (Compiler::new(&tokenizer, 272, &[256, 258]).unwrap(), tokenizer)
    }

    /// Which bytes, and whether an end, may come next.
    fn allowed(grammar: &mut dyn Grammar, tokenizer: &Tokenizer) -> (String, bool) {
        let mask = grammar.mask().unwrap();
        let is = |t: u32| mask[t as usize / 32] >> (t % 32) & 1 == 1;
        ((0..256).filter(|t| is(*t)).map(|t| tokenizer.decode(&[t])).collect(), is(256) && is(258))
    }

    #[test]
    fn a_schema_is_kept_to_and_taken_back() {
        let (compiler, tokenizer) = compiler();
        let schema = json!({
            "type": "object", "properties": { "a": { "enum": [1, 23] } }, "required": ["a"], "additionalProperties": false,
        });
        let guide = compiler.json("schema", &schema).unwrap().start();
        let mut grammar = Guided { matcher: compiler_matcher(&compiler, &schema), words: compiler.words };
        for token in tokenizer.encode("{\"a\":").unwrap() {
            assert!(grammar.push(token) && guide.push(token));
        }
        let start = allowed(&mut grammar, &tokenizer);
        assert_eq!(start, ("12".into(), false));
        let two = tokenizer.encode("2").unwrap()[0];
        assert!(grammar.push(two));
        assert_eq!(allowed(&mut grammar, &tokenizer), ("3".into(), false));
        assert!(!grammar.push(two));
        grammar.rollback(1);
        assert_eq!(allowed(&mut grammar, &tokenizer), start);
        for token in tokenizer.encode("1}").unwrap() {
            assert!(grammar.push(token));
        }
        assert_eq!(allowed(&mut grammar, &tokenizer), (String::new(), true), "and nothing more");
    }

    fn compiler_matcher(compiler: &Compiler, schema: &Value) -> Matcher {
        let mut schema = schema.clone();
        schema["x-guidance"] = json!({ "whitespace_flexible": false });
        Matcher::new(compiler.factory.create_parser(TopLevelGrammar::from_json_schema(schema)))
    }

    #[test]
    fn schemas_that_cannot_be_kept_to_are_refused() {
        let (compiler, _) = compiler();
        for schema in [
            json!("text"),
            json!({ "type": "king" }),
            json!({ "type": "string", "pattern": "(" }),
            json!({ "$ref": "#/nowhere" }),
            json!({ "type": "object", "patternProperties": 5 }),
            json!({ "not": {} }),
        ] {
            let error =
                compiler.json("response_format.json_schema.schema", &schema).map(|_| schema.clone()).unwrap_err();
            assert_eq!(
                (error.status.as_u16(), error.param.as_deref()),
                (400, Some("response_format.json_schema.schema"))
            );
        }
    }
}
