"""The curve of a sweep: what each point costs and scores, as a table and as charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sslprune.report.charts import Series, chart
from sslprune.report.figures import Size
from sslprune.report.values import CurvePoint, Report
from sslprune.report.words import CONTROL_WORDS, MEASURE_WORDS, setting_text, verdict_text
from sslprune.values.measure import Absent, Speedup
from sslprune.values.metrics import figure


def same_setting(speedup: Sequence[Speedup | Absent], setting: Speedup) -> Speedup | None:
    """The one among ``speedup`` that was measured in the same setting."""
    return next((s for s in speedup if isinstance(s, Speedup) and setting_text(s) == setting_text(setting)), None)


def curve_rows(report: Report) -> tuple[list[str], list[tuple[CurvePoint | None, list[str]]]]:
    """Headings and rows of a sweep's table: what is left, every metric, the controls', and the first speed-up.

    The first row is the dense model.
    """
    metrics = list(report.dense.metrics)
    named = [name for name in CONTROL_WORDS if any(c.name == name for point in report.curve for c in point.controls)]
    setting = next((s for s in report.speedup if isinstance(s, Speedup)), None)
    measure = MEASURE_WORDS.get(report.budget.measure, report.budget.measure)
    headings = [f"{measure} allowed", "left", "MACs", "parameters", *(f"test {metric}" for metric in metrics)]
    unit = f": {metrics[0]}" if len(metrics) > 1 else ""
    headings += [f"{CONTROL_WORDS[name]}{unit}" for name in named]
    headings += [f"speed-up, {setting_text(setting)}"] if setting else []

    def score(values: Mapping[str, float], metric: str) -> str:
        return figure(values[metric]) if metric in values else ""

    dense = report.dense
    first = ["dense", "", f"{dense.macs:,}", f"{dense.parameters:,}", *(score(dense.metrics, m) for m in metrics)]
    rows: list[tuple[CurvePoint | None, list[str]]] = [(None, first + [""] * (len(headings) - len(first)))]
    for point in report.curve:
        controls = {control.name: control.metrics for control in point.controls}
        cells = [
            f"{point.budget.fraction:g}",
            f"{point.budget.reached:.3f}",
            f"{point.macs:,}",
            f"{point.parameters:,}",
        ]
        cells += [score(point.metrics, metric) for metric in metrics]
        cells += [score(controls.get(name, {}), metrics[0]) for name in named]
        if setting:
            found = same_setting(point.speedup, setting)
            cells.append(verdict_text(found) if found else "")
        rows.append((point, cells))
    return headings, rows


def curve(report: Report) -> dict[str, Any]:
    """A sweep's table, with the page of each point, and the first metric against MACs, parameters and speed."""
    metric = next(iter(report.dense.metrics), None)
    if not report.curve or metric is None:
        return {}
    headings, rows = curve_rows(report)
    setting = next((s for s in report.speedup if isinstance(s, Speedup)), None)
    costs: list[tuple[str, float, Callable[[Size], float | None]]] = [
        ("million MACs per sample", report.dense.macs / 1e6, lambda size: size.macs / 1e6),
        ("thousand parameters", report.dense.parameters / 1e3, lambda size: size.parameters / 1e3),
    ]
    if setting is not None:
        speed = {id(point): same_setting(point.speedup, setting) for point in report.curve}
        costs.append(
            (f"speed-up, {setting_text(setting)}", 1.0, lambda size: getattr(speed.get(id(size)), "ratio", None))
        )
    charts = []
    for label, dense, cost in costs:
        found = [(point, x) for point in report.curve if (x := cost(point)) is not None and metric in point.metrics]
        points = [(dense, report.dense.metrics[metric]), *((x, point.metrics[metric]) for point, x in found)]
        names = ["dense", *(f"{point.budget.fraction:g}" for point, _ in found)]
        labels = [f"{name}: {figure(y)}" for name, (_, y) in zip(names, points, strict=True)]
        lines = [Series("sweep", points, 1, marks=True, labels=labels, names=names)]
        for color, name in enumerate(CONTROL_WORDS, 2):
            beside = [c for point in report.curve for c in point.controls if c.name == name and metric in c.metrics]
            dots = [(x, c.metrics[metric]) for c in beside if (x := cost(c)) is not None]
            lines.append(Series(CONTROL_WORDS[name], dots, color, marks=True, line=False))
        charts.append((label, Markup(chart(lines, label, f"test {metric}"))))
    known = {control.name for point in report.curve for control in point.controls}
    legend = [("sweep", 1), *((w, color) for color, (name, w) in enumerate(CONTROL_WORDS.items(), 2) if name in known)]
    links = [(_link(point), cells) for point, cells in rows]
    return {"headings": headings, "rows": links, "charts": charts, "legend": legend}


def _link(point: CurvePoint | None) -> str:
    """The page of a point, from this one; empty for the dense model and for this page's own."""
    return f"{point.run}/report.html" if point is not None and point.run != "." else ""
