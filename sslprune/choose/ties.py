"""Ties: axes that go by one selection, so that what is left is uniform, and a configuration can say it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sslprune.choose.rows import rows_of
from sslprune.choose.stacks import blocks_of_stacks
from sslprune.errors import RecipeError
from sslprune.kinds.branches import too_many
from sslprune.kinds.table import kind_of
from sslprune.recipe import PruneSection
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection


@dataclass(frozen=True)
class Tie:
    """As many groups go of each of ``axes`` (indices, two or more), of one size; ``alike``: the same groups of each."""

    axes: tuple[int, ...]
    alike: bool = False


def ties_of(axes: Sequence[Axis], section: PruneSection, field: str) -> list[Tie]:
    """How ``section`` ties the ``axes`` that it chooses.

    Raises RecipeError, which names ``field``, for a tie that is not for this kind, or over axes of unequal sizes.
    """
    if section.tie is None or not axes:
        return []
    if section.tie == "block":
        if not all(kind_of(axis).is_whole for axis in axes):
            raise RecipeError(
                f'{field}.tie: "block" is for whole branches, which kind "{section.kind}" has none of; take "layers", '
                'as many in each layer, or "indices", the same ones'
            )
        groups = [_alone(axes, block, field) for block in blocks_of_stacks(axes)]
    else:
        if any(kind_of(axis).is_whole for axis in axes):
            raise RecipeError(
                f'{field}.tie: "{section.tie}" is for axes of several groups, and a branch is one; take "block": the '
                "branches of a layer go together"
            )
        groups = _alike(axes, field)
    return [Tie(tuple(group), section.tie == "indices") for group in groups if len(group) > 1]


def inner_branches(axes: Sequence[Axis]) -> set[int]:
    """Which of the branches (indices) lie inside another one of their block, with which they go anyhow."""
    found = set[int]()
    for block in blocks_of_stacks(axes):
        makes = {i: {member.name for member in axes[i].members} for i in block}
        found |= {i for i in block if any(makes[i] < makes[j] for j in block)}
    return found


def tied(selection: Selection, ties: Iterable[Tie], first: Selection | None = None) -> Selection:
    """What of ``selection`` goes where tied axes lose as many groups; of what may go, that of ``first`` goes first."""
    masks = list(selection.masks)
    for tie in ties:
        if tie.alike:
            common = np.logical_and.reduce([masks[i] for i in tie.axes])
            masks = [common if i in tie.axes else mask for i, mask in enumerate(masks)]
            continue
        count = min(int(masks[i].sum()) for i in tie.axes)
        for i in tie.axes:
            gone = np.flatnonzero(masks[i])
            sooner = first[i][gone] if first is not None else np.zeros(len(gone), bool)
            kept = np.concatenate([gone[sooner], gone[~sooner]])[:count]
            masks[i] = np.isin(np.arange(masks[i].size), kept)
    return Selection.of(selection.axes, masks)


def _alone(axes: Sequence[Axis], block: list[int], field: str) -> list[int]:
    """The branches of ``block``, of which every sum keeps an operand."""
    cuts = [axes[i].cuts[0] for i in block]
    for at, i in enumerate(block):
        if too_many(cuts[:at], cuts[at]):
            others = ", ".join(axes[j].name for j in block if j != i)
            raise RecipeError(
                f"{field}.tie: {axes[i].name} and {others} cannot go together: they are all that a sum has; leave one "
                "of them out with exclude"
            )
    return block


def _alike(axes: Sequence[Axis], field: str) -> list[list[int]]:
    """The axes that are alike; where a module has several, as grouped queries have, each of them with its like.

    Raises RecipeError for axes of unlike sizes, unless a module has both.
    """
    of_module: dict[str, list[int]] = {}
    for i, axis in enumerate(axes):
        of_module.setdefault(axis.name.partition("/")[0], []).append(i)
    ties: dict[tuple[int, int, int], list[int]] = {}
    met: list[set[tuple[int, int, int]]] = []  # what stands side by side in some module, whatever lies between
    for several in of_module.values():
        sizes = [(axes[i].size, rows_of(axes[i])) for i in several]
        here = [(*size, sizes[:at].count(size)) for at, size in enumerate(sizes)]
        for i, key in zip(several, here, strict=True):
            ties.setdefault(key, []).append(i)
        apart = [keys for keys in met if keys.isdisjoint(here)]
        met = [*apart, set(here).union(*(keys for keys in met if not keys.isdisjoint(here)))]
    if len(met) > 1:
        one, other = (axes[ties[min(keys)][0]] for keys in met[:2])
        raise RecipeError(
            f"{field}.tie: {one.name} has {_said(one)}, {other.name} {_said(other)}; what is tied has one size: leave "
            "one of them out with exclude, or give each size a section of its own with include"
        )
    return list(ties.values())


def _said(axis: Axis) -> str:
    rows = rows_of(axis)
    return f"{axis.size} groups" + (f" of {rows} rows" if rows > 1 else "")
