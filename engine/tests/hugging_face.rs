//! Hugging Face folders: what is read from them, and what is refused.

mod tiny;

use std::fs;
use std::path::Path;

use ponder_engine::checkpoint::Checkpoint;
use ponder_engine::format::Format;
use ponder_engine::model::{LayerWeight, Pairing, RopeScaling, WeightId};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": tiny::HIDDEN, "num_hidden_layers": tiny::LAYERS,
        "num_attention_heads": tiny::HEADS, "num_key_value_heads": tiny::KV_HEADS, "intermediate_size": tiny::FFN,
        "vocab_size": tiny::vocabulary().0.len(), "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": [258],
    })
}

/// Hugging Face's name of a tensor of the tiny model.
fn hf_name(gguf: &str) -> String {
    let names = [
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("blk.", "model.layers."),
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    names.iter().fold(gguf.to_string(), |name, (from, to)| name.replace(from, to))
}

/// (name, shape, BF16 bytes).
type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;

fn tensors() -> Tensors {
    let rows = tiny::tensors().into_iter().map(|(name, rows, cols)| {
        let values: Vec<f32> = (0..rows * cols).map(|i| (i % 7) as f32 / 8.0).collect();
        let mut bytes = Vec::new();
        Format::BF16.encode(&values, &mut bytes);
        (hf_name(&name), if rows == 1 { vec![cols] } else { vec![rows, cols] }, bytes)
    });
    rows.collect()
}

fn save(path: &Path, tensors: &[(String, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(n, s, b)| (n.clone(), TensorView::new(Dtype::BF16, s.clone(), b).expect("fits")));
    fs::write(path, safetensors::serialize(views, None).expect("serialises")).expect("writes");
}

/// A folder with a whole model; `change` may spoil it.
fn folder(config: Value, change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::write(dir.path().join("config.json"), config.to_string()).expect("writes");
    save(&dir.path().join("model.safetensors"), &tensors());
    change(dir.path());
    dir
}

/// A folder in two shards; `rename` changes the name of the second in the index.
fn sharded(rename: &str) -> tempfile::TempDir {
    folder(config(), |dir| {
        fs::remove_file(dir.join("model.safetensors")).expect("removes");
        let all = tensors();
        let (a, b) = all.split_at(5);
        save(&dir.join("a.safetensors"), a);
        save(&dir.join("b.safetensors"), b);
        let map: serde_json::Map<String, Value> = all
            .iter()
            .enumerate()
            .map(|(i, t)| (t.0.clone(), if i < 5 { "a.safetensors" } else { rename }.into()))
            .collect();
        fs::write(dir.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).expect("writes");
    })
}

fn refusal(dir: &tempfile::TempDir) -> String {
    match Checkpoint::open(dir.path()) {
        Ok(_) => panic!("opened"),
        Err(e) => e.to_string(),
    }
}

fn with(key: &str, value: Value) -> Value {
    let mut c = config();
    c[key] = value;
    c
}

#[test]
fn single_and_sharded() {
    for dir in [folder(config(), |_| ()), sharded("b.safetensors")] {
        let model = Checkpoint::open(dir.path()).expect("opens");
        assert_eq!((model.config.rope.pairing, model.config.rope.theta), (Pairing::Halves, 500_000.0));
        assert_eq!(model.generation.eos, [258]);
        let gate = model.tensor(WeightId::Layer(1, LayerWeight::Gate)).expect("a gate");
        assert_eq!((gate.name, gate.format), ("model.layers.1.mlp.gate_proj.weight", Format::BF16));
        assert_eq!((gate.rows, gate.cols, gate.plus_one), (tiny::FFN, tiny::HIDDEN, false));
        assert_eq!(gate.to_f32()[..4], [0.0, 0.125, 0.25, 0.375]);
        let norm = model.tensor(WeightId::Layer(0, LayerWeight::MlpNorm)).expect("a norm");
        assert_eq!(norm.name, "model.layers.0.post_attention_layernorm.weight");
        assert_eq!(model.weight_bytes(), tensors().iter().map(|t| t.2.len() as u64).sum::<u64>());
    }
}

#[test]
fn rope_scalings() {
    let scaling_of = |c: Value| Checkpoint::open(folder(c, |_| ()).path()).expect("opens").config;
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192});
    let want = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    assert_eq!(scaling_of(with("rope_scaling", llama3)).rope.scaling, want);
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    let c = scaling_of(with("rope_scaling", yarn));
    assert_eq!(c.context, 256);
    match c.rope.scaling {
        RopeScaling::Yarn { beta_fast, beta_slow, attention_factor, .. } => {
            assert_eq!((beta_fast, beta_slow), (32.0, 1.0));
            assert!((attention_factor - 1.138_629_4).abs() < 1e-6);
        }
        other => panic!("{other:?}"),
    }
    let newer = with("rope_parameters", json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}));
    let rope = scaling_of(newer).rope;
    assert_eq!((rope.theta, rope.scaling), (7.0, RopeScaling::Linear { factor: 2.0 }));
}

