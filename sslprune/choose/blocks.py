"""Blocks: what can go next of each axis, or of those that are tied, with what it saves and what it carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sslprune.choose.constraints import Constraints, constraints_of
from sslprune.choose.ties import Tie
from sslprune.cost.counts import Cost
from sslprune.cost.grain import grain
from sslprune.errors import BudgetError
from sslprune.kinds.table import kind_of
from sslprune.recipe import PruneSection
from sslprune.recipe.fields import Measure
from sslprune.recipe.method import BudgetSection
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection

Evidence = Sequence[np.ndarray]  # of each axis, what each of its groups carries: float, shape (size,)


@dataclass(frozen=True)
class Block:
    """Groups that go together: one of an axis, or as many as bring its width to a multiple; of tied axes alike."""

    groups: Mapping[int, np.ndarray]  # of each axis, by its index: indices within it
    saving: float  # estimated, in the goal's measure
    score: float  # what the groups carry for what they cost; the lowest goes first

    @property
    def axis(self) -> int:
        """The first of its axes, which no other block has."""
        return min(self.groups)

    @property
    def size(self) -> int:
        """The number of groups."""
        return sum(map(len, self.groups.values()))


@dataclass(frozen=True)
class Goal:
    """``fraction`` of the dense model's ``measure`` may stay, by ``cost``, within ``constraints``."""

    cost: Cost
    constraints: Constraints
    measure: Measure
    fraction: float

    @cached_property
    def dense(self) -> float:
        """The cost of the whole model."""
        return self.of(Selection.none(self.constraints.axes))

    @property
    def limit(self) -> float:
        """The cost that may stay."""
        return self.fraction * self.dense

    def of(self, selection: Selection) -> float:
        """The cost of what ``selection`` leaves."""
        return float(getattr(self.cost, self.measure)(selection))

    def least(self, selection: Selection, evidence: Evidence | None = None) -> float:
        """The least cost within the constraints: what saves most goes first, as long as anything may go."""
        evidence = evidence or [np.zeros(axis.size) for axis in self.constraints.axes]
        while True:
            blocks = sorted(next_blocks(self, evidence, selection), key=lambda b: -b.saving / b.size)
            if not blocks:
                return self.of(selection)
            # a limit is used up by what saves most; where there is none, all go down together, which is faster
            selection = without(selection, blocks[:1] if self.constraints.limits else blocks)

    def rounded_to(self, round_to: int) -> Goal:
        """The same goal on another grain."""
        return replace(self, constraints=replace(self.constraints, round_to=round_to))

    def check_reachable(self, selection: Selection, fraction: float | None = None) -> None:
        """Raise BudgetError if the constraints leave more than ``fraction`` (or the goal's) of the dense cost."""
        least, fraction = self.least(selection), self.fraction if fraction is None else fraction
        if least > fraction * self.dense:
            limits = ", prune.least" if self.constraints.limits else ""
            raise BudgetError(
                f"budget.{self.measure}: {fraction:g} of the dense model cannot be reached; the least reachable "
                f"is {np.ceil(1000 * least / self.dense) / 1000:.3f}; raise it, prune more kinds, or lower "
                f"prune.min_groups{limits} or lasso.floor"
            )


def goal_of(chosen: Sequence[tuple[Axis, PruneSection]], cost: Cost, budget: BudgetSection, floor: float) -> Goal:
    """The goal of a recipe's ``budget`` over the ``chosen`` axes, of which the share ``floor`` stays; on this machine's
    grain where it names none."""
    round_to = grain() if budget.round_to == "auto" else budget.round_to
    return Goal(cost, constraints_of(chosen, floor, round_to), budget.measure, budget.fraction)


def without(selection: Selection, blocks: Sequence[Block]) -> Selection:
    """``selection`` with ``blocks`` gone as well."""
    for block in blocks:
        selection = selection.plus(block.groups)
    return selection


def blocks_of(goal: Goal, evidence: Evidence, selection: Selection, step: int) -> list[Block]:
    """The next block of each axis, or of those that are tied, that still has one to give and saves something, down to
    a multiple of ``step``."""
    savings = goal.cost.savings(selection, "macs" if goal.measure == "latency" else goal.measure)
    found = (_next(goal, evidence, savings, selection, unit, step) for unit in goal.constraints.units)
    several = [groups for groups in found if groups]
    if goal.measure == "latency":
        saved = goal.cost.saved(selection, several, goal.measure)
    else:  # as it would say too, without asking twice
        saved = [sum(float(savings[i][chosen].sum()) for i, chosen in groups.items()) for groups in several]
    return [
        Block(groups, saving, sum(float(evidence[i][chosen].sum()) for i, chosen in groups.items()) / share)
        for groups, saving in zip(several, saved, strict=True)
        if saving > 0 and (share := saving / goal.dense)
    ]


