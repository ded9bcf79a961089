//! From guesses to one ragged batch, and from the target's choices to what is kept.

use crate::grammar::{GRAMMAR_ERROR, Guide};
use crate::model::batch::{Batch, BatchOutput, LogitRow, Row};
use crate::op::{Adjust, ERROR_TOKEN, SEEN, SampleRow};
use crate::step::{Drafted, Tokens};

/// The rows of a step: each sequence's tokens, then its guesses; logits where a token is chosen.
/// Penalties of the rows behind a guess count that guess as said. The block tables move into the batch: nobody asks the
/// step for them afterwards.
pub fn batch_of(drafted: &mut Drafted) -> Batch {
    let seqs = &drafted.reserved.plan.seqs;
    let guesses = drafted.drafts.iter().map(Vec::len).sum::<usize>();
    let rows = seqs.iter().map(|s| s.tokens.len()).sum::<usize>() + guesses;
    let mut batch = Batch {
        rows: Vec::with_capacity(rows),
        logit_rows: Vec::with_capacity(seqs.len() + guesses),
        block_tables: std::mem::take(&mut drafted.reserved.tables),
        copies: drafted.reserved.copies.clone(),
        ..Batch::default()
    };
    for (index, (seq, drafts)) in seqs.iter().zip(&drafted.drafts).enumerate() {
        for (i, token) in seq.tokens.iter().chain(drafts).enumerate() {
            batch.rows.push(Row { token: *token, position: (seq.start + i) as u32, seq: index as u32 });
        }
        let Some(sample) = &seq.sample else { continue };
        let first = batch.rows.len() - drafts.len() - 1;
        let (mut params, mut adjust) = (sample.params, sample.adjust.clone());
        let mut masks = sample.guide.as_ref().map(|g| g.along(drafts)).unwrap_or_default().into_iter();
        for i in 0..=drafts.len() {
            let mask = masks.next().flatten();
            batch.logit_rows.push(LogitRow { row: (first + i) as u32, params, adjust: adjust.clone(), mask });
            if let Some(guess) = drafts.get(i) {
                params.position += 1;
                count(&mut adjust, &params, *guess);
            }
        }
    }
    batch
}

/// Counts a token in a penalty list, if penalties are on.
pub(super) fn count(adjust: &mut Vec<Adjust>, params: &SampleRow, token: u32) {
    if params.repetition == 1.0 && params.presence == 0.0 && params.frequency == 0.0 {
        return;
    }
    match adjust.iter_mut().find(|a| a.token == token) {
        Some(entry) => entry.count = (entry.count | SEEN) + 1,
        None => adjust.push(Adjust { token, count: SEEN | 1, bias: 0.0 }),
    }
}

/// For each sequence the accepted guesses and the target's own token after them; nothing inside a
/// prompt; an error for a sequence whose numbers, or whose grammar, are broken.
pub fn chosen_of(drafted: &Drafted, output: &BatchOutput) -> Vec<Result<Tokens, String>> {
    let (mut rows, seqs) = (output.tokens.as_slice(), &drafted.reserved.plan.seqs);
    let mut chosen = Vec::with_capacity(seqs.len());
    for (seq, drafts) in seqs.iter().zip(&drafted.drafts) {
        let Some(sample) = &seq.sample else {
            chosen.push(Ok(Tokens::new()));
            continue;
        };
        let own;
        (own, rows) = rows.split_at(drafts.len() + 1);
        let accepted = own.iter().zip(drafts).take_while(|(own, draft)| own == draft).count();
        chosen.push(if own[..=accepted].contains(&ERROR_TOKEN) {
            Err(match sample.guide.as_ref().and_then(Guide::fault) {
                Some(why) => format!("{GRAMMAR_ERROR}: {why}"),
                None => "numerical error: the logits hold a NaN or have no finite maximum".into(),
            })
        } else {
            Ok(Tokens::from_slice(&own[..=accepted]))
        });
    }
    chosen
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::kv::{Copies, Parts};
    use crate::request::{RequestId, SeqId};
    use crate::spec::Source;
    use crate::step::{Reserved, SamplePlan, SeqPlan, StepPlan};

    fn drafted(drafts: Vec<Vec<u32>>) -> Drafted {
        let seqs = drafts.iter().enumerate().map(|(i, d)| SeqPlan {
            seq: SeqId { request: RequestId(i as u64), choice: 0 },
            start: 10,
            tokens: smallvec![1, 2],
            max_drafts: d.len(),
            sample: (i != 1).then(|| SamplePlan {
                params: SampleRow { position: 12, presence: 0.5, ..SampleRow::default() },
                adjust: vec![Adjust { token: 7, count: SEEN | 1, bias: 0.0 }],
                guide: None,
            }),
            parts: Parts::default(),
        });
        let plan = StepPlan { seqs: seqs.collect(), ..StepPlan::default() };
        let tables = vec![vec![0]; drafts.len()];
        let (preempted, copies) = (Vec::new(), Copies::default());
        Drafted::by(Source::Ngram, Reserved { plan, tables, preempted, copies }, drafts)
    }

    #[test]
    fn guesses_are_rows_whose_penalties_count_the_guesses_before() {
        let batch = batch_of(&mut drafted(vec![vec![7, 9], vec![], vec![]]));
        assert_eq!(batch.rows.len(), 4 + 2 + 2);
        assert_eq!(batch.rows[3], Row { token: 9, position: 13, seq: 0 });
        let rows: Vec<(u32, u32)> = batch.logit_rows.iter().map(|r| (r.row, r.params.position)).collect();
        assert_eq!(rows, [(1, 12), (2, 13), (3, 14), (7, 12)]);
        let counts: Vec<Vec<(u32, u32)>> =
            batch.logit_rows.iter().map(|r| r.adjust.iter().map(|a| (a.token, a.count & !SEEN)).collect()).collect();
        assert_eq!(counts, [vec![(7, 1)], vec![(7, 2)], vec![(7, 2), (9, 1)], vec![(7, 1)]]);
    }

    #[test]
    fn accepts_up_to_the_first_difference() {
        let drafted = drafted(vec![vec![7, 9], vec![], vec![5]]);
        let said = |tokens: &[u32]| {
            chosen_of(&drafted, &BatchOutput { tokens: tokens.to_vec(), logits: Vec::new(), ..BatchOutput::default() })
        };
        assert_eq!(said(&[7, 9, 3, 5, 4]), [Ok(smallvec![7, 9, 3]), Ok(smallvec![]), Ok(smallvec![5, 4])]);
        assert_eq!(said(&[7, 8, 3, 6, 4]), [Ok(smallvec![7, 8]), Ok(smallvec![]), Ok(smallvec![6])]);
        let broken = said(&[ERROR_TOKEN, 8, 3, 6, ERROR_TOKEN]);
        assert!(
            broken[0].is_err() && broken[2] == Ok(smallvec![6]),
            "what lies behind a rejected guess does not matter"
        );
    }
}
