"""The one comparison of two outputs."""

from __future__ import annotations

from typing import Any

import torch

from sslprune.values.inputs import tensors_in


def difference(expected: Any, actual: Any) -> tuple[float, float]:
    """Largest absolute and relative difference between two (nested) outputs; relative to each tensor's largest value.

    NaN where the two disagree about NaN or shape, so that no comparison ``<= limit`` passes.
    """
    worst_abs = worst_relative = 0.0
    wanted, got = tensors_in(expected), tensors_in(actual)
    if len(wanted) != len(got):
        return float("nan"), float("nan")
    for a, b in zip(wanted, got, strict=True):
        if a.shape != b.shape:
            return float("nan"), float("nan")
        if a.numel() == 0:
            continue
        a, b = a.detach().double().cpu(), b.detach().double().cpu()
        same = (a == b) | (a.isnan() & b.isnan())  # equal infinities and NaNs are no difference
        distance = torch.where(same, 0.0, (a - b).abs()).max().item()
        scale = a[a.isfinite()].abs().max().item() if a.isfinite().any() else 0.0
        if distance != distance:
            return float("nan"), float("nan")
        worst_abs = max(worst_abs, distance)
        worst_relative = max(worst_relative, distance / scale if scale else (0.0 if distance == 0.0 else float("inf")))
    return worst_abs, worst_relative
