"""What a person sees while the stages work: bars on a terminal, plain lines elsewhere.

Progress goes to stderr and results to stdout, so that ``sslprune ... > file`` keeps only the result.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from sslprune.values.voice import Item

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
