"""Samples: a few hundred inputs as batches that a program's graph takes, some of them held out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sslprune.calibration.lockstep import weigh
from sslprune.capture.program import Program
from sslprune.errors import CalibrationError, DataError, few
from sslprune.values.inputs import counts_rows, num_rows

BATCH = 64  # samples whose values are computed at once, at most
AT_ONCE = 16  # what share of the memory one batch may take, alive at one place: 1 / 16 ...
IN_GRADIENTS = 4  # ... and all that a model makes of the samples of which gradients are taken at once: 1 / 4
HELD = 0.15  # the share that decides how much may be fitted, and which candidate is kept


@dataclass(frozen=True)
class Samples:
    """``batches``: the leaves of the graph's inputs, batch by batch; the last ``held`` of them are held out."""

    batches: tuple[tuple[Any, ...], ...]
    held: int
    any_size: bool  # whether a part of a batch is a batch
    batched: tuple[bool, ...]  # which of the leaves have the batch's rows
    at_once: int = BATCH  # of which gradients fit into memory

    def pieces(self, size: int) -> Iterator[list[tuple[Any, ...]]]:
        """The samples that are not held out, about ``size`` together where the graph takes that, in parts that fit."""
        for leaves in self.batches[: len(self.batches) - self.held]:
            if not self.any_size:
                yield [leaves]
                continue
            rows = num_rows(leaves)
            for first in range(0, rows, size):
                last = min(first + size, rows)
                steps = range(first, last, self.at_once)
                yield [_cut(leaves, self.batched, slice(i, min(i + self.at_once, last))) for i in steps]


def collect(program: Program, samples: Iterable[Any], most: int, memory: float = inf, *, holds: bool = True) -> Samples:
    """The first ``most`` of ``samples``, batches of inputs, as the graph of ``program`` takes them.

    ``memory``: bytes that what the model makes of them may take; the larger that is, the fewer are computed at once.
    Without ``holds`` none of them are held out, and one batch is enough.

    Raises CalibrationError for batches of other inputs or shapes than those that the program was traced with, and for
    fewer samples than two batches have.
    """
    if not isinstance(samples, Iterable):
        raise CalibrationError(
            f"samples: {type(samples).__name__}; expected batches of inputs: a list of them, or a DataLoader"
        )
    example = pytree.tree_leaves((program.args, program.kwargs))
    batched = tuple(_is_batched(program, like) for like in example)
    any_size = program.dynamic_batch and not counts_rows(example)
    found: list[tuple[Any, ...]] = []
    seen, together, at_once = 0, 0, BATCH
    for given in samples:
        leaves = _leaves(program, given)
        rows = num_rows(leaves)
        if not together:
            together, at_once = _fitting(program, leaves, batched, memory) if any_size else (BATCH, BATCH)
        size = together if any_size else rows if program.dynamic_batch else program.batch
        for first in range(0, rows, max(1, size)):
            last = min(first + size, rows, first + most - seen) if any_size else first + size
            if last <= rows:
                found.append(_cut(leaves, batched, slice(first, last)))
                seen += last - first
            if seen >= most:
                break
        if seen >= most:
            break
    if len(found) == 1 and any_size and seen > 1 and holds:
        half = seen - max(1, round(HELD * seen))
        found = [_cut(found[0], batched, part) for part in (slice(0, half), slice(half, seen))]
    least = 2 if holds else 1
    if len(found) < least:
        each = "" if program.dynamic_batch else f", of {program.batch} rows each"
        expected = f"{('one batch', 'two batches')[least - 1]} of the model's inputs{each}"
        raise CalibrationError(f"samples: {seen} came; expected at least {expected}")
    held = max(1, round(HELD * len(found))) if holds else 0
    return Samples(tuple(found), held, any_size, batched, at_once)


