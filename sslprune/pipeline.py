"""The stages in order, each reading and writing one run directory: train, repack, export."""

from __future__ import annotations

from pathlib import Path

from sslprune.recipe import Recipe
from sslprune.report import Report
from sslprune.rundir import RunDirectory
from sslprune.show import Show
from sslprune.stages.building import check
from sslprune.stages.exporting import export
from sslprune.stages.repacking import repack
from sslprune.stages.training import train


def run(
    recipe: Recipe, directory: RunDirectory, show: Show, *, resume: bool = False, baseline: Path | None = None
) -> Report:
    """Train, repack and export; with ``resume``, stages that are finished already are left as they are."""
    check(recipe)
    if baseline is not None:
        Report.load(baseline)  # one that cannot be read is said now, not after training
    train(recipe, directory, show, resume=resume)
    if resume and directory.finished("repack"):
        show.stage("repack", f"finished already: {directory.program}")
    else:
        repack(directory, show)
    return export(directory, show, baseline=baseline)
