"""Norms over a width that got smaller: what a repacked graph multiplies by goes into their weights and epsilon."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslprune.export.renumber import Held


@torch.no_grad()
def rescaled(model: Any, instance: nn.Module, held: Held) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Other weights for the root-mean-square norms of ``instance`` that are narrower than in ``model``.

    And other values for the fields that say their epsilon. Both empty where there is none.

    With n of m entries left, all others zero, x / √(mean over m + ε) is √(m/n) · x / √(mean over n + ε·m/n).
    """
    weights: dict[str, Tensor] = {}
    fields: dict[str, float] = {}
    floats = {name: value for name, value in model.config.to_dict().items() if isinstance(value, float)}
    for name, module in instance.named_modules():
        weight = getattr(module, "weight", None)
        old = model.state_dict().get(held.before.get(f"{name}.weight", ""))
        if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or old is None:
            continue
        if "norm" not in type(module).__name__.lower() or getattr(module, "bias", None) is not None:
            continue
        if old.numel() == weight.numel():
            continue
        grown = old.numel() / weight.numel()
        weights[f"{name}.weight"] = grown**0.5 * weight + (grown**0.5 - 1) * _offset(module, weight)
        own = [value for value in vars(module).values() if isinstance(value, float)]
        fields |= {field: value * grown for field, value in floats.items() if value in own}
    return weights, fields


def _offset(module: nn.Module, weight: nn.Parameter) -> float:
    """What is added to the weight before it multiplies: 0, or 1 in a class that learns the difference from 1."""
    x, saved = torch.linspace(1, 2, weight.numel())[None], weight.clone()
    outputs = []
    for value in (0.0, 1.0):
        weight.fill_(value)
        outputs.append(module(x))
    weight.copy_(saved)
    return round(float((outputs[0] / (outputs[1] - outputs[0])).mean()), 6)
