"""From evidence, constraints and a cost to a `Selection` that lands on the goal."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from sslprune.choose.blocks import Block, Evidence, Goal, lowest, next_blocks, pays_late, stair, usual, without
from sslprune.choose.nearer import nearer
from sslprune.choose.sums import TOLERANCE, best_sum, is_near
from sslprune.errors import BudgetError
from sslprune.kinds.table import kind_of
from sslprune.values.selection import Selection

RESERVE = 3  # blocks of the usual size that are left for the landing ...
MOST_RESERVE = 0.25  # ... and where there are few, this share of all that has to go
MANY = 32  # axes, of which the blocks go one by one; of n times as many n go together
MOST_LANDINGS = 5  # that are measured, where the cost is an estimate


def choose(goal: Goal, evidence: Evidence, start: Selection | None = None) -> Selection:
    """The groups that go: those with the least evidence for what they cost, down to the goal; ``start`` goes anyhow,
    as far as the ties let it.

    Raises BudgetError where the constraints leave more than the goal.
    """
    begin = goal.constraints.kept_to(start if start is not None else Selection.none(goal.constraints.axes))
    goal.check_reachable(begin)
    selection, _ = descend(goal, evidence, begin, goal.limit, goal.limit)
    return land(goal, evidence, selection, begin)


def descend(
    goal: Goal, evidence: Evidence, selection: Selection, allowed: float, room: float, aim: Selection | None = None
) -> tuple[Selection, bool]:
    """Take the lowest blocks until the cost is at ``allowed``, leaving enough to choose from for the landing.

    What costs much, such as a whole branch, waits until the cost may be as low as ``room``; nothing goes that stays at
    the ``aim``, or that could never pay. Returns also whether the landing is due: nothing else may go, and ``allowed``
    is nearer to the goal than to the cost.
    """
    now, together = goal.of(selection), 1
    staying: set[int] = set()
    while now > allowed:
        blocks = next_blocks(goal, evidence, selection)
        reserve = min(RESERVE * usual(goal, blocks), MOST_RESERVE * (goal.dense - goal.limit))
        least = max(room, goal.limit + reserve)
        blocks = [b for b in blocks if now - b.saving >= least and b.axis not in staying and _within(b, aim)]
        block = lowest(goal, evidence, selection, blocks)
        if block is None:
            return selection, room <= goal.limit + reserve and allowed <= (goal.limit + now) / 2
        few = _along(goal, blocks, block, max(together, len(goal.constraints.units) // MANY))
        staying |= {b.axis for b in few if pays_late(goal, b) and not _pays(goal, evidence, selection, b)}
        if not (few := [b for b in few if b.axis not in staying]):
            continue
        while (left := goal.of(found := without(selection, few))) < max(least, allowed) and len(few) > 1:
            few = few[: len(few) // 2]
        together = 2 * together if left == now else 1  # of columns many go before they save anything
        selection, now = found, left
    return selection, False


def onward(goal: Goal, evidence: Evidence, begin: Selection, allowed: float, room: float) -> tuple[Selection, bool]:
    """`descend` from ``begin``, as training does step by step: what goes now cannot come back at the landing.

    Where the lowest blocks would leave only others that are too coarse to land with, the lowest of those go that lead
    nearer to the goal.
    """
    selection, due = descend(goal, evidence, begin, allowed, room)
    if selection == begin or _closes(goal, selection):
        return selection, due
    try:
        end = _landing(goal, evidence, descend(goal, evidence, selection, goal.limit, goal.limit)[0])
    except BudgetError:  # the landing will say so
        return selection, due
    aim = nearer(goal, evidence, begin, end)
    if goal.of(aim) <= goal.of(nearer(goal, evidence, selection, end)):
        return selection, due
    return descend(goal, evidence, begin, allowed, room, aim)


def _closes(goal: Goal, selection: Selection) -> bool:
    """Whether the small groups that are left close any gap to the goal that a coarse block can leave."""
    if goal.measure == "latency":  # it is measured where it lands
        return True
    savings, small, large = goal.cost.savings(selection, goal.measure), 0.0, 0.0
    for unit in goal.constraints.units:
        each = [savings[i][savings[i] > 0] for i in unit.axes]
        one = sum(float(saved.max(initial=0.0)) for saved in each)
        kind, most = kind_of(goal.constraints.axes[unit.axes[0]]), goal.constraints.most(selection, unit)
        if kind.pays_late:
            large = max(large, sum(float(saved.sum()) for saved in each))
        elif one > TOLERANCE * goal.limit:
            large = max(large, one)
        else:
            small += most * one
    return small >= large


def _within(block: Block, aim: Selection | None) -> bool:
    return aim is None or all(aim[i][groups].all() for i, groups in block.groups.items())


def _pays(goal: Goal, evidence: Evidence, selection: Selection, block: Block) -> bool:
    """Whether what has to go before ``block`` pays leaves as much as the goal allows; later it would leave less."""
    found = stair(goal, evidence, selection, block)
    return found is not None and is_near(goal, goal.of(without(selection, [found])))


def _along(goal: Goal, blocks: Sequence[Block], first: Block, most: int) -> list[Block]:
    """``first``, and what goes in the same step: of very many axes the next few, as far as they are like it.

    Each step asks all axes, and there are as many steps as blocks: that grows with the square of the model.
    """
    found = [first]
    for block in heapq.nsmallest(most, blocks, key=lambda block: block.score) if not goal.constraints.limits else ():
        fine = not any(kind_of(goal.constraints.axes[i]).is_whole for i in block.groups)  # a sum keeps an operand
        alike = block.score <= 2 * first.score and block.saving <= 2 * first.saving
        if block is not first and fine and alike:
            found.append(block)
    return found


def land(goal: Goal, evidence: Evidence, start: Selection, begin: Selection | None = None) -> Selection:
    """Choose the last blocks; where the cost is an estimate, measure where that leads, and land again from there.

    What was measured nearest to just below the goal is taken, and nothing above it if there is a choice. What goes at
    ``start`` and not at ``begin`` may stay after all, where the blocks are too coarse to end near the goal without it.
    """
    landed: list[tuple[bool, float, Selection]] = []
    for _ in range(MOST_LANDINGS):
        selection = _landing(goal, evidence, start)
        share = goal.cost.measured(selection)
        if share is None:
            return nearer(goal, evidence, start if begin is None else begin, selection)
        over = share / goal.fraction - 1
        known = any(selection == other for *_, other in landed)
        off = abs(over + TOLERANCE / 2)  # just below the goal: the next timing differs a little
        landed.append((over > TOLERANCE, off, selection))
        if off <= TOLERANCE / 2 or known:
            break
    *_, selection = min(landed, key=lambda one: one[:2])
    goal.cost.measured(selection)
    return selection


def _landing(goal: Goal, evidence: Evidence, selection: Selection) -> Selection:
    """From a little above the goal, choose the last blocks together so that the cost ends just below it.

    Where no sum of blocks comes within the tolerance, half-size blocks are tried, and so on down to single groups: a
    width or two off the grain are better than a missed budget. Failing that too: the highest cost below it.
    """
    while goal.of(selection) > goal.limit:
        best: tuple[float, list[Block]] = (0.0, [])
        for step in goal.constraints.steps():
            if not is_near(goal, best[0]):
                best = max(best, best_sum(goal, evidence, selection, step), key=lambda found: found[0])
        if not best[1]:  # none at all: still far away, so go nearer
            block = lowest(goal, evidence, selection, next_blocks(goal, evidence, selection))
            best = 0.0, [block] if block is not None else []
        if not best[1] and goal.measure == "latency":
            break  # it is no sum of what its blocks save: what was left to go did not do it, and the report says so
        if not best[1]:
            raise BudgetError(
                f"budget.{goal.measure}: {goal.fraction:g} was planned, and at {goal.of(selection) / goal.dense:.3f} of"
                " the dense model nothing more can go; raise it, prune more kinds, or lower lasso.floor"
            )
        selection = without(selection, best[1])
    return selection
