"""Gathering by index: what is looked up keeps its places, what runs along it passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import SimpleNamespace

import torch
from torch import fx

from sslprune.analysis.atoms import Dim, fixed
from sslprune.analysis.inference import Inference, Rule, may_be_computed
from sslprune.analysis.zeros import AllOf, Keeps


def embedding(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """weight (rows, width), indices (*) -> (*, width)."""
    weight = g.dims(a.weight)
    if a.weight.op != "get_attr" or str(a.weight.target) not in g.program.looked_up:
        g.freeze([weight[0]], node, "rows are looked up")
    g.label(weight[1], "width")
    g.produces(a.weight, 1)
    g.out(node, [*g.dims(a.indices), weight[1]], Keeps(a.weight, (weight[1],)))


def embedding_bag(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """weight (rows, width), indices in bags -> the sum, mean or maximum of each bag's rows, (bags, width)."""
    weight = g.dims(a.weight)
    g.freeze([weight[0]], node, "rows are looked up")
    for read in (a.indices, a.offsets, a.per_sample_weights):
        if isinstance(read, fx.Node):
            g.freeze(g.dims(read), node, "rows are looked up")
    g.label(weight[1], "width")
    g.produces(a.weight, 1)
    for i in range(g.num_outputs(node)):
        shape = g.shape(node, i)
        dims = [g.fixed(n, node, "bags") for n in shape]
        g.out(node, [dims[0], weight[1]] if i == 0 else dims, Keeps(a.weight, (weight[1],)) if i == 0 else None)


def index_select(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    x = g.dims(a.self)
    d = a.dim % len(x)
    g.freeze([x[d]], node, "looked up")
    x[d] = g.dims(a.index)[0] if len(g.dims(a.index)) else fixed(1)
    g.out(node, x, Keeps(a.self, tuple(x)))


def index(g: Inference, node: fx.Node, a: SimpleNamespace, named: Collection[int] = ()) -> None:
    """``x[i, j, :]``: indexed dimensions are frozen, but those ``named`` by numbers that know theirs; others pass."""
    x = g.dims(a.self)
    at = [i for i, chosen in enumerate(a.indices) if chosen is not None]
    used = [a.indices[i] for i in at]
    g.freeze([x[i] for i in at if i not in named], node, "looked up")
    masks = any(g.dtype(i) is torch.bool for i in used)
    new = len(g.shape(node)) - (len(x) - len(at))
    rest = [dim for i, dim in enumerate(x) if i not in at]
    if masks or new < 0:
        g.freeze([*x, *(d for i in used for d in g.dims(i))], node, "indexed by a mask")
        g.out(node, [fixed(n) for n in g.shape(node)])
        return
    for i in used:
        g.freeze(g.dims(i), node, "an index")
    start = at[0] if at == list(range(at[0], at[0] + len(at))) else 0
    shape = g.shape(node)
    out = [*rest[:start], *(fixed(n) for n in shape[start : start + new]), *rest[start:]]
    g.out(node, out, Keeps(a.self, tuple(rest)))


def gather(g: Inference, node: fx.Node, a: SimpleNamespace, *, named: bool = False) -> None:
    x = g.dims(a.self)
    d = a.dim % len(x) if x else 0
    g.freeze([*x[d : d + 1]] if not named else [], node, "looked up")
    i = g.dims(a.index)
    for k, (one, other) in enumerate(zip(x, i, strict=True)):
        if k != d:
            if one.size == other.size:
                g.unify(one, other, node)
            else:
                g.freeze([one, other], node, "looked up")
    g.freeze(i[d : d + 1], node, "an index")
    g.out(node, i, Keeps(a.self, tuple(dim for k, dim in enumerate(i) if k != d)))


def _written(g: Inference, node: fx.Node, a: SimpleNamespace, source: fx.Node, at: Sequence[Dim], because: str) -> None:
    """A copy of ``self`` whose entries along ``dim`` are changed by those of ``source``; they keep their places."""
    x, s = g.dims(a.self), g.dims(source)
    d = a.dim % len(x)
    for k, (one, other) in enumerate(zip(x, s, strict=True)):
        if k != d:
            g.unify(one, other, node)
    g.freeze([x[d], s[d], *at], node, because)
    g.out(node, x, AllOf((Keeps(a.self), Keeps(source))))


@may_be_computed("start", "end")
def slice_scatter(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``src`` is written over a slice of ``dim``."""
    _written(g, node, a, a.src, (), "written over in part")


@may_be_computed("alpha")
def index_add(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Entries of ``source`` are added at places of ``dim``."""
    _written(g, node, a, a.source, g.dims(a.index), "added at places")


@may_be_computed("index")
def select_scatter(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    x, s = g.dims(a.self), g.dims(a.src)
    d = a.dim % len(x)
    g.freeze([x[d]], node, "written over in part")
    for one, other in zip([*x[:d], *x[d + 1 :]], s, strict=True):
        g.unify(one, other, node)
    g.out(node, x, AllOf((Keeps(a.self), Keeps(a.src))))


def copy(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``copy(self, src)`` is ``src`` in the shape of ``self``; on a buffer it is that buffer's update."""
    x, s = g.dims(a.self), g.dims(a.src)
    for one, other in zip(x[::-1], s[::-1], strict=False):
        if one.size == other.size:
            g.unify(one, other, node)
    g.out(node, x, Keeps(a.src))


def cumsum(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """What is gone adds nothing to the sums after it, where it has vanished."""
    x = g.dims(a.self)
    for dim in x[a.dim % len(x) :][:1] if x else []:
        g.sums(node, dim, Keeps(a.self))
    g.out(node, x, Keeps(a.self, tuple(dim for i, dim in enumerate(x) if i != a.dim % len(x))) if x else None)


@may_be_computed("k")
def along(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Scans and sorts along ``dim``: every entry's place counts there; the other dimensions pass."""
    x = g.dims(a.self)
    d = a.dim % len(x) if x else 0
    g.freeze(x[d : d + 1], node, "ordered along")
    for i in range(g.num_outputs(node)):
        out = list(x)
        if x:
            out[d] = fixed(g.shape(node, i)[d])
        zero = node.target._schema.name in ("aten::cumsum", "aten::sort", "aten::topk") and i == 0  # type: ignore[union-attr]
        g.out(node, out, Keeps(a.self, tuple(x[:d] + x[d + 1 :])) if zero else None)


RULES: dict[str, Rule] = {
    "embedding": embedding, "embedding_bag": embedding_bag,
    "index_select": index_select, "index_add": index_add,
    "slice_scatter": slice_scatter, "select_scatter": select_scatter, "copy": copy, "copy_": copy,
    **dict.fromkeys(("cumprod", "logcumsumexp", "cummax", "cummin"), along), "cumsum": cumsum,
}  # fmt: skip
