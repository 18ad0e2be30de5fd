"""Factors: a weight that was rewritten as a product of two, whose inner dimension is its rank.

A weight W (out, in) becomes W = UP · DOWN, with DOWN (rank, in) and UP (out, rank). A convolution's (out, in, h, w) is
one of (rank, in, h, 1) and then one of (out, rank, 1, w), or one of (rank, in, h, w) and then a pointwise one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from torch import fx

from sslprune.analysis.atoms import Dim
from sslprune.analysis.contraction import Contraction
from sslprune.analysis.facts import Facts

DOWN, UP = "_down", "_up"  # behind the name of the weight that the two are factors of


def is_factor(name: str) -> bool:
    """Whether the tensor of that ``name`` is one of two factors."""
    return name.endswith((DOWN, UP))


def makes_rank(name: str) -> bool:
    """Whether it is the first of them."""
    return name.endswith(DOWN)


@dataclass(frozen=True, eq=False)
class Pair:
    """The two contractions that a factored weight of that ``name`` is, in one graph."""

    name: str
    down: Contraction
    up: Contraction

    @property
    def weights(self) -> tuple[str, str]:
        """The names of the two factors."""
        return self.name + DOWN, self.name + UP

    @property
    def rank(self) -> Dim:
        """What ``down`` makes and ``up`` sums over."""
        return self.down.made[0]

    @property
    def product(self) -> tuple[Dim, ...]:
        """The dimensions whose sizes' product are the multiply-accumulates of the one matrix."""
        return (*self.up.batched, *self.up.made, *self.down.summed, *list(self.up.summed)[1:])

    def folds(self, size: Callable[[Dim], int]) -> bool:
        """Whether the two cost as many multiply-accumulates as their product, or more, at these sizes."""
        parts = sum(prod(map(size, part.dims)) for part in (self.down, self.up))
        return parts >= prod(map(size, self.product))


def pairs_of(facts: Mapping[fx.Node, Facts], graph: fx.Graph) -> list[Pair]:
    """The factored weights of ``graph``, of whose nodes these are the ``facts``."""
    found = []
    for node in graph.nodes:
        for up in facts[node].contractions:
            name, down = str(up.weight.target), up.input
            if up.weight.op == "get_attr" and name.endswith(UP) and down is not None and set(down.users) == {node}:
                weight = name.removesuffix(UP)
                parts = [first for first in facts[down].contractions if str(first.weight.target) == weight + DOWN]
                found += [Pair(weight, first, up) for first in parts]
    return found
