"""Draws the loss curves from the logs: `python plot.py` writes curves.svg and copies the logs."""

import json
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent


def read(run):
    source = HERE / f"runs/{run}/log.jsonl"
    kept = HERE / f"log-{run}.jsonl"
    if source.exists():
        shutil.copy(source, kept)
    return [json.loads(line) for line in open(kept)] if kept.exists() else []


def main():
    plt.rcParams["svg.hashsalt"] = "ponder"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    target, draft = [r for r in read("target") if "loss" in r], read("draft")
    left.plot([r["tokens"] / 1e6 for r in target], [r["loss"] for r in target], color="#2b5f8a", lw=1)
    left.set(title="target", xlabel="million training tokens", ylabel="cross-entropy of trained tokens (nats)", yscale="log")
    for stage, colour in (("warm", "#2b5f8a"), ("distill", "#c2571a"), ("again", "#4a7d2b")):
        rows = [r for r in draft if r["stage"] == stage]
        right.plot([r["step"] for r in rows], [r["loss"] for r in rows], color=colour, lw=1, label=stage)
    right.set(title="draft", xlabel="step", yscale="log")
    right.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(HERE / "curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
