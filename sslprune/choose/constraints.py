"""What every choice has to keep to: floors of axes, limits and ties of several, and widths on the machine's grain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sslprune.choose.rows import rows_of
from sslprune.choose.ties import Tie, tied, ties_of
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

    They are counted in rows of a matrix: a head has as many as it is wide, an LSTM's unit four. An axis is in one of
    the ``ties`` at most.
    """

    axes: tuple[Axis, ...]
    floors: tuple[int, ...]
    limits: tuple[Limit, ...] = ()
    round_to: int = 1
    ties: tuple[Tie, ...] = ()

    @cached_property
    def units(self) -> tuple[Tie, ...]:
        """All axes by what they go with: the ties, and each of the others by itself; in the order of the axes."""
        in_ties = {i for tie in self.ties for i in tie.axes}
        single = [Tie((i,)) for i in range(len(self.axes)) if i not in in_ties]
        return tuple(sorted([*self.ties, *single], key=lambda unit: unit.axes))

    def kept_to(self, selection: Selection, first: Selection | None = None) -> Selection:
        """What of ``selection`` may go by the ties; that of ``first`` sooner than the rest."""
        return tied(selection, self.ties, first) if self.ties else selection

    def allow(self, selection: Selection, counts: Mapping[int, int]) -> bool:
        """Whether so many more groups of the axes at those indices may go together."""
        return all(selection.left(i) - count >= self.floors[i] for i, count in counts.items()) and all(
            sum(selection.left(i) - counts.get(i, 0) for i in limit.axes) >= limit.least
            for limit in self.limits
            if any(i in counts for i in limit.axes)
        )

    def most(self, selection: Selection, unit: Tie) -> int:
        """How many more groups of each axis of ``unit`` may go."""
        left = min(selection.left(i) - self.floors[i] for i in unit.axes)
        for limit in self.limits:
            if shared := sum(i in limit.axes for i in unit.axes):
                left = min(left, (sum(selection.left(i) for i in limit.axes) - limit.least) // shared)
        return max(0, left)

    def count(self, selection: Selection, axis: int, step: int) -> int:
        """How many groups of an axis go next, to bring its width to a multiple of ``step``; a branch goes whole."""
        left = selection.left(axis)
        return (left - 1) % self.grain(axis, step) + 1 if left else 0

    def grain(self, axis: int, step: int) -> int:
        """How many groups of an axis make ``step`` rows of a matrix, or the fewest whole multiples of it."""
        rows = rows_of(self.axes[axis]) if kind_of(self.axes[axis]).is_width else 0  # experts are none of a matrix
        return step // math.gcd(step, rows)

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
    ties = [
        Tie(tuple(axes[i] for i in tie.axes), tie.alike)
        for section, axes in sections.values()
        for tie in ties_of([chosen[i][0] for i in axes], section, f'prune "{section.kind}"')
    ]
    floors = tuple(floor_of(axis, floor, section.min_groups) for axis, section in chosen)
    return Constraints(tuple(axis for axis, _ in chosen), floors, tuple(limits), round_to, tuple(ties))


def floor_of(axis: Axis, share: float, least: int) -> int:
    """How many groups of ``axis`` stay: ``least`` and that ``share``; a branch can always go."""
    return kind_of(axis).floor(axis, share, least)
