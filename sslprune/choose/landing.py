"""From evidence, constraints and a cost to a `Selection` that lands on the goal."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from sslprune.choose.blocks import Block, Evidence, Goal, blocks_of, lowest, next_blocks, usual, without
from sslprune.errors import BudgetError
from sslprune.kinds.table import kind_of
from sslprune.values.selection import Selection

TOLERANCE = 0.01  # the cost ends between (1 - TOLERANCE) x the goal and the goal
RESERVE = 3  # blocks of the usual size that are left for the landing ...
MOST_RESERVE = 0.25  # ... and where there are few, this share of all that has to go
MANY = 32  # axes, of which the blocks go one by one; of n times as many n go together
MOST_SUMS = 3000  # that the landing looks at
MOST_LANDINGS = 5  # that are measured, where the cost is an estimate


def choose(goal: Goal, evidence: Evidence, start: Selection | None = None) -> Selection:
    """The groups that go: those with the least evidence for what they cost, down to the goal; ``start`` goes anyhow,
    as far as the ties let it.

    Raises BudgetError where the constraints leave more than the goal.
    """
    selection = goal.constraints.kept_to(start if start is not None else Selection.none(goal.constraints.axes))
    goal.check_reachable(selection)
    selection, _ = descend(goal, evidence, selection, goal.limit, goal.limit)
    return land(goal, evidence, selection)


def descend(
    goal: Goal, evidence: Evidence, selection: Selection, allowed: float, room: float
) -> tuple[Selection, bool]:
    """Take the lowest blocks until the cost is at ``allowed``, leaving enough to choose from for the landing.

    What costs much, such as a whole branch, waits until the cost may be as low as ``room``. Returns also whether the
    landing is due: nothing else may go, and ``allowed`` is nearer to the goal than to the cost.
    """
    now, together = goal.of(selection), 1
    while now > allowed:
        blocks = next_blocks(goal, evidence, selection)
        reserve = min(RESERVE * usual(goal, blocks), MOST_RESERVE * (goal.dense - goal.limit))
        least = max(room, goal.limit + reserve)
        blocks = [block for block in blocks if now - block.saving >= least]
        block = lowest(goal, evidence, selection, blocks)
        if block is None:
            return selection, room <= goal.limit + reserve and allowed <= (goal.limit + now) / 2
        few = _along(goal, blocks, block, max(together, len(goal.constraints.units) // MANY))
        while (left := goal.of(found := without(selection, few))) < max(least, allowed) and len(few) > 1:
            few = few[: len(few) // 2]
        together = 2 * together if left == now else 1  # of columns many go before they save anything
        selection, now = found, left
    return selection, False


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


def land(goal: Goal, evidence: Evidence, start: Selection) -> Selection:
    """Choose the last blocks; where the cost is an estimate, measure where that leads, and land again from there.

    What was measured nearest to just below the goal is taken, and nothing above it if there is a choice.
    """
    landed: list[tuple[bool, float, Selection]] = []
    for _ in range(MOST_LANDINGS):
        selection = _landing(goal, evidence, start)
        share = goal.cost.measured(selection)
        if share is None:
            return selection
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
            if best[0] < (1 - TOLERANCE) * goal.limit:
                best = max(best, _best_sum(goal, evidence, selection, step), key=lambda found: found[0])
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


def _best_sum(goal: Goal, evidence: Evidence, selection: Selection, step: int) -> tuple[float, list[Block]]:
    """The highest cost within the goal, and the blocks that lead there: best-first, the lowest scores first."""
    paths: list[tuple[float, list[int], list[Block]]] = [(0.0, [], [])]
    seen: set[tuple[int, ...]] = set()
    best: tuple[float, list[Block]] = (0.0, [])
    while paths and len(seen) < MOST_SUMS and best[0] < (1 - TOLERANCE) * goal.limit:
        score, _, chosen = heapq.heappop(paths)
        for block in blocks_of(goal, evidence, without(selection, chosen), step):
            more = [*chosen, block]
            key = sorted(b.axis for b in more)  # the order within an axis is fixed
            if tuple(key) not in seen:
                seen.add(tuple(key))
                cost = goal.of(without(selection, more))
                if cost > goal.limit:
                    heapq.heappush(paths, (score + block.score, key, more))
                elif cost > best[0]:
                    best = cost, more
    return best
