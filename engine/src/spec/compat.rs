//! Whether two tokenizers mean the same by their ids: what a draft model guesses, its target must read.

use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// Refuses a draft whose tokens are not the target's. What counts is what each id spells, special tokens
/// included; vocabularies that are padded to different sizes, or name ids that the other leaves unused, are one.
///
/// # Errors
/// The first id that both use and spell differently.
pub fn same_tokens(target: &Tokenizer, draft: &Tokenizer) -> Result<()> {
    let both = target.vocab_size().min(draft.vocab_size()) as u32;
    let shared = |id: &u32| !target.token_bytes(*id).is_empty() && !draft.token_bytes(*id).is_empty();
    let differs = |id: &u32| target.token_bytes(*id) != draft.token_bytes(*id);
    let spelled = |t: &Tokenizer, id: u32| String::from_utf8_lossy(t.token_bytes(id)).into_owned();
    if let Some(id) = (0..both).filter(shared).find(differs) {
        let (theirs, ours) = (spelled(draft, id), spelled(target, id));
        let why = format!("another tokenizer: token {id} is {theirs:?} there and {ours:?} in the model");
        return Err(Error::invalid("draft_model", why));
    }
    let used = |t: &Tokenizer| (0..t.vocab_size() as u32).filter(|id| !t.token_bytes(*id).is_empty()).count();
    let (agree, all) = ((0..both).filter(shared).count(), used(target));
    if 10 * agree < 9 * all {
        let why = format!("another tokenizer: of the model's {all} tokens it has {agree}");
        return Err(Error::invalid("draft_model", why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token a word, with these ids.
    fn tokenizer(words: &[(&str, u32)]) -> Tokenizer {
        let vocab: serde_json::Map<String, serde_json::Value> =
            words.iter().map(|(word, id)| ((*word).to_string(), (*id).into())).collect();
        let byte_level = serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true });
        let json = serde_json::json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
            "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": { "type": "BPE", "vocab": vocab, "merges": [] },
        });
        Tokenizer::from_json(&json.to_string()).unwrap()
    }

    #[test]
    fn padding_and_gaps_are_no_difference_and_one_swapped_token_is() {
        let letters: Vec<String> = ('a'..='z').map(String::from).collect();
        let with = |more: &[(&'static str, u32)]| {
            let mut words: Vec<(&str, u32)> = letters.iter().map(String::as_str).zip(0..).collect();
            words.extend(more);
            tokenizer(&words)
        };
        let target = with(&[]);
        // Qwen2.5's models of different sizes have 151,936 and 152,064 rows, and the same tokens.
        let padded = with(&[("[PAD26]", 26), ("[PAD40]", 40)]);
        same_tokens(&target, &padded).unwrap();
        same_tokens(&padded, &target).unwrap();
        let mut swapped: Vec<(&str, u32)> = letters.iter().map(String::as_str).zip(0..).collect();
        (swapped[3].1, swapped[4].1) = (4, 3);
        let said = same_tokens(&target, &tokenizer(&swapped)).unwrap_err().to_string();
        assert_eq!(said, "draft_model: another tokenizer: token 3 is \"e\" there and \"d\" in the model");
        let few: Vec<(&str, u32)> = letters.iter().take(9).map(String::as_str).zip(0..).collect();
        let said = same_tokens(&target, &tokenizer(&few)).unwrap_err().to_string();
        assert!(said.contains("of the model's 26 tokens it has 9"), "{said}");
    }
}
