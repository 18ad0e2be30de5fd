"""What a person sees while the stages work: bars on a terminal, plain lines elsewhere, nothing for ``--json``.

Progress goes to stderr and results to stdout, so that ``sslprune ... > file`` keeps only the result. This is the only
module that knows rich.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sslprune.report import (
    CONTROL_WORDS,
    Absent,
    AxisChange,
    Gate,
    Inspection,
    Latency,
    Report,
    Size,
    Speedup,
    budget_text,
    prediction_text,
    realised,
)
from sslprune.run.directory import RunDirectory
from sslprune.show.speed import PERCENT, changes, curve_table, faster, ms, operators, score, size_text, variants

Item = TypeVar("Item")
FIRST_SEEN = 0.4  # seconds: what takes less never flashes a bar
PLAIN_EVERY = 10.0  # seconds between two plain lines of one task


class Bar:
    """One piece of work under way; ``advance`` as it goes on."""

    def __init__(self, show: Show, description: str, total: int | None, task: TaskID | None) -> None:
        self.description = description
        self.total = total
        self.done = 0
        self.fields: dict[str, Any] = {}
        self.last_line = time.monotonic()
        self._show, self._task = show, task

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count ``n`` more steps as done; ``fields`` stand beside the bar (``loss=0.31``)."""
        self.done += n
        self.fields.update(fields)
        self._show._advanced(self, self._task)

    def over(self, steps: Iterable[Item]) -> Iterator[Item]:
        """``steps``, each counted once it is done."""
        for step in steps:
            yield step
            self.advance()


