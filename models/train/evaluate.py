"""Measures a model folder on the held-out sets, with PyTorch.

`python evaluate.py ../target` prints accuracy by kind and by depth with free
thinking; `--think off` forbids thinking; `--system "Think briefly."` adds a
system prompt; `--cut 0.5` closes the think block after that share of its
tokens. `--wrong FILE` keeps the transcripts of wrong answers.
"""

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch
from tokenizers import Tokenizer

from data import render_prompt
from generate import greedy
from model import load_folder

HERE = Path(__file__).parent
SETS = HERE.parent.parent / "examples/data"


def extract(text):
    """What follows the last `Answer:` after the thinking."""
    tail = text.split("</think>")[-1]
    return tail.split("Answer:")[-1].strip() if "Answer:" in tail else None


def is_right(problem, text):
    found = extract(text)
    if found is None:
        return False
    if problem["matcher"] == "number":
        try:
            return float(found.rstrip(".")) == float(problem["answer"])
        except ValueError:
            return False
    return found.lower().rstrip(".") == problem["answer"].lower()


def loops(ids, period=64, repeats=4):
    """True when the end of the text repeats itself: the last tokens, `repeats` times over."""
    for size in range(1, period + 1):
        tail = ids[-size * repeats :]
        if len(tail) == size * repeats and tail == tail[:size] * repeats and size * repeats >= 24:
            return True
    return False


def run(model, tokenizer, problems, think=True, system=None, limit=3000, rows=96):
    """Adds `text`, `ids`, `right`, `thinking` (tokens) to each problem."""
    stop, close = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("</think>")
    order = sorted(range(len(problems)), key=lambda i: {"trivial": 0, "easy": 1, "middle": 2, "hard": 3}[problems[i]["depth"]])
    for at in range(0, len(order), rows):
        part = [problems[i] for i in order[at : at + rows]]
        prompts = []
        for p in part:
            messages = ([("system", system)] if system else []) + [("user", p["question"])]
            prompts.append(tokenizer.encode(render_prompt(messages, think), add_special_tokens=False).ids)
        for p, prompt, ids in zip(part, prompts, greedy(model, prompts, limit, stop)):
            p["prompt"], p["ids"] = prompt, ids
            p["text"] = tokenizer.decode(ids, skip_special_tokens=True)
            p["right"] = is_right(p, p["text"])
            p["ended"] = ids[-1] == stop
            p["loop"] = not p["ended"] and loops(ids)
            p["thinking"] = ids.index(close) if close in ids else (len(ids) if think else 0)
    return problems


def run_cut(model, tokenizer, problems, share):
    """Closes the think block of each finished chain after `share` of its tokens and asks for the answer."""
    stop = tokenizer.token_to_id("<|im_end|>")
    close = tokenizer.token_to_id("</think>")
    for at in range(0, len(problems), 96):
        part = problems[at : at + 96]
        prompts = [p["prompt"] + p["ids"][: max(2, int(share * p["thinking"]))] + [close] for p in part]
        for p, ids in zip(part, greedy(model, prompts, 80, stop)):
            p["text"] = tokenizer.decode(ids, skip_special_tokens=True)
            p["right"] = is_right(p, p["text"])
    return problems


def table(problems):
    lines, groups = [], defaultdict(list)
    for p in problems:
        for name in (f"kind {p['kind']}", f"depth {p['depth']}", f"both {p['kind']}.{p['depth']}", "overall"):
            groups[name].append(p)
    ranks = {n: i for i, n in enumerate(["overall", "depth", "kind", "both"])}
    for name in sorted(groups, key=lambda n: (ranks[n.split()[0]], n)):
        g = groups[name]
        thinking = sorted(p["thinking"] for p in g)
        lines.append(f"{name:24s} n {len(g):4d}  right {100 * sum(p['right'] for p in g) / len(g):5.1f}%  thinking mean {statistics.mean(thinking):7.1f} median {thinking[len(g) // 2]:5d} max {thinking[-1]:5d}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--data", default=str(SETS / "heldout.jsonl"))
    parser.add_argument("--think", choices=["on", "off"], default="on")
    parser.add_argument("--system")
    parser.add_argument("--cut", type=float)
    parser.add_argument("--limit", type=int, default=3000)
    parser.add_argument("--take", type=int, help="only that many problems, chosen by seed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wrong")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(HERE.parent / "target/tokenizer.json"))
    model = load_folder(args.folder)
    problems = [json.loads(line) for line in open(args.data)]
    if args.take:
        problems = random.Random(3).sample(problems, args.take)
    began = time.time()
    run(model, tokenizer, problems, args.think == "on", args.system, args.limit)
    if args.cut is not None:
        run_cut(model, tokenizer, problems, args.cut)
    lines = table(problems)
    print("\n".join(lines))
    print(f"loops {sum(p['loop'] for p in problems)}, unfinished {sum(not p['ended'] for p in problems)}, {time.time() - began:.0f} s")
    if args.wrong:
        with open(args.wrong, "w") as f:
            for p in problems:
                if not p["right"]:
                    f.write(f"##### {p['kind']}.{p['depth']} {p['question']}\nexpected {p['answer']}\n{p['text']}\n\n")
    if args.json:
        keep = ("id", "kind", "depth", "right", "thinking", "loop", "ended")
        Path(args.json).write_text(json.dumps([{k: p[k] for k in keep} for p in problems]))


if __name__ == "__main__":
    main()
