"""Amounts as a person reads them: times, sizes, counts, scores."""

from __future__ import annotations

from sslprune.values.metrics import PERCENT

UNKNOWN = "not known"


def ms(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f} ms"


def size_text(value: int | None) -> str:
    if value is None:
        return UNKNOWN
    if value < 1e6:
        return f"{value / 1e3:.1f} kB"
    return f"{value / 1e6:.2f} MB" if value < 1e9 else f"{value / 1e9:.2f} GB"


def count(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.2f} M" if value < 1e9 else f"{value / 1e9:,.2f} G"


def score(name: str, value: float) -> str:
    """A metric of that name, with its unit where it has one."""
    return f"{value:.2f} %" if name in PERCENT else f"{value:.4g}"
