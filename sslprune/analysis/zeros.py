"""How exact zeros travel: which indices of a node's result are zero once a group's members are.

Rules state it as a small expression over the node's inputs. Two things are read off the same expressions: whether an
axis is *exact* (what a sum runs over has vanished), and which weights make a whole residual branch zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from torch import fx

from sslprune.analysis.atoms import Dim


@dataclass(frozen=True)
class Keeps:
    """Zero where ``node`` is. ``dims`` limits it to the dimensions that survive (the others are summed away)."""

    node: fx.Node
    dims: tuple[Dim, ...] | None = None
    output: int = 0


@dataclass(frozen=True)
class AllOf:
    """Zero where all parts are: a sum."""

    parts: tuple[Zero, ...]


@dataclass(frozen=True)
class AnyOf:
    """Zero where any part is: a product."""

    parts: tuple[Zero, ...]


@dataclass(frozen=True)
class Joined:
    """Zero where every part *that has the index* is: a concatenation. ``padding`` is zero of itself."""

    parts: tuple[tuple[fx.Node, tuple[Dim, ...]], ...]
    padding: tuple[Dim, ...] = ()


@dataclass(frozen=True)
class Beaten:
    """Where ``node`` is less than everywhere else along ``dims``: nothing picks it, and it has no share there."""

    node: fx.Node
    dims: tuple[Dim, ...]


Zero = Keeps | AllOf | AnyOf | Joined | Beaten


class Vanishing:
    """Which atoms vanish in which node's result, given what vanishes in the parameters."""

    def __init__(
        self,
        vanish: dict[tuple[fx.Node, int], np.ndarray],
        atoms_of: Callable[[tuple[Dim, ...]], np.ndarray],
        beaten: dict[fx.Node, np.ndarray],
    ) -> None:
        self._vanish, self._atoms_of, self._beaten = vanish, atoms_of, beaten

    def of(self, zero: Zero | None) -> np.ndarray:
        """The atoms whose indices are zero, sorted."""
        match zero:
            case Keeps(node, dims, output):
                found = self._vanish.get((node, output), _NONE)
                return found if dims is None or not found.size else np.intersect1d(found, self._atoms_of(dims))
            case Beaten(node, dims):
                found = self._beaten.get(node, _NONE)
                return np.intersect1d(found, self._atoms_of(dims)) if found.size else found
            case AllOf(parts):
                return reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), map(self.of, parts))
            case AnyOf(parts):
                return reduce(np.union1d, map(self.of, parts))
            case Joined(parts, padding):
                zeros = [self.of(Keeps(node)) for node, _ in parts]
                alive = [np.setdiff1d(self._atoms_of(d), z) for (_, d), z in zip(parts, zeros, strict=True)]
                return np.setdiff1d(
                    reduce(np.union1d, zeros, self._atoms_of(padding)), reduce(np.union1d, alive, _NONE)
                )
        return _NONE


_NONE = np.empty(0, np.int64)
