"""The larger points of a nested run as run directories of their own, made of its one set of weights."""

from __future__ import annotations

import json
import shutil
from functools import partial

from sslprune.capture.demands import check_for_run
from sslprune.capture.program import Program
from sslprune.capture.trace import trace
from sslprune.choose.sections import select
from sslprune.data import build_data
from sslprune.files import write_atomic, write_json, write_text
from sslprune.kinds.find import find_axes
from sslprune.models.build import load_trained
from sslprune.recipe import Recipe
from sslprune.run.directory import RunDirectory
from sslprune.train.checkpoint import write_weights
from sslprune.train.cuts import point_
from sslprune.values.voice import Voice


def lay_points(directory: RunDirectory, show: Voice, program: Program | None = None) -> None:
    """Write the train folder of each larger point of a nested run that is trained, where it is not there already.

    ``program``: of the run's model, where this process has traced it. A run that is not nested is left as it is.
    """
    recipe = directory.recipe()
    if not recipe.budget.nested:
        return
    with directory.writing():
        missing = [(own, run) for own, run in directory.each_point(recipe)[:-1] if run.damaged("train")]
        for own, run in missing:
            program = _lay(own, run, directory, show, program)


def _lay(own: Recipe, run: RunDirectory, whole: RunDirectory, show: Voice, program: Program | None) -> Program:
    """Write one point's, and return the program that it was found by."""
    there, here = whole.training, run.training
    model = load_trained(own.model, whole.masked)
    program = program.on("cpu") if program is not None else None
    if program is None or not program.serves(model):
        data = build_data(own, show)
        args, kwargs = data.example_for(model)
        program = trace(model, args, kwargs, sequence=data.sequence)
        check_for_run(program, model)
    selection = point_(model, there, own.budget.fraction, select(find_axes(program, own.prune), own.prune))
    run.clear("train")
    run.claim(own)
    for source, copy in (
        (there.initial, here.initial),
        (there.dense, here.dense),
        (there.prepared, here.prepared),
        (there.whole, here.whole),
    ):
        if source.is_file():
            write_atomic(copy, partial(shutil.copyfile, source))
    write_json(here.history, [_at(own.budget.fraction, record) for record in json.loads(there.history.read_text())])
    write_text(here.selection, selection.to_json())
    write_weights(here.masked, model)
    run.record("train")
    return program


def _at(fraction: float, record: dict[str, object]) -> dict[str, object]:
    """An epoch as this point has it."""
    own = record.get("points", {}).get(str(fraction), {})  # type: ignore[attr-defined]
    return {name: value for name, value in {**record, **own}.items() if name != "points"}
