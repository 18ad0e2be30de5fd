"""Features that nothing makes, or that nobody reads, once parts of weights are zero: they can go as whole groups.

A group of an exact axis goes when all that is zeroed with it is zero. Where every weight that reads it is zero there,
what makes it does not matter; where all that makes it is zero, what reads it does not. The rest of the group is set to
zero then, and the function is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sslprune.capture.mode import evaluating
from sslprune.values.axes import Axis, Role, tensors_of, zero_groups, zero_mask
from sslprune.values.compare import difference

SAME = 1e-5  # relative difference of the outputs, above which something else than weights reads what was set to zero


def zero_unread_(model: nn.Module, axes: Sequence[Axis], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Set to zero what no longer matters of groups of the exact ``axes``, in place; how many groups that were.

    Each axis is tried on the example inputs, and left as it is where the outputs change.
    """
    found, changed = 0, True
    while changed:  # what reads a group makes another
        changed = False
        for axis in axes:
            groups = _useless(model, axis)
            if not groups.size:
                continue
            before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
            with torch.no_grad(), evaluating(model):
                was = model(*args, **kwargs)
                zero_groups(model, axis, groups)
                _, apart = difference(was, model(*args, **kwargs))
            if apart <= SAME:
                found, changed = found + len(groups), True
                continue
            with torch.no_grad():
                for name, tensor in tensors_of(model).items():
                    tensor.copy_(before[name])
    return found


def _useless(model: nn.Module, axis: Axis) -> np.ndarray:
    """The groups of ``axis`` that nothing makes or nobody reads, and that are not zero yet."""
    if axis.frozen or not axis.exact:
        return np.empty(0, np.int64)
    unread = _zero(model, axis, ("reads",))
    unmade = _zero(model, axis, ("makes", "follows"))
    return np.flatnonzero((unread | unmade) & ~zero_mask(model, axis))


def _zero(model: nn.Module, axis: Axis, roles: tuple[Role, ...]) -> np.ndarray:
    """Which groups are zero in all members of these roles; none where there are no such members."""
    members = tuple(member for member in axis.members if member.role in roles)
    return zero_mask(model, replace(axis, members=members))
