"""The first stage: sparse training and healing, of one budget or of the points of a sweep."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

from torch import nn

from sslprune.capture.program import Program
from sslprune.data import Data
from sslprune.errors import CheckpointError
from sslprune.files import write_atomic, write_json
from sslprune.models.build import device_of, load_checkpoint
from sslprune.recipe import Recipe
from sslprune.report import MEASURE_WORDS
from sslprune.run.check import check_chance, check_model
from sslprune.run.directory import RunDirectory
from sslprune.run.points import lay_points
from sslprune.train.checkpoint import TrainingFiles, write_weights
from sslprune.train.training import train as train_model
from sslprune.values.team import Alone, Team
from sslprune.values.voice import Voice


def train(
    recipe: Recipe,
    directory: RunDirectory,
    show: Voice,
    *,
    resume: bool = False,
    force: bool = False,
    team: Team | None = None,
) -> Program | None:
    """Sparse training, then healing, into ``directory``; ``resume`` goes on, and makes again what is damaged.

    Returns the program that the model was traced to, for the stages after it; None where nothing had to be traced.
    The points of a sweep in their order, each from where the one before it ended, the last into ``directory`` itself.
    A run that is there goes only with ``force``, and only when everything is read and built; without either, RunError.
    Of a ``team`` only the first process looks at ``directory``, and writes there.
    """
    team = team or Alone()
    if not team.first:
        return _follow(recipe, directory, show, team)
    with directory.writing():
        points = directory.each_point(recipe)
        for point, run in [(recipe, directory), *points]:
            run.check(point, force=force)
        if not resume and not force:
            directory.check_new()
        try:
            return _train_points(recipe, directory, show, team, resume=resume, force=force)
        except BaseException:
            directory.release()
            raise


def _follow(recipe: Recipe, directory: RunDirectory, show: Voice, team: Team) -> Program | None:
    """What a process does that is not the first one: train what that one trains."""
    program: Program | None = None
    previous: TrainingFiles | None = None
    for point, run in trainings(recipe, directory):
        if not team.broadcast(False):
            goal = min(recipe.budget.points, default=None)
            program = train_model(point, run.training, show, previous=previous, goal=goal, team=team)
        previous = run.training
    return program


def trainings(recipe: Recipe, directory: RunDirectory) -> list[tuple[Recipe, RunDirectory]]:
    """What is trained one after the other: the points of a sweep, and nested ones together."""
    points = directory.each_point(recipe)
    return points[-1:] if recipe.budget.nested else points


def _train_points(
    recipe: Recipe, directory: RunDirectory, show: Voice, team: Team, *, resume: bool, force: bool
) -> Program | None:
    cleared = resume

    def ready(point: Recipe, run: RunDirectory, data: Data, model: nn.Module) -> None:
        check_model(point, data, model)
        if previous is None and not (resume and run.started):
            check_chance(point, data, model, show, force=force)

    def begin(point: Recipe, run: RunDirectory, previous: RunDirectory | None, model: nn.Module) -> None:
        """All is read and built: from here on, what was there may go."""
        nonlocal cleared
        if not cleared:
            directory.clear("train")
            for other in directory.points:  # of another sweep than this one's
                other.release()
        cleared = True
        directory.claim(recipe)
        run.claim(point)
        if run.checkpoint.is_file():
            _write_beginning(model, point, run, previous)

    previous: RunDirectory | None = None
    program: Program | None = None
    for point, run in trainings(recipe, directory):
        if resume:
            _mend(point, run, show, first=previous is None)
        if team.broadcast(resume and run.finished("train")):
            directory.claim(recipe)
            run.claim(point)
            show.stage("train", f"finished already: {run.masked}")
        else:
            show.stage("train", _plan(point, previous is None))
            goal = min(recipe.budget.points, default=None)
            begun, built = partial(begin, point, run, previous), partial(ready, point, run)
            before = previous.training if previous is not None else None
            program = train_model(
                point, run.training, show, previous=before, goal=goal, begin=begun, ready=built, team=team
            )
            run.record("train")
        previous = run
    lay_points(directory, show, program)
    return program


def _mend(recipe: Recipe, run: RunDirectory, show: Voice, *, first: bool) -> None:
    """Remove what is damaged of a run that is to go on, and say so: training makes it again, to the same."""
    if not run.started:
        return
    damaged = run.damaged("train") if run.masked.is_file() else []
    damaged += [file for file in (run.checkpoint, run.dense, run.initial) if _unreadable(file)]
    for file in dict.fromkeys(damaged):
        show.say(f"{file}: {'damaged' if file.is_file() else 'missing'}; it is made again", "yellow")
        file.unlink(missing_ok=True)
    if {run.training.prepared, run.training.nested, run.training.cuts} & set(damaged):
        run.masked.unlink(missing_ok=True)  # to train to the same end, which writes it again
    if not run.checkpoint.is_file():
        return
    history = json.loads(load_checkpoint(run.checkpoint)["history"])
    if not run.history.is_file():
        write_json(run.history, history)
    past = any(epoch["phase"] != "dense" for epoch in history)
    if first and past and recipe.schedule.dense.count and not run.dense.is_file():
        show.say(f"{run.dense}: no checkpoint holds it; training starts over", "yellow")
        run.checkpoint.unlink()


def _write_beginning(model: nn.Module, recipe: Recipe, run: RunDirectory, previous: RunDirectory | None) -> None:
    """Write what was lost of the weights that training began with; ``model`` is as it was built."""
    if previous is None and recipe.model.checkpoint is None and not run.initial.is_file():
        write_weights(run.initial, model)
    if previous is not None:
        for there, here in ((previous.initial, run.initial), (previous.dense, run.dense)):
            if there.is_file() and not here.is_file():
                write_atomic(here, partial(shutil.copyfile, there))
    elif not run.dense.is_file() and not recipe.schedule.dense.count:
        write_weights(run.dense, model)


def _unreadable(file: Path) -> bool:
    try:
        return file.is_file() and not load_checkpoint(file)
    except CheckpointError:
        return True


def _plan(recipe: Recipe, first: bool) -> str:
    """What is about to be trained, in words."""
    spans, device = recipe.schedule, device_of(recipe.run)
    measure = MEASURE_WORDS[recipe.budget.measure]
    if recipe.calibrate is not None and not spans.sparse.count:
        samples = f"calibrated on {recipe.calibrate.samples:,} samples"
        goal = f"to {100 * recipe.budget.fraction:g} % of the {measure}, {samples}"
    elif not spans.sparse.count:
        goal = "without a sparse phase (nothing is removed)"
    elif recipe.budget.given:
        percents = [f"{100 * fraction:g}" for fraction in recipe.budget.points]
        goal = f"to {' and '.join(percents) if recipe.budget.nested else percents[-1]} % of the {measure}"
        goal += ", nested" if recipe.budget.nested else ""
    else:
        goal = f"at λ = {recipe.lasso.strength:g}"
    begin = f"{spans.dense} dense" if first else f"from {100 * recipe.budget.points[-2]:g} %"
    times = f"{len(recipe.budget.points)} x " if recipe.budget.nested else ""
    return f"{recipe.name} {goal}: {begin}, {times}{spans.sparse} sparse, {spans.heal} heal, on {device}"
