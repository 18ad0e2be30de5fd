"""What every choice has to keep to: floors of an axis, limits over several, and widths on the machine's grain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sslprune.kinds.table import kind_of
from sslprune.recipe import PruneSection
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection


@dataclass(frozen=True)
class Limit:
    """Of all groups of ``axes`` (indices into the constraints') together, ``least`` stay."""

    axes: tuple[int, ...]
    least: int


@dataclass(frozen=True)
class Constraints:
    """``floors``: how many groups of each axis stay. Widths stay multiples of ``round_to`` as far as a goal allows.

    They are counted in rows of a matrix: a head has as many as it is wide, an LSTM's unit four.
    """

    axes: tuple[Axis, ...]
    floors: tuple[int, ...]
    limits: tuple[Limit, ...] = ()
    round_to: int = 1

    def allow(self, selection: Selection, axis: int, count: int) -> bool:
        """Whether ``count`` more groups of the axis at that index may go."""
        return selection.left(axis) - count >= self.floors[axis] and all(
            sum(selection.left(i) for i in limit.axes) - count >= limit.least
            for limit in self.limits
            if axis in limit.axes
        )

    def count(self, selection: Selection, axis: int, step: int) -> int:
        """How many groups of an axis go next, to bring its width to a multiple of ``step``; a branch goes whole."""
        left = selection.left(axis)
        return (left - 1) % self.grain(axis, step) + 1 if left else 0

    def grain(self, axis: int, step: int) -> int:
        """How many groups of an axis make ``step`` rows of a matrix, or the fewest whole multiples of it."""
        return step // math.gcd(step, rows_of(self.axes[axis]))

    def steps(self) -> Iterator[int]:
        """The grain, half of it, and so on down to single rows: a width off the grain beats a missed budget."""
        step = self.round_to
        while step:
            yield step
            step //= 2


def constraints_of(chosen: Sequence[tuple[Axis, PruneSection]], floor: float, round_to: int) -> Constraints:
    """Those of the ``chosen`` axes by their sections; ``floor`` is the share of every axis that stays."""
    sections: dict[int, tuple[PruneSection, list[int]]] = {}
    for i, (_, section) in enumerate(chosen):
        sections.setdefault(id(section), (section, []))[1].append(i)
    limits = [
        Limit(tuple(axes), math.ceil(section.least * sum(chosen[i][0].size for i in axes)))
        for section, axes in sections.values()
        if section.least
    ]
    floors = tuple(floor_of(axis, floor, section.min_groups) for axis, section in chosen)
    return Constraints(tuple(axis for axis, _ in chosen), floors, tuple(limits), round_to)


def floor_of(axis: Axis, share: float, least: int) -> int:
    """How many groups of ``axis`` stay: ``least`` and that ``share``; a branch can always go."""
    return kind_of(axis).floor(axis, share, least)


def rows_of(axis: Axis) -> int:
    """How many rows of a weight one group of ``axis`` is; 0 where it is none, and no width: a kernel's, or a column."""
    return max((member.positions.shape[1] for member in axis.members if member.dim == 0 and not member.flat), default=0)
