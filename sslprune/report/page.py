"""``report.html``: the verdict as one self-contained page, the story first.

Figures come from the report; the course of training and the weight matrices from the run directory, where it has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from sslprune.files import write_text
from sslprune.report.charts import Series, chart
from sslprune.report.curve import curve
from sslprune.report.feel import feel
from sslprune.report.figures import Figures, Variant
from sslprune.report.lead import course_rows, lead
from sslprune.report.matrices import matrices
from sslprune.report.values import Report
from sslprune.report.words import (
    CONTROL_WORDS,
    budget_text,
    decoding_text,
    medians_apart,
    prediction_text,
    setting_text,
    verdict_text,
    why_not_faster,
    widths_text,
)
from sslprune.values.amounts import count, ms, score, size_text
from sslprune.values.measure import Latency, Speedup

TEMPLATE = Path(__file__).parent / "page.html"
MOST_OPERATORS = 7
DRAWN = {"epoch", "phase", "loss", "cost", "plan"}  # of each epoch
COLORS = 8  # classes s0 to s7 of the style sheet


@dataclass(frozen=True)
class Interval:
    """A speed-up on a shared scale, in percent of its width."""

    label: str
    color: int
    low: float
    high: float
    middle: float
    text: str
    clear: bool


def write_page(report: Report, path: Path, *, history: Path | None = None, weights: Path | None = None) -> Path:
    """Write ``report`` as HTML to ``path``; ``history`` is history.json, ``weights`` masked.safetensors, if there."""
    return write_text(path, render(report, _history(history), matrices(weights)))


def render(report: Report, history: Sequence[dict[str, Any]] = (), pictures: Sequence[dict[str, Any]] = ()) -> str:
    """The page as text. Everything that a person named is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    models, operators = _models(report), _operators(report)
    course = report.course
    return template.render(
        report=report,
        lead=lead(report),
        story=_story(report),
        made_of=course_rows(course) if course is not None else [],
        recipe=course.recipe if course is not None else "",
        curve=curve(report),
        control_words=CONTROL_WORDS,
        models=models,
        metrics=list(report.dense.metrics),
        count=count,
        decoding_text=decoding_text,
        size=size_text,
        score=score,
        ms=ms,
        intervals=_intervals(report),
        latency=_latency_charts(report),
        operators=operators,
        kinds=list(dict.fromkeys((part[0], part[1]) for bar in operators for part in bar["parts"])),
        trade=_trade(report, history),
        training=_training(history),
        widths=_widths(report),
        felt=feel(report.sensitivity),
        matrices=pictures,
        staircase=_staircase(report),
        grain_text=widths_text(report),
        apart=medians_apart(report),
        budget_text=budget_text,
        prediction_text=prediction_text,
        notes=[note for v in report.variants for note in [*v.notes, *why_not_faster(report, v)]],
        realised=[(setting_text(s), s.realised) for s in report.speedup if isinstance(s, Speedup) and s.realised],
        absent=[a for a in report.dense.latency if not isinstance(a, Latency)],
    )


def _models(report: Report) -> list[tuple[str, Figures | Variant, int]]:
    """Every model with its colour."""
    named: list[tuple[str, Figures | Variant]] = [("dense", report.dense), ("repacked", report.repacked)]
    named += [(variant.name, variant) for variant in report.variants]
    return [(name, figures, index % COLORS) for index, (name, figures) in enumerate(named)]


def _story(report: Report) -> list[tuple[str, str, str]]:
    """(figure, what it is, detail): what a person should know after five seconds."""
    dense, small, proof = report.dense, report.repacked, report.equivalence
    smaller = f"{dense.parameters / small.parameters:.2f}x smaller"
    story = [(smaller, "parameters", f"{count(dense.parameters)} → {count(small.parameters)}")]
    story.append((f"{report.macs_ratio:.2f}x less work", "MACs", f"{count(dense.macs)} → {count(small.macs)}"))
    speed = next((s for s in report.speedup if isinstance(s, Speedup)), None)
    if speed is not None:
        figure = f"{speed.ratio:.2f}x faster" if speed.ratio > 1 else f"{speed.ratio:.2f}x: slower"
        interval = f"{setting_text(speed)}: {speed.low:.2f} to {speed.high:.2f}"
        story.append((figure if speed.clear else "no measurable difference", "measured", interval))
    for name, before in dense.metrics.items():
        after = small.metrics.get(name)
        if after is not None:
            story.append((f"{score(name, before)} → {score(name, after)}", f"test {name}", "dense → repacked"))
    same = f"masked = repacked on {proof.samples:,} test samples"
    story.append((f"{proof.max_relative:.0e}", "proven equal", f"{same}: largest relative difference"))
    return story


