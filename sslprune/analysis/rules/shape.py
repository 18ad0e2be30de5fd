"""Operators that only move elements: views, slices, concatenations, padding, permutations."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx

from sslprune.analysis.atoms import Dim, concatenate, fixed, merge
from sslprune.analysis.inference import Inference, Rule, describe, may_be_computed
from sslprune.analysis.zeros import Joined, Keeps, Zero
from sslprune.capture.program import operator_name
from sslprune.errors import RepackError


def regroup(g: Inference, node: fx.Node, dims: Sequence[Dim], sizes: Sequence[int]) -> list[Dim]:
    """The dimensions of a row-major view of ``dims`` as ``sizes``: runs with equal products are merged, then split."""
    result: list[Dim] = []
    i = j = 0
    while i < len(dims) or j < len(sizes):
        start_i, start_j = i, j
        if i < len(dims):
            i += 1
        if j < len(sizes):
            j += 1
        here, there = prod(d.size for d in dims[start_i:i]), prod(sizes[start_j:j])
        while here != there:
            if (here < there and i < len(dims)) or j >= len(sizes):
                here *= dims[i].size
                i += 1
            else:
                there *= sizes[j]
                j += 1
        source, target = list(dims[start_i:i]), list(sizes[start_j:j])
        if len(source) == len(target) == 1:
            result.extend(source)
        elif target:
            merged = merge([d for d in source if d.size != 1] or [fixed(1)])
            result.extend(
                g.atoms.split(merged, target, f"{describe(node)}: a view that no removal survives")
                if len(target) > 1
                else [merged]
            )
    return result


@may_be_computed("size", "sizes", "shape")
def view(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``view``, ``reshape``, ``flatten``, ``squeeze`` and their kin: sizes in the arguments follow the dimensions."""
    x = g.dims(a.self)
    if getattr(a, "dtype", None) is not None and x and x[-1].size != g.shape(node)[-1]:
        g.freeze(x[-1:], node, "its numbers are read as others of another size")
        g.out(node, [*x[:-1], g.fixed(g.shape(node)[-1], node, "read as numbers of another size")], Keeps(a.self))
        return
    out = regroup(g, node, x, g.shape(node))
    g.out(node, out, Keeps(a.self))
    sizes = g.sizes(node)
    name = next(
        (name for name in ("size", "shape", "sizes") if isinstance(getattr(a, name, None), (list, tuple))), None
    )
    if name is not None:
        at = int(a.dim) % len(g.shape(a.self)) if name == "sizes" else 0  # unflatten gives the sizes of one dimension
        part = slice(at, at + len(getattr(a, name)))
        g.on_repack(node, lambda r: r.resize(name, out[part], sizes[part]))
    elif isinstance(getattr(a, "other", None), fx.Node):  # view_as: the sizes of another tensor, written out
        asked = g.dims(a.other)

        def rewrite(r: Any) -> None:
            if any(r.changed(dim) for dim in (*out, *asked)):
                new = [-1 if isinstance(n, torch.SymInt) else r.size(dim) for dim, n in zip(out, sizes, strict=True)]
                if new.count(-1) > 1:
                    raise RepackError(f"{describe(node)}: two of its sizes, {sizes}, depend on the input")
                r.retarget(torch.ops.aten.reshape.default, (a.self, new))

        g.on_repack(node, rewrite)


