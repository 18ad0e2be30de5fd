"""The one comparison of two outputs, and two models watched side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslprune.values.carry import carrying
from sslprune.values.inputs import num_rows, tensors_in


def difference(expected: Any, actual: Any) -> tuple[float, float]:
    """Largest absolute and relative difference between two (nested) outputs; relative to each tensor's largest value.

    Equal infinities (of masked logits) and NaNs are no difference. NaN where the two disagree about NaN or shape, so
    that no comparison ``<= limit`` passes.
    """
    worst_abs = worst_relative = 0.0
    wanted, got = tensors_in(expected), tensors_in(actual)
    if len(wanted) != len(got):
        return float("nan"), float("nan")
    for a, b in zip(map(_numbers, wanted), map(_numbers, got), strict=True):
        if a.shape != b.shape:
            return float("nan"), float("nan")
        if a.numel() == 0:
            continue
        same = (a == b) | (a.isnan() & b.isnan())
        distance = torch.where(same, 0.0, (a - b).abs()).max().item()
        scale = a[a.isfinite()].abs().max().item() if a.isfinite().any() else 0.0
        if distance != distance:
            return float("nan"), float("nan")
        worst_abs = max(worst_abs, distance)
        worst_relative = max(worst_relative, distance / scale if scale else (0.0 if distance == 0.0 else float("inf")))
    return worst_abs, worst_relative


def _numbers(tensor: Tensor) -> Tensor:
    """A tensor of any type as float64 on the CPU; a complex number is two."""
    tensor = tensor.detach().cpu()
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


class Beside(nn.Module):
    """``model``, watched: every input also goes through ``reference``, and the largest difference is kept.

    Each carries its own state, where they carry any. Models that draw ``random`` numbers are compared by draws that are
    alike, in a call of their own: what comes out is drawn as ever.
    """

    def __init__(self, reference: nn.Module, model: nn.Module, *, random: bool = False) -> None:
        super().__init__()
        self.random = random
        # in a tuple, since an exported program refuses to be put in eval mode
        self.both = (carrying(reference), carrying(model))
        self.max_abs = self.max_relative = 0.0
        self.samples = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        reference, model = self.both
        output = model(*args, **kwargs)
        distance, relative = difference(reference(*args, **kwargs), output)
        self.max_abs = float(np.maximum(self.max_abs, distance))  # unlike max, keeps a NaN
        self.max_relative = float(np.maximum(self.max_relative, relative))
        self.samples += num_rows((args, kwargs))
        return output
