"""What a cost is a sum of: products of numbers of kept indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from torch import fx


class Summand(Protocol):
    """A part of a cost, there while one of ``nodes`` is needed. ``counts``: of each dimension, how much is kept."""

    nodes: Sequence[fx.Node]

    def value(self, counts: np.ndarray) -> float: ...
    def slopes(self, counts: np.ndarray) -> Iterator[tuple[int, float]]: ...


class Term:
    """constant x product over dimensions of the number of kept indices."""

    def __init__(self, constant: float, factors: list[int], nodes: Sequence[fx.Node]) -> None:
        self.constant, self.factors, self.nodes = constant, factors, nodes

    def value(self, counts: np.ndarray) -> float:
        return float(self.constant * counts[self.factors].prod())

    def slopes(self, counts: np.ndarray) -> Iterator[tuple[int, float]]:
        """How much it falls with an index less of each of its dimensions, by itself."""
        values = counts[self.factors]
        for position, factor in enumerate(self.factors):
            yield factor, float(self.constant * np.delete(values, position).prod())


class Factored:
    """A matrix as two factors of a rank, or as one where that takes no more multiply-accumulates: it is folded then."""

    def __init__(self, macs: Folding, parts: Sequence[Term], whole: Term) -> None:
        self.macs, self.parts, self.whole, self.nodes = macs, parts, whole, whole.nodes

    def value(self, counts: np.ndarray) -> float:
        if self.macs.folds(counts):
            return self.whole.value(counts)
        return sum(part.value(counts) for part in self.parts)

    def slopes(self, counts: np.ndarray) -> Iterator[tuple[int, float]]:
        """Of a rank that saves nothing yet its share of the matrix, which it saves once enough of it is gone."""
        if self.macs.folds(counts):
            yield from self.whole.slopes(counts)
            yield self.macs.rank, self.whole.value(counts) / max(1.0, counts[self.macs.rank])
            return
        for part in self.parts:
            yield from part.slopes(counts)


class Folding:
    """Whether two factors take as many multiply-accumulates as their product, or more."""

    def __init__(self, parts: Sequence[Term], whole: Term, rank: int) -> None:
        self.parts, self.whole, self.rank = parts, whole, rank

    def folds(self, counts: np.ndarray) -> bool:
        return sum(part.value(counts) for part in self.parts) >= self.whole.value(counts)
