"""Pictures of weights from which rows or columns have gone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sslprune.report.charts import matrix_png

MOST_MATRICES = 12


def matrices(path: Path | None) -> list[dict[str, Any]]:
    """Pictures of weights with removed rows or columns: as many as fit, spread over the network."""
    if path is None or not path.is_file():
        return []
    found = []
    try:
        with safe_open(path, "numpy") as file:
            for name in sorted(file.keys(), key=_natural):
                shape = file.get_slice(name).get_shape()
                if len(shape) < 2 or shape[0] < 4:
                    continue
                weight = file.get_tensor(name)
                flat = weight.reshape(shape[0], shape[1], -1) != 0
                rows, columns = int(flat.any((1, 2)).sum()), int(flat.any((0, 2)).sum())
                if rows < shape[0] or columns < shape[1]:
                    found.append((name, weight, rows, columns))
    except (SafetensorError, TypeError):  # a type that numpy lacks
        return []
    spread = sorted({round(i) for i in np.linspace(0, len(found) - 1, MOST_MATRICES)}) if found else []
    return [
        {
            "name": name,
            "text": f"{rows} of {weight.shape[0]} rows, {columns} of {weight.shape[1]} columns",
            "png": matrix_png(weight),
        }
        for name, weight, rows, columns in (found[i] for i in spread)
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """layer2 before layer10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
