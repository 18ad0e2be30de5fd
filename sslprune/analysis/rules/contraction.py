"""Convolutions and matrix products: what is summed away, what comes out, what it costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx

from sslprune.analysis.atoms import Dim, fixed, merge
from sslprune.analysis.columns import Columns, read_columns
from sslprune.analysis.contraction import Contraction, Window
from sslprune.analysis.inference import Inference, Rule, describe
from sslprune.analysis.zeros import AllOf, AnyOf, Keeps, Zero
from sslprune.capture.program import operator_name


def _with_bias(zero: Zero, bias: Any) -> Zero:
    return AllOf((zero, Keeps(bias))) if isinstance(bias, fx.Node) else zero


def convolution(g: Inference, node: fx.Node, a: SimpleNamespace, transposed: bool = False) -> None:
    """(N, C, *), weight (out, C / groups, *kernel) -> (N, out, *); transposed weight (C, out / groups, *kernel).

    The channels are (groups, C / groups): kept channels stay the same in every group, so that what is left is again a
    grouped convolution; whole groups go with their input and output channels.
    """
    x, w = g.dims(a.input), g.dims(a.weight)
    groups, shape = a.groups, g.shape(node)
    spatial = len(w) - 2
    channels = len(x) - 1 - spatial
    for side in w[2:]:
        g.label(side, "kernel")
    g.freeze(x[channels + 1 :], node, "convolved over")
    window = _window(a, spatial, transposed)
    if transposed or isinstance(window.padding, str):
        g.freeze(w[2:], node, "its shape decides the result's")
    else:
        g.on_repack(node, lambda r: _shrink(r, a, w[2:], g.columns.get(str(a.weight.target)), channels))
    one, other = (w[1], w[0]) if transposed else (w[0], w[1])  # output side, input side
    if groups == 1:
        out, inner, group = one, other, fixed(1)
        g.unify(x[channels], other, node)
    else:
        why = f"{describe(node)}: {groups} groups"
        in_split = g.atoms.split(x[channels], (groups, x[channels].size // groups), why)
        if transposed:
            group, inner = g.atoms.split(other, (groups, other.size // groups), why)
            out = merge([group, one])
        else:
            group, _ = g.atoms.split(one, (groups, one.size // groups), why)
            out, inner = one, other
        g.unify(in_split[0], group, node)
        g.unify(in_split[1], inner, node)
        g.on_repack(node, lambda r: r.set("groups", r.size(group)))
    if a.bias is not None:
        g.unify(out, g.dims(a.bias)[0], node)
    g.label(out, "filters")
    dims = [*x[:channels], out, *(g.fixed(n, node, "convolved over") for n in shape[channels + 1 :])]
    free = Keeps(a.input, (*x[:channels], group))
    g.out(node, dims, _with_bias(AnyOf((Keeps(a.weight, (out,)), free)), a.bias))
    g.contracts(
        Contraction(
            node,
            a.input,
            a.weight,
            batched=(*x[:channels], *(x if transposed else dims)[channels + 1 :]),
            made=(out,),
            summed={inner: (a.input, a.weight), **dict.fromkeys(w[2:], (a.weight,))},
            makes=(1 if transposed else 0,),
            reads=(0 if transposed else 1, *range(2, len(w))),
            window=window,
            runs_as="ConvTranspose" if transposed else "Conv",
        )
    )


def _window(a: SimpleNamespace, spatial: int, transposed: bool) -> Window:
    wide = lambda value: tuple(value) * (spatial if len(value) == 1 else 1)  # noqa: E731
    padding = a.padding if isinstance(a.padding, str) else wide(a.padding)
    return Window(wide(a.stride), padding, wide(a.dilation), a.groups, transposed)


def _shrink(r: Any, a: SimpleNamespace, sides: list[Dim], columns: Columns | None, channel_dim: int) -> None:
    if columns is not None and r.changed(columns.own):
        read_columns(r, a, columns, channel_dim)
    else:
        _shrink_kernel(r, a, sides)


def _shrink_kernel(r: Any, a: SimpleNamespace, sides: list[Dim]) -> None:
    """A kernel that lost its outer rows reaches less far to that side: its padding shrinks, or becomes a crop.

    What is left of it is evenly spaced (see `sslprune.kinds.kernel`): the step multiplies the dilation.
    """
    if not any(r.changed(side) for side in sides):
        return
    wide = lambda value: list(value) * (len(sides) if len(value) == 1 else 1)  # noqa: E731
    padding, dilation = wide(a.padding), wide(a.dilation)
    amounts: list[int] = []
    for i, side in enumerate(sides):
        kept = np.flatnonzero(r.mask(side))
        low, high = (padding[i] - int(lost) * dilation[i] for lost in (kept[0], side.size - 1 - kept[-1]))
        amounts = [low, high, *amounts]  # the last dimension first, as aten.pad wants them
        dilation[i] *= int(kept[1] - kept[0]) if len(kept) > 1 else 1
    r.set("dilation", dilation)
    if all(amounts[2 * i] == amounts[2 * i + 1] >= 0 for i in range(len(sides))):
        r.set("padding", amounts[::2][::-1])
    else:
        r.set("padding", [0] * len(sides))
        r.pad_input(a.input, amounts)


def convolution_transposed(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    convolution(g, node, a, transposed=True)


def convolution_any(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    convolution(g, node, a, transposed=a.transposed)


def linear(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """(*, in), weight (out, in) -> (*, out)."""
    x, w = g.dims(a.input), g.dims(a.weight)
    g.unify(x[-1], w[1], node)
    if a.bias is not None:
        g.unify(w[0], g.dims(a.bias)[0], node)
    g.label(w[0], "neurons")
    rows, summed = tuple(x[:-1]), {w[1]: (a.input, a.weight)}
    g.out(node, [*rows, w[0]], _with_bias(AnyOf((Keeps(a.input, rows), Keeps(a.weight, (w[0],)))), a.bias))
    g.contracts(Contraction(node, a.input, a.weight, rows, (w[0],), summed, makes=(0,), reads=(1,)))


def bilinear(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """(*, i) and (*, j), weight (out, i, j) -> (*, out)."""
    x, y, w = g.dims(a.input1), g.dims(a.input2), g.dims(a.weight)
    for one, other in (*zip(x[:-1], y[:-1], strict=True), (x[-1], w[1]), (y[-1], w[2])):
        g.unify(one, other, node)
    if a.bias is not None:
        g.unify(w[0], g.dims(a.bias)[0], node)
    g.label(w[0], "neurons")
    lead = tuple(x[:-1])
    free = AnyOf((Keeps(a.input1, lead), Keeps(a.input2, lead), Keeps(a.weight, (w[0],))))
    g.out(node, [*lead, w[0]], _with_bias(free, a.bias))
    summed = {w[1]: (a.input1, a.weight), w[2]: (a.input2, a.weight)}
    g.contracts(Contraction(node, a.input1, a.weight, lead, (w[0],), summed, makes=(0,), reads=(1, 2)))


def matmul(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """(*, n, k) x (*, k, m) -> (*, n, m), leading dimensions broadcast; vectors as torch.matmul has them."""
    left, right = a.self, getattr(a, "other", None) or getattr(a, "mat2", None) or getattr(a, "vec", None) or a.tensor
    multiply(g, node, left, right, None)


def addmm(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    left, right = (a.mat1, a.mat2) if hasattr(a, "mat1") else (a.batch1, a.batch2)
    multiply(g, node, left, right, a.self)


def multiply(g: Inference, node: fx.Node, left: fx.Node, right: fx.Node, bias: fx.Node | None) -> None:
    x, y = g.dims(left), g.dims(right)
    xs, ys = g.shape(left), g.shape(right)
    shared = y[-2] if len(y) > 1 else y[0]
    g.unify(x[-1], shared, node)
    batch: list[Dim] = []
    x_lead, y_lead = list(zip(x[:-2], xs[:-2], strict=True)), list(zip(y[:-2], ys[:-2], strict=True))
    for i in range(1, max(len(x_lead), len(y_lead)) + 1):
        here = [lead[-i] for lead in (x_lead, y_lead) if len(lead) >= i]
        wide = [dim for dim, size in here if size > 1]
        if len(wide) == 2:
            g.unify(wide[0], wide[1], node)
        batch.insert(0, wide[0] if wide else here[0][0])
    activations = _from_input(left) and _from_input(right)
    if activations:
        for dim in batch[1:]:
            g.label(dim, "heads")
        g.label(shared, "head_dim")
        if len(y) > 1 and batch:
            g.label(y[-1], "value_dim")
    rows, columns = ([x[-2]] if len(x) > 1 else []), ([y[-1]] if len(y) > 1 else [])
    first = left.op == "get_attr" and _from_input(right)  # the weight stands before what it is multiplied with
    for dim in [] if activations else columns + rows * first:
        g.label(dim, "neurons")
    free_left = Keeps(left, tuple(x[:-1]))
    free_right = Keeps(right, (*y[:-2], *columns))
    dims = [*batch, *rows, *columns]
    if bias is not None:
        size = g.shape(bias)
        for dim, b, n in zip(dims[::-1], g.dims(bias)[::-1], size[::-1], strict=False):
            if n > 1:
                g.unify(dim, b, node)
    g.out(node, dims, _with_bias(AnyOf((free_left, free_right)), bias))
    made, others = (rows, columns) if first else (columns, rows)
    g.contracts(
        Contraction(
            node,
            right if first else left,
            left if first else right,
            batched=(*batch, *(others or [fixed(1)])),
            made=tuple(made),
            summed={shared: (left, right)},
            makes=(len(x) - 2 if first else len(y) - 1,) if made else (),
            reads=(len(x) - 1 if first else max(len(y) - 2, 0),),
            runs_as="MatMul" if right.op == "get_attr" and len(y) == 2 else "MatMul2",
        )
    )


def grouped(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Rows of x (T, k) in consecutive runs, each run by its own matrix of (experts, k, m) -> (T, m).

    Which rows an expert gets is decided elsewhere, by their place: an expert that gets none may go, and neurons inside.
    """
    left, right, ends = (value for value in node.args[:3] if isinstance(value, fx.Node))
    x, w = g.dims(left), g.dims(right)
    g.freeze([x[0]], node, "rows go to experts by place")
    g.unify(w[0], g.dims(ends)[0], node)
    g.label(w[0], "experts")
    g.unify(x[-1], w[-2], node)
    g.label(w[-1], "neurons")
    rows, summed = tuple(x[:-1]), {w[-2]: (left, right)}
    g.out(node, [*rows, w[-1]], AnyOf((Keeps(left, rows), Keeps(right, (w[-1],)))))
    g.contracts(Contraction(node, left, right, rows, (w[-1],), summed, reads=(1,)))
    if operator_name(node) == "_grouped_mm":
        g.on_repack(node, lambda r: _aligned(r, right, x[-1], w[-1], 16 // g.dtype(left).itemsize))


def _aligned(r: Any, right: fx.Node, inner: Dim, outer: Dim, step: int) -> None:
    """The kernel takes rows of a multiple of 16 bytes (``step`` numbers): others are filled up with zeros."""
    if r.size(outer) % step:
        r.pad_to_old_width(outer, [right])
    if short := -r.size(inner) % step:
        pad = torch.ops.aten.constant_pad_nd.default
        r.set("self", r.insert(pad, r.node.args[0], [0, short]))
        r.set("mat2", r.insert(pad, r.node.args[1], [0, 0, 0, short]))


def _from_input(node: fx.Node) -> bool:
    """Whether a value depends on the model's input (and is not made of parameters alone)."""
    seen, stack = set(), [node]
    while stack:
        here = stack.pop()
        if here.op == "placeholder":
            return True
        if here not in seen:
            seen.add(here)
            stack.extend(here.all_input_nodes)
    return False


RULES: dict[str, Rule] = {
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolution_transposed for n in (1, 2, 3)},
    "convolution": convolution_any,
    "linear": linear,
    "bilinear": bilinear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    **dict.fromkeys(("_grouped_mm", "transformers::grouped_mm_fallback"), grouped),
}
