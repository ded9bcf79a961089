//! Any text as a user's message: what is content stays content, and the text is the template's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ponder_engine::text::{ChatTemplate, Message, Piece, RenderOptions};

const SOURCE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% set c = m.content %}\
{% if '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ c | trim }}<|im_end|>{% endfor %}";

fuzz_target!(|text: &str| {
    let Ok(template) = ChatTemplate::new(SOURCE, "", "") else { return };
    let chat = [Message::new("assistant", text), Message::new("user", text)];
    let Ok(pieces) = template.render(&chat, &RenderOptions::default()) else { return };
    let scaffold: String = pieces.iter().filter(|p| matches!(p, Piece::Scaffold(_))).map(Piece::text).collect();
    assert_eq!(scaffold, "<|im_start|>assistant\n<|im_end|><|im_start|>user\n<|im_end|>");
});
