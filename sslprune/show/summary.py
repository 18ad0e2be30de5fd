"""The closing summary of a run: what a person reads last, and perhaps only."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sslprune.report import (
    CONTROL_WORDS,
    Absent,
    AxisChange,
    Gate,
    Latency,
    Report,
    Size,
    Speedup,
    budget_text,
    prediction_text,
    realised,
)
from sslprune.show.figures import counts, faster, scores
from sslprune.show.speed import changes, curve_table, decoding, operators, variants
from sslprune.values.amounts import ms, score, size_text
from sslprune.values.metrics import PERCENT, signed


@dataclass(frozen=True)
class Written:
    """Where a run is, and what it wrote there."""

    folder: Path
    onnx: Path
    program: Path
    weights: Path
    page: Path
    report: Path
    huggingface: Path | None = None
    deci: Path | None = None


def summary(report: Report, written: Written) -> RenderableType:
    """The verdict of a run: figures, widths, proof, gates and files, in at most 80 columns where names allow it."""
    proof, small = report.equivalence, report.repacked
    same = scores(proof.metrics) == scores(small.metrics)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    facts.add_row(
        "proof", f"masked = repacked to {proof.max_relative:.1e} (relative) on {proof.samples:,} test samples"
    )
    facts.add_row(
        "",
        f"both score {scores(proof.metrics)}"
        if same
        else Text(f"masked scores {scores(proof.metrics)}", style="yellow"),
    )
    if report.whole is not None:
        facts.add_row("whole", report.whole_text)
    if report.zeros_text:
        facts.add_row("zeros", report.zeros_text)
    facts.add_row("budget", Text(budget_text(report.budget), style="" if report.budget.met else "yellow"))
    predicted = prediction_text(report.budget)
    if predicted is not None:
        facts.add_row("", predicted)
    if report.every_gate:
        facts.add_row("gates", _gates(report.every_gate))
    facts.add_row("files", Text(f"{written.folder}{os.sep}", overflow="fold"))
    facts.add_row("", _files(report, written))
    speed: list[RenderableType] = []
    curve: list[RenderableType] = ["", curve_table(report)] if report.curve else []
    if report.variants:
        speed += ["", variants(report)]
    if report.decoding:
        speed += ["", decoding(report.decoding)]
    if report.profiles:
        speed += ["", operators(report.profiles[:2])]
    speed += ["", *notes] if (notes := realised(report)) else []
    if report.controls:
        speed += ["", _controls(report)]
    if report.baseline is not None:
        speed += ["", changes(report.baseline)]
    return Group("", _headline(report), *curve, "", _figures(report), *speed, "", _widths(report.axes), "", facts)


def _headline(report: Report) -> Text:
    dense, small = report.dense, report.repacked
    story = [
        f"{dense.macs / small.macs:.2f}x fewer MACs",
        f"{dense.parameters / small.parameters:.2f}x fewer parameters",
    ]
    for name, before in dense.metrics.items():
        story.append(f"{name} {signed(small.metrics[name] - before)}{' points' * (name in PERCENT)}")
    return Text.assemble((report.recipe, "bold"), "  ", (", ".join(story), "bold green"))


def _files(report: Report, written: Written) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for file, use in (
        (written.onnx, "for ONNX Runtime"),
        (written.program, "torch.export.load(...).module()"),
        (written.weights, "with plan.json, for your own class"),
        (written.page, "these figures as a page"),
        (written.report, "for programs"),
    ):
        table.add_row(str(file.relative_to(written.folder)), use)
    for folder, use in ((written.huggingface, "for from_pretrained"), (written.deci, "for llama.cpp and vLLM")):
        if folder is not None and folder.is_dir():
            table.add_row(f"{folder.relative_to(written.folder)}{os.sep}", use)
    if report.decoding:
        table.add_row(
            str(written.onnx.with_name("decoder.onnx").relative_to(written.folder)), "to generate with a cache"
        )
    if report.curve:
        which = "the larger points" if report.budget.nested else "the earlier points of the sweep"
        table.add_row(f"points{os.sep}", f"{which}, each a run of its own")
    return table


def _gates(gates: Sequence[tuple[str, Gate]]) -> Table:
    table = Table.grid(padding=(0, 1))
    for title, gate in gates:
        mark = Text("\u2713", style="bold green") if gate.passed else Text("\u2717", style="bold red")
        sign = "at least" if gate.name.startswith("min_") else "at most"
        at = f" ({gate.judged})" if gate.judged else ""
        value = Text(
            "not measured" if gate.value is None else f"{gate.value:.4g}", style="" if gate.passed else "bold red"
        )
        table.add_row(mark, title, value, Text(f"{sign} {gate.limit:g}{at}", style="dim"))
    return table


def _figures(report: Report) -> Table:
    dense, small, budget = report.dense, report.repacked, report.budget
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("dense", justify="right", no_wrap=True)
    table.add_column("repacked", justify="right", no_wrap=True, style="bold")
    table.add_column("")

    def less(measure: str, before: int, after: int) -> str:
        left = f"{100 * after / before:.1f} % left" if before else ""
        if budget.measure != measure:
            return left
        return left + (
            f", by λ {budget.strength:g}" if budget.fraction is None else f", budget {100 * budget.fraction:g} %"
        )

    table.add_row(
        "parameters",
        *counts(dense.parameters, small.parameters),
        less("parameters", dense.parameters, small.parameters),
    )
    table.add_row("MACs per sample", *counts(dense.macs, small.macs), less("macs", dense.macs, small.macs))
    table.add_row(
        "ONNX file",
        size_text(dense.file_bytes),
        size_text(small.file_bytes),
        less("", dense.file_bytes, small.file_bytes),
    )
    for name, before in dense.metrics.items():
        after = small.metrics.get(name, float("nan"))
        unit = " points" if name in PERCENT else ""
        change = f"{signed(abs(after - before))[1:]}{unit} {'lower' if after < before else 'higher'}"
        scores = (score(name, before), score(name, after))
        table.add_row(f"test {name}", *scores, "the same" if after == before else change)
    _latencies(table, dense.latency, small.latency, report.speedup)
    return table


def _controls(report: Report) -> Table:
    """Dense and repacked beside what was trained without sparsity."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("controls", no_wrap=True)
    for heading in ("parameters", "MACs", *(f"test {name}" for name in report.dense.metrics)):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", style="dim")
    rows: list[tuple[str, Size, str]] = [("dense", report.dense, ""), ("repacked", report.repacked, "")]
    rows += [(CONTROL_WORDS.get(one.name, one.name), one, one.epochs) for one in report.controls]
    for word, size, epochs in rows:
        figures = [score(name, size.metrics.get(name, float("nan"))) for name in report.dense.metrics]
        table.add_row(word, *counts(size.parameters, size.macs), *figures, epochs)
    return table