class Show:
    """The one way to speak to the person: ``quiet`` says nothing, else the terminal decides between bars and lines."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None, out: Console | None = None) -> None:
        self.quiet = quiet
        self.console = console or Console(file=sys.stderr, highlight=False)  # this very file, whoever redirects later
        self.out = out or Console(highlight=False)
        if not self.out.is_terminal and out is None:  # a file or a pipe: never fold the paths of the summary
            self.out = Console(highlight=False, width=max(self.out.width, 100))
        self._progress: Progress | None = None
        self._bars = 0

    @property
    def live(self) -> bool:
        """Whether bars can move: a terminal, and a person who wants to see it."""
        return self.console.is_terminal and not self.quiet

    def say(self, line: str = "", style: str = "") -> None:
        """One line of news, on stderr."""
        if not self.quiet:
            self.console.print(escape(line), style=style, soft_wrap=True)

    def stage(self, name: str, detail: str) -> None:
        """The heading of a stage."""
        if not self.quiet:
            self.console.print(f"\n[bold]{escape(name)}[/]  {escape(detail)}", soft_wrap=True)

    def result(self, renderable: RenderableType) -> None:
        """Something rich can draw, on stdout."""
        if self.quiet:
            return
        if self.out.is_terminal:
            self.out.print(renderable)
            return
        with self.out.capture() as captured:
            self.out.print(renderable)
        self.out.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    @contextmanager
    def progress(self, description: str, total: int | None = None) -> Iterator[Bar]:
        """Work of ``total`` steps (None: not known): a bar while it lasts, or a line every ten seconds."""
        task = None
        if self.live:
            if self._progress is None:
                self._progress = _bars(self.console)
                self._progress.start()
            task = self._progress.add_task(escape(description), total=total, fields="")
        bar = Bar(self, description, total, task)
        self._bars += 1
        try:
            yield bar
        finally:
            self._bars -= 1
            if self._progress is not None and task is not None:
                self._progress.remove_task(task)
                if not self._bars:
                    self._progress.stop()
                    self._progress = None

    def _advanced(self, bar: Bar, task: TaskID | None) -> None:
        if self._progress is not None and task is not None:
            self._progress.update(task, completed=bar.done, fields=_fields(bar.fields))
        elif not self.quiet and not self.live and time.monotonic() - bar.last_line >= PLAIN_EVERY:
            bar.last_line = time.monotonic()
            self._line(f"{bar.description}  {bar.done}/{bar.total or '?'}", bar.fields)

    def _line(self, text: str, fields: dict[str, Any]) -> None:
        self.console.print(f"  {escape(text)}  [dim]{escape(_fields(fields))}[/]".rstrip(), soft_wrap=True)


class _Bars(Progress):
    """Bars that appear only once their work has taken a moment."""

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        return super().make_tasks_table([task for task in tasks if (task.elapsed or 0.0) >= FIRST_SEEN])


def _bars(console: Console) -> Progress:
    return _Bars(
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True, compact=True),
        TextColumn("[dim]{task.fields[fields]}[/]"),
        console=console,
        transient=True,
    )


def _fields(fields: dict[str, Any]) -> str:
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in fields.items()
    )


# The closing summary: what a person reads last, and perhaps only.


def summary(report: Report, run: RunDirectory) -> RenderableType:
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
    facts.add_row("budget", Text(budget_text(report.budget), style="" if report.budget.met else "yellow"))
    predicted = prediction_text(report.budget)
    if predicted is not None:
        facts.add_row("", predicted)
    if report.every_gate:
        facts.add_row("gates", _gates(report.every_gate))
    facts.add_row("files", Text(f"{run}{os.sep}", overflow="fold"))
    facts.add_row("", _files(report, run))
    speed: list[RenderableType] = []
    curve: list[RenderableType] = ["", curve_table(report)] if report.curve else []
    if report.variants:
        speed += ["", variants(report)]
    if report.profiles:
        speed += ["", operators(report.profiles[:2]), *realised(report)]
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
        story.append(f"{name} {small.metrics[name] - before:+.2f}{' points' * (name in PERCENT)}")
    return Text.assemble((report.recipe, "bold"), "  ", (", ".join(story), "bold green"))


def _files(report: Report, run: RunDirectory) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for file, use in (
        (run.onnx, "for ONNX Runtime"),
        (run.program, "torch.export.load(...).module()"),
        (run.weights, "with plan.json, for your own class"),
        (run.page, "these figures as a page"),
        (run.report, "for programs"),
    ):
        table.add_row(str(file.relative_to(run.path)), use)
    if report.curve:
        table.add_row(f"points{os.sep}", "the earlier points of the sweep, each a run of its own")
    return table


def _gates(gates: Sequence[tuple[str, Gate]]) -> Table:
    table = Table.grid(padding=(0, 1))
    for title, gate in gates:
        mark = Text("\u2713", style="bold green") if gate.passed else Text("\u2717", style="bold red")
        sign = "at least" if gate.name.startswith("min_") else "at most"
        value = Text(
            "not measured" if gate.value is None else f"{gate.value:.4g}", style="" if gate.passed else "bold red"
        )
        table.add_row(mark, title, value, Text(f"{sign} {gate.limit:g}", style="dim"))
    return table


FINE_KINDS = ("kernel", "columns")  # inside convolutions: so many that they have one row, unless the recipe names them


def inspection(found: Inspection) -> RenderableType:
    """Every axis with what one of its groups costs, and why it cannot be removed where it cannot."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("axis", overflow="fold")
    table.add_column("kind", no_wrap=True, style="dim")
    for heading in ("size", "params/group", "MACs/group"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("removable", overflow="fold")
    fine = [axis for axis in found.axes if axis.kind in FINE_KINDS and not axis.pruned and not axis.frozen]
    for axis in found.axes:
        if axis in fine:
            continue
        if axis.frozen:
            state = Text.assemble(("no", "red"), f": {axis.reason}")
        elif not axis.exact:
            state = Text.assemble(("inexact", "yellow"), f": {axis.reason}")
        else:
            state = Text("yes", style="green")
        if not axis.frozen and not axis.pruned:
            state.append(", not named by the recipe", style="dim")
        costs = ("", "") if axis.frozen else _counts(axis.parameters_per_group, axis.macs_per_group)
        table.add_row(axis.name, axis.kind, str(axis.size), *costs, state)
    for kind in dict.fromkeys(axis.kind for axis in fine):
        count = sum(axis.kind == kind for axis in fine)
        state = Text.assemble(("yes", "green"), (", not named by the recipe (--json lists them)", "dim"))
        table.add_row(f"{count} axes", kind, "", "", "", state)
    total = f"{found.parameters:,} parameters, {_counts(found.macs)[0]} MACs per sample"
    pruned = sum(axis.pruned for axis in found.axes)
    last = f"{len(found.axes)} axes, {pruned} named by the recipe"
    notes = [Text(note, style="dim") for note in found.notes]
    return Group(Text.assemble((found.model, "bold"), f"  {total}"), *notes, "", table, "", Text(last, style="dim"))


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
        *_counts(dense.parameters, small.parameters),
        less("parameters", dense.parameters, small.parameters),
    )
    table.add_row("MACs per sample", *_counts(dense.macs, small.macs), less("macs", dense.macs, small.macs))
    table.add_row(
        "ONNX file",
        size_text(dense.file_bytes),
        size_text(small.file_bytes),
        less("", dense.file_bytes, small.file_bytes),
    )
    for name, before in dense.metrics.items():
        after = small.metrics.get(name, float("nan"))
        unit = " points" if name in PERCENT else ""
        change = f"{abs(after - before):.2f}{unit} {'lower' if after < before else 'higher'}"
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
        table.add_row(word, *_counts(size.parameters, size.macs), *figures, epochs)
    return table


def _latencies(
    table: Table,
    dense: Sequence[Latency | Absent],
    repacked: Sequence[Latency | Absent],
    speedup: Sequence[Speedup | Absent],
) -> None:
    place = ("", "")
    for one, other, ratio in zip(dense, repacked, speedup, strict=True):
        here = isinstance(one, Latency) and isinstance(other, Latency) and isinstance(ratio, Speedup)
        if (one.device, one.runtime or "") != place:
            place = (one.device, one.runtime or "")
            runtime = "" if place[1] in ("", "onnxruntime") else f", {place[1]}"
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


def _counts(*values: float) -> tuple[str, ...]:
    return tuple(
        f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.2f} M" if value < 1e9 else f"{value / 1e9:,.2f} G"
        for value in values
    )


def scores(metrics: Mapping[str, float]) -> str:
    """Metrics in one line."""
    return ", ".join(f"{name} {score(name, value)}" for name, value in metrics.items())
