"""What a model is called with: a tuple of tensors, or a dict of them by name; and which of their dimensions are open.

Dimension 0 of an input is the batch, or rows of its own where their number differs from the batch's in the example, as
the bonds of a graph's atoms. Where the data say so, dimension 1 is the length of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Inputs = tuple[Tensor, ...] | dict[str, Tensor]

# what the open dimensions are called in an ONNX file; rows that differ from the batch are rows_2, rows_3, ...
BATCH, ROWS, SEQUENCE = "batch", "rows", "sequence"


def arguments(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """``inputs`` as positional and keyword arguments."""
    return ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """``model(*inputs)`` or ``model(**inputs)``."""
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def each(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """``inputs`` with every tensor changed."""
    if isinstance(inputs, Mapping):
        return {name: change(value) for name, value in inputs.items()}
    return tuple(change(value) for value in inputs)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a nested input or output, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def num_rows(inputs: Any) -> int:
    """The batch size: dimension 0 of the first tensor that has one; 1 where there is none."""
    return next((leaf.shape[0] for leaf in tensors_in(inputs) if leaf.dim()), 1)


def row_counts(inputs: Any) -> list[int]:
    """The sizes of dimension 0 that differ, in order of appearance; the first is the batch's."""
    return list(dict.fromkeys(leaf.shape[0] for leaf in tensors_in(inputs) if leaf.dim()))


def counts_rows(inputs: Any) -> bool:
    """Whether entries of one input may count the rows of another: then none of them can lose rows by itself."""
    integers = any(not leaf.is_floating_point() and leaf.dtype is not torch.bool for leaf in tensors_in(inputs))
    return integers and len(row_counts(inputs)) > 1


def length_of(inputs: Any) -> int:
    """The length of the sequences: dimension 1 of the first tensor that has one; 0 where there is none."""
    return next((leaf.shape[1] for leaf in tensors_in(inputs) if leaf.dim() > 1), 0)


def open_dimensions(inputs: Any, sequence: int | None, *, several: bool = True) -> Callable[[Tensor], dict[int, str]]:
    """Which dimensions of each tensor among ``inputs`` may have any size, by their names.

    Dimension 0, by one name for each number of rows (of the batch alone without ``several``), and, unless ``sequence``
    is None, dimension 1 where it has the length.
    """
    rows, length = num_rows(inputs), length_of(inputs)
    names = {size: f"{ROWS}_{i}" for i, size in enumerate(row_counts(inputs), 1) if several} | {rows: BATCH}

    def dimensions(leaf: Tensor) -> dict[int, str]:
        found = {0: names[leaf.shape[0]]} if leaf.dim() and leaf.shape[0] in names else {}
        if sequence is not None and BATCH in found.values() and leaf.dim() > 1 and leaf.shape[1] == length:
            found[1] = SEQUENCE
        return found

    return dimensions


def with_length(value: Any, length: int) -> Any:
    """Inputs of another length: shorter ones keep the first and the last place, longer ones repeat from the start."""
    old = length_of(value)
    shorter = length < old
    steps = torch.linspace(0, old - 1, length).round().long() if shorter else torch.arange(length) % max(1, old)

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() < 2 or leaf.shape[1] != old:
            return leaf
        return leaf[:, steps.to(leaf.device)]

    return pytree.tree_map(change, value)


def other_lengths(value: Any, sequence: int | None) -> list[int]:
    """Two lengths to try beside that of ``value``, none above ``sequence``; empty where lengths are not open."""
    if sequence is None:
        return []
    length = length_of(value)
    return sorted({max(2, length // 2), min(sequence, 2 * length + 1)} - {length})


def random_like(value: Any, batch_size: int, seed: int = 0, closed: Collection[int] = ()) -> Any:
    """Inputs of another batch size: normal noise where the example is floating, the example's own rows elsewhere.

    Inputs ``closed``, by their numbers among the tensors, keep their rows. Where several sizes are left, each grows, by
    a number of its own: entries of one input may count the rows of another.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = {id(leaf): i for i, leaf in enumerate(tensors_in(value))}
    sizes = row_counts([leaf for leaf in tensors_in(value) if numbers[id(leaf)] not in closed])
    new = {n: n + batch_size + i for i, n in enumerate(sizes)} if len(sizes) > 1 else dict.fromkeys(sizes, batch_size)
    chosen = {n: torch.randint(n, (new[n],), generator=generator) for n in sizes}

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or numbers[id(leaf)] in closed:
            return leaf
        rows = leaf.shape[0]
        if not leaf.is_floating_point():
            return leaf[chosen[rows].to(leaf.device)]
        noise = torch.randn((new[rows], *leaf.shape[1:]), generator=generator).to(leaf)
        spread = leaf.std(correction=0)
        return noise * (spread if spread > 0 else 1.0) + leaf.mean()

    return pytree.tree_map(draw, value)


def of_other_lengths(inputs: Any, sequence: int | None, closed: Collection[int] = ()) -> list[Any]:
    """The inputs at two other lengths and another batch size, where lengths are open."""
    return [random_like(with_length(inputs, n), 3, n, closed) for n in other_lengths(inputs, sequence)]
