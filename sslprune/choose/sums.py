"""Sums: which of the next blocks, gone together, land nearest below a goal."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator

from sslprune.choose.blocks import Block, Evidence, Goal, blocks_of, pays_late, stair, without
from sslprune.values.selection import Selection

TOLERANCE = 0.01  # the cost ends between (1 - TOLERANCE) x the goal and the goal
MOST_SUMS = 3000  # that are looked at


def is_near(goal: Goal, cost: float) -> bool:
    """Whether a cost within the goal is as near to it as is asked for."""
    return cost >= (1 - TOLERANCE) * goal.limit


def best_sum(
    goal: Goal,
    evidence: Evidence,
    selection: Selection,
    step: int = 1,
    staying: Collection[int] = (),
    most: int = MOST_SUMS,
) -> tuple[float, list[Block]]:
    """The highest cost within the goal, and the blocks that lead there: best-first, the lowest scores first.

    Blocks of the axes in ``staying`` stay; no more than ``most`` sums are looked at.
    """
    paths: list[tuple[float, list[int], list[Block]]] = [(0.0, [], [])]
    seen: set[tuple[int, ...]] = set()
    best: tuple[float, list[Block]] = (0.0, [])
    while paths and len(seen) < most and not is_near(goal, best[0]):
        score, _, chosen = heapq.heappop(paths)
        here = without(selection, chosen)
        for block in next_of(goal, evidence, here, step):
            more = [*chosen, block]
            key = sorted(b.axis for b in more)  # the order within an axis is fixed
            if tuple(key) not in seen and block.axis not in staying:
                seen.add(tuple(key))
                cost = goal.of(without(here, [block]))
                if cost > goal.limit:
                    heapq.heappush(paths, (score + block.score, key, more))
                elif cost > best[0]:
                    best = cost, more
    return best


def next_of(goal: Goal, evidence: Evidence, selection: Selection, step: int) -> Iterator[Block]:
    """The next block of each axis; of one that pays late all that has to go before it does."""
    for block in blocks_of(goal, evidence, selection, step):
        found = stair(goal, evidence, selection, block) if pays_late(goal, block) else block
        if found is not None:
            yield found
