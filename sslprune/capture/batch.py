"""Dimension 0 of a graph's inputs: open, or one size; and what is said to who gives another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sslprune.errors import RepackError


@dataclass(frozen=True)
class FixedRows:
    """An input whose dimension 0 has one size in a graph."""

    index: int  # among the leaves of the inputs
    size: int
    batch: bool  # whether that is the batch


def fixed_rows(graph: fx.Graph) -> tuple[FixedRows, ...]:
    """The inputs of ``graph`` that its example fixes in dimension 0."""
    values = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    sizes = [value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else None for value in values]
    first = next((size for size in sizes if size is not None), 0)
    batch = None if is_open(first) else int(first)
    closed = [(index, int(size)) for index, size in enumerate(sizes) if size is not None and not is_open(size)]
    return tuple(FixedRows(index, size, size == batch) for index, size in closed)


def fixed_inputs(graph: fx.Graph) -> list[str]:
    """What is said of the inputs of ``graph`` whose dimension 0 has one size, where the batch is open."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    why = {True: "the example has one row there", False: "the model's own code turns it into a number"}
    return [
        f"dimension 0 of {inputs[one.index].name} is fixed at {one.size}: {why[one.size == 1]}"
        for one in fixed_rows(graph)
    ]


def closed_inputs(values: Sequence[Any]) -> frozenset[int]:
    """Which of the tensors among the inputs, by their numbers, have one size in dimension 0."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return frozenset(i for i, value in enumerate(tensors) if value.dim() and not is_open(value.shape[0]))


def check_rows(leaves: Sequence[Any], fixed: Sequence[FixedRows]) -> None:
    """Raise RepackError, in words about the batch, for inputs of another size than a graph has written into it.

    torch.export, where it meets this check, takes the size for a constant too.
    """
    for one in fixed:
        leaf = leaves[one.index] if one.index < len(leaves) else None
        if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] != one.size:
            what = "the batch size" if one.batch else f"dimension 0 of input {one.index}, no batch to this model,"
            raise RepackError(
                f"{what} is fixed at {one.size} in the traced graph, as the model's own code turns it into a number; "
                f"got {leaf.shape[0]}: give it {one.size}, or mend the code and trace the model again"
            )


def is_open(size: int | torch.SymInt) -> bool:
    """Whether a size of an exported graph may change; one that the model turned out to need is a SymInt still."""
    return isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None
