"""Pictures for the report's page: line charts as inline SVG, weight matrices as small PNGs. No dependency, no network.

Colours are CSS classes (``s0`` to ``s7``), so that the page's light and dark styles apply.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
LEVELS = 16  # of a weight's size in a picture
LARGEST = 192  # pixels


@dataclass(frozen=True)
class Series:
    """One line: ``points`` (x, y), in order. ``marks`` draws dots, ``line`` joins them; ``color`` is 0 to 7."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    marks: bool = False
    line: bool = True
    labels: Sequence[str] = field(default_factory=tuple)  # of the points, where a mouse rests on them
    names: Sequence[str] = field(default_factory=tuple)  # of the points, written above them


def chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    x_ticks: Sequence[float] | None = None,
    whole_x: bool = False,
) -> str:
    """An SVG of ``series`` on one pair of axes; empty where there is no finite point. ``whole_x``: marks are whole."""
    points = [p for s in series for p in s.points if all(map(math.isfinite, p))]
    if not points:
        return ""
    xs, ys = (
        _Scale([p[0] for p in points], log_x, LEFT, WIDTH - RIGHT),
        _Scale([p[1] for p in points], log_y, HEIGHT - BOTTOM, TOP),
    )
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}"'
        ' class="chart">'
    ]
    for tick in ys.ticks():
        y = ys(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in x_ticks if x_ticks is not None else xs.ticks(whole_x):
        parts.append(f'<text x="{xs(tick):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{_number(tick)}</text>')
    parts.append(
        f'<text class="label" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for line in series:
        drawn = [(xs(x), ys(y)) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
        if line.line and len(drawn) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
            parts.append(
                f'<polyline class="s{line.color}" points="{path}"><title>{escape(line.name)}</title></polyline>'
            )
        for (x, y), name in zip(drawn, line.names, strict=False):
            inside = min(max(x, LEFT + 14), WIDTH - RIGHT - 14)
            above = y - 7 if y > TOP + 16 else y + 15
            parts.append(f'<text x="{inside:.1f}" y="{above:.1f}" text-anchor="middle">{escape(name)}</text>')
        for index, (x, y) in enumerate(drawn if line.marks or len(drawn) == 1 else []):
            title = escape(line.labels[index] if index < len(line.labels) else line.name)
            parts.append(
                f'<circle class="s{line.color}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{title}</title></circle>'
            )
    return "".join([*parts, "</svg>"])


class _Scale:
    """Maps values to pixels, with round numbers to mark."""

    def __init__(self, values: Sequence[float], log: bool, start: float, end: float) -> None:
        self.log = log and min(values) > 0
        low, high = min(values), max(values)
        if self.log:
            low, high = math.log10(low), math.log10(high)
        spread = (high - low) or abs(high) * 0.1 or 1.0
        self.low, self.high = low - 0.06 * spread, high + 0.06 * spread
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, whole: bool = False) -> list[float]:
        """Three to eight round numbers between the ends; powers of ten, or those with twice and five times them, where
        a logarithmic scale has so many."""
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        if self.log:
            powers = [10.0**exponent for exponent in range(math.floor(self.low), math.floor(self.high) + 1)]
            for factors in ((1,), (1, 2, 5)):
                marks = [m * power for power in powers for m in factors if low <= m * power <= high]
                if len(marks) >= 3:
                    return marks[:: max(1, math.ceil(len(marks) / 6))]
        size = 10.0 ** math.floor(math.log10(high - low))
        steps = [m * size for m in (5, 2.5, 2, 1, 0.5, 0.25, 0.2, 0.1)]
        steps = [step for step in steps if step.is_integer()] or [1.0] if whole else steps
        for step in steps:
            marks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
            if len(marks) >= 3:
                break
        return marks


def _number(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.4g}"


def matrix_png(weight: np.ndarray) -> str:
    """A weight as a ``data:`` URI: rows are outputs, columns inputs with their kernel positions; zeros are transparent.

    The larger a weight, the darker; a picture larger than 192 pixels shows the largest weight of each patch.
    """
    values = np.abs(weight.reshape(len(weight), -1)).astype(np.float64)  # (out, in x kernel)
    for axis in (0, 1):
        patch = math.ceil(values.shape[axis] / LARGEST)
        starts = np.arange(0, values.shape[axis], patch)
        values = np.maximum.reduceat(values, starts, axis=axis)
    top = np.quantile(values[values > 0], 0.99) if (values > 0).any() else 1.0
    levels = np.where(values > 0, np.clip(np.ceil(values / top * (LEVELS - 1)), 4, LEVELS - 1), 0).astype(np.uint8)
    height, width = levels.shape
    rows = b"".join(b"\x00" + row.tobytes() for row in levels)
    palette = bytes([59, 110, 220]) * LEVELS
    alpha = bytes(round(255 * level / (LEVELS - 1)) for level in range(LEVELS))
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette),
        (b"tRNS", alpha),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
    )
    return "data:image/png;base64," + base64.b64encode(png).decode()
