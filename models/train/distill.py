"""Trains the draft: first on reference chains, then on the target's own outputs.

    python distill.py warm    --run runs/draft    # hard labels on generated transcripts
    python distill.py sample  --run runs/draft    # the target answers training problems: samples.jsonl
    python distill.py distill --run runs/draft    # its tokens and its distribution, on those
    python distill.py measure                     # agreement on held-out problems

Every stage resumes from what the run folder holds. A draft is good when its
most likely token is the target's, on text that the target wrote; so the last
stage sees nothing else. Both KL to the target's distribution and the target's
chosen token count; the token decides acceptance under greedy decoding.
"""

import argparse
import json
import os
import random
import subprocess
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from data import Sampler, render_prompt
from model import DRAFT, Llama, load_folder, mixed_precision, save_folder
from muon import Muon
from problems import generate
from train import Batches

HERE = Path(__file__).parent


TEACHER_TOKENS = 16  # of the target's distribution, which lies on very few tokens


class Trainer:
    """The draft with its optimisers, checkpoint and log."""

    def __init__(self, run, stage, steps, lr, init=None):
        self.run, self.stage, self.steps, self.lr = Path(run), stage, steps, lr
        self.model, self.step = load_folder(init).train() if init else Llama(DRAFT), 0
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.muon = Muon(matrices, lr=lr)
        self.adam = torch.optim.AdamW(others, lr=lr / 4, betas=(0.9, 0.98), weight_decay=0.0)
        self.path = self.run / "checkpoint.pt"
        if self.path.exists():
            state = torch.load(self.path)
            self.model.load_state_dict(state["model"])
            if state["stage"] == "distill" and stage == "warm":
                self.step = steps  # already past this stage
            elif state["stage"] == stage:
                self.muon.load_state_dict(state["muon"])
                self.adam.load_state_dict(state["adam"])
                self.step = state["step"]
        self.log, self.losses, self.saved = open(self.run / "log.jsonl", "a"), [], time.time()

    def update(self, loss):
        """One step on this loss; the rate rises over 40 steps and falls over the last two thirds."""
        done = self.step / self.steps
        scale = min(1.0, (self.step + 1) / 40, max(0.02, 1.5 * (1 - done)))
        self.muon.param_groups[0]["lr"], self.adam.param_groups[0]["lr"] = self.lr * scale, self.lr / 4 * scale
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        self.muon.step()
        self.adam.step()
        self.step += 1
        self.losses.append(loss.item())
        if self.step % 50 == 0:
            self.log.write(json.dumps({"stage": self.stage, "step": self.step, "loss": round(sum(self.losses) / len(self.losses), 4)}) + "\n")
            self.log.flush()
            self.losses = []
        if time.time() - self.saved > 120 or self.step >= self.steps:
            self.save()

    def save(self):
        state = {"model": self.model.state_dict(), "muon": self.muon.state_dict(), "adam": self.adam.state_dict(), "step": self.step, "stage": self.stage}
        torch.save(state, self.path.with_suffix(".new"))
        os.replace(self.path.with_suffix(".new"), self.path)
        save_folder(self.model, self.run / "folder", tokenizer())
        self.saved = time.time()


def tokenizer():
    return Tokenizer.from_file(str(HERE.parent / "target/tokenizer.json"))


def warm(args):
    trainer = Trainer(args.run, "warm", args.steps, args.lr)
    batches = Batches(Sampler(tokenizer(), args.seed), 100 + trainer.step, args.batch)
    while trainer.step < trainer.steps:
        ids, weights = batches.next(0.3 + 0.7 * trainer.step / trainer.steps)
        with mixed_precision():
            logits = trainer.model(ids[:, :-1])
        losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        w = weights[:, 1:].flatten()
        trainer.update((losses * w).sum() / w.sum())


# System message, share of the samples, temperature: mostly the default's long chains, and a few sampled ones, so that
# the draft also sees what follows rarer tokens.
SAMPLED = [(None, 5, 0.0), ("Think briefly.", 2, 0.0), ("Reasoning effort: medium", 1, 0.0), (None, 2, 0.7)]


