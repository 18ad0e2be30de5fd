"""A run's report on disk: report.json and report.html, with what lies beside it, and those of its sweep."""

from __future__ import annotations

from sslprune.report import Inspection, Report, read_controls
from sslprune.report.page import write_page
from sslprune.run.directory import RunDirectory


def beside(report: Report, directory: RunDirectory) -> Report:
    """``report`` with what lies beside it in ``directory``: its controls, its map, and the curve of a sweep."""
    felt = Inspection.load(directory.sensitivity).sensitivity if directory.sensitivity.is_file() else None
    report = report.model_copy(update={"controls": read_controls(directory.control_results), "sensitivity": felt})
    points = [point for point in directory.points if point.finished("export")]
    curve = [Report.load(point.report).as_point(str(point.path.relative_to(directory.path))) for point in points]
    return report.model_copy(update={"curve": [*curve, report.as_point(".")] if curve else []})


def write_report(report: Report, directory: RunDirectory) -> None:
    """Write the page and report.json, and those of the sweep that ``directory`` is a point of."""
    write_alone(report, directory)
    tell_sweep(directory)


def write_alone(report: Report, directory: RunDirectory) -> None:
    """Write the page and report.json."""
    write_page(report, directory.page, history=directory.history, weights=directory.masked)
    report.save(directory.report)


def tell_sweep(directory: RunDirectory) -> None:
    """Write the report of the sweep that ``directory`` is a point of once more, where there is one."""
    sweep = directory.sweep
    if sweep is not directory and sweep.report.is_file():
        write_report(beside(Report.load(sweep.report), sweep), sweep)
