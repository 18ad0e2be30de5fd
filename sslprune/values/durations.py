"""Lengths of time as people say them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Hours and minutes, or seconds."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
