"""Batched greedy generation with a key-value cache, for evaluation and for distillation.

Rows are prompts of any length, padded on the left; each row has its own
positions. Finished rows leave the batch. The engine's own `ponder eval` is the
measure that counts; this one needs nothing but PyTorch.
"""

import torch
import torch.nn.functional as F


class Cache:
    """One layer's keys and values: [rows, kv_heads, capacity, head_dim]."""

    def __init__(self, rows, heads, capacity, size, dtype):
        self.k = torch.zeros(rows, heads, capacity, size, dtype=dtype)
        self.v = torch.zeros(rows, heads, capacity, size, dtype=dtype)
        self.used = 0

    def __call__(self, k, v):
        end = self.used + k.shape[2]
        if end > self.k.shape[2]:
            more = max(end, self.k.shape[2] * 3 // 2) - self.k.shape[2]
            self.k, self.v = F.pad(self.k, (0, 0, 0, more)), F.pad(self.v, (0, 0, 0, more))
        self.k[:, :, self.used : end], self.v[:, :, self.used : end] = k, v
        self.used = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def keep(self, rows):
        self.k, self.v = self.k[rows], self.v[rows]


@torch.no_grad()
def step(model, ids, positions, caches, allowed):
    """Logits of the last column. ids, positions: [rows, new]; allowed: [rows, all tokens]."""
    x = model.embed_tokens(ids)
    cos, sin = model.cos[positions].unsqueeze(1).to(x.dtype), model.sin[positions].unsqueeze(1).to(x.dtype)
    new, total = ids.shape[1], allowed.shape[1]
    mask = allowed[:, None, None, :]
    if new > 1:
        causal = torch.ones(new, total, dtype=torch.bool).tril(total - new)
        # A padding row may see itself: a softmax over nothing would be NaN.
        itself = torch.eye(new, total, dtype=torch.bool)
        mask = mask & causal | itself
    for layer, cache in zip(model.layers, caches):
        x = layer(x, cos, sin, cache, mask)
    return model.logits(model.norm(x[:, -1]))


@torch.no_grad()
def greedy(model, prompts, limit, stop, temperature=0.0, seed=0):
    """Token lists, without the prompts; a row ends at `stop` (kept) or after `limit` tokens."""
    rows, width, c = len(prompts), max(map(len, prompts)), model.c
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(rows, width, dtype=torch.long)
    allowed = torch.zeros(rows, width, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        allowed[i, width - len(prompt) :] = True
    positions = (allowed.long().cumsum(1) - 1).clamp(min=0)
    dtype = model.embed_tokens.weight.dtype
    caches = [Cache(rows, c.num_key_value_heads, width + 256, c.head_dim, dtype) for _ in model.layers]
    out, alive = [[] for _ in prompts], list(range(rows))
    logits = step(model, ids, positions, caches, allowed)
    position = positions[:, -1:]
    for _ in range(limit):
        if temperature:
            token = torch.multinomial(torch.softmax(logits.float() / temperature, -1), 1, generator=generator)[:, 0]
        else:
            token = logits.argmax(-1)
        for row, t in zip(alive, token.tolist()):
            out[row].append(t)
        going = [i for i, t in enumerate(token.tolist()) if t != stop]
        if not going:
            break
        if len(going) <= 0.8 * len(alive) or len(going) < len(alive) and len(alive) < 8:
            keep = torch.tensor(going)
            token, position, allowed = token[keep], position[keep], allowed[keep]
            for cache in caches:
                cache.keep(keep)
            alive = [alive[i] for i in going]
        else:
            # Rows that ended stay for a while; what they say is dropped at the end.
            pass
        position = position + 1
        allowed = F.pad(allowed, (0, 1), value=True)
        logits = step(model, token[:, None], position, caches, allowed)
    return [row[: row.index(stop) + 1] if stop in row else row for row in out]
