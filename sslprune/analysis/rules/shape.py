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
from sslprune.analysis.inference import Inference, Rule, computed_numbers, describe, may_be_computed
from sslprune.analysis.zeros import Joined, Keeps, Zero
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

        def rewrite(r: Any) -> None:
            if any(r.changed(dim) for dim in out):
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


def gathered(g: Inference, node: fx.Node, source: fx.Node, dim: int, positions: np.ndarray) -> None:
    """``source`` gathered at constant ``positions`` along ``dim``; repack gathers what is left of them."""
    x = g.dims(source)
    old = x[dim]
    x[dim] = old.take(positions)
    g.out(node, x, Keeps(source, tuple(x)))

    def rewrite(r: Any) -> None:
        if r.changed(old):
            r.gather(source, dim, r.renumber(old, positions))

    g.on_repack(node, rewrite)


def _bounds(a: SimpleNamespace, size: int) -> tuple[Any, Any, int]:
    start, end = (0 if a.start is None else a.start), (size if a.end is None else a.end)
    return start, end, getattr(a, "step", 1) or 1


@may_be_computed("start", "end")
def slice_(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    source = a.self
    if a.start in (0, None) and a.end in (torch.iinfo(torch.int64).max, None) and a.step == 1:  # as in x[:, 0]
        g.same(node, source)
        return
    x = g.dims(source)
    dim = a.dim % len(x)
    size = x[dim].size
    start, end, step = _bounds(a, size)
    if isinstance(start, fx.Node) or isinstance(end, fx.Node) or isinstance(g.sizes(node)[dim], torch.SymInt):
        positions = None if g.shape(node)[dim] != size else np.arange(size)
        if positions is None:
            g.freeze([x[dim]], node, "sliced at a place that depends on the input")
        x[dim] = x[dim] if positions is not None else fixed(g.shape(node)[dim])
        g.out(node, x, Keeps(source))
        return
    low, high, _ = slice(start, end).indices(size)
    old, positions = x[dim], np.arange(low, max(low, high), step)
    x[dim] = old.take(positions)
    g.out(node, x, Keeps(source, tuple(x)))

    def rewrite(r: Any) -> None:
        if not r.changed(old):
            return
        if step == 1:
            mask = r.mask(old)
            r.set("start", int(mask[:low].sum()))
            r.set("end", int(mask[:high].sum()))
        else:
            r.gather(source, dim, r.renumber(old, positions))

    g.on_repack(node, rewrite)


@may_be_computed("start", "length")
def narrow(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    x = g.dims(a.self)
    dim = a.dim % len(x)
    if isinstance(a.start, fx.Node) or isinstance(a.length, fx.Node):
        g.freeze([x[dim]], node, "sliced at a place that depends on the input")
        x[dim] = fixed(g.shape(node)[dim])
        g.out(node, x, Keeps(a.self))
        return
    old, low, high = x[dim], a.start, a.start + a.length
    x[dim] = old.take(np.arange(low, high))
    g.out(node, x, Keeps(a.self, tuple(x)))

    def rewrite(r: Any) -> None:
        r.set("start", int(r.mask(old)[:low].sum()))
        r.set("length", r.size(x[dim]))

    g.on_repack(node, rewrite)


@may_be_computed("split_size", "split_sizes", "chunks", "sections", "indices")
def split(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``split``, ``chunk``, ``split_with_sizes``, ``tensor_split``: consecutive parts."""
    x = g.dims(a.self)
    dim = a.dim % len(x)
    old = x[dim]
    lengths = [g.shape(node, i)[dim] for i in range(g.num_outputs(node))]
    if computed_numbers(node):
        g.freeze([old], node, "split at places that depend on the input")
    starts = np.cumsum([0, *lengths])
    parts = [old.take(np.arange(s, s + n)) for s, n in zip(starts, lengths, strict=False)]
    for part in parts:
        dims = [*x[:dim], part, *x[dim + 1 :]]
        g.out(node, dims, Keeps(a.self, tuple(dims)))

    def rewrite(r: Any) -> None:
        if r.changed(old):
            r.retarget(torch.ops.aten.split_with_sizes.default, (a.self, [r.size(part) for part in parts], dim))

    g.on_repack(node, rewrite)


def glu(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """x[:n] · sigmoid(x[n:]) along ``dim``: the two halves go together."""
    x = g.dims(a.self)
    dim = a.dim % len(x)
    n = x[dim].size // 2
    value, gate = x[dim].take(np.arange(n)), x[dim].take(np.arange(n, 2 * n))
    g.unify(value, gate, node)
    out = [*x[:dim], value, *x[dim + 1 :]]
    g.out(node, out, Keeps(a.self, tuple(out)))


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


def pixel_shuffle(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """(C·r², H, W) -> (C, H·r, W·r): the r² planes of a channel go together."""
    x = g.dims(a.self)
    r = a.upscale_factor
    channel, planes = g.atoms.split(x[-3], (x[-3].size // r**2, r**2), f"{describe(node)}: planes become places")
    g.freeze([planes, *x[-2:]], node, "planes become places")
    g.out(node, [*x[:-3], channel, *(fixed(n) for n in g.shape(node)[-2:])], Keeps(a.self, (*x[:-3], channel)))


def pixel_unshuffle(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """(C, H·r, W·r) -> (C·r², H, W)."""
    x = g.dims(a.self)
    g.freeze(x[-2:], node, "places become planes")
    channel = merge([x[-3], fixed(a.downscale_factor**2)])
    g.out(node, [*x[:-3], channel, *(fixed(n) for n in g.shape(node)[-2:])], Keeps(a.self, (*x[:-3], channel)))


def channel_shuffle(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    n = g.shape(node)[1]
    gathered(g, node, a.self, 1, np.arange(n).reshape(a.groups, n // a.groups).T.reshape(-1))


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
    **dict.fromkeys(("permute", "transpose", "t", "mT", "swapaxes"), permute), "movedim": movedim,
    "slice": slice_, "narrow": narrow,
    **dict.fromkeys(("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk"), split),
    "glu": glu,
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    **dict.fromkeys(("pad", "constant_pad_nd"), pad), "flip": flip, "roll": roll,
    "expand": expand, "expand_as": expand_as, "repeat": repeat, "repeat_interleave": repeat_interleave,
    "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle), "im2col": unfold,
}  # fmt: skip
