"""Questions with the thinking that they need, for `ponder fit`: depth, and tokens of one pass of work.

`python label.py > labelled.jsonl`, then `ponder fit --data labelled.jsonl --out ../target/depth.json`. The shares
of depths are those of the mixed workload; operands are from the training side of the split.
"""

import json
import random

from tokenizers import Tokenizer

from chains import casual
from chat import TALK
from problems import generate
from pathlib import Path

SHARES = {"trivial": 30, "easy": 30, "middle": 30, "hard": 10}
COUNT = 6000


def main():
    rng = random.Random("labels")
    tokenizer = Tokenizer.from_file(str(Path(__file__).parent.parent / "target/tokenizer.json"))
    for i in range(COUNT):
        if i % 80 == 0:
            print(json.dumps({"question": rng.choice(TALK)[0], "depth": "trivial", "thinking_tokens": 12}))
        depth = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
        problem = generate(rng, depth, False)
        # The work and the newline before it.
        tokens = len(tokenizer.encode("\n" + "\n".join(problem.work) + "\n", add_special_tokens=False).ids)
        print(json.dumps({"question": casual(rng, problem.question), "depth": depth, "thinking_tokens": tokens}))


if __name__ == "__main__":
    main()
