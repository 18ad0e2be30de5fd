"""Columns: one input channel and kernel position across all filters of a convolution.

SSL's shape fibers (Wen et al. 2016, §3.1, eq. 3): columns of the matrix that the weight (out, C, *kernel) is once
flattened from C on. Zero columns make no dense convolution smaller by themselves. Where few enough are left, a
convolution over just those is faster: their channels are gathered and shifted, one piece for each kernel position, and
a pointwise convolution reads the pieces side by side (the smaller matrix product of §3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx

from sslprune.analysis.atoms import Dim, merge


@dataclass(frozen=True)
class Columns:
    """The columns of one weight, as a dimension whose indices go with their channel, kernel position, or by themselves.

    ``whole`` are the weight's dimensions (C, *kernel); ``own`` has an atom for each column, ``dim`` all that it goes
    with: both of size C x kernel positions.
    """

    own: Dim
    whole: tuple[Dim, ...]

    @property
    def dim(self) -> Dim:
        return Dim(np.concatenate([merge(self.whole).rows, self.own.rows], axis=1))

    def by_position(self, kept: np.ndarray) -> list[np.ndarray]:
        """The indices of the columns in ``kept``, those of one kernel position together."""
        column, num_positions = np.flatnonzero(kept), prod(side.size for side in self.whole[1:])
        return [column[column % num_positions == position] for position in np.unique(column % num_positions)]

    def order(self, kept: np.ndarray) -> np.ndarray:
        """The order in which a convolution reads the columns in ``kept``."""
        return np.concatenate(self.by_position(kept))


def read_columns(r: Any, a: SimpleNamespace, columns: Columns, channel_dim: int) -> None:
    """Make a convolution pointwise, over the columns that are kept; its weight becomes (out, columns, 1, ..., 1).

    Moving a kernel position's channels into place is a padding that may be negative: a crop.
    """
    channels, *sides = columns.whole
    wide = lambda value: list(value) * (len(sides) if len(value) == 1 else 1)  # noqa: E731
    padding, dilation, stride = wide(a.padding), wide(a.dilation), wide(a.stride)
    aten = torch.ops.aten
    pieces: list[fx.Node] = []
    for indices in columns.by_position(r.mask(columns.dim)):
        channel, *positions = np.unravel_index(indices, [dim.size for dim in columns.whole])
        amounts: list[int] = []
        for position, side, pad, step in zip(positions, sides, padding, dilation, strict=True):
            at = int(position[0])
            amounts = [pad - at * step, pad - (side.size - 1 - at) * step, *amounts]  # the last side first
        index = r.constant(f"{a.weight.target}_columns{len(pieces)}", r.renumber(channels, channel))
        piece = r.insert(aten.index_select.default, r.mapped(a.input), channel_dim, index)
        if any(amounts):
            piece = r.insert(aten.pad.default, piece, amounts)
        for d, by in enumerate(stride):
            if by > 1:
                piece = r.insert(aten.slice.Tensor, piece, channel_dim + 1 + d, 0, torch.iinfo(torch.int64).max, by)
        pieces.append(piece)
    r.read(r.insert(aten.cat.default, pieces, channel_dim))
    for argument, value in (("stride", 1), ("padding", 0), ("dilation", 1)):
        r.set(argument, [value] * len(sides))


@torch.no_grad()
def gathered(weight: torch.Tensor, out: np.ndarray, order: np.ndarray) -> torch.Tensor:
    """The weight (out, C, *kernel) as (kept out, kept columns, 1, ..., 1)."""
    rows, columns = (torch.from_numpy(index).to(weight.device) for index in (np.flatnonzero(out), order))
    small = weight.detach().flatten(1).index_select(0, rows).index_select(1, columns)
    return small.reshape(*small.shape, *[1] * (weight.dim() - 2))
