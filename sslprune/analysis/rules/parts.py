"""Operators that take a part of a dimension: slices, splits, gathers in a fixed order, planes and places."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx

from sslprune.analysis.atoms import fixed, merge
from sslprune.analysis.inference import Inference, Rule, computed_numbers, describe, may_be_computed
from sslprune.analysis.zeros import Keeps


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


RULES: dict[str, Rule] = {
    "slice": slice_, "narrow": narrow,
    **dict.fromkeys(("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk"), split),
    "glu": glu, "pixel_shuffle": pixel_shuffle, "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
}  # fmt: skip
