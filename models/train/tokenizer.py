"""The shared tokenizer: a small byte-level BPE in which every digit is a token.

`python tokenizer.py OUT_DIR` trains it on generated text and writes
tokenizer.json and tokenizer_config.json (with the chat template).
"""

import json
import random
import re
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import chains
from problems import KINDS, generate

VOCAB = 768
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
THINK = ["<think>", "</think>"]
# One digit; a word with its space; newlines; punctuation with its space; other spaces.
PIECES = r"\p{N}| ?\p{L}+|[\r\n]+| ?[^\s\p{L}\p{N}]+|\s+"

# Qwen3's behaviour in plain loops: past turns lose their thinking; the model opens
# <think> itself, unless thinking is forbidden, when the template writes an empty block.
CHAT_TEMPLATE = """{%- for message in messages %}
    {%- if message.role == 'assistant' and '</think>' in message.content %}
        {{- '<|im_start|>assistant\\n' + message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def corpus(samples=12000, seed=1):
    """Questions and one full chain each. Capital strings are left out, so that letters to count stay single."""
    rng = random.Random(seed)
    for i in range(samples):
        kind = rng.choice(list(KINDS))
        depth = rng.choice(KINDS[kind][1])
        p = generate(rng, depth, False, kind)
        effort = rng.choice(["full", "medium", "low"])
        think = "".join(t for t, _ in chains.think_segments(rng, p, effort))
        question = chains.casual(rng, p.question)
        system = chains.system_prompt(rng, effort) or ""
        text = f"system\n{system}\nuser\n{question}\nassistant\n\n\n{think}\n\n{chains.answer_text(p)}"
        yield re.sub(r"[A-Z]{2,}|\b[A-Z]\b", "0", text)
    from chat import TALK
    for question, answer in TALK:
        yield from [question, answer] * 60


def build():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL) - len(THINK),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in THINK])
    assert tokenizer.get_vocab_size() == VOCAB, tokenizer.get_vocab_size()
    return tokenizer


def write_config(folder, tokenizer):
    added = {
        str(tokenizer.token_to_id(t)): {"content": t, "lstrip": False, "normalized": False, "rstrip": False,
                                        "single_word": False, "special": t in SPECIAL}
        for t in SPECIAL + THINK
    }
    config = {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
        "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "model_max_length": 4096, "pad_token": "<|pad|>",
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None,
    }
    (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    tokenizer.save(str(out / "tokenizer.json"))
    write_config(out, tokenizer)
    print(f"{VOCAB} tokens in {out}")