def _intervals(report: Report) -> dict[str, Any]:
    """Every model's speed-up over dense in every setting, on one logarithmic scale that holds 1."""
    rows: list[tuple[str, list[tuple[str, int, Speedup]]]] = []
    settings = [setting_text(s) for s in report.speedup if isinstance(s, Speedup)]
    named = [("repacked", report.speedup, 1)]
    named += [(v.name, v.speedup, (i + 2) % COLORS) for i, v in enumerate(report.variants)]
    for setting in dict.fromkeys(settings):
        here = [
            (name, color, s)
            for name, speedup, color in named
            for s in speedup
            if isinstance(s, Speedup) and setting_text(s) == setting
        ]
        rows.append((setting, here))
    every = [value for _, here in rows for _, _, s in here for value in (s.low, s.high)]
    if not every:
        return {"rows": [], "one": 0.0, "low": 1.0, "high": 1.0}
    low, high = np.log(min([*every, 0.95])), np.log(max([*every, 1.05]))

    def along(value: float) -> float:
        return float(100 * (np.log(value) - low) / (high - low))

    return {
        "one": along(1.0),
        "low": float(np.exp(low)),
        "high": float(np.exp(high)),
        "rows": [
            (
                setting,
                [
                    Interval(n, c, along(s.low), along(s.high), along(s.ratio), verdict_text(s), s.clear)
                    for n, c, s in here
                ],
            )
            for setting, here in rows
        ],
    }


def _latency_charts(report: Report) -> list[tuple[str, Markup]]:
    """Milliseconds per sample by batch size, a chart for each device, runtime and number of threads."""
    found: dict[str, dict[str, tuple[int, list[tuple[float, float]]]]] = {}
    for name, figures, color in _models(report):
        for value in figures.latency:
            if isinstance(value, Latency):
                threads = "one thread" if value.threads == 1 else f"{value.threads} threads"
                title = f"{value.runtime} on {value.device.upper()}" + (f", {threads}" if value.device == "cpu" else "")
                title += f", length {value.length}" if value.length else ""
                line = found.setdefault(title, {}).setdefault(name, (color, []))
                line[1].append((float(value.batch_size), value.median_ms / value.batch_size))
    charts = []
    for title, models in found.items():
        sizes = sorted({x for _, points in models.values() for x, _ in points})
        if len(sizes) > 1:
            lines = [Series(name, sorted(points), color, marks=True) for name, (color, points) in models.items()]
            drawn = chart(lines, "batch size", "ms per sample", log_x=True, log_y=True, x_ticks=sizes)
            charts.append((title, Markup(drawn)))
    return charts


def _operators(report: Report) -> list[dict[str, Any]]:
    """A stacked bar for each model: the share of each kind of operator, on the scale of the slowest model."""
    totals: dict[str, float] = {}
    for profile in report.profiles:
        for operator in profile.operators:
            totals[operator.operator] = max(totals.get(operator.operator, 0.0), operator.ms)
    kinds = sorted(totals, key=lambda kind: -totals[kind])[:MOST_OPERATORS]
    longest = max((sum(o.ms for o in p.operators) for p in report.profiles), default=1.0) or 1.0
    bars = []
    for profile in report.profiles:
        spent = {o.operator: o for o in profile.operators}
        known = [(color, spent[kind]) for color, kind in enumerate(kinds) if kind in spent]
        parts = [(o.operator, color, o.ms, 100 * o.ms / longest, o.calls) for color, o in known]
        rest = sum(o.ms for o in profile.operators if o.operator not in kinds)
        calls = sum(o.calls for o in profile.operators if o.operator not in kinds)
        if rest:
            parts.append(("others", COLORS - 1, rest, 100 * rest / longest, calls))
        bars.append({"model": profile.model, "ms": sum(o.ms for o in profile.operators), "parts": parts})
    return bars


