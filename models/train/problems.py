"""The problem generator: every kind, every depth, one seed.

`python problems.py` prints a sample of each kind with its reference chain.
"""

import random
import sys

import kinds_arith as arith
import kinds_number as number
import kinds_things as things
from split import is_heldout

ALL = ("trivial", "easy", "middle", "hard")
LATER = ("easy", "middle", "hard")

KINDS = {
    "fact": (number.fact, ("trivial", "easy")),
    "add": (arith.add, ALL),
    "sub": (arith.sub, ALL),
    "mul": (arith.mul, ALL),
    "div": (arith.div, ALL),
    "percent": (number.percent, ALL),
    "gcd": (number.gcd, LATER),
    "modpow": (number.modpow, LATER),
    "base": (number.base, LATER),
    "sort": (things.sort, LATER),
    "count": (things.count, LATER),
    "lineq": (number.lineq, LATER),
    "clock": (things.clock, LATER),
    "calendar": (things.calendar, LATER),
    "word": (things.word, LATER),
}


def kinds_at(depth):
    return [kind for kind, (_, depths) in KINDS.items() if depth in depths]


def generate(rng, depth, heldout, kind=None):
    """A problem of this depth on the asked-for side of the split."""
    kind = kind or rng.choice(kinds_at(depth))
    make, depths = KINDS[kind]
    assert depth in depths, (kind, depth)
    while True:
        problem = make(rng, depth)
        assert problem.kind == kind and problem.depth == depth, problem
        if is_heldout(problem.key) == heldout:
            return problem


if __name__ == "__main__":
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    for kind, (_, depths) in KINDS.items():
        for depth in depths:
            p = generate(rng, depth, False, kind)
            print(f"--- {kind} {depth} [{p.key}]\n{p.question}\n" + "\n".join(p.work) + f"\n=> {p.answer}")
