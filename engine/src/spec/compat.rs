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
