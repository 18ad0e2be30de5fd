"""The one sentence that a report leads with, and what the run was made of."""

from __future__ import annotations

from math import sqrt

from sslprune.report.course import Course
from sslprune.report.values import Report
from sslprune.report.words import setting_text
from sslprune.values.amounts import score
from sslprune.values.durations import duration
from sslprune.values.measure import Speedup

SURE = 1.96  # standard errors to either side of a mean that hold 95 % of what another draw of samples would give
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


def lead(report: Report) -> str:
    """Who, when, how long, what it brought, at what loss, and how sure that is."""
    course, said = report.course, report.recipe
    if course is not None:
        day = f"{course.day.day} {MONTHS[course.day.month - 1]} {course.day.year}"
        said = f"On {day}, {said} made {course.model} smaller"
        said += f" in {duration(course.seconds)} of training" if course.seconds else " without training"
        said += f": {report.macs_ratio:.2f}x fewer MACs"
    else:
        said += f" has {report.macs_ratio:.2f}x fewer MACs"
    first = next((s for s in report.speedup if isinstance(s, Speedup)), None)
    if first is not None and first.clear:
        slower = "" if first.ratio > 1 else ", slower"
        said += f" and {first.ratio:.2f}x the speed{slower} ({setting_text(first)})"
    elif first is not None:
        said += " and no measurable difference in speed"
    name = next(iter(report.dense.metrics), None)
    if name is None or name not in report.repacked.metrics:
        return f"{said}."
    before, after = report.dense.metrics[name], report.repacked.metrics[name]
    gone = "unchanged at" if score(name, before) == score(name, after) else f"from {score(name, before)} to"
    return f"{said}, with test {name} {gone} {score(name, after)}{uncertain(report, name)}."


def uncertain(report: Report, name: str) -> str:
    """How far the metric of that name would be off on other test samples, where that is known, and over how many.

    An accuracy over n samples that stand alone has the standard error √(p (1 - p) / n); that of other metrics depends
    on what is not kept. The same samples judge both models, so that a difference between them is surer than either.
    """
    samples = report.equivalence.samples
    over = f"over {samples:,} test samples"
    alone = report.course is not None and report.course.task == "classification"
    if name != "accuracy" or not alone or not samples:
        return f" ({over})"
    share = report.repacked.metrics[name] / 100
    off = 100 * SURE * sqrt(max(share * (1 - share), 1 / samples / 4) / samples)
    return f" (± {off:.1f} points, {over})"


def course_rows(course: Course) -> list[tuple[str, str]]:
    """What a run was made of, for a table: the heading and the text of each row."""
    return [
        ("model", course.model),
        ("task", course.task),
        ("data", course.data),
        ("training", f"{course.train_batches:,} batches of {course.batch_size:,} an epoch, {duration(course.seconds)}"),
        ("test", f"{course.test_samples:,} samples"),
    ]
