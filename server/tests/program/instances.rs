//! Several instances from a configuration file, what an answer cost, and lengths that outlive the program.

use crate::common::ponder;
use ponder_tests::tiny_model::hugging_face;
use safetensors::Dtype;

#[test]
fn a_prompt_goes_to_the_instance_that_suits_its_length() {
    let (small, large) = (hugging_face("llama", Dtype::F32), hugging_face("qwen2", Dtype::F32));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ponder.toml");
    let config = format!(
        "[[instances]]\nname = \"large\"\nmodel = {:?}\nbackend = \"cpu\"\n\
         [[instances]]\nname = \"small\"\nmodel = {:?}\nbackend = \"cpu\"\nup_to = 60\nmax_model_len = 64\n",
        large.arg(),
        small.arg()
    );
    std::fs::write(&path, config).unwrap();
    let file = path.to_str().unwrap();
    let flags = ["run", "--config", file, "--raw", "--max-tokens", "8", "--ignore-eos", "--json"];
    let ask = |more: &[&str]| ponder(&[&flags[..], more].concat());
    let short = ask(&["Hello"]).json();
    assert_eq!(short["instance"], "small");
    assert_eq!(ask(&["Hello, hello, hello, hello, hello, hello, hello, hello, hello"]).json()["instance"], "large");
    let named = ask(&["--instance", "large", "Hello"]).json();
    assert_eq!(named["instance"], "large");
    assert_ne!(named["token_ids"], short["token_ids"], "they are two models");
    assert!(ask(&["--instance", "huge", "Hello"]).stderr.contains("\"huge\" is none of large, small"));
    // The same answer as without the others.
    let model = small.arg();
    let alone = ["run", "--model", &model, "--backend", "cpu", "--raw", "--max-tokens", "8", "--ignore-eos", "--json"];
    let alone = ponder(&[&alone[..], &["Hello"]].concat()).json();
    assert_eq!(alone["token_ids"], short["token_ids"]);
    std::fs::write(&path, "[[instances]]\nname = \"a\"\nmodel = \"bundled\"\nup_too = 3\n").unwrap();
    ask(&["Hello"]).refused("a field that is not there", &["ponder.toml", "line 4", "up_too"]);
}

#[test]
fn an_answer_is_accounted_for_and_its_length_learnt() {
    let model = hugging_face("llama", Dtype::F32);
    let (path, folder) = (model.arg(), tempfile::tempdir().unwrap());
    let stats = folder.path().join("lengths.json");
    let file = stats.to_str().unwrap();
    let flags = ["run", "--model", &path, "--backend", "cpu", "--raw", "--length-stats", file, "--json"];
    let ask = || ponder(&[&flags[..], &["--max-tokens", "20", "--ignore-eos", "Hello"]].concat());
    let json = ask().json();
    assert_eq!((&json["answer_tokens"], &json["recomputed_tokens"]), (&20.into(), &0.into()));
    let cost = |name: &str| json["cost"][name].as_f64().unwrap();
    assert!(cost("device_ms") > 0.0 && cost("device_ms") <= json["timings"]["total_ms"].as_f64().unwrap());
    assert!(cost("kv_byte_seconds") > 0.0 && cost("queue_ms") >= 0.0);
    let first = std::fs::read_to_string(&stats).unwrap();
    ask().json();
    let second = std::fs::read_to_string(&stats).unwrap();
    assert_ne!(first, second, "the second run learnt on top of the first");
    std::fs::write(&stats, "{}").unwrap();
    ask().refused("damaged statistics", &["survival curves"]);
}
