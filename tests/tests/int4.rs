//! Checkpoints of GPTQ and AWQ: the logits are those of their weights in F32, and what does not fit is refused.

use ponder_cuda::EmulatedCuda;
use ponder_engine::backend::Backend;
use ponder_engine::backend::cpu::CpuBackend;
use ponder_engine::backend::reference::ReferenceBackend;
use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::format::{Format, KvFormat};
use ponder_engine::model::batch::{Batch, LogitRow, Row};
use ponder_engine::model::record::KvShape;
use ponder_engine::model::runner::{ModelRunner, RunnerOptions};
use ponder_engine::model::{LayerWeight, WeightId};
use ponder_engine::op::SampleRow;
use ponder_tests::packed::{Int4, Packer};
use ponder_tests::tiny_model::{Tensors, TinyModel};
use safetensors::Dtype;
use serde_json::json;

const TOKENS: [u32; 6] = [257, 72, 101, 108, 108, 111];

/// The logits after each of a few tokens.
fn logits<B: Backend>(backend: B, model: &TinyModel) -> Vec<f32> {
    let checkpoint = Checkpoint::open(&model.path()).unwrap();
    checkpoint.check_finite(2).unwrap();
    let kv = KvShape { blocks: 1, block_size: 16, format: KvFormat::F32 };
    let options = RunnerOptions { max_rows: 8, max_logit_rows: 8, max_seqs: 1, max_model_len: 16, kv };
    let mut runner = ModelRunner::load(backend, &checkpoint, options, &mut |_, _| {}).unwrap();
    let row = |(i, token): (usize, &u32)| Row { token: *token, position: i as u32, seq: 0 };
    let wanted = |row| LogitRow { row, params: SampleRow::default(), adjust: Vec::new(), mask: None };
    let batch = Batch {
        rows: TOKENS.iter().enumerate().map(row).collect(),
        block_tables: vec![vec![0]],
        logit_rows: (0..TOKENS.len() as u32).map(wanted).collect(),
        want_logits: true,
        ..Batch::default()
    };
    runner.run(&batch).unwrap().logits
}

/// Fails where `got` is further than 1e-4 of the largest from `want`.
fn assert_near(what: &str, want: &[f32], got: &[f32]) {
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!(largest > 0.5 && want.len() == got.len(), "{what}: vacuous");
    for (i, (want, got)) in want.iter().zip(got).enumerate() {
        assert!((want - got).abs() <= 1e-4 * largest, "{what} [{i}]: {got}, not {want}");
    }
}

#[test]
fn logits_are_those_of_the_weights_in_f32() {
    for packer in [Packer::Gptq, Packer::GptqV2, Packer::GptqSymmetric, Packer::Awq] {
        for group in [32, 64, 128, -1] {
            let what = format!("{packer:?} {group}");
            let model = Int4::new(packer, group);
            let packed = model.packed();
            let want = logits(ReferenceBackend::default(), &model.plain);
            // The oracle decodes both to the same numbers: the same bits.
            assert_eq!(logits(ReferenceBackend::default(), &packed), want, "{what}");
            assert_near(&format!("{what} on the CPU"), &want, &logits(CpuBackend::new(2).unwrap(), &packed));
            match EmulatedCuda::new(7) {
                Ok(cuda) => assert_near(&format!("{what} on CUDA"), &want, &logits(cuda, &packed)),
                Err(e) => println!("SKIP: CUDA: {e}"),
            }
        }
    }
}

#[test]
fn rows_of_whole_groups_have_a_word_for_128() {
    let format = |group, weight| {
        let packed = Int4::new(Packer::Awq, group).packed();
        Checkpoint::open(&packed.path()).unwrap().tensor(WeightId::Layer(0, weight)).unwrap().format
    };
    assert_eq!(format(128, LayerWeight::Q), Format::I4G128);
    assert_eq!(format(-1, LayerWeight::Gate), Format::I4G128);
    assert_eq!(format(64, LayerWeight::Q), Format::I4G32);
    assert_eq!(format(128, LayerWeight::Down), Format::I4G32, "160 columns are not whole groups of 128");
}

/// The message with which a packed model is refused after `change`.
fn refusal(packer: Packer, change: impl FnOnce(&mut Int4)) -> String {
    let mut model = Int4::new(packer, 64);
    change(&mut model);
    let packed = model.packed();
    match Checkpoint::open(&packed.path()).and_then(|c| c.check_finite(1)) {
        Ok(()) => panic!("opened"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn what_does_not_fit_is_one_clear_error() {
    const Q: &str = "model.layers.0.self_attn.q_proj.";
    let name = |part: &str| format!("{Q}{part}");
    let shape = |part: &str, dtype, shape: &[usize]| {
        let (name, shape) = (name(part), shape.to_vec());
        move |t: &mut Tensors| {
            let width = if dtype == Dtype::F16 { 2 } else { 4 };
            t.insert(name, (dtype, shape.clone(), vec![0; width * shape.iter().product::<usize>()]));
        }
    };
    type Change = Box<dyn FnOnce(&mut Tensors)>;
    let cases: Vec<(&str, Change, &str)> = vec![
        ("qweight", Box::new(shape("qweight", Dtype::I32, &[31, 64])), "[31, 64]"),
        ("qweight", Box::new(shape("qweight", Dtype::F32, &[32, 64])), "I32"),
        ("qzeros", Box::new(shape("qzeros", Dtype::I32, &[2, 8])), "[4, 8]"),
        ("qzeros", Box::new(|t| drop(t.remove(&format!("{Q}qzeros")))), "missing"),
        ("scales", Box::new(shape("scales", Dtype::F32, &[4, 64])), "F16 or BF16"),
        ("scales", Box::new(shape("scales", Dtype::F16, &[4, 63])), "[4, 63]"),
        ("qweight", Box::new(|t| t.get_mut(&format!("{Q}scales")).unwrap().2[1] = 0x7c), "NaN or an infinity"),
        // An order of activation: the first input belongs to the last group.
        ("g_idx", Box::new(|t| t.get_mut(&format!("{Q}g_idx")).unwrap().2[0] = 3), "desc_act"),
        ("bias", Box::new(|t| t.get_mut(&format!("{Q}bias")).unwrap().2[1] = 0x3c), "no place"),
        ("weight", Box::new(|t| drop(t.remove(&format!("{Q}qweight")))), "missing"),
    ];
    for (part, change, words) in cases {
        let message = refusal(Packer::Gptq, |model| change(&mut model.tensors));
        assert!(message.contains(&name(part)) && message.contains(words), "{part}, {words}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let no_order = refusal(Packer::GptqV2, |model| {
        model.config["quantization_config"]["desc_act"] = json!(true);
        model.tensors.retain(|name, _| !name.ends_with("g_idx"));
    });
    assert!(no_order.contains("g_idx") && no_order.contains("desc_act"), "{no_order}");
    let bits = refusal(Packer::Awq, |model| model.config["quantization_config"]["bits"] = json!(8));
    assert!(bits.contains("quantization_config.bits"), "{bits}");
    // A file that ends before its tensors do.
    let packed = Int4::new(Packer::Awq, 64).packed();
    let file = packed.path().join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(Checkpoint::open(&packed.path()).is_err());
}
