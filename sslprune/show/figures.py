"""Figures as a person reads them: times, sizes, scores, ratios with their intervals."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from sslprune.report import Speedup
from sslprune.values.metrics import PERCENT


def faster(speedup: Speedup) -> Text:
    """A ratio with its interval; no measurable difference where that holds 1."""
    interval = (f" ({speedup.low:.2f}\u2013{speedup.high:.2f})", "dim")
    if not speedup.clear:
        return Text.assemble(("no measurable difference", "yellow"), interval)
    style = "bold green" if speedup.ratio > 1 else "bold red"
    word = "faster" if speedup.ratio > 1 else "as fast: slower"
    return Text.assemble((f"{speedup.ratio:.2f}x {word}", style), interval)


def ms(value: float) -> str:
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f} ms"


def size_text(value: int) -> str:
    return f"{value / 1e3:.1f} kB" if value < 1e6 else f"{value / 1e6:.2f} MB"


def score(name: str, value: float) -> str:
    return f"{value:.2f} %" if name in PERCENT else f"{value:.4g}"


def counts(*values: float) -> tuple[str, ...]:
    return tuple(
        f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.2f} M" if value < 1e9 else f"{value / 1e9:,.2f} G"
        for value in values
    )


def scores(metrics: Mapping[str, float]) -> str:
    """Metrics in one line."""
    return ", ".join(f"{name} {score(name, value)}" for name, value in metrics.items())
