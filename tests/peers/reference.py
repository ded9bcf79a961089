#!/usr/bin/env python3
"""A second oracle: the Llama forward pass in numpy, f64, straight from the paper's formulas.

It shares no code with llama.cpp or with Ponder except `gguf`'s dequantisation, so where it and
llama.cpp agree, both are right. It replays the recorded oracle tokens and reports the largest
difference in log probability, or scores a text as perplexity.py's method does.

    tests/peers/reference.py                  every oracle prompt, teacher-forced
    tests/peers/reference.py --perplexity     the oracle's texts (slow: minutes each)
"""

import argparse
import json
import pathlib

from common import MODEL, ORACLE, die, in_venv, need_model, say

in_venv()
import gguf  # noqa: E402  (only the venv has these)
import numpy as np  # noqa: E402


class Llama:
    """Weights as f64 matrices [out, in]; `forward` takes a whole sequence, no cache."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        field = lambda name: reader.fields[name].contents()
        if field("general.architecture") != "llama":
            die(f"{path}: reference.py knows only the llama architecture")
        self.layers = field("llama.block_count")
        self.heads = field("llama.attention.head_count")
        self.kv_heads = field("llama.attention.head_count_kv")
        self.epsilon = field("llama.attention.layer_norm_rms_epsilon")
        self.theta = field("llama.rope.freq_base")
        self.w = {
            tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
            for tensor in reader.tensors
        }

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * self.w[name]

    def rope(self, x):
        """x: [tokens, heads, dim]. GGUF's llama stores q and k permuted: pairs are neighbours."""
        tokens, _, dim = x.shape
        angle = np.arange(tokens)[:, None] * self.theta ** (-np.arange(0, dim, 2) / dim)[None]
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]  # [tokens, 1, dim / 2]
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    def attention(self, x, block):
        tokens = len(x)
        split = lambda name, heads: (x @ self.w[f"{block}.{name}.weight"].T).reshape(tokens, heads, -1)
        q = self.rope(split("attn_q", self.heads))
        k = self.rope(split("attn_k", self.kv_heads)).repeat(self.heads // self.kv_heads, 1)
        v = split("attn_v", self.kv_heads).repeat(self.heads // self.kv_heads, 1)
        score = np.einsum("qhd,khd->hqk", q, k, optimize=True) / np.sqrt(q.shape[-1])
        score[:, ~np.tri(tokens, dtype=bool)] = -np.inf
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weight, v, optimize=True).reshape(tokens, -1)
        return mixed @ self.w[f"{block}.attn_output.weight"].T

    def mlp(self, x, block):
        gate = x @ self.w[f"{block}.ffn_gate.weight"].T
        up = x @ self.w[f"{block}.ffn_up.weight"].T
        return (gate / (1 + np.exp(-gate)) * up) @ self.w[f"{block}.ffn_down.weight"].T

    def log_probabilities(self, ids, first):
        """Log probabilities [tokens - first, vocabulary] after each token from index `first` on."""
        x = self.w["token_embd.weight"][np.asarray(ids)]
        for layer in range(self.layers):
            block = f"blk.{layer}"
            x = x + self.attention(self.norm(x, f"{block}.attn_norm.weight"), block)
            x = x + self.mlp(self.norm(x, f"{block}.ffn_norm.weight"), block)
        x = self.norm(x[first:], "output_norm.weight")
        head = self.w.get("output.weight", self.w["token_embd.weight"])
        logits = x @ head.T
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def check_prompts(model, oracle):
    """Replays each oracle continuation; returns the worst difference and the greedy mismatches."""
    worst, parted = 0.0, 0
    for number, prompt in enumerate(oracle["prompts"]):
        start, steps = prompt["prompt_ids"], prompt["steps"]
        ids = start + [step["id"] for step in steps]
        mine = model.log_probabilities(ids[:-1], len(start) - 1)
        for row, step in zip(mine, steps):
            worst = max(worst, max(abs(row[id] - log) for id, log in step["top"]))
            parted += int(row.argmax()) != step["id"]
        say(f"prompt {number}: worst difference in log probability so far {worst:.2e}, steps that part {parted}")
    return worst, parted


def perplexity(model, ids, context):
    """llama.cpp's method: disjoint windows; of each, tokens context/2 + 1 .. context - 1 are scored."""
    total, counted, first = 0.0, 0, context // 2
    for start in range(0, len(ids) // context * context, context):
        window = ids[start : start + context]
        rows = model.log_probabilities(window[:-1], first)
        total -= rows[np.arange(len(rows)), window[first + 1 :]].sum()
        counted += len(rows)
        say(f"  {counted} tokens: perplexity {np.exp(total / counted):.6f}")
    return float(np.exp(total / counted)), counted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=MODEL)
    parser.add_argument("--perplexity", action="store_true")
    options = parser.parse_args()
    model = Llama(need_model(options.model))
    if options.perplexity:
        recorded = json.loads((ORACLE / "perplexity.json").read_text())
        for text in recorded["texts"]:
            value, counted = perplexity(model, text["ids"], recorded["context"])
            print(f"{text['file']}: numpy f64 {value:.5f}, llama.cpp f32 {text['perplexity']:.5f}, {counted} tokens")
    else:
        worst, parted = check_prompts(model, json.loads((ORACLE / "greedy.json").read_text()))
        print(f"worst difference in log probability {worst:.2e}; steps where the greedy token differs: {parted}")


if __name__ == "__main__":
    main()
