"""Rows: how much of a weight one group is."""

from __future__ import annotations

from sslprune.values.axes import Axis


def rows_of(axis: Axis) -> int:
    """How many rows of a weight one group of ``axis`` is; 0 where it is none, and no width: a kernel's, or a column."""
    return max((member.positions.shape[1] for member in axis.members if member.dim == 0 and not member.flat), default=0)
