"""Writes examples/data/heldout.jsonl and mixed.jsonl from the held-out side of the split."""

import json
import random
from pathlib import Path

from problems import KINDS, generate

OUT = Path(__file__).parent.parent.parent / "examples/data"
PER_CELL = {"trivial": 20, "easy": 15, "middle": 18, "hard": 15}
MIXED = {"trivial": 90, "easy": 90, "middle": 90, "hard": 30}


def record(problem, number):
    return {
        "id": f"{problem.kind}-{problem.depth}-{number}", "kind": problem.kind, "depth": problem.depth,
        "question": problem.question, "answer": problem.answer, "matcher": problem.matcher,
    }


def write(name, rows):
    with open(OUT / name, "w") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(len(rows), name)


def take(rng, taken, depth, kind=None):
    """A problem whose operands this set does not have yet; tiny ranges may run out."""
    for _ in range(300):
        problem = generate(rng, depth, True, kind)
        if problem.key not in taken:
            taken.add(problem.key)
            return problem
    return None


def main():
    rng, taken, rows = random.Random(2024), set(), []
    for kind, (_, depths) in KINDS.items():
        for depth in depths:
            for _ in range(PER_CELL[depth]):
                problem = take(rng, taken, depth, kind)
                if problem:
                    rows.append(record(problem, len(rows)))
    write("heldout.jsonl", rows)
    mixed, taken = [], set()
    for depth, count in MIXED.items():
        for _ in range(count):
            mixed.append(take(rng, taken, depth))
    rng.shuffle(mixed)
    write("mixed.jsonl", [record(p, i) for i, p in enumerate(mixed)])


if __name__ == "__main__":
    main()
