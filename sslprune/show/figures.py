"""Figures as a person reads them: times, sizes, scores, ratios with their intervals."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from sslprune.report import Speedup
from sslprune.values.amounts import count, score


def faster(speedup: Speedup) -> Text:
    """A ratio with its interval; no measurable difference where that holds 1."""
    interval = (f" ({speedup.low:.2f}\u2013{speedup.high:.2f})", "dim")
    if not speedup.clear:
        return Text.assemble(("no measurable difference", "yellow"), interval)
    style = "bold green" if speedup.ratio > 1 else "bold red"
    word = "faster" if speedup.ratio > 1 else "as fast: slower"
    return Text.assemble((f"{speedup.ratio:.2f}x {word}", style), interval)


def counts(*values: float) -> tuple[str, ...]:
    return tuple(map(count, values))


def scores(metrics: Mapping[str, float]) -> str:
    """Metrics in one line."""
    return ", ".join(f"{name} {score(name, value)}" for name, value in metrics.items())
