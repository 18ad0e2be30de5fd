"""A one-shot supernet: on every edge of its cells all candidate operators at once, in one sum that keeps what pays.

Each candidate ends in a batch norm. One that has weights is zero where that norm's scale and shift are, and the whole
branch can go (kind "layers"). A pool and a skip have none: they cost nothing, and stay. A path is what is left. After
DARTS (Liu et al. 2019), with two nodes a cell.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor, nn

OPERATORS = ("conv3", "conv5", "separable3", "pool", "skip")
EDGES = 3  # of a cell: input to first node, input to second, first to second


def candidate(name: str, width: int) -> nn.Sequential:
    """One operator (batch, width, h, w) -> the same, that ends in a batch norm."""
    norm, relu = nn.BatchNorm2d(width), nn.ReLU()
    if name == "skip":
        return nn.Sequential(norm)
    if name == "pool":
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), norm)
    if name == "separable3":
        spread = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        return nn.Sequential(relu, spread, nn.Conv2d(width, width, 1, bias=False), norm)
    side = int(name.removeprefix("conv"))
    return nn.Sequential(relu, nn.Conv2d(width, width, side, padding=side // 2, bias=False), norm)


class Edge(nn.Module):
    """The sum of its operators."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        self.operators = nn.ModuleDict({name: candidate(name, width) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.operators.values()
        total: Tensor = first(x)
        for other in others:
            total = total + other(x)
        return total


class Cell(nn.Module):
    """Two nodes: the second reads the cell's input and the first."""

    def __init__(self, edges: Sequence[Sequence[str]], width: int) -> None:
        super().__init__()
        self.first, self.second, self.between = (Edge(names, width) for names in edges)

    def forward(self, x: Tensor) -> Tensor:
        node = self.first(x)
        return self.second(x) + self.between(node)


class Supernet(nn.Module):
    def __init__(self, cells: Sequence[Sequence[Sequence[str]]], width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))
        stages: list[nn.Module] = []
        for i, edges in enumerate(cells):
            if i:
                down = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
                stages += [nn.ReLU(), down, nn.BatchNorm2d(2 * width)]
                width *= 2
            stages.append(Cell(edges, width))
        self.stages, self.linear = nn.Sequential(*stages), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (batch, 3, 32, 32) -> (batch, num_classes)
        return self.linear(self.stages(self.stem(x)).relu().mean((2, 3)))


def products(name: str, width: int) -> int:
    """Multiplications of an operator for each number that it makes."""
    return {"conv3": 9 * width, "conv5": 25 * width, "separable3": 9 + width}.get(name, 0)


def random_path(width: int, share: float, seed: int) -> list[list[list[str]]]:
    """Operators in a random order, as long as no more than ``share`` of the candidates' multiply-accumulates stay.

    Those that multiply nothing stay, as no budget takes them. The second cell has twice the width and a quarter of the
    places.
    """
    cost = {
        (cell, edge, name): products(name, width << cell) * (width << cell) // 4**cell
        for cell in range(2)
        for edge in range(EDGES)
        for name in OPERATORS
    }
    order, left = list(cost), share * sum(cost.values())
    random.Random(seed).shuffle(order)
    kept: list[list[list[str]]] = [[[] for _ in range(EDGES)] for _ in range(2)]
    for place in order:
        if cost[place] <= left:
            left -= cost[place]
            cell, edge, name = place
            kept[cell][edge].append(name)
    return kept


def supernet(width: int = 12, num_classes: int = 10, drawn: int = -1, share: float = 1.0) -> nn.Module:
    """All candidates on each edge of two cells; or a random path of that ``share`` of their work.

    ``drawn`` is the path's seed; below 0 all candidates are there.
    """
    every = [[list(OPERATORS) for _ in range(EDGES)] for _ in range(2)]
    return Supernet(random_path(width, share, drawn) if drawn >= 0 else every, width, num_classes)
