"""Samples: a few hundred inputs as batches that a program's graph takes, some of them held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from sslprune.capture.program import Program
from sslprune.errors import CalibrationError, DataError
from sslprune.values.inputs import num_rows

BATCH = 64  # samples whose values are computed at once
HELD = 0.15  # the share that decides how much may be fitted, and which candidate is kept


@dataclass(frozen=True)
class Samples:
    """``batches``: the leaves of the graph's inputs, batch by batch; the last ``held`` of them are held out."""

    batches: tuple[tuple[Any, ...], ...]
    held: int
    any_size: bool  # whether the graph takes batches of any size

    def pieces(self, size: int) -> Iterator[tuple[Any, ...]]:
        """The samples that are not held out, at most ``size`` at once where the graph takes that."""
        for leaves in self.batches[: len(self.batches) - self.held]:
            if not self.any_size:
                yield leaves
                continue
            for first in range(0, num_rows(leaves), size):
                yield _cut(leaves, slice(first, first + size))


def collect(program: Program, samples: Iterable[Any], most: int) -> Samples:
    """The first ``most`` of ``samples``, batches of inputs, as the graph of ``program`` takes them.

    Raises CalibrationError for batches of other inputs or shapes than those that the program was traced with, and for
    fewer samples than two batches have.
    """
    found: list[tuple[Any, ...]] = []
    size, seen = (BATCH if program.dynamic_batch else program.batch), 0
    for given in samples:
        leaves = _leaves(program, given)
        rows = num_rows(leaves)
        for first in range(0, rows, size):
            piece = _cut(leaves, slice(first, min(first + size, rows, first + most - seen)))
            if program.dynamic_batch or num_rows(piece) == size:
                found.append(piece)
                seen += num_rows(piece)
            if seen >= most:
                break
        if seen >= most:
            break
    if len(found) == 1 and program.dynamic_batch and seen > 1:
        half = seen - max(1, round(HELD * seen))
        found = [_cut(found[0], slice(0, half)), _cut(found[0], slice(half, seen))]
    if len(found) < 2:
        raise CalibrationError(f"samples: {seen} came; expected at least two batches of the model's inputs")
    return Samples(tuple(found), max(1, round(HELD * len(found))), program.dynamic_batch)


def _leaves(program: Program, given: Any) -> tuple[Any, ...]:
    """One batch as the leaves of the program's inputs; a carried state that is not given begins at zero."""
    if isinstance(given, Mapping):
        args, kwargs = (), dict(given)
    else:
        args, kwargs = (tuple(given) if isinstance(given, tuple | list) else (given,)), {}
    ordered = {name: kwargs.pop(name) for name in program.kwargs if name in kwargs} | kwargs
    leaves = pytree.tree_leaves((args, ordered))
    example = pytree.tree_leaves((program.args, program.kwargs))
    if len(leaves) == len(example) - len(program.carried):
        rows = num_rows(leaves)
        for at, _ in sorted(program.carried):
            leaves.insert(at, example[at].new_zeros(rows, *example[at].shape[1:]))
    wrong = len(leaves) != len(example)
    for leaf, like in zip(leaves, example, strict=False):
        if isinstance(like, Tensor):
            same = isinstance(leaf, Tensor) and leaf.dim() == like.dim() and leaf.dtype == like.dtype
            open_dims = 2 if program.sequence is not None else 1
            wrong |= not same or leaf.shape[open_dims:] != like.shape[open_dims:]
    if wrong:
        raise CalibrationError(
            f"samples: a batch of {_shapes(leaves)}; the model was traced with {_shapes(example)}; yield its inputs "
            "alone, without labels"
        )
    if not all(bool(leaf.isfinite().all()) for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()):
        raise DataError("samples: an input is not finite; remove it, or fill in what is missing")
    return tuple(leaves)


def _shapes(leaves: Sequence[Any]) -> str:
    said = [f"{str(x.dtype)[6:]} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in leaves]
    return ", ".join(said) or "nothing"


def _cut(leaves: Sequence[Any], part: slice) -> tuple[Any, ...]:
    rows = num_rows(leaves)
    return tuple(
        leaf[part] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows else leaf for leaf in leaves
    )
