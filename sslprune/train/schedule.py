"""The schedule: which epochs a run has, at which learning rates, and whether what it plans fits into them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sslprune.errors import RecipeError
from sslprune.recipe import LassoSection, Recipe
from sslprune.train.optimizer import learning_rate


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data, or the part of one that a phase still needs."""

    phase: str  # "dense", "calibrate" (no epoch, and no steps), "sparse" or "heal"
    number: int  # from 0, over all phases
    num_steps: int
    label: str  # for people: "sparse 2/5"


@dataclass(frozen=True)
class Schedule:
    """The epochs of a run, and how many steps each phase has."""

    epochs: tuple[Epoch, ...]
    steps: dict[str, int]
    epoch_steps: int

    @classmethod
    def of(cls, recipe: Recipe, epoch_steps: int, *, dense: bool = True) -> Schedule:
        """The epochs of ``recipe``, or those after the dense ones. Raises RecipeError for what outlasts its phase."""
        epochs: list[Epoch] = []
        steps = {}
        for phase in ("dense", "sparse", "heal"):
            left = getattr(recipe.schedule, phase).steps(epoch_steps)
            if phase == "sparse" and recipe.budget.nested:
                left *= len(recipe.budget.points)  # one after the other
            steps[phase] = left
            if phase == "sparse" and recipe.calibrate is not None:
                epochs.append(Epoch("calibrate", len(epochs), 0, "calibrate"))
            if phase == "dense" and not dense:
                continue
            count = math.ceil(left / epoch_steps)
            word = "train" if phase == "heal" and not _makes_sparse(recipe) else phase  # nothing to heal from
            for i in range(count):
                epochs.append(Epoch(phase, len(epochs), min(epoch_steps, left), f"{word} {i + 1}/{count}"))
                left -= epoch_steps
        _check_fits(recipe, steps, epoch_steps)
        return cls(tuple(epochs), steps, epoch_steps)

    def steps_before(self, epoch: Epoch) -> int:
        """How many optimizer steps the epochs before ``epoch`` have, over all phases."""
        return sum(earlier.num_steps for earlier in self.epochs[: epoch.number])

    def learning_rates(self, recipe: Recipe, epoch: Epoch) -> Iterator[float]:
        """The learning rate of each step of ``epoch``."""
        section, steps, heal = recipe.train, self.steps, recipe.train.heal
        first = sum(e.num_steps for e in self.epochs[: epoch.number] if e.phase == epoch.phase)
        num_steps = steps[epoch.phase]
        if heal == "continue" and epoch.phase != "dense":
            first += steps["sparse"] if epoch.phase == "heal" else 0
            num_steps = steps["sparse"] + steps["heal"]
        elif heal == "rewind" and epoch.phase == "heal":
            first, num_steps = first + steps["dense"] - num_steps, steps["dense"]
        elif epoch.phase == "sparse":
            section = section.model_copy(update={"lr": section.sparse_lr or section.lr})
        return (learning_rate(section, first + i, num_steps, self.epoch_steps) for i in range(epoch.num_steps))


def _makes_sparse(recipe: Recipe) -> bool:
    return bool(recipe.schedule.sparse.count or recipe.calibrate is not None)


def _check_fits(recipe: Recipe, steps: dict[str, int], epoch_steps: int) -> None:
    """Raise RecipeError for a warm-up, a decay or an interval that is longer than its phase, shrinking's included.

    A decay or an interval at its default follows a short phase.
    """
    phases = dict(steps)  # that have a schedule of learning rates each
    healing = phases.pop("heal") if recipe.train.heal != "fresh" else 0
    if recipe.train.heal == "continue":
        phases = {"dense": steps["dense"], "sparse and healing": steps["sparse"] + healing}
    warmup = recipe.train.warmup.steps(epoch_steps)
    planned = [("train.warmup", warmup, phase, room) for phase, room in phases.items()]
    if recipe.schedule.shrink is not None:
        every = recipe.schedule.shrink.steps(epoch_steps)
        planned.append(("schedule.shrink", every, "sparse and healing", steps["sparse"] + steps["heal"]))
    for name in ("decay", "interval"):
        value = getattr(recipe.lasso, name)
        if value != LassoSection.model_fields[name].default:
            times = len(recipe.budget.points) if recipe.budget.nested else 1
            planned.append((f"lasso.{name}", value, "sparse", steps["sparse"] // times))
    for field, length, phase, room in planned:
        if room and length > room:
            raise RecipeError(
                f"{field}: {length} steps do not fit into the {room} {phase} ones; shorten it, or lengthen [schedule]"
            )
