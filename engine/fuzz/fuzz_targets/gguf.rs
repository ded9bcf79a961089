//! Any bytes as a GGUF file: the reader, the configuration, the placing of weights, the tokenizer and the
//! chat template answer with a value or an error. A panic, an overrun or a large allocation is a finding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ponder_engine::checkpoint::{Checkpoint, gguf::Gguf};

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::read(bytes) else { return };
    for (_, value) in gguf.entries(bytes) {
        let _ = value.to_string();
    }
    for (_, tensor) in gguf.tensors(bytes) {
        assert!(bytes.get(tensor.range.clone()).is_some());
    }
    let Ok(file) = tempfile::NamedTempFile::new() else { return };
    if std::fs::write(file.path(), bytes).is_err() {
        return;
    }
    if let Ok(model) = Checkpoint::open(file.path()) {
        let _ = model.chat_template();
        if let Ok(tokenizer) = model.tokenizer() {
            let ids = tokenizer.encode("Hello, 1234 wörld\n").unwrap_or_default();
            let _ = tokenizer.decode(&ids);
        }
    }
});
