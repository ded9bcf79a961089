"""Muon (Jordan et al., 2024): momentum, orthogonalised by a Newton-Schulz iteration.

It learns these small matrices in about half of AdamW's tokens. Matrices of one
shape go through the iteration together, as one batched product.
"""

import torch
import torch.distributed as dist

from model import BF16


def orthogonalise(g, steps=5):
    """g: [count, rows, columns], rows <= columns; singular values are drawn to about 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if BF16 else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


def shared(stack):
    """Each process does its part of the stack; all of them get the whole."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world == 1 or len(stack) % world:
        return orthogonalise(stack)
    mine = orthogonalise(stack.chunk(world)[dist.get_rank()])
    parts = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(parts, mine.contiguous())
    return torch.cat(parts)


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.0):
        super().__init__(list(params), dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                shapes.setdefault(tuple(sorted(p.shape)), []).append(p)
            for shape, params in shapes.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    m = state["momentum"]
                    m.lerp_(p.grad, 1 - group["momentum"])
                    u = p.grad.lerp(m, group["momentum"])  # Nesterov
                    updates.append(u if p.shape[0] <= p.shape[1] else u.mT)
                for p, u in zip(params, shared(torch.stack(updates))):
                    u = u if p.shape[0] <= p.shape[1] else u.mT
                    scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * scale)
