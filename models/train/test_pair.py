"""Checks of the generator, the split, the tokenizer and the chat template. `pytest test_pair.py`, seconds."""

import json
import random
import re
from pathlib import Path

import jinja2
from tokenizers import Tokenizer

import chains
from chat import follow_up
from data import Sampler, render_prompt
from evaluate import extract, is_right, loops
from problems import KINDS, generate
from split import is_heldout

HERE = Path(__file__).parent
TARGET = HERE.parent / "target"
DATA = HERE.parent.parent / "examples/data"
TOKENIZER = Tokenizer.from_file(str(TARGET / "tokenizer.json"))


def many(count=40, heldout=False, seed=11):
    rng = random.Random(seed)
    for kind, (_, depths) in KINDS.items():
        for depth in depths:
            for _ in range(count if depth != "easy" or not heldout else 3):
                yield generate(rng, depth, heldout, kind)


def simple_value(text):
    """Python's own value of `12+7-3` and the like."""
    assert re.fullmatch(r"[\d+\-*/ ]+", text), text
    return eval(text)


def test_sums_in_questions_agree_with_python():
    seen = 0
    for p in many(200):
        m = re.search(r"\d+( ?[-+*] ?\d+)+", p.question)
        if p.kind in ("add", "sub", "mul") and m:
            seen += 1
            assert simple_value(m.group()) == int(p.answer), p
    assert seen > 500


def test_every_equation_in_a_chain_holds():
    """Each `a+b=c` of plain numbers, wherever it stands in the work."""
    seen = 0
    for p in many():
        for line in p.work:
            for left, right in re.findall(r"(?<![\d%:;x)])(\d+(?:[-+*]\d+)+)=(\d+)(?![\d*+x-])", line):
                if p.kind in ("mul", "gcd") and re.search(r"\*.*\+", left) or "%" in line or "h" in line:
                    continue  # running forms such as 7*6=42+3=45 are covered by steps.py's own asserts
                seen += 1
                assert simple_value(re.sub(r"\b0+(\d)", r"\1", left)) == int(right), (p, line)
    assert seen > 3000


def test_the_answer_stands_in_the_work():
    for p in many():
        tail = "".join(p.work[-2:])
        for part in p.answer.replace(" remainder ", ",").split(","):
            assert part.strip() in tail, p


def test_split_is_by_operand():
    train = {p.key for p in many(200)}
    held = {p.key for p in many(20, heldout=True)}
    assert len(train) > 2000 and not train & held
    assert not any(map(is_heldout, train)) and all(map(is_heldout, held))


def test_heldout_files():
    rows = [json.loads(line) for line in open(DATA / "heldout.jsonl")]
    assert len(rows) >= 600 and len({r["id"] for r in rows}) == len(rows)
    assert {r["kind"] for r in rows} == set(KINDS)
    mixed = [json.loads(line) for line in open(DATA / "mixed.jsonl")]
    share = lambda *depths: sum(r["depth"] in depths for r in mixed) / len(mixed)
    assert share("trivial", "easy") == 0.6 and share("middle") == 0.3 and share("hard") == 0.1


def test_tokenizer():
    for text in ["What is 15% of 80?", "héé 日本 👍 ٣٤ \t\r\n x", "<think>\n1234567890", "\x00\x7f   ", "a\u0301 ﷽"]:
        ids = TOKENIZER.encode(text, add_special_tokens=False).ids
        assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    digits = TOKENIZER.encode("a1234 56=789", add_special_tokens=False).tokens
    assert [t for t in digits if any(c.isdigit() for c in t)] == list("123456789")
    for token in ("<think>", "</think>", "<|im_end|>"):
        assert TOKENIZER.encode(token, add_special_tokens=False).ids == [TOKENIZER.token_to_id(token)]


def test_chat_template():
    config = json.loads((TARGET / "tokenizer_config.json").read_text())
    template = jinja2.Environment().from_string(config["chat_template"])
    turns = [("system", "Think briefly."), ("user", "What is 2+2?"), ("assistant", "Answer: 4"), ("user", "And plus 3?")]
    messages = [{"role": r, "content": c} for r, c in turns]
    for think in (True, False):
        text = template.render(messages=messages, add_generation_prompt=True, enable_thinking=think)
        assert text == render_prompt(turns, think)
    messages[2]["content"] = "<think>\n2+2=4\n</think>\n\nAnswer: 4"
    assert template.render(messages=messages, add_generation_prompt=True) == render_prompt(turns)


def test_wrong_digits_carry_no_loss():
    rng, slips = random.Random(1), 0
    for p in many(10):
        segments = chains.think_segments(rng, p, "full", slips=0.5)
        slips += sum(not trained for _, trained in segments)
        right = "".join(t for t, trained in segments if trained)
        assert p.answer in right
    assert slips > 100


def test_samples():
    sampler = Sampler(TOKENIZER, 3)
    for i in range(300):
        ids, weights = sampler.sample(i, 0.9)
        assert len(ids) == len(weights) <= 2048 and ids[-1] == sampler.end and weights[-1] >= 1.0
        assert sampler.sample(i, 0.9) == (ids, weights)


def test_follow_up():
    rng = random.Random(2)
    for before in range(0, 9999, 97):
        assert int(follow_up(rng, str(before)).answer) >= 0


def test_marking():
    p = {"matcher": "number", "answer": "12"}
    assert is_right(p, "<think>\nAnswer: 9</think>\n\nAnswer: 12") and not is_right(p, "Answer: 13") and not is_right(p, "12")
    assert extract("no") is None
    assert loops([1, 2, 3] * 20) and not loops(list(range(90)))


def test_cached_generation_is_the_plain_forward_pass():
    """Rows of different length in one batch, against the whole sequence alone, without a cache."""
    import torch

    from generate import greedy
    from model import DRAFT, Llama

    torch.manual_seed(0)
    model = Llama(DRAFT).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)  # sharper: no near-ties
    prompts = [[5, 9, 200, 31], [7], [300, 2, 2, 2, 90, 41, 17]]
    for prompt, out in zip(prompts, greedy(model, prompts, 12, stop=-1)):
        with torch.no_grad():
            whole = model(torch.tensor([prompt + out])).argmax(-1)[0].tolist()
        assert out == whole[len(prompt) - 1 : -1]