def _next(
    goal: Goal, evidence: Evidence, savings: Sequence[np.ndarray], selection: Selection, unit: Tie, step: int
) -> dict[int, np.ndarray]:
    """The groups that go next of the axes of ``unit``; none where they may not."""
    return _few(goal, evidence, savings, selection, unit, goal.constraints.count(selection, unit.axes[0], step))


def _few(
    goal: Goal, evidence: Evidence, savings: Sequence[np.ndarray], selection: Selection, unit: Tie, count: int
) -> dict[int, np.ndarray]:
    """The ``count`` groups that go next of each axis of ``unit``; none where they may not."""
    if not count or not goal.constraints.allow(selection, dict.fromkeys(unit.axes, count)):
        return {}
    may = {i: ~selection[i] for i in unit.axes}
    for i, alive in may.items():
        saves = alive & (savings[i] > 0)  # of a kernel's positions only the outermost do
        if saves.any() or len(may) == 1:  # in a branch that is gone nothing does, and it goes along with its tie
            may[i] = saves
    carried = {i: evidence[i] for i in unit.axes}
    if unit.alike:
        may = dict.fromkeys(may, np.all(list(may.values()), axis=0).astype(bool))
        carried = dict.fromkeys(may, np.stack(list(carried.values())).sum(axis=0))
    worth = {i: np.flatnonzero(mask) for i, mask in may.items()}
    if any(count > len(groups) for groups in worth.values()):
        return {}
    return {i: groups[_lowest(carried[i][groups], count)] for i, groups in worth.items()}


def _lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the ``count`` lowest are, in the order of a stable sort; of many that sort would be most of a choice."""
    few = np.flatnonzero(~(values > np.partition(values, count - 1)[count - 1]))
    return few[np.argsort(values[few], kind="stable")[:count]]


def pays_late(goal: Goal, block: Block) -> bool:
    """Whether ``block`` may save nothing until more of its axis goes, as of kinds that pay late."""
    return kind_of(goal.constraints.axes[block.axis]).pays_late


def stair(goal: Goal, evidence: Evidence, selection: Selection, block: Block) -> Block | None:
    """``block`` with all that has to go of its axes before anything is saved; None where nothing ever is."""
    unit = next(unit for unit in goal.constraints.units if block.axis in unit.axes)
    savings = goal.cost.savings(selection, "macs" if goal.measure == "latency" else goal.measure)
    now = goal.of(selection)

    def saved(count: int) -> tuple[float, dict[int, np.ndarray]]:
        groups = _few(goal, evidence, savings, selection, unit, count)
        return (now - goal.of(selection.plus(groups)) if groups else 0.0), groups

    worth = (int((savings[i] > 0).sum()) for i in unit.axes)  # of columns of channels that are gone nothing is left
    few, many = 0, min(goal.constraints.most(selection, unit), *worth)
    if not saved(many)[0] > 0:
        return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if saved(middle)[0] > 0 else (middle, many)
    saving, groups = saved(many)
    carried = sum(float(evidence[i][chosen].sum()) for i, chosen in groups.items())
    return Block(groups, saving, carried / (saving / goal.dense))


def next_blocks(goal: Goal, evidence: Evidence, selection: Selection) -> list[Block]:
    """What could go next: whole blocks, or parts of them where no axis has a whole one left."""
    every = (blocks_of(goal, evidence, selection, step) for step in goal.constraints.steps())
    return next((blocks for blocks in every if blocks), [])


def lowest(goal: Goal, evidence: Evidence, selection: Selection, blocks: Sequence[Block]) -> Block | None:
    """The block with the lowest score from which the goal can still be reached: limits may stand in the way."""
    for block in sorted(blocks, key=lambda block: block.score):
        if not goal.constraints.limits or goal.least(without(selection, [block]), evidence) <= goal.limit:
            return block
    return None


def usual(goal: Goal, blocks: Sequence[Block]) -> float:
    """What a block saves, at the middle; many large branches beside fine groups do not make it large."""
    blocks = [block for block in blocks if not pays_late(goal, block)]
    fine = [block.saving for block in blocks if not kind_of(goal.constraints.axes[block.axis]).is_whole]
    return float(min(np.median([block.saving for block in blocks]), 2 * np.median(fine))) if fine else 0.0
