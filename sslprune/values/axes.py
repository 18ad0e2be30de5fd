"""Values: what may be removed, and setting it to zero.

An *axis* is one dimension that several tensors share; a *group* is one index of it: all the weights that disappear
together. A removable residual branch is an axis of kind ``layers`` and size 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn

Role = Literal["makes", "reads", "follows"]


@dataclass(frozen=True, eq=False)
class Member:
    """Where the groups of an axis lie in one dimension of one parameter or buffer.

    ``positions[i]`` are the indices along ``dim`` that belong to group ``i``: shape (axis size, n), int64.
    ``zeroed`` is False for what is sliced at repack but not driven to zero: buffers, parameters that do not train, and
    parameters whose zero would be divided by. ``flat``: they are indices of ``tensor.flatten(dim)``. ``role``: a layer
    makes the groups with it (the filters of a convolution), or reads them (its input channels), or it follows them
    (a bias, a norm's scale). What does both makes them.
    """

    name: str
    dim: int
    positions: np.ndarray
    zeroed: bool = True
    flat: bool = False
    role: Role = "follows"

    def shape(self, tensor: torch.Tensor) -> torch.Size:
        """The shape of what ``positions`` are indices of: one dimension, or all from ``dim`` on."""
        return tensor.shape[self.dim :] if self.flat else tensor.shape[self.dim : self.dim + 1]

    def entries(self, tensor: torch.Tensor, groups: np.ndarray) -> torch.Tensor:
        """Which numbers of ``tensor`` belong to ``groups`` (indices or a mask): bool, of a shape that broadcasts."""
        shape = self.shape(tensor)
        chosen = torch.zeros(shape.numel(), dtype=torch.bool)
        chosen[torch.from_numpy(self.positions[groups].reshape(-1))] = True
        return chosen.view(*shape, *[1] * (tensor.dim() - self.dim - len(shape)))

    @property
    def is_identity(self) -> bool:
        """Whether group ``i`` is simply index ``i`` of the dimension."""
        count, width = self.positions.shape
        return width == 1 and bool((self.positions[:, 0] == np.arange(count)).all())


@dataclass(frozen=True)
class Cut:
    """A sum or a concatenation that drops one of its ``of`` operands: names of nodes in one of a program's graphs."""

    total: str
    operand: str
    of: int


@dataclass(frozen=True, eq=False)
class Axis:
    """One shared dimension with everything that runs along it.

    ``exact``: once the zeroed members of a group are zero, the network without the group computes the same function.
    ``frozen``: the axis can never be removed. ``reason`` says which operator froze it or made it inexact.
    ``atoms`` are the analysis's own names of what goes with each group, shape (size, n), int64. ``cuts``: what the
    graphs of the program (evaluation, and training where there is one) drop when the whole axis goes. ``least`` groups
    have to stay, as many experts as a router picks.
    """

    name: str
    kind: str
    size: int
    exact: bool
    members: tuple[Member, ...]
    reason: str = ""
    frozen: bool = False
    atoms: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.int64), repr=False)
    cuts: tuple[Cut, ...] = field(default=(), repr=False)
    least: int = 0

    @property
    def prunable(self) -> bool:
        return not self.frozen

    def __str__(self) -> str:
        state = "exact" if self.exact else f"{'frozen' if self.frozen else 'inexact'}: {self.reason}"
        return f"{self.name} [{self.kind} x {self.size}] {state}, {len(self.members)} members"


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of ``model`` by each of its names (a shared tensor stands under all of its names)."""
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    return tensors


@torch.no_grad()
def zero_groups(
    model: nn.Module, axis: Axis, indices: Iterable[int] | Sequence[int] | np.ndarray | torch.Tensor
) -> None:
    """Set every member slice of the groups ``indices`` of ``axis`` to zero, in place.

    Raises IndexError for an index outside ``0 .. axis.size - 1``.
    """
    chosen = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else list(indices), dtype=np.int64).reshape(
        -1
    )
    if chosen.size and (chosen.min() < 0 or chosen.max() >= axis.size):
        raise IndexError(f"axis {axis.name} has groups 0 to {axis.size - 1}; got {chosen.min()} to {chosen.max()}")
    tensors = tensors_of(model)
    for member in axis.members:
        if member.zeroed:
            tensor = tensors[member.name]
            tensor.masked_fill_(member.entries(tensor, chosen).to(tensor.device), 0)


@torch.no_grad()
def zero_mask(model: nn.Module, axis: Axis, tensors: Mapping[str, torch.Tensor] | None = None) -> np.ndarray:
    """Which groups of ``axis`` are exactly zero in ``model``: bool, shape (size,).

    ``tensors`` are the model's, from ``tensors_of``, for who asks about many axes.
    """
    tensors = tensors_of(model) if tensors is None else tensors
    zero = np.ones(axis.size, bool)
    counted = False
    for member in axis.members:
        if member.zeroed:
            counted = True
            tensor = tensors[member.name].flatten(member.dim) if member.flat else tensors[member.name]
            others = [d for d in range(tensor.dim()) if d != member.dim]
            nonzero = (tensor != 0).any(dim=others) if others else tensor != 0
            zero &= ~nonzero.cpu().numpy()[member.positions].any(axis=1)
    return zero if counted else np.zeros(axis.size, bool)