def _latencies(
    table: Table,
    dense: Sequence[Latency | Absent],
    repacked: Sequence[Latency | Absent],
    speedup: Sequence[Speedup | Absent],
) -> None:
    platform = ("", "")
    for one, other, ratio in zip(dense, repacked, speedup, strict=True):
        here = isinstance(one, Latency) and isinstance(other, Latency) and isinstance(ratio, Speedup)
        if (one.device, one.runtime or "") != platform:
            platform = (one.device, one.runtime or "")
            runtime = "" if platform[1] in ("", "onnxruntime") else f", {platform[1]}"
            missing = Text((one.reason if isinstance(one, Absent) else None) or "no such device here", "dim")
            table.add_row(Text(f"latency on {one.device.upper()}{runtime}"), "", "", "" if here else missing)
        if isinstance(one, Latency) and isinstance(other, Latency) and isinstance(ratio, Speedup):
            threads = f", {one.threads} thread{'s' * (one.threads != 1)}" if one.device == "cpu" else ""
            length = f", length {one.length}" if one.length else ""
            table.add_row(
                f" batch {one.batch_size}{length}{threads}", ms(one.median_ms), ms(other.median_ms), faster(ratio)
            )


def _widths(axes: Sequence[AxisChange]) -> Table:
    rows = grouped(axes)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("axis", overflow="fold")
    table.add_column("kind", style="dim")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for name, kind, count, before, after in rows:
        filled = round(20 * after / before) if before else 0
        bar = Text.assemble(("\u2501" * filled, "green"), ("\u2500" * (20 - filled), "dim"))
        table.add_row(f"{name} ({count} axes)" if count > 1 else name, kind, str(before), f"[bold]{after}[/]", bar)
    return table


def grouped(axes: Sequence[AxisChange], limit: int = 25) -> list[tuple[str, str, int, int, int]]:
    """Rows (name, kind, number of axes, before, after) of at most ``limit`` where like names can stand together."""
    rows: dict[tuple[str, str], list[AxisChange]] = {}
    for shorten in (
        lambda n: n,
        lambda n: re.sub(r"(?<![^.])\d+(?![^.])", "*", n),
        lambda n: re.sub(r"\d+", "*", n),
        lambda n: "*",
    ):
        rows = {}
        for axis in axes:
            rows.setdefault((shorten(axis.name), axis.kind), []).append(axis)
        if len(rows) <= limit:
            break
    return [
        (name, kind, len(group), sum(a.before for a in group), sum(a.after for a in group))
        for (name, kind), group in rows.items()
    ]
