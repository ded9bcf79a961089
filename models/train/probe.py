"""A quick look at a half-trained model: how far its greedy tokens follow the reference chain.

For each kind and depth: the share of held-out problems whose short chain and
answer the model would write token for token, and the tokens it misses most.
One forward pass, no generation, so it costs seconds; `evaluate.py` is the
measure that counts.
"""

import random
import sys
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer

import chains
from data import render_prompt
from model import load_folder, mixed_precision
from problems import KINDS, generate

HERE = Path(__file__).parent


def main(folder, effort="low", count=16, kinds=None):
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(HERE.parent / "target/tokenizer.json"))
    model = load_folder(folder)
    rng = random.Random(9)
    for kind in kinds or KINDS:
        for depth in KINDS[kind][1]:
            exact, missed, total = 0, Counter(), 0
            rows = []
            for _ in range(count):
                p = generate(rng, depth, True, kind)
                system = {"low": "Think briefly.", "none": None, "full": None}[effort]
                messages = ([("system", system)] if system else []) + [("user", p.question)]
                prompt = render_prompt(messages, effort != "none")
                chain = "" if effort == "none" else "<think>\n" + "".join(t for t, _ in chains.think_segments(rng, p, effort, 0)) + "</think>\n\n"
                a = tokenizer.encode(prompt, add_special_tokens=False).ids
                b = tokenizer.encode(chain + chains.answer_text(p), add_special_tokens=False).ids + [tokenizer.token_to_id("<|im_end|>")]
                rows.append((a, b))
            width = max(len(a) + len(b) for a, b in rows)
            ids = torch.zeros(len(rows), width, dtype=torch.long)
            for i, (a, b) in enumerate(rows):
                ids[i, : len(a) + len(b)] = torch.tensor(a + b)
            with torch.no_grad(), mixed_precision():
                guess = model(ids[:, :-1]).argmax(-1)
            for i, (a, b) in enumerate(rows):
                wrong = [j for j in range(len(b)) if guess[i, len(a) - 1 + j].item() != b[j]]
                exact += not wrong
                total += len(b)
                for j in wrong[:1]:
                    missed[tokenizer.decode(b[max(0, j - 12) : j]) + " >>" + tokenizer.decode([b[j]])] += 1
            example = missed.most_common(1)[0][0].replace("\n", "|") if missed else ""
            print(f"{kind:9s}{depth:8s} exact {100 * exact / count:5.1f}%  {total / count:6.1f} tokens  {example}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *(sys.argv[2:3] or ["low"]), *map(int, sys.argv[3:4]), sys.argv[4:] or None)
