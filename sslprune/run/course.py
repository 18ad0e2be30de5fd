"""How a finished run went, for its report: read off its recipe, its history and its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

from sslprune.data import Data
from sslprune.recipe import OwnDataSection, Recipe
from sslprune.report.course import Course
from sslprune.run.directory import RunDirectory
from sslprune.run.learn import trainings
from sslprune.values.inputs import num_rows


def course_of(recipe: Recipe, directory: RunDirectory, data: Data, samples: int) -> Course:
    """The course of the run in ``directory``, whose proof was over so many test ``samples``."""
    inputs, _ = next(iter(data.train.epoch(0)))
    return Course(
        model=recipe.model.factory,
        task=data.task.name,
        day=datetime.now(UTC).date(),
        seconds=_seconds([run for _, run in trainings(recipe, directory)]),
        data=_from(recipe),
        train_batches=len(data.train),
        batch_size=num_rows(inputs),
        test_samples=samples,
        recipe=directory.recipe_file.read_text(encoding="utf-8"),
    )


def _seconds(runs: Sequence[RunDirectory]) -> float:
    """Of all epochs of ``runs``; 0 where a history was not kept, or changed by another hand."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        histories = [json.loads(run.history.read_text(encoding="utf-8")) for run in runs]
        return float(sum(record["seconds"] for history in histories for record in history))
    return 0.0


def _from(recipe: Recipe) -> str:
    section = recipe.data
    if isinstance(section, OwnDataSection):
        return section.factory
    dataset = [getattr(section, "dataset", None)]
    parts = [getattr(section, name, None) for name in ("train", "test", "valid")]
    return ", ".join(part for part in [*dataset, *parts] if part)
