"""What a person sees of speed: models side by side, where their time goes, and what has changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sslprune.report import (
    Absent,
    Baseline,
    Decoding,
    Latency,
    Profile,
    Report,
    Speedup,
    curve_rows,
    decoding_text,
    setting_text,
    why_not_faster,
)
from sslprune.show.figures import faster
from sslprune.values.amounts import ms, score, size_text

if TYPE_CHECKING:  # torch is heavy, and nothing here needs it
    from sslprune.bench import Comparison, Footprint

MOST_OPERATORS = 8  # rows of the table; the rest is one row


def decoding(rows: Sequence[Decoding]) -> RenderableType:
    """A decoder's prompt and tokens, dense and repacked."""
    table = _table("generating", "dense", "repacked", right=(1, 2))
    table.add_column("")
    for row in rows:
        table.add_row(
            f"  {decoding_text(row)}", ms(row.dense.median_ms), ms(row.repacked.median_ms), faster(row.speedup)
        )
    return table


def comparison(measured: Comparison, files: Mapping[str, tuple[int, Footprint | None]]) -> RenderableType:
    """Every model in every setting, then what each file asks for; the first model is the one to compare with."""
    table = _table("", "median", "p95", "samples/s", right=(1, 2, 3))
    table.add_column("")
    for index, first in enumerate(measured.models[0].latency):
        if isinstance(first, Absent):
            table.add_row(Text(_absent(first), "dim"))
            continue
        table.add_row(Text(_heading(first), "bold"))
        for model in measured.models:
            latency, speedup = model.latency[index], model.speedup[index]
            if not isinstance(latency, Latency) or not isinstance(speedup, Speedup):
                continue
            runtime = f" ({latency.runtime})" if latency.runtime != first.runtime else ""
            table.add_row(
                f"  {model.name}{runtime}",
                ms(latency.median_ms),
                ms(latency.p95_ms),
                f"{latency.samples_per_second:,.0f}" if latency.samples_per_second else "",
                "" if model is measured.models[0] else faster(speedup),
            )
    sizes = _table("", "file", "load", "peak memory", right=(1, 2, 3))
    for name, (size, load) in files.items():
        sizes.add_row(
            name,
            size_text(size),
            ms(load.load_ms) if load else "?",
            size_text(load.peak_bytes) if load and load.peak_bytes is not None else "?",
        )
    return Group(table, "", sizes)


def operators(profiles: Sequence[Profile]) -> RenderableType:
    """Milliseconds per kind of operator, a column for each model: the longest of the first model first."""
    columns = [{operator.operator: operator for operator in profile.operators} for profile in profiles]
    kinds = sorted(
        dict.fromkeys(kind for column in columns for kind in column),
        key=lambda kind: -max(column[kind].ms if kind in column else 0.0 for column in columns),
    )
    table = _table("operator", *(profile.model for profile in profiles), right=range(1, len(profiles) + 1))
    for kind in kinds[:MOST_OPERATORS]:
        table.add_row(
            kind, *(f"{column[kind].calls} x, {ms(column[kind].ms)}" if kind in column else "" for column in columns)
        )
    if len(kinds) > MOST_OPERATORS:
        rest = [sum(column[kind].ms for kind in kinds[MOST_OPERATORS:] if kind in column) for column in columns]
        table.add_row(f"{len(kinds) - MOST_OPERATORS} others", *(ms(value) for value in rest), style="dim")
    table.add_row("all", *(ms(sum(o.ms for o in profile.operators)) for profile in profiles), style="bold")
    return table


def variants(report: Report) -> RenderableType:
    """Quantized models and controls beside dense and repacked, in the setting of the largest batch on one thread."""
    metrics = list(report.dense.metrics)
    settings = [s for s in report.speedup if isinstance(s, Speedup)]
    table = _table("model", "ONNX file", *(f"test {name}" for name in metrics), right=range(1, 2 + len(metrics)))
    first = [(s.device, s.runtime, s.threads) for s in settings[:1]]
    shown = settings[:1] + [s for s in settings[1:] if [(s.device, s.runtime, s.threads)] == first][-1:]
    for setting in shown:
        table.add_column(setting_text(setting), overflow="fold")
    rows: list[tuple[str, int, Mapping[str, float], Sequence[Speedup | Absent]]] = [
        ("dense", report.dense.file_bytes, report.dense.metrics, ()),
        ("repacked", report.repacked.file_bytes, report.repacked.metrics, report.speedup),
        *((v.name, v.file_bytes, v.metrics, v.speedup) for v in report.variants),
    ]
    for name, size, found, speedup in rows:
        known = {setting_text(s): s for s in speedup if isinstance(s, Speedup)}
        table.add_row(
            name,
            size_text(size),
            *(score(key, found[key]) if key in found else "" for key in metrics),
            *(faster(known[setting_text(s)]) if setting_text(s) in known else "" for s in shown),
        )
    notes = [Text(n, "dim") for variant in report.variants for n in [*variant.notes, *why_not_faster(report, variant)]]
    return Group(table, *notes)


def changes(baseline: Baseline) -> RenderableType:
    """What is better and worse than in an earlier report."""
    where = "" if baseline.same_machine else ", measured on another machine"
    heading = Text.assemble(("since ", "dim"), baseline.file, (where, "dim"))
    changed = [change for change in baseline.changes if change.verdict != "same"]
    if not changed:
        return Text.assemble(heading, ": no measurable change")
    table = _table("model", "figure", "before", "now", right=(2, 3))
    table.add_column("")
    for change in changed:
        style = "green" if change.verdict == "better" else "red"
        numbers = (f"{change.before:,.6g}", f"{change.after:,.6g}")
        table.add_row(change.variant, change.name, *numbers, Text(change.verdict, style))
    return Group(heading, table)


def _heading(latency: Latency) -> str:
    text = setting_text(latency)
    return text if latency.device != "cpu" or latency.runtime != "onnxruntime" else f"CPU, {text}"


def _absent(absent: Absent) -> str:
    runtime = f"{absent.runtime} on " if absent.runtime else ""
    return f"{runtime}{absent.device.upper()}: absent ({absent.reason or 'no such device here'})"


def _table(*headings: str, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in right else "left", no_wrap=index == 0 or index in right)
    return table


def curve_table(report: Report) -> Table:
    """Every point of a sweep in a row."""
    headings, rows = curve_rows(report)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for _, cells in rows:
        table.add_row(*cells)
    return table
