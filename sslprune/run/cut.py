"""`cut`: one point of a nested run, repacked, without training."""

from __future__ import annotations

from sslprune.capture.program import Program
from sslprune.errors import RunError
from sslprune.run.directory import RunDirectory
from sslprune.run.points import lay_points
from sslprune.run.repack import repack
from sslprune.show.terminal import Show
from sslprune.train.cuts import words


def cut(directory: RunDirectory, fraction: float, show: Show, program: Program | None = None) -> RunDirectory:
    """The run directory of the point ``fraction`` of a nested run: repacked, and proven equal to its masked model.

    The smallest point is the run itself, the others are below ``RUN/points``. Raises RunError for a run that is not
    nested, and for a budget that it was not trained for.
    """
    directory.require("train")
    recipe = directory.recipe()
    if not recipe.budget.nested:
        raise RunError(
            f"{directory}: its budgets are not nested; a recipe with `nested = true` in [budget] trains points to cut"
        )
    found = {own.budget.fraction: run for own, run in directory.each_point(recipe)}
    if fraction not in found:
        raise RunError(f"{directory}: it has no point {fraction:g}; it was trained for {words(list(found))}")
    with directory.writing():
        lay_points(directory, show, program)
        point = found[fraction]
        if point.damaged("repack"):
            repack(point, show, program)
        else:
            show.stage("repack", f"finished already: {point.program}")
    return point
