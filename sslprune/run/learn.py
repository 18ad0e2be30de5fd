"""The first stage: sparse training and healing, of one budget or of the points of a sweep."""

from __future__ import annotations

from functools import partial

from sslprune.capture.program import Program
from sslprune.models.build import device_of
from sslprune.recipe import Recipe
from sslprune.report import MEASURE_WORDS
from sslprune.run.check import check_model
from sslprune.run.directory import RunDirectory
from sslprune.show.terminal import Show
from sslprune.train.loop import train as train_model


def train(recipe: Recipe, directory: RunDirectory, show: Show, *, resume: bool = False) -> Program | None:
    """Sparse training, then healing, into ``directory``; starts over unless ``resume``.

    Returns the program that the model was traced to, for the stages after it; None where nothing had to be traced.
    The points of a sweep in their order, each from where the one before it ended, the last into ``directory`` itself.
    """
    directory.claim(recipe)
    if not resume:
        directory.clear("train")
    try:
        previous = program = None
        for point, place in directory.each_point(recipe):
            place.claim(point)
            if place.finished("train"):
                show.stage("train", f"finished already: {place.masked}")
            else:
                show.stage("train", _plan(point, previous is None))
                goal, ready = min(recipe.budget.points, default=None), partial(check_model, point)
                program = train_model(point, place, show, previous=previous, goal=goal, ready=ready)
            previous = place
    except BaseException:
        directory.release()
        raise
    return program


def _plan(recipe: Recipe, first: bool) -> str:
    """What is about to be trained, in words."""
    spans, device = recipe.schedule, device_of(recipe.run)
    measure = MEASURE_WORDS[recipe.budget.measure]
    if not spans.sparse.count:
        goal = "without a sparse phase (nothing is removed)"
    elif recipe.budget.given:
        goal = f"to {100 * recipe.budget.fraction:g} % of the {measure}"
    else:
        goal = f"at λ = {recipe.lasso.strength:g}"
    begin = f"{spans.dense} dense" if first else f"from {100 * recipe.budget.points[-2]:g} %"
    return f"{recipe.name} {goal}: {begin}, {spans.sparse} sparse, {spans.heal} heal, on {device}"
