"""Nearer: where coarse blocks end far below a goal, what went before them stays, or others go in their place."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from sslprune.choose.blocks import Block, Evidence, Goal, without
from sslprune.choose.sums import best_sum, is_near
from sslprune.choose.ties import Tie
from sslprune.kinds.table import kind_of
from sslprune.values.selection import Selection

MOST_SWAPS = 100  # blocks that are tried in another's place ...
MOST_OF_SWAP = 300  # ... and the sums of others that are looked at for each
MOST_RETURNS = 1000  # that are looked at on one grain


def nearer(goal: Goal, evidence: Evidence, begin: Selection, end: Selection) -> Selection:
    """``end``, or what lands nearer below the goal; ``begin`` goes anyhow, and the goal holds ``end`` already.

    What carries most for its cost comes back first. Where that does not fit, others go for it.
    """
    if goal.measure == "latency":  # it is measured where it lands
        return end
    worth = _worth(goal, evidence, begin)
    end, tried = _returned(goal, worth, begin, end), 0
    swaps = iter(_returns(goal, worth, begin, end))
    while not is_near(goal, goal.of(end)) and tried < MOST_SWAPS and (block := next(swaps, None)):
        tried += 1
        _, others = best_sum(goal, evidence, _with(end, block), staying={block.axis}, most=MOST_OF_SWAP)
        found = _returned(goal, worth, begin, without(_with(end, block), others)) if others else end
        if goal.of(found) > goal.of(end):
            end, swaps = found, iter(_returns(goal, worth, begin, found))
    return _paying(goal, begin, end)


def _paying(goal: Goal, begin: Selection, end: Selection) -> Selection:
    """``end`` without what goes in vain of axes that pay late."""
    for i, axis in enumerate(end.axes):
        if kind_of(axis).pays_late and (end[i] & ~begin[i]).any():
            back = Selection(end.axes, (*end.masks[:i], begin[i], *end.masks[i + 1 :]))
            end = back if goal.of(back) == goal.of(end) else end
    return end


def _returned(goal: Goal, worth: Evidence, begin: Selection, end: Selection) -> Selection:
    """``end`` without what fits below the goal as well: whole blocks first, and parts of them where those do not do."""
    for step in goal.constraints.steps():
        end = _filled(goal, worth, begin, end, step)
    return end


def _filled(goal: Goal, worth: Evidence, begin: Selection, end: Selection, step: int) -> Selection:
    """What comes of ``end`` where blocks come back, depth first, what is worth most first."""
    best, looked = (goal.of(end), end), 0
    open_: list[tuple[Selection, frozenset[int]]] = [(end, frozenset())]  # each with the axes that stay as they are
    while open_ and looked < MOST_RETURNS and not is_near(goal, best[0]):
        here, closed = open_.pop()
        for block in _returns(goal, worth, begin, here, step, closed):
            back, looked = _with(here, block), looked + 1
            cost = goal.of(back)
            if cost <= goal.limit:
                open_ += [(here, closed | {block.axis}), (back, closed)]
                best = (cost, back) if cost > best[0] else best
                break
            closed |= {block.axis}  # what does not fit now never will
    return best[1]


def _worth(goal: Goal, evidence: Evidence, selection: Selection) -> list[np.ndarray]:
    """Of each group what it carries for what it costs, as its axis does where ``selection`` is gone."""
    savings = goal.cost.savings(selection, goal.measure)
    return [carried / max(saving.max(initial=0.0), 1e-12) for carried, saving in zip(evidence, savings, strict=True)]


def _returns(
    goal: Goal, worth: Evidence, begin: Selection, end: Selection, step: int = 1, closed: Collection[int] = ()
) -> list[Block]:
    """What of each unit may come back next, up to a multiple of ``step``; the highest worth first."""
    units = [unit for unit in goal.constraints.units if unit.axes[0] not in closed]
    found = (_return(goal, worth, begin, end, unit, step) for unit in units)
    blocks = [
        Block(groups, 0.0, sum(float(worth[i][g].mean()) for i, g in groups.items())) for groups in found if groups
    ]
    return sorted(blocks, key=lambda block: -block.score)


def _return(
    goal: Goal, worth: Evidence, begin: Selection, end: Selection, unit: Tie, step: int
) -> dict[int, np.ndarray]:
    """The groups of each axis of ``unit`` that may come back next; none where nothing may."""
    grain = goal.constraints.grain(unit.axes[0], step)
    may = {i: _beside(end, i) & ~begin[i] for i in unit.axes}
    carried = {i: worth[i] for i in unit.axes}
    if unit.alike:
        may = dict.fromkeys(may, np.logical_and.reduce(list(may.values())))
        carried = dict.fromkeys(may, np.stack(list(carried.values())).sum(axis=0))
    count = min(grain - end.left(unit.axes[0]) % grain, *(int(mask.sum()) for mask in may.values()))
    if not count:
        return {}
    best = {i: np.argsort(-carried[i][mask], kind="stable")[:count] for i, mask in may.items()}
    return {i: np.flatnonzero(mask)[best[i]] for i, mask in may.items()}


def _beside(end: Selection, i: int) -> np.ndarray:
    """Which groups could have been the last to go of an axis: of a kernel's positions those beside what is left."""
    gone, kind = end[i], kind_of(end.axes[i])
    if kind.next(np.ones(3, bool)).all():  # the middle one can go, so any can
        return gone
    return gone & [bool(kind.next(~gone | one)[j]) for j, one in enumerate(np.eye(gone.size, dtype=bool))]


def _with(selection: Selection, block: Block) -> Selection:
    """``selection`` without ``block``, which stays."""
    masks = list(selection.masks)
    for i, groups in block.groups.items():
        masks[i] = masks[i].copy()
        masks[i][groups] = False
    return Selection(selection.axes, tuple(masks))
