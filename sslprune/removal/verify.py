"""A repacked model beside the one that it was made from, in each of their modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sslprune.capture.mode import set_mode, unchanged
from sslprune.capture.program import Program, copy_graph, quiet
from sslprune.removal.packed import Packed
from sslprune.values.axes import tensors_of
from sslprune.values.carry import Carrying
from sslprune.values.compare import difference
from sslprune.values.draws import alike


@torch.no_grad()
def relative_difference(
    one: nn.Module,
    other: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cuts: list[list[np.ndarray]] | None = None,
    *,
    training: bool = False,
) -> float:
    """Largest difference of the outputs in one mode, relative to each tensor's largest value; NaN as there.

    Both models are left as they were, batch norms' statistics included, and draw random numbers alike, whatever their
    widths. Models that carry state run twice, from zeros; ``cuts`` say what ``other``'s state has of ``one``'s, and
    what it lacks has to be zero there.
    """
    expected = answers(one, args, kwargs, [] if cuts else None, training=training)
    return difference(expected, answers(other, args, kwargs, cuts or None, training=training))[1]


@torch.no_grad()
def answers(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    cuts: list[list[np.ndarray]] | None = None,
    *,
    training: bool = False,
) -> Any:
    """What `relative_difference` compares of one model; ``cuts`` are None for who carries no state."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    args, kwargs = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), (args, kwargs))
    with _asked(model, training), quiet(), alike():
        if cuts is None:
            return model(*args, **kwargs)
        run = Carrying(model)
        results = [run(*args[:-1], **kwargs) for _ in range(2)]
        return [results, _with_zeros(run.state, cuts)]


def as_traced(model: nn.Module, program: Program) -> Packed:
    """The graphs of ``program`` as they are, on the tensors of ``model``."""
    own = tensors_of(model)
    tensors = {name: own.get(name, tensor) for name, tensor in program.tensors.items()}
    return Packed(
        tuple(copy_graph(graph)[0] for graph in program.graphs), tensors, tuple(program.kwargs), program.out_specs
    )


@contextmanager
def _asked(model: nn.Module, training: bool) -> Iterator[None]:
    """``model`` in one of its modes inside the block; its mode, buffers and attributes come back after it."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with unchanged(model):
        set_mode(model, training)
        yield
    for buffer, old in saved:
        buffer.copy_(old)


def _with_zeros(state: Any, cuts: list[list[np.ndarray]]) -> list[Tensor]:
    """The tensors of a carried ``state`` with zeros for the units that are gone."""
    leaves = pytree.tree_leaves(state)
    for i, cut in enumerate(cuts):
        for d, mask in enumerate(cut, 1):
            sizes = [*leaves[i].shape[:d], mask.size, *leaves[i].shape[d + 1 :]]
            at = torch.from_numpy(np.flatnonzero(mask)).to(leaves[i].device)
            leaves[i] = leaves[i].new_zeros(sizes).index_copy(d, at, leaves[i])
    return leaves