#[test]
fn gemma_norms_say_that_they_are_one_less() {
    let mut c = with("architectures", json!(["Gemma3ForCausalLM"]));
    for (key, value) in [
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("hidden_act", Value::Null),
        ("sliding_window", json!(16)),
        ("query_pre_attn_scalar", json!(16)),
        ("head_dim", json!(tiny::HEAD_DIM)),
        ("rope_local_base_freq", json!(10000.0)),
        ("layer_types", json!(["sliding_attention", "full_attention"])),
    ] {
        c[key] = value;
    }
    let dir = folder(c, |dir| {
        let mut all = tensors();
        for n in 0..tiny::LAYERS {
            for (name, len) in [
                ("pre_feedforward_layernorm", tiny::HIDDEN),
                ("post_feedforward_layernorm", tiny::HIDDEN),
                ("self_attn.q_norm", tiny::HEAD_DIM),
                ("self_attn.k_norm", tiny::HEAD_DIM),
            ] {
                all.push((format!("model.layers.{n}.{name}.weight"), vec![len], vec![0; len * 2]));
            }
        }
        save(&dir.join("model.safetensors"), &all);
    });
    let model = Checkpoint::open(dir.path()).expect("opens");
    let norm = model.tensor(WeightId::Layer(0, LayerWeight::PostMlpNorm)).expect("a norm");
    assert!(norm.plus_one);
    assert_eq!(norm.to_f32(), vec![1.0; tiny::HIDDEN]);
    assert!(!model.tensor(WeightId::Embed).expect("an embedding").plus_one);
    assert_eq!(model.config.attention_scale, 0.25);
    let local = model.config.local.as_ref().expect("local layers");
    assert_eq!((local.window, local.pattern, local.rope.theta), (16, 2, 10_000.0));
    assert!(model.config.is_local(0) && !model.config.is_local(1));
}

/// A model whose q, k and v of layer 0 are FP8, with scales per block, per row and one for all; `change` may
/// spoil its tensors.
fn fp8_folder(change: impl FnOnce(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>)) -> tempfile::TempDir {
    let mut c = config();
    for (key, value) in [
        ("hidden_size", json!(256)),
        ("head_dim", json!(tiny::HEAD_DIM)),
        ("num_hidden_layers", json!(1)),
        ("quantization_config", json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]})),
    ] {
        c[key] = value;
    }
    folder(c, |dir| {
        let widen = |n: usize| if n == tiny::HIDDEN { 256 } else { n };
        let layer = |t: &&(String, Vec<usize>, Vec<u8>)| !t.0.starts_with("model.layers.1.");
        let mut all = Vec::new();
        for (name, shape, _) in tensors().iter().filter(layer) {
            let mut shape = shape.clone();
            if name.contains("o_proj") || name.contains("down_proj") {
                shape[0] = 256;
            } else {
                let last = shape.len() - 1;
                shape[last] = widen(shape[last]);
            }
            let len = shape.iter().product::<usize>();
            if ["q_proj", "k_proj", "v_proj"].iter().any(|p| name.contains(p)) {
                // Codes 0x30 to 0x3f: 0.5 to 1.875 in steps that grow.
                all.push((
                    name.clone(),
                    Dtype::F8_E4M3,
                    shape.clone(),
                    (0..len).map(|i| 0x30 + (i % 16) as u8).collect(),
                ));
            } else {
                all.push((name.clone(), Dtype::BF16, shape, vec![0; 2 * len]));
            }
        }
        let rows = |part: &str| all.iter().find(|t| t.0.contains(part)).expect("a projection").2[0];
        let f32s = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        let name = |p: &str, suffix: &str| format!("model.layers.0.self_attn.{p}_proj.{suffix}");
        let k_rows = rows("k_proj");
        all.push((name("q", "weight_scale_inv"), Dtype::F32, vec![1, 2], f32s(vec![2.0, 4.0])));
        all.push((name("k", "weight_scale"), Dtype::BF16, vec![k_rows, 1], [0x80, 0x3f].repeat(k_rows)));
        all.push((name("v", "weight_scale"), Dtype::F32, vec![], f32s(vec![0.5])));
        all.push((name("v", "input_scale"), Dtype::F32, vec![], f32s(vec![7.0])));
        change(&mut all);
        let views = all.iter().map(|(n, d, s, b)| (n.clone(), TensorView::new(*d, s.clone(), b).expect("fits")));
        fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).expect("serialises"))
            .expect("writes");
    })
}

