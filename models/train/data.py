"""Samples for training: transcripts as token ids with a weight for each.

Sample i is made from its own seed, so a resumed run sees exactly the samples
that an unbroken one would have seen.
"""

import random

import chains
from chat import TALK, follow_up
from problems import generate, kinds_at

PROMPT_WEIGHT = 0.0

# Shares by phase of training (see `mix_at`): how deep, and how much thinking.
SHORT = {
    "depth": {"trivial": 18, "easy": 34, "middle": 36, "hard": 12},
    "effort": {"low": 66, "medium": 4, "full": 2, "cut": 4, "none": 24},
}
LONG = {
    "depth": {"trivial": 9, "easy": 15, "middle": 30, "hard": 46},
    "effort": {"low": 44, "medium": 8, "full": 20, "cut": 8, "none": 20},
}


def mix_at(progress, short_until=0.45, long_from=0.75):
    """From short chains to long ones. A check copies the work above it, which is soon learnt and takes most of a
    long chain's tokens; the work itself, which is what must be learnt, takes most of a short one's."""
    t = min(1.0, max(0.0, progress - short_until) / max(1e-9, long_from - short_until))
    return {name: {k: (1 - t) * SHORT[name][k] + t * LONG[name][k] for k in SHORT[name]} for name in SHORT}


def draw(rng, shares):
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def render_prompt(messages, think=True):
    """The chat template (tokenizer.py), in Python; test_pair.py holds the two together."""
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return text + "<|im_start|>assistant\n" + ("" if think else "<think>\n\n</think>\n\n")


class Sampler:
    def __init__(self, tokenizer, seed, longest=2048, kind_weights=None, curriculum=(0.45, 0.75)):
        self.tokenizer, self.seed, self.longest = tokenizer, seed, longest
        self.kind_weights, self.curriculum = kind_weights or {}, curriculum
        self.end = tokenizer.token_to_id("<|im_end|>")

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def sample(self, index, progress):
        """(ids, weights): weight w[i] is the weight of predicting ids[i]."""
        rng = random.Random(f"{self.seed}:{index}")
        while True:
            ids, weights = self._sample(rng, mix_at(progress, *self.curriculum))
            if len(ids) <= self.longest:
                return ids, weights

    def _sample(self, rng, mix):
        if rng.random() < 0.012:
            return self._talk(rng)
        effort, depth = draw(rng, mix["effort"]), draw(rng, mix["depth"])
        if effort == "none" and rng.random() < 0.85:
            depth = rng.choices(["trivial", "easy"], weights=[4, 1])[0]
        problem, messages = self._conversation(rng, depth)
        style = rng.choice(["full", "full", "low", "medium"]) if effort == "cut" else effort
        system = chains.system_prompt(rng, style if effort != "none" else rng.choice(["full", "low"]))
        if system is not None:
            messages = [("system", system)] + messages
        prompt = self.ids(render_prompt(messages, think=effort != "none"))
        ids, weights = list(prompt), [PROMPT_WEIGHT] * len(prompt)
        if effort != "none":
            self._think(rng, problem, style, effort == "cut", ids, weights)
        answer = self.ids(chains.answer_text(problem)) + [self.end]
        # A guess without a chain has few tokens to learn from, and all of the work is in them.
        return ids + answer, weights + [1.0 if effort != "none" else 2.0] * len(answer)

    def _think(self, rng, problem, style, cut, ids, weights):
        def put(text, weight):
            new = self.ids(text)
            ids.extend(new)
            weights.extend([weight] * len(new))
        put("<think>\n", 1.0)
        start = len(ids)
        for text, trained in chains.think_segments(rng, problem, style):
            put(text, 1.0 if trained else 0.0)
        if not cut:
            put("</think>\n\n", 1.0)
            return
        # Closed early: by a budget, anywhere, half of the time within the first pass.
        first = len(self.ids("\n".join(problem.work)))
        reach = min(len(ids), start + first + 8) if rng.random() < 0.5 else len(ids)
        at = rng.randint(start, reach)
        del ids[at:], weights[at:]
        put(rng.choice(["", "\n", "\n\nI have to answer now.\n"]) + "</think>", 0.0)
        put("\n\n", 1.0)

    def _conversation(self, rng, depth):
        problem = self._problem(rng, depth)
        messages = []
        if rng.random() < 0.08:
            before = self._problem(rng, rng.choice(["trivial", "easy", "middle"]))
            messages = [("user", before.question), ("assistant", chains.answer_text(before))]
            if before.answer.isdigit() and int(before.answer) < 10000 and rng.random() < 0.5:
                problem = follow_up(rng, before.answer)
        return problem, messages + [("user", chains.casual(rng, problem.question))]

    def _problem(self, rng, depth):
        kinds = kinds_at(depth)
        kind = rng.choices(kinds, weights=[self.kind_weights.get(f"{k}.{depth}", 1.0) for k in kinds])[0]
        return generate(rng, depth, False, kind)

    def _talk(self, rng):
        question, answer = rng.choice(TALK)
        think = rng.random() < 0.7
        prompt = self.ids(render_prompt([("user", question)], think))
        out = ("<think>\nThis is no sum. I answer at once.\n</think>\n\n" if think else "") + answer
        new = self.ids(out) + [self.end]
        return prompt + new, [PROMPT_WEIGHT] * len(prompt) + [1.0] * len(new)
