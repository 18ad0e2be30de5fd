"""What the outputs feel, for the page: divergence and metric by budget, and axis by axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sslprune.report.charts import Series, chart
from sslprune.report.inspection import Sensitivity
from sslprune.report.words import MEASURE_WORDS


@dataclass(frozen=True)
class Row:
    """One axis: its divergences as text, each with how dark it is, from 0 to 1, on a scale of all axes."""

    name: str
    kind: str
    cells: list[tuple[str, float]]


def feel(found: Sensitivity | None) -> dict[str, Any] | None:
    """Charts and rows of the map; None where there is none."""
    if found is None:
        return None
    measure = MEASURE_WORDS.get(found.measure, found.measure)
    lines = [
        Series(name, [(p.fraction, value) for p, value in values if value > 0], color, marks=True)
        for name, color, values in (
            ("as cut", 7, [(p, p.cut) for p in found.budgets]),
            ("repaired", 1, [(p, p.repaired) for p in found.budgets]),
        )
    ]
    legend = [(line.name, line.color) for line in lines]
    drawn = chart(lines, f"{measure} that remain", "divergence", log_y=True)
    charts = [("divergence of the outputs", Markup(drawn), legend)]
    for name, dense in found.dense.items():
        points = [(1.0, dense), *((p.fraction, p.metrics[name]) for p in found.budgets if name in p.metrics)]
        drawn = chart([Series(name, points, 1, marks=True)], f"{measure} that remain", f"test {name}")
        charts.append((f"test {name}, calibrated, without training", Markup(drawn), []))
    every = [math.log(value) for axis in found.axes for value in axis.divergence if value > 0]
    low, spread = min(every, default=0.0), max(every, default=0.0) - min(every, default=0.0)
    rows = []
    for axis in found.axes:
        cells = [
            (f"{value:.2g} ({gone} of {axis.size})", (math.log(value) - low) / (spread or 1) if value > 0 else 0.0)
            for gone, value in zip(axis.gone, axis.divergence, strict=True)
        ]
        rows.append(Row(axis.name, axis.kind, cells))
    wide = max((len(row.cells) for row in rows), default=0)
    return {"charts": [entry for entry in charts if entry[1]], "rows": rows, "wide": wide, "samples": found.samples}