#[test]
fn fp8_codes_find_their_scales() {
    let model = Checkpoint::open(fp8_folder(|_| ()).path()).expect("opens");
    let codes = [0.5, 0.5625, 0.625];
    for (weight, at, scale) in [
        (LayerWeight::Q, 0, 2.0),
        (LayerWeight::Q, 128, 4.0),
        (LayerWeight::Q, 256, 2.0),
        (LayerWeight::K, 256, 1.0),
        (LayerWeight::V, 256 + 128, 0.5),
    ] {
        let view = model.tensor(WeightId::Layer(0, weight)).expect("a projection");
        assert_eq!((view.format, view.cols, view.stored().len()), (Format::F8, 256, view.stored_bytes()));
        assert_eq!(view.to_f32()[at..at + 3], codes.map(|c| c * scale), "{weight:?} {at}");
    }
    model.check_finite(1).expect("all finite");
    for (what, field) in [("none", "neither"), ("shape", "shape [3]"), ("nan", "NaN")] {
        let dir = fp8_folder(|all| {
            let scales = all.iter().position(|t| t.0.ends_with("q_proj.weight_scale_inv")).expect("scales");
            match what {
                "none" => drop(all.remove(scales)),
                "shape" => (all[scales].2, all[scales].3) = (vec![3], vec![0; 12]),
                _ => all.iter_mut().filter(|t| t.1 == Dtype::F8_E4M3).for_each(|t| t.3[5] = 0x7f),
            }
        });
        let message = match Checkpoint::open(dir.path()).and_then(|m| m.check_finite(1)) {
            Ok(()) => panic!("{what}: no error"),
            Err(e) => e.to_string(),
        };
        assert!(message.contains("q_proj.weight") || what == "nan", "{message}");
        assert!(message.contains(field), "{what}: {message}");
    }
}

#[test]
fn what_would_change_the_mathematics_is_refused() {
    for (key, value, field) in [
        ("architectures", json!(["MambaForCausalLM"]), "MambaForCausalLM"),
        ("architectures", json!("LlamaForCausalLM"), "architectures"),
        ("attention_bias", json!(true), "attention_bias"),
        ("quantization_config", json!({"bits": 4}), "quantization_config"),
        ("quantization_config", json!({"quant_method": "fp8", "fmt": "e5m2"}), "quantization_config"),
        ("hidden_act", json!("relu"), "hidden_act"),
        ("use_sliding_window", json!(true), "use_sliding_window"),
        ("final_logit_softcapping", json!(30.0), "final_logit_softcapping"),
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0}), "longrope"),
        ("rope_scaling", json!({"rope_type": "llama3"}), "factor"),
        ("num_hidden_layers", json!(-1), "num_hidden_layers"),
        ("num_hidden_layers", json!(1e9), "num_hidden_layers"),
        ("num_key_value_heads", json!(3), "num_key_value_heads"),
        ("hidden_size", json!(64), "model.embed_tokens.weight"),
        ("vocab_size", json!(263), "model.embed_tokens.weight"),
        ("tie_word_embeddings", json!(false), "lm_head.weight"),
        ("eos_token_id", json!(100_000), "eos_token_id"),
        ("rms_norm_eps", json!(0), "rms_norm_eps"),
    ] {
        let message = refusal(&folder(with(key, value.clone()), |_| ()));
        assert!(message.contains(field), "{key} = {value}: {message}");
    }
}

