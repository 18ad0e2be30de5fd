"""The stages in order, each reading and writing one run directory: train, repack, export."""

from __future__ import annotations

from pathlib import Path

from sslprune.recipe import Recipe
from sslprune.report import Report
from sslprune.run.build import check
from sslprune.run.directory import RunDirectory
from sslprune.run.export import export
from sslprune.run.learn import train
from sslprune.run.repack import repack
from sslprune.show.terminal import Show


def run(
    recipe: Recipe,
    directory: RunDirectory,
    show: Show,
    *,
    resume: bool = False,
    force: bool = False,
    baseline: Path | None = None,
) -> Report:
    """Train, repack and export; with ``resume``, stages that are finished already are left as they are.

    A run that is there is trained over with ``force`` alone.
    """
    check(recipe)
    if baseline is not None:
        Report.load(baseline)  # one that cannot be read is said now, not after training
    with directory.writing():
        train(recipe, directory, show, resume=resume, force=force)
        if resume and not directory.damaged("repack"):
            show.stage("repack", f"finished already: {directory.program}")
        else:
            repack(directory, show)
        return export(directory, show, baseline=baseline)