def _fitting(program: Program, leaves: Sequence[Any], batched: Sequence[bool], memory: float) -> tuple[int, int]:
    """How many samples are computed at once, and of how many gradients are taken at once."""
    rows = min(2, num_rows(leaves))
    alive, total = weigh(program.evaluation, program.tensors, _cut(leaves, batched, slice(0, rows)))
    return _rows_in(memory / AT_ONCE, alive / rows), _rows_in(memory / IN_GRADIENTS, total / rows)


def _rows_in(memory: float, each: float) -> int:
    return max(1, int(min(BATCH, memory / max(1.0, each))))


def _leaves(program: Program, given: Any) -> tuple[Any, ...]:
    """One batch as the leaves of the program's inputs; a carried state that is not given begins at zero."""
    if isinstance(given, Mapping):
        args, kwargs = (), dict(given)
        if set(kwargs) - set(program.kwargs):
            known = f"the inputs by name {few(list(program.kwargs))}" if program.kwargs else "inputs without names"
            raise CalibrationError(
                f"samples: a batch names {few([str(name) for name in kwargs])}; the model was traced with {known}; "
                "yield the same, without labels"
            )
    else:
        args, kwargs = (tuple(given) if isinstance(given, tuple | list) else (given,)), {}
    leaves = pytree.tree_leaves((args, {name: kwargs[name] for name in program.kwargs if name in kwargs}))
    example = pytree.tree_leaves((program.args, program.kwargs))
    if len(leaves) == len(example) - len(program.carried):
        rows = num_rows(leaves)
        for at, _ in sorted(program.carried):
            leaves.insert(at, example[at].new_zeros(rows, *example[at].shape[1:]))
    if len(leaves) != len(example) or not all(_fits(program, *pair) for pair in zip(leaves, example, strict=True)):
        raise CalibrationError(
            f"samples: a batch of {_shapes(leaves)}; the model was traced with {_shapes(example)}; yield its inputs "
            "alone, without labels"
        )
    rows_of_each = {len(leaf) for leaf, like in zip(leaves, example, strict=True) if _is_batched(program, like)}
    if len(rows_of_each) > 1:
        raise CalibrationError(f"samples: a batch of {_shapes(leaves)}; expected as many rows in each of its inputs")
    if not all(bool(leaf.isfinite().all()) for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()):
        raise DataError("samples: an input is not finite; remove it, or fill in what is missing")
    return tuple(_plain(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves)


def _is_batched(program: Program, like: Any) -> bool:
    """Whether an input of the example has the batch's rows."""
    return isinstance(like, Tensor) and bool(like.dim()) and len(like) == program.batch


def _fits(program: Program, leaf: Any, like: Any) -> bool:
    """Whether an input can stand in the place of the example's."""
    if not isinstance(like, Tensor):
        return bool(leaf == like)  # the graph holds the number itself
    if not isinstance(leaf, Tensor) or leaf.dim() != like.dim():
        return False
    open_dims = 2 if program.sequence is not None else 1
    same = (leaf.dtype, leaf.device, leaf.layout) == (like.dtype, like.device, like.layout)
    return same and leaf.shape[open_dims:] == like.shape[open_dims:]


def _plain(leaf: Tensor) -> Tensor:
    """``leaf`` as gradients can be taken beside it: not of another graph, and not made in inference mode."""
    return leaf.clone() if leaf.is_inference() else leaf.detach()


def _shapes(leaves: Sequence[Any]) -> str:
    return ", ".join(_shape(leaf) for leaf in leaves) or "nothing"


def _shape(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return str(leaf) if isinstance(leaf, int | float) else type(leaf).__name__
    device = "" if leaf.device.type == "cpu" else f" on {leaf.device}"
    layout = "" if leaf.layout is torch.strided else f" {str(leaf.layout)[6:]}"
    return f"{str(leaf.dtype)[6:]} {tuple(leaf.shape)}{layout}{device}"


def _cut(leaves: Sequence[Any], batched: Sequence[bool], part: slice) -> tuple[Any, ...]:
    return tuple(leaf[part] if has else leaf for leaf, has in zip(leaves, batched, strict=True))