#[test]
fn shard_names_stay_in_the_folder() {
    for name in
        ["../b.safetensors", "/tmp/b.safetensors", "x//b.safetensors", "C:b.safetensors", "b\0.safetensors", "..", ""]
    {
        let message = refusal(&sharded(name));
        assert!(message.contains("weight_map") && message.contains("plain"), "{name:?}: {message}");
    }
    let long = format!("{}.safetensors", "b".repeat(4096));
    assert!(refusal(&sharded(&long)).len() < 400);
    assert!(refusal(&sharded("c.safetensors")).contains("c.safetensors is missing"));
    // A tensor listed for a shard that does not have it.
    assert!(refusal(&sharded("a.safetensors")).contains("not in its shard"));
}

#[cfg(unix)]
#[test]
fn links_out_of_the_folder_are_refused() {
    let outside = tempfile::tempdir().expect("a temporary folder");
    save(&outside.path().join("w"), &tensors());
    let link = |dir: &Path| {
        fs::remove_file(dir.join("model.safetensors")).expect("removes");
        std::os::unix::fs::symlink(outside.path().join("w"), dir.join("model.safetensors")).expect("links");
    };
    assert!(refusal(&folder(config(), link)).contains("leads out"));
    // As the hub cache does it: snapshots/REVISION/file -> ../../blobs/HASH.
    let hub = tempfile::tempdir().expect("a temporary folder");
    let (blobs, snapshot) = (hub.path().join("blobs"), hub.path().join("snapshots/abc"));
    fs::create_dir_all(&blobs).expect("creates");
    fs::create_dir_all(&snapshot).expect("creates");
    save(&blobs.join("1234"), &tensors());
    fs::write(snapshot.join("config.json"), config().to_string()).expect("writes");
    std::os::unix::fs::symlink("../../blobs/1234", snapshot.join("model.safetensors")).expect("links");
    Checkpoint::open(&snapshot).expect("a hub cache opens");
}