def squeeze(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """What has a size of 1 now goes, and no dimension that a removal leaves at 1."""
    view(g, node, a)
    x, sizes, chosen = g.dims(a.self), g.sizes(a.self), getattr(a, "dim", None)
    asked = [d % len(x) for d in ([chosen] if isinstance(chosen, int) else chosen or range(len(x)))]
    gone = [d for d in asked if isinstance(sizes[d], int) and sizes[d] == 1]

    def rewrite(r: Any) -> None:
        if any(r.size(x[d]) == 1 for d in asked if d not in gone):
            r.retarget(torch.ops.aten.squeeze.dims, (a.self, gone))

    g.on_repack(node, rewrite)


PAIRS = (("dim0", "dim1"), ("axis0", "axis1"))  # what transpose and swapaxes call the two dimensions


def permute(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    x = g.dims(a.self)
    order = list(range(len(x)))
    if hasattr(a, "dims"):
        order = [d % len(x) for d in a.dims]
    elif operator_name(node) == "numpy_T":  # what x.T is
        order = order[::-1]
    elif len(x) > 1:
        one, other = next(((getattr(a, p), getattr(a, q)) for p, q in PAIRS if hasattr(a, p)), (-2, -1))
        order[one], order[other] = order[other], order[one]
    g.out(node, [x[i] for i in order], Keeps(a.self))


def movedim(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    x = g.dims(a.self)
    as_list = lambda v: [d % len(x) for d in (v if isinstance(v, Sequence) else [v])]  # noqa: E731
    order = [i for i in range(len(x)) if i not in as_list(a.source)]
    for target, source in sorted(zip(as_list(a.destination), as_list(a.source), strict=True)):
        order.insert(target, source)
    g.out(node, [x[i] for i in order], Keeps(a.self))


def cat(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    sources = [t for t in a.tensors if g.shape(t) != (0,)]
    dims = [g.dims(source) for source in sources]
    dim = a.dim % len(dims[0])
    for other in dims[1:]:
        for i, (one, two) in enumerate(zip(dims[0], other, strict=True)):
            if i != dim:
                g.unify(one, two, node)
    out = [*dims[0][:dim], concatenate([d[dim] for d in dims]), *dims[0][dim + 1 :]]
    g.out(node, out, Joined(tuple((s, tuple(d)) for s, d in zip(sources, dims, strict=True))))


@may_be_computed("pad", "value")
def pad(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Constant padding adds removable entries, so that a zero-padded shortcut follows what it is added to."""
    x = g.dims(a.self)
    constant = getattr(a, "mode", "constant") == "constant"
    added: list[Dim] = []
    changed: list[tuple[int, Dim, Dim, Dim]] = []
    for i in range(len(a.pad) // 2):
        d, (before, after) = len(x) - 1 - i, a.pad[2 * i : 2 * i + 2]
        if isinstance(before, fx.Node) or isinstance(after, fx.Node) or (not constant and (before or after)):
            g.freeze([x[d]], node, "padded")
            x[d] = fixed(g.shape(node)[d])
        elif before or after:
            old = x[d].take(np.arange(max(0, -before), x[d].size - max(0, -after)))
            removable = bool(g.atoms.of([old]).size) and before >= 0 and after >= 0
            if not removable:
                g.freeze([x[d]], node, "padded")
                x[d] = fixed(g.shape(node)[d])
                continue
            left, right = g.atoms.fresh(before), g.atoms.fresh(after)
            x[d] = concatenate([left, old, right])
            added += [left, right]
            changed.append((i, left, old, right))
    zero: Zero | None = Keeps(a.self)
    if added:
        zero = Joined(((a.self, tuple(g.dims(a.self))),), tuple(added)) if not getattr(a, "value", 0) else None

    def rewrite(r: Any) -> None:
        amounts = list(a.pad)
        for i, left, _, right in changed:
            amounts[2 * i : 2 * i + 2] = [r.size(left), r.size(right)]
        r.set("pad", amounts)

    g.out(node, x, zero)
    if changed:
        g.on_repack(node, rewrite)


def flip(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    x = g.dims(a.self)
    for d in a.dims:
        x[d] = x[d].take(np.arange(x[d].size)[::-1])
    g.out(node, x, Keeps(a.self))


@may_be_computed("shifts")
def roll(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    x = g.dims(a.self)
    moved = [d % len(x) for d in a.dims] if a.dims else list(range(len(x)))
    g.freeze([x[d] for d in moved], node, "rolled along")
    g.out(node, x, Keeps(a.self))


@may_be_computed("size")
def expand(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """A dimension of size 1 that is repeated has removable copies: fewer of them are made."""
    x, old, new, sizes = g.dims(a.self), g.shape(a.self), g.shape(node), g.sizes(node)
    lead = len(new) - len(old)
    out: list[Dim] = []
    for i, (n, size) in enumerate(zip(new, sizes, strict=True)):
        if i >= lead and old[i - lead] == n:
            out.append(x[i - lead])
        else:
            out.append(fixed(n) if isinstance(size, torch.SymInt) else g.atoms.fresh(n))
    g.out(node, out, Keeps(a.self))
    g.on_repack(node, lambda r: r.resize("size", out, sizes))


def expand_as(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Copies along a dimension of size 1 are as many as the other tensor has entries there."""
    x, other = g.dims(a.self), g.dims(a.other)
    lead = len(other) - len(x)
    for mine, theirs in zip(x, other[lead:], strict=True):
        if mine.size == theirs.size:
            g.unify(mine, theirs, node)
    g.out(node, other, Keeps(a.self))


@may_be_computed("repeats")
def repeat(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Each dimension becomes (copies, old)."""
    x, new, sizes = g.dims(a.self), g.shape(node), g.sizes(node)
    old = [fixed(1)] * (len(new) - len(x)) + x
    copies = [
        fixed(n // dim.size) if n == dim.size or isinstance(size, torch.SymInt) else g.atoms.fresh(n // dim.size)
        for n, dim, size in zip(new, old, sizes, strict=True)
    ]
    g.out(node, [merge([c, d]) if c.size > 1 else d for c, d in zip(copies, old, strict=True)], Keeps(a.self))

    def rewrite(r: Any) -> None:
        r.set("repeats", [r.size(c) if c.rows.shape[1] else n for c, n in zip(copies, a.repeats, strict=True)])

    g.on_repack(node, rewrite)


@may_be_computed("repeats", "output_size")
def repeat_interleave(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Each dimension becomes (old, copies)."""
    if not hasattr(a, "self"):  # places, each as often as its count says
        g.opaque(node, "repeated by counts that are not one number")
        return
    x = g.dims(a.self)
    if not isinstance(getattr(a, "repeats", None), int) or a.dim is None:
        g.freeze(x, node, "repeated by counts that are not one number")
        g.out(node, [fixed(n) for n in g.shape(node)])
        return
    d = a.dim % len(x)
    copies = g.atoms.fresh(a.repeats) if a.repeats > 1 else fixed(1)
    x[d] = merge([x[d], copies])
    g.out(node, x, Keeps(a.self))

    def rewrite(r: Any) -> None:
        r.set("repeats", r.size(copies))
        if isinstance(getattr(a, "output_size", None), int):
            r.set("output_size", r.size(x[d]))

    g.on_repack(node, rewrite)


def unfold(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """im2col: (N, C, H, W) -> (N, C·kh·kw, L)."""
    x = g.dims(a.self)
    g.freeze(x[-2:], node, "unfolded")
    columns = merge([x[1], fixed(prod(a.kernel_size))])
    g.out(node, [x[0], columns, fixed(g.shape(node)[-1])], Keeps(a.self, (x[0], columns)))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), view),
    **dict.fromkeys(("view_as", "reshape_as"), view),
    **dict.fromkeys(("flatten", "unflatten", "unsqueeze"), view), "squeeze": squeeze,
    **dict.fromkeys(("permute", "transpose", "t", "mT", "numpy_T", "swapaxes", "swapdims"), permute),
    **dict.fromkeys(("movedim", "moveaxis"), movedim),
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad), "flip": flip, "roll": roll,
    "expand": expand, "expand_as": expand_as, "repeat": repeat, "repeat_interleave": repeat_interleave,
    "im2col": unfold,
}  # fmt: skip