def sample(args):
    """The target answers training problems, by way of `ponder eval`: it is many times faster than PyTorch here."""
    t, run = tokenizer(), Path(args.run)
    with open(run / "samples.jsonl", "w") as out:
        for i, (system, share, temperature) in enumerate(SAMPLED):
            rng = random.Random(f"samples:{args.seed}:{i}")
            count = args.count * share // sum(s for _, s, _ in SAMPLED)
            depths = rng.choices(["trivial", "easy", "middle", "hard"], weights=[15, 30, 40, 15], k=count)
            problems = [generate(rng, depth, False) for depth in depths]
            questions, transcripts = run / "questions.jsonl", run / "transcripts.jsonl"
            questions.write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in problems))
            command = [args.ponder, "eval", "--model", args.target, "--data", questions, "--transcripts", transcripts, "--temperature", str(temperature)]
            subprocess.run([str(c) for c in command] + (["--system", system] if system else []), check=True)
            for line in map(json.loads, open(transcripts)):
                if line["finish_reason"] != "stop":
                    continue  # a chain without an end teaches nothing
                prompt = render_prompt(([("system", system)] if system else []) + [("user", line["question"])])
                text = f"<think>{line['reasoning']}</think>\n\n{line['answer']}<|im_end|>"
                ids = [t.encode(x, add_special_tokens=False).ids for x in (prompt, text)]
                out.write(json.dumps({"prompt": ids[0], "ids": ids[1]}) + "\n")


def distill(args):
    trainer, target = Trainer(args.run, "distill", args.steps, args.lr, args.init), load_folder(args.target)
    rows = [json.loads(line) for line in open(Path(args.run) / "samples.jsonl")]
    rows.sort(key=lambda r: len(r["prompt"]) + len(r["ids"]))
    groups, part = [], []
    for row in rows:
        size = len(row["prompt"]) + len(row["ids"])
        if part and size * (len(part) + 1) > args.batch:
            groups.append(part)
            part = []
        part.append(row)
    groups.append(part)
    known = {}  # the teacher's likeliest tokens of a group: asked once, for it is ten times the draft's size
    while trainer.step < trainer.steps:
        at = random.Random(f"{args.seed}:{trainer.step}").randrange(len(groups))
        group = groups[at]
        width = max(len(r["prompt"]) + len(r["ids"]) for r in group)
        ids, w = torch.zeros(len(group), width, dtype=torch.long), torch.zeros(len(group), width)
        for i, r in enumerate(group):
            both = r["prompt"] + r["ids"]
            ids[i, : len(both)] = torch.tensor(both)
            w[i, len(r["prompt"]) : len(both)] = 1.0
        keep = w[:, 1:].flatten() > 0
        if at not in known:
            with torch.no_grad(), mixed_precision():
                teacher = F.log_softmax(target(ids[:, :-1]).float().flatten(0, 1)[keep], -1)
            known[at] = teacher.topk(TEACHER_TOKENS, sorted=True)
        likely, tokens = known[at]
        with mixed_precision():
            student = trainer.model(ids[:, :-1])
        student = F.log_softmax(student.float().flatten(0, 1)[keep], -1)
        # Of the rest of the vocabulary only that it has what the likeliest leave.
        kl = (likely.exp() * (likely - student.gather(-1, tokens))).sum(-1).mean()
        trainer.update(0.5 * kl + 0.5 * F.nll_loss(student, tokens[:, 0]))


@torch.no_grad()
def measure(args):
    """Share of thinking tokens, of the target's own greedy chains, that the draft would have guessed."""
    from evaluate import SETS, run
    target, draft, t = load_folder(args.target), load_folder(args.draft), tokenizer()
    for name in ("heldout", "mixed"):
        problems = [json.loads(line) for line in open(SETS / f"{name}.jsonl")]
        problems = random.Random(5).sample(problems, min(args.count, len(problems)))
        same, total = {}, {}
        for p in run(target, t, problems):
            both = torch.tensor([p["prompt"] + p["ids"]])
            start = len(p["prompt"])
            hit = draft(both[:, :-1]).argmax(-1)[0, start - 1 : start - 1 + p["thinking"]] == both[0, start : start + p["thinking"]]
            for group in ("all", p["depth"]):
                same[group] = same.get(group, 0) + hit.sum().item()
                total[group] = total.get(group, 0) + len(hit)
        print(name, {g: f"{100 * same[g] / total[g]:.1f}% of {total[g]}" for g in sorted(total)})
    size = lambda m: sum(p.numel() for p in m.parameters())
    print(f"parameters: draft {size(draft)}, target {size(target)}, ratio {size(draft) / size(target):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["warm", "sample", "distill", "measure"])
    parser.add_argument("--run", default=str(HERE / "runs/draft"))
    parser.add_argument("--target", default=str(HERE.parent / "target"))
    parser.add_argument("--draft", default=str(HERE.parent / "draft"))
    parser.add_argument("--init", help="draft folder whose weights `distill` begins with, in place of `warm`")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=0.015)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--ponder", default=str(HERE.parent.parent / "target/release/ponder"), help="the program, for `sample`")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    Path(args.run).mkdir(parents=True, exist_ok=True)
    globals()[args.stage](args)