#[test]
fn bad_weight_files() {
    let weights =
        |bytes: Vec<u8>| folder(config(), |dir| fs::write(dir.join("model.safetensors"), bytes).expect("writes"));
    let header = |json: &str, data: usize| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    let good = fs::read(folder(config(), |_| ()).path().join("model.safetensors")).expect("reads");
    for (bytes, field) in [
        (vec![], "header"),
        (vec![0xff; 8], "header"),
        (good[..good.len() - 1].to_vec(), "header"),
        (good[..100].to_vec(), "header"),
        (header("{}", 0), "model.embed_tokens.weight"),
        (
            header(
                r#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}"#,
                2,
            ),
            "twice",
        ),
        (header(r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, 8), "I64"),
        (header(r#"{"a":{"dtype":"F16","shape":[0,9223372036854775807],"data_offsets":[0,0]}}"#, 0), "dimension of 0"),
    ] {
        let message = refusal(&weights(bytes));
        assert!(message.contains("model.safetensors") || message.contains(field), "{message}");
        assert!(message.contains(field), "{message} should name {field}");
    }
    let unused = folder(config(), |dir| {
        let mut all = tensors();
        all.push(("model.layers.0.self_attn.q_proj.bias".into(), vec![32], vec![0; 64]));
        save(&dir.join("model.safetensors"), &all);
    });
    assert!(refusal(&unused).contains("q_proj.bias"));
    let pickle = folder(config(), |dir| {
        fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).expect("renames");
    });
    assert!(refusal(&pickle).contains("pytorch_model.bin") && refusal(&pickle).contains("refused"));
    let nothing = folder(config(), |dir| fs::remove_file(dir.join("model.safetensors")).expect("removes"));
    assert!(refusal(&nothing).contains("missing"));
    let garbled = folder(config(), |dir| fs::write(dir.join("config.json"), "{").expect("writes"));
    assert!(refusal(&garbled).contains("config.json"));
}

/// A tokenizer.json with the tiny vocabulary, its added tokens flagged as Qwen 3 flags them.
fn tokenizer_json() -> Value {
    let (tokens, _, merges) = tiny::vocabulary();
    let vocab: serde_json::Map<String, Value> =
        tokens[..258].iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
    let added = |id: u32, special: bool| {
        json!({"id": id, "content": tokens[id as usize], "special": special, "normalized": false, "single_word": false,
               "lstrip": false, "rstrip": false})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [added(258, true), added(259, true), added(260, false), added(261, false)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

#[test]
fn tokenizer_and_template() {
    let dir = folder(config(), |dir| {
        fs::write(dir.join("tokenizer.json"), tokenizer_json().to_string()).expect("writes");
        let config = json!({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>",
                            "chat_template": [{"name": "default", "template": "{{ bos_token }}x{{ eos_token }}"}],
                            "added_tokens_decoder": {"258": {"content": "<|im_end|>"}}});
        fs::write(dir.join("tokenizer_config.json"), config.to_string()).expect("writes");
    });
    let model = Checkpoint::open(dir.path()).expect("opens");
    let t = model.tokenizer().expect("has a tokenizer");
    assert_eq!((t.vocab_size(), t.id_of("<think>"), t.id_of(" he")), (262, Some(260), Some(257)));
    let he = u32::from(b'h');
    assert_eq!(t.encode_with_special("he<think> he").expect("encodes"), [256, 260, 257]);
    let typed = t.encode("he<think>h").expect("encodes");
    assert!(!typed.contains(&260) && typed[0] == 256 && typed.last() == Some(&he), "{typed:?}");
    assert_eq!(t.decode(&typed), "he<think>h");
    assert!(t.is_special(258) && !t.is_special(260));
    assert_eq!(t.decode(&[256, 258, 260]), "he<think>");
    assert_eq!(t.decode_with_special(&[256, 258]), "he<|im_end|>");
    let template = model.chat_template().expect("reads").expect("has one");
    let pieces = template.render(&[], &Default::default()).expect("renders");
    assert_eq!(t.encode_pieces(&pieces).expect("encodes").first(), Some(&259));
    fs::write(dir.path().join("chat_template.jinja"), "y").expect("writes");
    assert_eq!(model.chat_template().expect("reads").expect("has one").source(), "y");
}

#[test]
fn crafted_tokenizers_are_errors() {
    let open = |change: &dyn Fn(&mut Value)| {
        let dir = folder(config(), |dir| {
            let mut json = tokenizer_json();
            change(&mut json);
            fs::write(dir.join("tokenizer.json"), json.to_string()).expect("writes");
        });
        let t = Checkpoint::open(dir.path()).expect("opens").tokenizer()?;
        t.encode("hello, a aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab").map(drop)
    };
    open(&|_| ()).expect("the good one works");
    let split =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    for (what, change) in [
        ("no vocabulary", &(|j: &mut Value| j["model"] = json!({})) as &dyn Fn(&mut Value)),
        ("a merge of unknown tokens", &|j| j["model"]["merges"] = json!(["xyz abc"])),
        ("a fixed length of 0", &|j| j["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0})),
        ("an unbalanced expression", &|j| j["pre_tokenizer"] = split("(")),
        ("a garbled map", &|j| j["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        ("no decoder", &|j| j["decoder"] = Value::Null),
        ("a huge id", &|j| j["added_tokens"][0]["id"] = json!(4_000_000_000u64)),
        ("an id beyond the embedding", &|j| j["added_tokens"][0]["id"] = json!(262)),
        ("not an object", &|j| *j = json!([])),
    ] {
        let message = open(change).expect_err(what).to_string();
        assert!(message.contains("tokenizer"), "{what}: {message}");
    }
}
