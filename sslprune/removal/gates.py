"""Gates: what lets a router's choice go exactly.

A router counts its experts: a softmax shares 1 among all of them, and the largest few are picked. Zeroing the row of
one makes its logit 0, which is a logit like any other. So each gets a gate g, 1 at first, and log |g| is added to its
logit: the function is the old one, its share is in proportion to g, and where g is zero the logit is -inf. Nothing
picks such an expert then, and the others share 1.

While the model heals, the gates that are left are 1: the model is one without gates then, and its class can hold it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sslprune.capture.program import Program
from sslprune.kinds.find import analysis_of, find_axes
from sslprune.kinds.table import kind_of
from sslprune.removal.owners import owner_of
from sslprune.values.axes import Axis

GATE = "_gate"  # behind the name of the weight


def gates_for(program: Program, axes: Sequence[Axis] | None = None) -> tuple[str, ...]:
    """The weights of routers that need a gate for these ``axes`` of ``program`` to be exact; for all that can have one.

    `gate_` puts them there; the model is another one then, and is traced anew.
    """
    g = analysis_of(program).inference
    axes = find_axes(program) if axes is None else axes
    return tuple(dict.fromkeys(name for axis in axes for name in kind_of(axis).gates(g, axis)))


def gate_(model: nn.Module, weights: Sequence[str]) -> nn.Module:
    """Give each of the ``weights`` (experts, features), by name, a gate (experts,) of ones, in place.

    The modules that hold them stay what they were, and add the gates to what `F.linear` makes of the weights. Raises
    RepackError for a name that the model lacks.
    """
    for name in weights:
        owner, leaf, weight = owner_of(model, name, "put a gate behind")
        if leaf + GATE in owner._parameters:
            continue
        gate = torch.ones(len(weight), dtype=weight.dtype, device=weight.device)
        owner.register_parameter(leaf + GATE, nn.Parameter(gate))
        before = type(owner)
        gated = (*getattr(before, "gated", ()), leaf)
        bases = (before,) if issubclass(before, Gated) else (Gated, before)
        owner.__class__ = type(before.__name__, bases, {"gated": gated})
    return model


def gates_in(model: nn.Module) -> tuple[str, ...]:
    """The names of the gates that `gate_` has put into ``model``."""
    modules = ((path, module) for path, module in model.named_modules() if isinstance(module, Gated))
    return tuple(f"{path}.{name}{GATE}".lstrip(".") for path, module in modules for name in module.gated)


@torch.no_grad()
def open_(gates: Iterable[Tensor]) -> None:
    """Set to 1, in place, what is not zero of some gates."""
    for gate in gates:
        gate.copy_((gate != 0).to(gate.dtype))


class Gated(nn.Module):
    """A module of a person's own class, whose weights of the names ``gated`` have gates."""

    gated: tuple[str, ...] = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Gating(self):
            return super().forward(*args, **kwargs)


class _Gating(TorchFunctionMode):
    def __init__(self, owner: Gated) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if function is F.linear:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            for name in self.owner.gated:
                if weight is getattr(self.owner, name):
                    made = opened(made, getattr(self.owner, name + GATE))
        return made


def opened(logits: Tensor, gate: Tensor) -> Tensor:
    """``logits`` (..., experts) with the logarithms of the ``gate`` (experts,); -inf where it is closed."""
    least = torch.finfo(gate.dtype).tiny  # the gradient of a closed gate is zero, and no infinity
    return (logits + gate.abs().clamp(min=least).log()).masked_fill(gate == 0, -math.inf)
