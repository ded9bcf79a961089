"""From a problem to a transcript: how much the model thinks, and its habits.

Efforts
  full    the default. The work, then several checks of the same work. Real
          reasoning models over-check; this one does so on purpose and in a
          regular way, so that budgets have something to save.
  medium  the work and one check.
  low     the work alone; asked for by the system prompt.
  none    an empty think block, written by the chat template.
Slips: now and then a line goes wrong and is repaired at once, or a check
finds another answer. The wrong digits carry no loss: the model learns to see
and repair a slip, not to make one.

A transcript is a list of segments (text, trained). Segment borders lie next to
digits or newlines, where the tokenizer always splits.
"""

import re

CHECKS = [
    ("Wait, let me check.", "Yes, {a}."),
    ("Hmm, let me check again.", "Again {a}."),
    ("Let me do it once more.", "Still {a}."),
    ("One more time to be sure.", "Same {a}."),
    ("A last check.", "It stays {a}."),
]
USUAL_CHECKS = {"trivial": 4, "easy": 4, "middle": 2, "hard": 1}
LONGEST = 1500  # characters; a chain longer than this gets fewer checks

# Whole sentences are those of the engine's efforts and of its `auto` (engine/src/reason/).
LOW = [
    "Reasoning effort: low", "Think briefly.", "Keep your reasoning short.",
    "Use as little reasoning as possible.", "Answer with minimal reasoning.",
    "Think in one or two short lines at most, then answer.",
    "Think briefly: only the steps that are needed, without checking them twice. Then answer.",
    "Think only as long as the question needs, then answer.",
    "This is an easy question: think in a few short lines, then answer.",
    "Think step by step, without repeating checks, then answer.",
    "This is a hard question: work it out step by step, once, then answer.",
]
MEDIUM = ["Reasoning effort: medium", "This is a hard question: think carefully, then answer."]
PLAIN = [
    "You are a helpful assistant.", "You are Ponder, a careful assistant.", "Reasoning effort: high", "Think carefully.",
    "Think carefully and check the result before you answer.",
    "Think as long as it takes; consider other ways and check every step before you answer.",
]


def system_prompt(rng, effort):
    hint = {"low": LOW, "medium": MEDIUM}.get(effort)
    if hint is None:
        return None if rng.random() < 0.6 else rng.choice(PLAIN)
    hint = rng.choice(hint)
    return hint if rng.random() < 0.75 else PLAIN[rng.randint(0, 1)] + rng.choice([" ", "\n", "\n\n"]) + hint


def _wrong(rng, digits):
    """The same number with one digit changed."""
    i = rng.randrange(len(digits))
    other = rng.choice([d for d in "0123456789" if d != digits[i]])
    return digits[:i] + other + digits[i + 1:]


def work_segments(rng, lines, slip_chance):
    """The lines; perhaps one of them goes wrong first and is repaired."""
    slip_at = rng.randrange(len(lines)) if rng.random() < slip_chance else -1
    segments = []
    for i, line in enumerate(lines):
        tail = re.search(r"\d+$", line)
        if i == slip_at and tail:
            segments += [(line[:tail.start()], True), (_wrong(rng, tail.group()), False), ("\nWait, that is wrong.\n", True)]
        segments.append((line + "\n", True))
    return segments


def _claim(rng, problem, slip):
    """`So it is 42.`, or with a slip the wrong number, unlearned."""
    if not slip or not problem.answer.isdigit():
        return [(f"So it is {problem.answer}.\n", True)], None
    wrong = _wrong(rng, problem.answer)
    return [("So it is ", True), (wrong, False), (".\n", True)], wrong


def check_count(rng, problem, effort):
    if effort == "medium":
        return 1
    usual = USUAL_CHECKS[problem.depth] + rng.choice([-1, 0, 0, 0, 0, 0, 0, 1])
    size = sum(len(line) + 1 for line in problem.work) + len(problem.answer)
    return max(1, min(usual, len(CHECKS), LONGEST // size))


def think_segments(rng, problem, effort, slips=0.06):
    """What stands inside the think block, after its first newline."""
    if effort == "low":
        return work_segments(rng, problem.work, slips / 2)
    segments = []
    if effort == "full" and problem.depth in ("trivial", "easy"):
        segments.append((f"The question is: {problem.question}\n", True))
    segments += work_segments(rng, problem.work, slips)
    claim, wrong = _claim(rng, problem, rng.random() < slips)
    segments += claim
    for start, end in CHECKS[:check_count(rng, problem, effort)]:
        segments.append((start + "\n", True))
        segments += work_segments(rng, problem.work, slips / 2)
        if wrong:
            segments.append((f"That gives {problem.answer}, not {wrong}. So it is {problem.answer}.\n", True))
            wrong = None
        else:
            segments.append((end.format(a=problem.answer) + "\n", True))
    if effort == "full":
        segments.append((f"I am sure: {problem.answer}.\n", True))
    return segments


def answer_text(problem):
    return f"Answer: {problem.answer}"


def casual(rng, question):
    """Questions as people type them: now and then no capital, no full stop."""
    if rng.random() < 0.06:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.06 and question[-1] in ".?":
        question = question[:-1]
    return question
