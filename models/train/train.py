"""Trains the target. `python train.py --run runs/target` starts it; the same line resumes it.

Two processes of one thread each share every step (gloo, one all-reduce of the
gradient): on a busy machine that beats two threads, which wait for each other
in every small operation. The run folder holds checkpoint.pt (replaced in
place, every few minutes) and log.jsonl.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer

from data import Sampler
from model import TARGET, Llama, load_folder, mixed_precision, save_folder
from muon import Muon

HERE = Path(__file__).parent
LENGTH_STEP = 8  # rows of a batch are padded to a multiple of this


def arguments():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--run", default=str(HERE / "runs/target"))
    p.add_argument("--tokenizer", default=str(HERE.parent / "target/tokenizer.json"))
    p.add_argument("--tokens", type=float, default=30e6, help="training tokens in the whole run; sets curriculum and decay")
    p.add_argument("--batch", type=int, default=6144, help="tokens for each process and step")
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--lr", type=float, default=0.015)
    p.add_argument("--adam-lr", type=float, default=0.003)
    p.add_argument("--decay-from", type=float, default=0.5, help="share of the run after which the rate falls to zero")
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--curriculum", type=float, nargs=2, default=(0.45, 0.75), help="progress until which chains are short, and from which they are long")
    p.add_argument("--kind-weights", type=json.loads, help="JSON: {'kind.depth': weight}")
    p.add_argument("--save-every", type=float, default=240, help="seconds")
    p.add_argument("--init", help="model folder whose weights a new run begins with")
    p.add_argument("--no-compile", action="store_true")
    return p.parse_args()


def rate(progress, step, decay_from):
    warm = min(1.0, (step + 1) / 60)
    return warm * (1.0 if progress < decay_from else max(0.02, (1 - progress) / (1 - decay_from)))


class Batches:
    """Rows of like length, so that padding is small. A pool of samples is sorted
    by length, cut into batches, and the batches are shuffled."""

    def __init__(self, sampler, rank, batch, pool=0, used=0):
        self.sampler, self.rank, self.batch = sampler, rank, batch
        self.pool, self.used, self.ready = pool, used, []

    def fill(self, progress):
        base = self.pool * 400
        rows = [self.sampler.sample(f"{self.rank}:{base + i}", progress) for i in range(400)]
        rows.sort(key=lambda r: len(r[0]))
        self.ready, part, width = [], [], 0
        for row in rows:
            need = -(-len(row[0]) // LENGTH_STEP) * LENGTH_STEP
            if part and need * (len(part) + 1) > self.batch:
                self.ready.append((part, width))
                part = []
            part.append(row)
            width = need
        self.ready.append((part, width))
        random.Random(f"{self.rank}:{self.pool}").shuffle(self.ready)

    def next(self, progress):
        if self.used >= len(self.ready):
            if self.ready:
                self.pool, self.used = self.pool + 1, 0
            self.fill(progress)
            self.used = min(self.used, len(self.ready) - 1)
        rows, width = self.ready[self.used]
        self.used += 1
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        weights = torch.zeros(len(rows), width)
        for i, (row, w) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            weights[i, : len(row)] = torch.tensor(w)
        return ids, weights


def loss_sum(model, ids, weights):
    """Sum over tokens of weight times cross-entropy."""
    with mixed_precision():
        logits = model(ids[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


def all_reduce_gradients(model, loss, weight, tokens):
    """One flat sum over processes; then every gradient is divided by the total weight."""
    params = [p for p in model.parameters()]
    flat = torch.cat([p.grad.flatten() for p in params] + [torch.tensor([loss, weight, tokens])])
    if dist.is_initialized():
        dist.all_reduce(flat)
    loss, weight, tokens = flat[-3:].tolist()
    at = 0
    for p in params:
        p.grad = flat[at : at + p.numel()].view_as(p) / weight
        at += p.numel()
    return loss / weight, int(tokens)


def reread(args, log, step):
    """Options changed by hand during the run."""
    changes = json.loads((Path(args.run) / "control.json").read_text())
    for name, value in changes.items():
        assert hasattr(args, name), name
        setattr(args, name, value)
    if log:
        log.write(json.dumps({"step": step, "control": changes}) + "\n")


def work(rank, args):
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    if args.workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{args.run}/rendezvous", rank=rank, world_size=args.workers)
    tokenizer = Tokenizer.from_file(args.tokenizer)
    model = load_folder(args.init).train() if args.init else Llama(TARGET)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices, lr=args.lr)
    adam = torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
    path = Path(args.run) / "checkpoint.pt"
    step, seen, where = 0, 0, [(0, 0)] * args.workers
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        step, seen, where = state["step"], state["tokens"], state["where"]
    batches = Batches(Sampler(tokenizer, args.seed, kind_weights=args.kind_weights, curriculum=args.curriculum), rank, args.batch, *where[rank])
    compute = loss_sum if args.no_compile else torch.compile(loss_sum, dynamic=True)
    log = open(Path(args.run) / "log.jsonl", "a") if rank == 0 else None
    losses, saved, began, began_tokens = [], time.time(), time.time(), seen
    control, control_time = Path(args.run) / "control.json", 0.0

    while seen < args.tokens:
        progress = seen / args.tokens
        scale = rate(progress, step, args.decay_from)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = args.lr * scale, args.adam_lr * scale
        ids, w = batches.next(progress)
        loss = compute(model, ids, w)
        model.zero_grad(set_to_none=True)
        loss.backward()
        mean, tokens = all_reduce_gradients(model, loss.item(), w[:, 1:].sum().item(), ids.numel())
        muon.step()
        adam.step()
        step, seen = step + 1, seen + tokens
        losses.append(mean)
        if rank == 0 and step % 20 == 0:
            speed = (seen - began_tokens) / (time.time() - began)
            began, began_tokens = time.time(), seen
            line = {"step": step, "tokens": seen, "loss": round(sum(losses) / len(losses), 4), "rate": round(scale, 4), "tokens_per_second": round(speed)}
            losses = []
            log.write(json.dumps(line) + "\n")
            log.flush()
        changed = control.exists() and control.stat().st_mtime > control_time
        due = torch.tensor([float(time.time() - saved > args.save_every or seen >= args.tokens), float(changed)])
        if args.workers > 1:
            dist.broadcast(due, 0)
        if due[1].item():
            control_time = control.stat().st_mtime
            reread(args, log, step)
            batches.batch, batches.sampler.kind_weights = args.batch, args.kind_weights or {}
        if due[0].item():
            saved, places = time.time(), [None] * args.workers
            if args.workers > 1:
                dist.all_gather_object(places, (batches.pool, batches.used))
            else:
                places = [(batches.pool, batches.used)]
            if rank == 0:
                state = {"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(), "step": step, "tokens": seen, "where": places}
                torch.save(state, path.with_suffix(".new"))
                os.replace(path.with_suffix(".new"), path)
                save_folder(model, Path(args.run) / "folder", tokenizer)


if __name__ == "__main__":
    args = arguments()
    args.run = os.path.abspath(args.run)
    Path(args.run).mkdir(parents=True, exist_ok=True)
    Path(args.run, "rendezvous").unlink(missing_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if args.workers == 1:
        work(0, args)
    else:
        mp.spawn(work, (args,), nprocs=args.workers)
