"""A repacked model beside the one that it was made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from sslprune.capture.mode import evaluating
from sslprune.capture.program import quiet
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
) -> float:
    """Largest difference of the outputs in evaluation mode, relative to each tensor's largest value; NaN as there.

    Models that carry state run twice, from zeros; ``cuts`` say what ``other``'s state has of ``one``'s, and what it
    lacks has to be zero there. Random numbers are drawn alike, whatever the widths.
    """
    device = next((p.device for p in one.parameters()), torch.device("cpu"))
    place = lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf  # noqa: E731
    args, kwargs = pytree.tree_map(place, args), pytree.tree_map(place, kwargs)
    outputs = []
    for model, missing in ((one, []), (other, cuts)):
        with evaluating(model), quiet(), alike():
            if not cuts:
                outputs.append(model(*args, **kwargs))
                continue
            run = Carrying(model)
            results = [run(*args[:-1], **kwargs) for _ in range(2)]
            outputs.append([results, _with_zeros(run.state, missing or [])])
    return difference(*outputs)[1]


def _with_zeros(state: Any, cuts: list[list[np.ndarray]]) -> list[torch.Tensor]:
    """The tensors of a carried ``state`` with zeros for the units that are gone."""
    leaves = pytree.tree_leaves(state)
    for i, cut in enumerate(cuts):
        for d, mask in enumerate(cut, 1):
            sizes = [*leaves[i].shape[:d], mask.size, *leaves[i].shape[d + 1 :]]
            at = torch.from_numpy(np.flatnonzero(mask)).to(leaves[i].device)
            leaves[i] = leaves[i].new_zeros(sizes).index_copy(d, at, leaves[i])
    return leaves
