"""A batch in parts: one for each process of a team, and of those one for each backward pass.

The batch itself is the same function of seed, epoch and step on any number of processes. Process r of W takes its rows
r, r + W, ..., so that a text's streams stay where they are; a part's loss is weighted by the targets that count in it,
so that the gradients add up to those of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sslprune.data.batches import Source
from sslprune.errors import DataError, RecipeError
from sslprune.recipe import Recipe
from sslprune.values.inputs import Inputs, counts_rows, num_rows
from sslprune.values.team import Team


@dataclass(frozen=True)
class Part:
    """Rows of a batch, and the factor that their mean loss counts with; None for 1."""

    inputs: Inputs
    targets: Any
    weight: Tensor | None = None

    def weighted(self, loss: Tensor) -> Tensor:
        """``loss`` by its weight; nothing where no target of the part counts, whatever the loss is then."""
        if self.weight is None:
            return loss
        weight = self.weight.to(loss.device)
        return torch.where(weight > 0, loss * weight, torch.zeros_like(loss))


def check_divides(recipe: Recipe, size: int | None, world: int) -> None:
    """Raise RecipeError unless the batch, of ``size``, divides by the processes and the parts in time.

    None: a person's own loader says nothing of its batches; they are looked at as they come.
    """
    parts = recipe.train.accumulate
    if size is not None and size % (world * parts):
        times = f" x train.accumulate = {parts}" if parts > 1 else ""
        below = size - size % (world * parts)
        raise RecipeError(
            f"data.batch_size: {size} does not divide by {world} process{'es' if world > 1 else ''}{times}; take "
            f"{f'{below} or ' if below else ''}{below + world * parts}"
        )


def parts_of(
    batch: tuple[Inputs, Any], team: Team, count: int, counted: Callable[[Any], Tensor] | None = None
) -> list[Part]:
    """This process's ``count`` parts of ``batch``; the batch itself where it is alone with one.

    ``counted(targets)``: how many targets a mean loss is over; the rows, where it is left out.

    Raises DataError for a batch with fewer rows than there are parts, and for inputs that count each other's rows.
    """
    inputs, targets = batch
    every = team.world * count
    if every == 1:
        return [Part(inputs, targets)]
    rows = num_rows(inputs)
    if counts_rows(inputs):
        raise DataError(
            "the inputs count each other's rows, as the bonds of atoms do, so a batch cannot be split; train in one "
            "process, with train.accumulate = 1"
        )
    if rows < every:
        raise DataError(
            f"a batch has {rows} rows, fewer than its {every} parts: {team.world} processes x train.accumulate = "
            f"{count}; give larger batches, or start fewer processes"
        )
    counted = counted or (lambda given: torch.tensor(num_rows(given)))
    whole = counted(targets)
    found = []
    for i in range(count):
        mine = slice(team.rank + i * team.world, None, every)
        own = _rows(targets, rows, mine)
        found.append(Part(_rows(inputs, rows, mine), own, team.world * counted(own) / whole))
    return found


class OwnParts:
    """The parts of the batches of ``source`` that are this process's, one after the other."""

    def __init__(self, source: Source, team: Team, count: int) -> None:
        self.source, self.team, self.count = source, team, count

    def epoch(self, number: int) -> Iterator[tuple[Inputs, Any]]:
        for batch in self.source.epoch(number):
            for part in parts_of(batch, self.team, self.count):
                yield part.inputs, part.targets


def _rows(value: Any, rows: int, chosen: slice) -> Any:
    """``value`` with the ``chosen`` of its rows: of tensors, or of a list that has an entry for each row."""
    if isinstance(value, list) and len(value) == rows and not all(_has_rows(entry, rows) for entry in value):
        return value[chosen]
    return pytree.tree_map(lambda leaf: leaf[chosen].contiguous() if _has_rows(leaf, rows) else leaf, value)


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
