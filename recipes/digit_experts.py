"""A small mixture of one's own, for recipes/digits-experts.toml: eight experts, of which each picture gets two."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mixture(nn.Module):
    """``chosen`` of several feed-forward blocks for each row, by a router that shares 1 among those."""

    def __init__(self, width: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.router, self.chosen = nn.Linear(width, experts, bias=False), chosen
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * (2 / width) ** 0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:  # (batch, width) -> (batch, width)
        every = self.router(x).softmax(-1)
        best, names = every.topk(self.chosen, -1)
        shares = torch.zeros_like(every).scatter(-1, names, best / best.sum(-1, keepdim=True))
        inside = torch.einsum("bw,ewh->beh", x, self.up).relu()
        return torch.einsum("beh,ehw->bw", inside * shares.unsqueeze(-1), self.down)


class Digits(nn.Module):
    """Pictures (batch, 1, 8, 8) -> 10 classes."""

    def __init__(self, width: int = 64, hidden: int = 32, experts: int = 8, chosen: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.blocks = nn.ModuleList(Mixture(width, hidden, experts, chosen) for _ in range(2))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x)


def mixture(width: int = 64, hidden: int = 32, experts: int = 8, chosen: int = 2) -> nn.Module:
    """The network."""
    return Digits(width, hidden, experts, chosen)