def _trade(report: Report, history: Sequence[dict[str, Any]]) -> Markup:
    """The first metric against MACs: every model that has them, and the way that training took."""
    metric = next(iter(report.dense.metrics), None)
    if metric is None:
        return Markup()
    scale = 1e6 if report.dense.macs >= 1e6 else 1.0
    series = []
    way = [
        (record["cost"] * report.dense.macs / scale, _judged(record)[metric])
        for record in history
        if record["phase"] != "dense" and metric in _judged(record)
    ]
    if way and report.budget.measure == "macs":
        series.append(Series("during training, epoch by epoch", way, 7))
    for name, figures, color in _models(report):
        if figures.macs is not None and metric in figures.metrics:
            label = f"{name}: {score(metric, figures.metrics[metric])}, {count(figures.macs)} MACs"
            point = (figures.macs / scale, figures.metrics[metric])
            series.append(Series(name, [point], color, marks=True, labels=[label]))
    for control in report.controls:
        if metric in control.metrics:
            label = f"{control.name}, without sparsity: {score(metric, control.metrics[metric])}"
            point = (control.macs / scale, control.metrics[metric])
            series.append(Series(control.name, [point], 7, marks=True, labels=[label]))
    return Markup(chart(series, "million MACs per sample" if scale > 1 else "MACs per sample", f"test {metric}"))


def _training(history: Sequence[dict[str, Any]]) -> list[tuple[str, Markup, list[tuple[str, int]]]]:
    """Cost against its plan, the metric, and the mean norm of each axis's groups, by epoch."""
    if not history:
        return []
    charts: list[tuple[str, str, list[tuple[str, int]]]] = []
    epochs = [float(record["epoch"]) for record in history]
    plan = [(e, r["plan"]) for e, r in zip(epochs, history, strict=True) if r["plan"] is not None]
    cost = [
        *([Series("plan", plan, 7)] if len(plan) == len(history) else []),
        Series("cost", [(e, r["cost"]) for e, r in zip(epochs, history, strict=True)], 1, marks=len(epochs) < 30),
    ]
    legend = [(line.name, line.color) for line in cost]
    charts.append(("cost, as a fraction of the dense model's", chart(cost, "epoch", "cost", whole_x=True), legend))
    for name in _judged(history[-1]):
        line = [(e, _judged(r).get(name, float("nan"))) for e, r in zip(epochs, history, strict=True)]
        drawn = chart([Series(name, line, 1, marks=len(epochs) < 30)], "epoch", name, whole_x=True)
        charts.append((f"{name} by epoch", drawn, []))
    norms = [(e, r["norms"]) for e, r in zip(epochs, history, strict=True) if r.get("norms")]
    if norms:
        first = norms[0][1]
        lines, legend = [], []
        for index, kind in enumerate(dict.fromkeys(key.partition(" ")[0] for key in first)):
            legend.append((kind, 1 + index % (COLORS - 1)))
            for key in first:
                if key.partition(" ")[0] == kind and first[key]:
                    points = [(e, values.get(key, 0.0) / first[key]) for e, values in norms]
                    lines.append(Series(key, points, 1 + index % (COLORS - 1)))
        title = "mean norm of the groups of each axis, relative to its first epoch"
        charts.append((title, chart(lines, "epoch", "relative norm", whole_x=True), legend))
    return [(title, Markup(drawn), legend) for title, drawn, legend in charts if drawn]


def _judged(record: dict[str, Any]) -> dict[str, float]:
    """An epoch's metrics: on the validation data where there are some."""
    return record.get("valid") or record.get("test") or {}


def _widths(report: Report) -> list[tuple[str, list[dict[str, Any]]]]:
    """Each axis with how much of it is left, by kind; the bar's length is the axis's share of the widest."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for axis in report.axes:
        kinds.setdefault(axis.kind, []).append(
            {"name": axis.name, "before": axis.before, "after": axis.after, "off": axis.off_grain}
        )
    for rows in kinds.values():
        widest = max(row["before"] for row in rows) or 1
        for row in rows:
            row["track"], row["fill"] = 100 * row["before"] / widest, 100 * row["after"] / widest
    return list(kinds.items())


def _staircase(report: Report) -> Markup:
    if report.staircase is None:
        return Markup()
    points = sorted((float(width), taken) for width, taken in report.staircase.seconds.items())
    ideal = [(width, (width / points[-1][0]) ** 2) for width, _ in points]
    series = [Series("in proportion to the MACs", ideal, 7), Series("measured", points, 1, marks=True)]
    return Markup(chart(series, "channels of a lone convolution", "time"))


def _history(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    whole = isinstance(found, list) and all(isinstance(r, dict) and r.keys() >= DRAWN for r in found)
    return found if whole else []  # what another hand has changed is not drawn
