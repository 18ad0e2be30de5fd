"""Reductions: a sum over an axis is exact where what goes has vanished; a mean keeps its divisor."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from torch import fx

from sslprune.analysis.atoms import Dim, fixed
from sslprune.analysis.inference import Inference, Rule
from sslprune.analysis.rules.pointwise import choice
from sslprune.analysis.zeros import Keeps


def reduced(g: Inference, node: fx.Node, a: SimpleNamespace) -> tuple[list[Dim], list[Dim]]:
    """The dimensions that go, and those of the result."""
    x = g.dims(a.self)
    chosen = getattr(a, "dim", None)
    if chosen is None or (isinstance(chosen, Sequence) and not chosen):
        chosen = list(range(len(x)))
    chosen = [d % len(x) for d in (chosen if isinstance(chosen, Sequence) else [chosen])]
    keepdim = bool(getattr(a, "keepdim", False))
    left = [fixed(1) if i in chosen else dim for i, dim in enumerate(x) if keepdim or i not in chosen]
    return [x[d] for d in chosen], left


def total(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    over, left = reduced(g, node, a)
    for dim in over:
        g.sums(node, dim, Keeps(a.self))
    g.out(node, left, Keeps(a.self, tuple(left)))


def mean(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """The mean over what is left, times (left / all), is the mean over all."""
    over, _ = reduced(g, node, a)
    total(g, node, a)

    def rewrite(r: Any) -> None:
        share = 1.0
        for dim in over:
            share *= r.size(dim) / dim.size
        if share != 1.0:
            r.scale(share)

    g.on_repack(node, rewrite)


def norm(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """A p-norm with p > 0 is a sum."""
    order = getattr(a, "ord", getattr(a, "p", 2))
    if isinstance(order, (int, float)) and 0 < order < float("inf"):
        total(g, node, a)
    else:
        extreme(g, node, a)


def extreme(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Maxima, products, variances and the like over an axis: every entry counts."""
    if isinstance(getattr(a, "other", None), fx.Node):  # the larger of two tensors
        choice(g, node, a)
        return
    over, left = reduced(g, node, a)
    read = {user.args[1] for user in node.users if user.users and user.target is operator.getitem}
    if (1 in read and "mean" not in str(node.target)) or "arg" in str(node.target):
        g.freeze(over, node, "its places are returned")
    g.normalises(node, *over)
    for i in range(g.num_outputs(node)):
        g.out(node, left, Keeps(a.self, tuple(left)) if i == 0 and node.target._schema.name in _OF_ZERO else None)  # type: ignore[union-attr]


_OF_ZERO = {f"aten::{name}" for name in ("amax", "amin", "max", "min", "std", "var", "var_mean", "std_mean", "prod")}

RULES: dict[str, Rule] = {
    "sum": total, "mean": mean, "linalg_vector_norm": norm, "norm": norm, "frobenius_norm": norm,
    **dict.fromkeys(("amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "any",
                     "all", "argmax", "argmin", "median"), extreme),
}  # fmt: skip
