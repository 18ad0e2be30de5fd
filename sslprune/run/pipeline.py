"""The stages in order, each reading and writing one run directory: train, repack, export."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sslprune.recipe import Recipe
from sslprune.report import Report
from sslprune.run.check import check
from sslprune.run.directory import RunDirectory, Stage
from sslprune.run.export import export
from sslprune.run.learn import train
from sslprune.run.repack import repack
from sslprune.show.terminal import Show
from sslprune.train.log import attach
from sslprune.values.team import Team


def run(
    recipe: Recipe,
    directory: RunDirectory,
    show: Show,
    *,
    resume: bool = False,
    force: bool = False,
    baseline: Path | None = None,
    team: Team | None = None,
) -> Report | None:
    """Train, repack and export; with ``resume``, stages that are finished already are left as they are.

    The model is traced once: what training found serves the stages after it.
    An error after training carries a note of how to go on without training again.
    A run that is there is trained over with ``force`` alone. Of a ``team`` all train, and the first does the rest: the
    others are done then, and get None.
    """
    if team is not None and not team.first:
        train(recipe, directory, show, team=team)
        team.leave()
        return None
    check(recipe)
    if baseline is not None:
        Report.load(baseline)  # one that cannot be read is said now, not after training
    with directory.writing():
        program = train(recipe, directory, show, resume=resume, force=force, team=team)
        if team is not None:
            team.leave()
        program = program.on("cpu") if program is not None else None  # where the stages after it work
        if resume and not any(run.damaged("repack") for run in (directory, *directory.points)):
            show.stage("repack", f"finished already: {directory.program}")
        else:
            with _training_kept(directory, "repack", "export"):
                repack(directory, show, program)
        with _training_kept(directory, "export"):
            report = export(directory, show, program, baseline=baseline)
    attach(recipe, directory.training, show, directory.page)
    return report


@contextmanager
def _training_kept(directory: RunDirectory, *rest: Stage) -> Iterator[None]:
    """An error inside the block is noted with the commands that go on from there: of the stages ``rest``."""
    try:
        yield
    except Exception as error:
        commands = " && ".join(f"sslprune {stage} {shlex.quote(str(directory))}" for stage in rest)
        error.add_note(f"training is kept; go on with: {commands}")
        raise
