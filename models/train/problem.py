"""What one problem is."""

from dataclasses import dataclass


@dataclass
class Problem:
    kind: str
    depth: str       # trivial | easy | middle | hard: how much work the question needs
    key: str         # operands; decides the split (split.py)
    question: str
    answer: str
    work: list       # the reference chain, one pass, as lines
    matcher: str = "number"   # number | exact | choice


def phrase(rng, forms, **fields):
    """One of several wordings of the same question."""
    return rng.choice(forms).format(**fields)
