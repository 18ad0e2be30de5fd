"""Tensors in bundles of one shape, each index with the group that it belongs to: a network has few shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from sslprune.values.axes import Axis, tensors_of


@dataclass(frozen=True)
class Sheet:
    """Which group each index of dimension ``dim`` belongs to, for tensors of one shape: (tensors, size) int64.

    The groups of a flat member lie in all dimensions from ``dim`` on: (tensors, *sizes).
    """

    dim: int
    groups: Tensor

    @property
    def end(self) -> int:
        """The first dimension behind those that the groups lie in."""
        return self.dim + self.groups.dim() - 1


@dataclass(frozen=True)
class Bundle:
    """Tensors of one shape, that are handled together: a network has hundreds of tensors, but few shapes.

    Of a sharded parameter it is this process's rows that have the shape.
    """

    parameters: list[Tensor]
    sheets: list[Sheet]
    sharded: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        """The numbers that lie here."""
        return [local(parameter) for parameter in self.parameters]

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients of them; zeros where there is none."""
        return [torch.zeros_like(local(p)) if p.grad is None else local(p.grad) for p in self.parameters]


@dataclass(frozen=True)
class Sheets:
    """The groups of one tensor of the first model: (dim, group of each index from that dimension on)."""

    shape: torch.Size
    maps: list[tuple[int, np.ndarray]]


def sheets_of(model: nn.Module, axes: Sequence[Axis], starts: np.ndarray) -> dict[str, Sheets]:
    """Every tensor that the axes zero, by one of its names, with the group of each index of each of its dimensions."""
    tensors = tensors_of(model)
    outside = int(starts[-1])  # the number of "no group"
    names: dict[int, str] = {}  # of the tensors so far, by id: a tensor may have several
    found: dict[str, Sheets] = {}
    for axis, start in zip(axes, starts, strict=False):
        for member in axis.members:
            if not member.zeroed:
                continue
            tensor = tensors[member.name]
            sheets = found.setdefault(names.setdefault(id(tensor), member.name), Sheets(tensor.shape, []))
            shape = member.shape(tensor)
            new = np.full(shape.numel(), outside)
            new[member.positions] = start + np.arange(axis.size)[:, None]
            _lay(sheets.maps, member.dim, new.reshape(shape), outside)
    return found


def local(tensor: Tensor) -> Tensor:
    """What of ``tensor`` lies in this process: its rows of a sharded one, as a view, else all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def origin_of(shard: DTensor) -> Tensor:
    """Where each number of a sharded tensor that lies here stands in the whole: a flat index; its shape here."""
    whole = torch.arange(shard.numel(), device=shard.to_local().device).view(shard.shape)
    return distribute_tensor(whole, shard.device_mesh, shard.placements, src_data_rank=None).to_local()


def bundles_of(left: Sequence[tuple[Tensor, list[tuple[int, np.ndarray]]]]) -> list[Bundle]:
    """Tensors with their groups, bundled by the shape that they have here."""
    alike: dict[tuple[Any, ...], list[tuple[Tensor, list[np.ndarray]]]] = {}
    for tensor, maps in left:
        ordered = sorted(maps, key=_order)
        dims = tuple(dim for dim, _ in ordered)
        here = local(tensor)
        shares = isinstance(tensor, DTensor)
        kind = here.shape, here.dtype, here.device, dims, tuple(groups.ndim for _, groups in ordered), shares
        alike.setdefault(kind, []).append((tensor, [groups for _, groups in ordered]))
    return [
        Bundle(
            [tensor for tensor, _ in members],
            [
                Sheet(dim, torch.from_numpy(np.stack([groups[i] for _, groups in members])).to(device))
                for i, dim in enumerate(dims)
            ],
            shares,
        )
        for (_, _, device, dims, _, shares), members in alike.items()
    ]


def relaid(sheets: Sheets, origins: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The groups of what is left of a tensor: in the dimensions along which they differ there.

    Those are the old ones, unless what is left was laid out anew, as the columns of a convolution are.
    """
    maps = []
    index = np.unravel_index(origins, sheets.shape)
    for dim, groups in sheets.maps:
        left = groups[index[dim : dim + groups.ndim]]
        differ = [d for d in range(left.ndim) if (left != left.take([0], d)).any()] or [dim]
        first, last = min(differ), max(differ)
        maps.append((first, left[tuple(slice(None) if first <= d <= last else 0 for d in range(left.ndim))]))
    return maps


def _order(sheet: tuple[int, np.ndarray]) -> tuple[int, int]:
    return sheet[0], sheet[1].ndim


def _lay(sheets: list[tuple[int, np.ndarray]], dim: int, new: np.ndarray, outside: int) -> None:
    """Write ``new`` over a sheet of the same dimension that has room for it; where none has, it is a sheet of its own.

    A tensor that goes by two names brings the same groups twice, and they are written once.
    """
    for other, groups in sheets:
        alike = (other, groups.shape) == (dim, new.shape)
        if alike and ((groups == new) | (new == outside) | (groups == outside)).all():
            groups[:] = np.where(new == outside, groups, new)
            return
    sheets.append((dim, new))
