"""Picking the largest entries, as a router picks experts, and what is done with their numbers.

Gone entries are beaten, so nothing picks them: see `sslprune.analysis.pointers`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from sslprune.analysis.atoms import Dim
from sslprune.analysis.inference import Inference, Rule, may_be_computed
from sslprune.analysis.pointers import Pointer
from sslprune.analysis.rules.index import along, gather, index
from sslprune.analysis.rules.pointwise import loses
from sslprune.analysis.zeros import AllOf, Beaten, Keeps


@may_be_computed("k")
def topk(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """The ``k`` largest along a dimension and their numbers, a result of a size of its own."""
    x = g.dims(a.self)
    if isinstance(a.k, fx.Node) or not a.largest or not x:
        along(g, node, a)
        return
    d = a.dim % len(x)
    chosen = x[d]
    g.normalises(node, chosen, but=Beaten(a.self, (chosen,)))
    g.label(chosen, "experts")
    g.at_least(chosen, a.k)
    rest = tuple(x[:d] + x[d + 1 :])
    out = [*x[:d], g.fixed(a.k, node, "so many are chosen"), *x[d + 1 :]]
    g.out(node, out, Keeps(a.self, rest))
    g.out(node, out)
    g.facts[node].points[1] = Pointer(chosen, a.self)


def sort(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Names in order are names still; where each stood does not depend on what is gone."""
    along(g, node, a)
    pointer = g.pointer(a.self)
    if pointer is not None:
        g.facts[node].points[0] = pointer
        g.reads(a.self)


def compared(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Names beside a number that is none of them, as a mark for nobody is: the answer is the same for all."""
    loses(g, node, a)
    pointer = g.pointer(a.self) if isinstance(a.self, fx.Node) else None
    if pointer is not None and isinstance(a.other, int | float) and (a.other >= pointer.dim.size or a.other < 0):
        g.reads(a.self)


def histc(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """How often each name occurs, (names,): never a beaten one's."""
    pointer = g.pointer(a.self)
    if pointer is None or (a.bins, a.min, a.max) != (pointer.dim.size, 0, pointer.dim.size - 1):
        g.opaque(node, "counts by value")
        return
    g.out(node, [pointer.dim], pointer.unnamed)
    g.reads(a.self)

    def rewrite(r: Any) -> None:
        r.set("bins", r.size(pointer.dim))
        r.set("max", r.size(pointer.dim) - 1)

    g.on_repack(node, rewrite)


def one_hot(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """(*) -> (*, names): a 1 at each name."""
    pointer = g.pointer(a.self)
    if pointer is None or a.num_classes != pointer.dim.size:
        g.opaque(node, "counts by value")
        return
    g.out(node, [*g.dims(a.self), pointer.dim], pointer.unnamed)
    g.reads(a.self)
    g.on_repack(node, lambda r: r.set("num_classes", r.size(pointer.dim)))


def scatter(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """A copy of ``self`` with numbers written at the names along ``dim``; a beaten one's stays as it was."""
    x, pointer = g.dims(a.self), g.pointer(a.index)
    d = a.dim % len(x)
    if pointer is None or pointer.dim.size != x[d].size:
        g.opaque(node, "written at places")
        return
    g.unify(x[d], pointer.dim, node)
    sources = [g.dims(s) for s in (a.index, getattr(a, "src", None)) if isinstance(s, fx.Node)]
    for k, dim in enumerate(x):
        for other in (dims[k] for dims in sources if k != d):
            if other.size == dim.size:
                g.unify(dim, other, node)
            else:
                g.freeze([dim, other], node, "written at places")
    g.out(node, x, AllOf((Keeps(a.self), pointer.unnamed)))
    g.reads(a.index)


def gathered(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``gather``: at the names along ``dim``, where the index is of names."""
    pointer = g.pointer(a.index)
    d = a.dim % len(g.dims(a.self)) if g.dims(a.self) else 0
    if pointer is None or g.dims(a.self)[d].size != pointer.dim.size:
        gather(g, node, a)
        return
    _read_at(g, node, g.dims(a.self)[d], a.index, pointer)
    gather(g, node, a, named=True)


def indexed(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``x[names]``: a matrix of one's own for each row, as experts are looked up."""
    named = set()
    for i, at in enumerate(a.indices):
        pointer = g.pointer(at) if isinstance(at, fx.Node) else None
        if pointer is not None and g.dims(a.self)[i].size == pointer.dim.size:
            _read_at(g, node, g.dims(a.self)[i], at, pointer)
            named.add(i)
    index(g, node, a, named)


def _read_at(g: Inference, node: fx.Node, dim: Dim, index: fx.Node, pointer: Pointer) -> None:
    g.unify(dim, pointer.dim, node)
    g.reads(index)


RULES: dict[str, Rule] = {
    "topk": topk,
    **dict.fromkeys(("sort", "argsort"), sort),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), compared),
    "histc": histc,
    "one_hot": one_hot,
    "scatter": scatter,
    "gather": gathered,
    "index": indexed,
}
