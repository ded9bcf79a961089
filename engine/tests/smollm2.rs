//! The real file: SmolLM2-135M-Instruct, as `PONDER_SMOLLM2` names it. Skipped by name where it is absent.

use std::path::PathBuf;

use ponder_engine::backend::reference::ReferenceBackend;
use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::format::{Format, KvFormat};
use ponder_engine::model::batch::{Batch, LogitRow, Row};
use ponder_engine::model::record::KvShape;
use ponder_engine::model::runner::{ModelRunner, RunnerOptions};
use ponder_engine::model::{LayerWeight, WeightId};
use ponder_engine::op::SampleRow;

/// The file, or `None` with a message.
fn smollm2() -> Option<PathBuf> {
    let named = std::env::var_os("PONDER_SMOLLM2").map(PathBuf::from);
    let default = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.models/smollm2-135m-instruct-q4_1.gguf"));
    let path = named.unwrap_or(default);
    if !path.is_file() {
        println!("SKIP: {} is not there; the model is fetched by a script", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn opens() {
    let Some(path) = smollm2() else { return };
    let model = Checkpoint::open(&path).expect("opens");
    let c = &model.config;
    assert_eq!((c.layers, c.hidden, c.heads, c.kv_heads, c.head_dim), (30, 576, 9, 3, 64));
    assert_eq!((c.ffn, c.vocab, c.context, c.tied), (1536, 49152, 8192, true));
    assert_eq!((c.rope.theta, c.rope.dim), (100_000.0, 64));
    assert_eq!(model.generation.eos, [0, 2]);
    assert!(!model.generation.add_bos);
    let embed = model.tensor(WeightId::Embed).expect("an embedding");
    assert_eq!((embed.format, embed.rows, embed.cols), (Format::Q8_0, 49152, 576));
    let down = model.tensor(WeightId::Layer(29, LayerWeight::Down)).expect("a down projection");
    assert_eq!((down.name, down.format, down.rows, down.cols), ("blk.29.ffn_down.weight", Format::Q4_1, 576, 1536));
    assert!(!model.has(WeightId::Output));
    model.check_finite(2).expect("finite");
}

#[test]
fn tokenises() {
    let Some(path) = smollm2() else { return };
    let tokenizer = Checkpoint::open(&path).expect("opens").tokenizer().expect("has a tokenizer");
    let text = "Hello, world! 1998 — 😀\n\n  x";
    let ids = tokenizer.encode(text).expect("encodes");
    println!("{ids:?}");
    assert_eq!(tokenizer.decode(&ids), text);
    assert_eq!(tokenizer.encode_with_special("<|im_start|>user\n").expect("encodes")[0], 1);
    let typed = tokenizer.encode("<|im_start|>").expect("encodes");
    assert!(typed.len() > 1 && !typed.contains(&1));
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(2));
    assert!(tokenizer.is_special(2));
}

/// Recording and loading are right: the f64 oracle says what exact mathematics on these weights says.
#[test]
fn the_oracle_runs_the_whole_model() {
    let Some(path) = smollm2() else { return };
    let model = Checkpoint::open(&path).expect("opens");
    let tokenizer = model.tokenizer().expect("a tokenizer");
    let prompt = tokenizer.encode("The capital of France is").expect("encodes");
    let kv = KvShape { blocks: 3, block_size: 4, format: KvFormat::F32 };
    let options = RunnerOptions { max_rows: 8, max_logit_rows: 2, max_seqs: 1, max_model_len: 12, kv };
    let mut runner = ModelRunner::load(ReferenceBackend::default(), &model, options, &mut |_, _| {}).expect("loads");
    let mut log = prompt.clone();
    let mut start = 0;
    for _ in 0..3 {
        let rows = log[start..].iter().enumerate();
        let rows = rows.map(|(i, t)| Row { token: *t, position: (start + i) as u32, seq: 0 }).collect::<Vec<_>>();
        let last =
            LogitRow { row: rows.len() as u32 - 1, params: SampleRow::default(), adjust: Vec::new(), mask: None };
        let block_tables = vec![vec![2, 0, 1]];
        let batch = Batch { rows, block_tables, logit_rows: vec![last], ..Batch::default() };
        start = log.len();
        log.push(runner.run(&batch).expect("runs").tokens[0]);
    }
    assert_eq!(tokenizer.decode(&log[prompt.len()..]), " Paris.\n");
}
