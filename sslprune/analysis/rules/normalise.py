"""Normalisations: exact along channels that keep their own statistics, inexact along what they average over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from sslprune.analysis.atoms import Dim, fixed
from sslprune.analysis.inference import Inference, Rule, describe
from sslprune.analysis.zeros import AllOf, AnyOf, Beaten, Keeps, Zero


def _affine(g: Inference, node: fx.Node, dim: Dim, *tensors: Any) -> None:
    for tensor in tensors:
        if isinstance(tensor, fx.Node):
            g.unify(dim, g.dims(tensor)[0], node)


def _zero(weight: Any, bias: Any) -> Zero | None:
    """A normalised value is zero only where its scale and its shift are."""
    if not isinstance(weight, fx.Node):
        return None
    return AllOf((Keeps(weight), Keeps(bias))) if isinstance(bias, fx.Node) else Keeps(weight)


def batch_norm(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """(N, C, *): each channel by its own statistics."""
    x = g.dims(a.input)
    state = [getattr(a, name, None) for name in ("running_mean", "running_var")]
    _affine(g, node, x[1], a.weight, a.bias, *state)
    g.normalises(node, *x[2:])
    g.out(node, x, _zero(a.weight, a.bias))
    for extra in range(1, g.num_outputs(node)):  # the native variants also return statistics, one a channel
        g.out(node, [x[1]] if g.shape(node, extra) == (x[1].size,) else [fixed(n) for n in g.shape(node, extra)])


def group_norm(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """(N, C, *) with C = (groups, C / groups): whole groups go exactly, channels inside one do not."""
    x = g.dims(a.input)
    _affine(g, node, x[1], a.weight, a.bias)
    g.freeze(x[2:], node, "normalised over")
    group, inner = g.atoms.split(
        x[1], (a.num_groups, x[1].size // a.num_groups), f"{describe(node)}: {a.num_groups} groups"
    )
    g.normalises(node, inner)
    g.out(node, x, _zero(a.weight, a.bias))
    g.on_repack(node, lambda r: r.set("num_groups", r.size(group)))


def layer_norm(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """(*, normalized_shape): exact along one dimension, because what is left is normalised among the old zeros.

    Mean and variance count the entries that have vanished. So after a removal the rest is padded with zeros to the old
    width, normalised by the same fused operator, and cut again. Over several dimensions at once it is inexact.
    """
    x = g.dims(a.input)
    count = len(a.normalized_shape)
    affine = [tensor for tensor in (a.weight, getattr(a, "bias", None)) if isinstance(tensor, fx.Node)]
    for i in range(1, count + 1):
        for tensor in affine:
            g.unify(x[-i], g.dims(tensor)[-i], node)
    for dim in x[-count:]:
        g.label(dim, "width")
    g.out(node, x, _zero(a.weight, getattr(a, "bias", None)))
    if count > 1:
        g.normalises(node, *x[-count:])
        return
    g.sums(node, x[-1], Keeps(a.input))
    g.on_repack(node, lambda r: r.pad_to_old_width(x[-1], [a.input, *affine]) if r.changed(x[-1]) else None)


def rms_norm(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """x / sqrt(mean(x^2) + eps): exact when the divisor is kept.

    With n of m entries left, mean over m is n/m of the mean over n: so the norm of the rest with eps·m/n, times
    sqrt(m/n), is the old one.
    """
    x = g.dims(a.input)
    count = len(a.normalized_shape)
    over = x[-count:]
    for i in range(1, count + 1):
        if isinstance(a.weight, fx.Node):
            g.unify(x[-i], g.dims(a.weight)[-i], node)
    for dim in over:
        g.label(dim, "width")
        g.sums(node, dim, Keeps(a.input))

    def rewrite(r: Any) -> None:
        grown = 1.0
        for dim in over:
            grown *= dim.size / r.size(dim)
        r.set("normalized_shape", [r.size(dim) for dim in over])
        if grown != 1.0:
            r.set("eps", (a.eps if a.eps is not None else 1.1920928955078125e-07) * grown)
            r.scale(grown**0.5)

    g.out(node, x, Keeps(a.input))
    g.on_repack(node, rewrite)


def softmax(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Every entry along ``dim`` counts, zero or not; one that is beaten by all has no share."""
    x = g.dims(a.self)
    shares = "log" not in str(node.target)
    beaten = Beaten(a.self, (x[a.dim],))
    g.normalises(node, x[a.dim], but=beaten)
    g.out(node, x, beaten if shares else None)
    g.facts[node].beaten = beaten


def weight_norm(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """g · v / ‖v‖ (Salimans and Kingma 2016), the norm over all but ``dim``: g at zero makes it zero, v must not be."""
    v = g.dims(a.v)
    own = a.dim % len(v)
    g.unify(v[own], g.dims(a.g)[own], node)
    g.never_zero(a.v, own)
    others = tuple(dim for i, dim in enumerate(v) if i != own)
    g.normalises(node, *others)
    g.out(node, v, AnyOf((Keeps(a.g), Keeps(a.v, others))))
    for extra in range(1, g.num_outputs(node)):
        g.out(node, [fixed(n) for n in g.shape(node, extra)])


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional",
         "_native_batch_norm_legit", "native_batch_norm"), batch_norm),
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    **dict.fromkeys(("_weight_norm", "_weight_norm_interface"), weight_norm),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), softmax),
}  # fmt: skip
