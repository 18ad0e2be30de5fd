"""The stages in order, each reading and writing one run directory: train, repack, export."""

from __future__ import annotations

from pathlib import Path

from sslprune.recipe import Recipe
from sslprune.report import Report
from sslprune.run.check import check
from sslprune.run.directory import RunDirectory
from sslprune.run.export import export
from sslprune.run.learn import train
from sslprune.run.repack import repack
from sslprune.show.terminal import Show


def run(
    recipe: Recipe, directory: RunDirectory, show: Show, *, resume: bool = False, baseline: Path | None = None
) -> Report:
    """Train, repack and export; with ``resume``, stages that are finished already are left as they are.

    The model is traced once: what training found serves the stages after it.
    """
    check(recipe)
    if baseline is not None:
        Report.load(baseline)  # one that cannot be read is said now, not after training
    program = train(recipe, directory, show, resume=resume)
    if resume and directory.finished("repack"):
        show.stage("repack", f"finished already: {directory.program}")
    else:
        repack(directory, show, program)
    return export(directory, show, program, baseline=baseline)
