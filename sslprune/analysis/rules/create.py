"""Tensors made from nothing: filled ones follow whatever they meet, counted ones are fixed."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import fx

from sslprune.analysis.atoms import fixed
from sslprune.analysis.inference import Inference, Rule, may_be_computed
from sslprune.analysis.zeros import Joined


@may_be_computed("size", "fill_value")
def filled(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``zeros``, ``ones``, ``full``: every entry alike, so any of them may go; the size argument follows."""
    sizes = g.sizes(node)
    dims = [
        g.atoms.fresh(n) if isinstance(n, int) and n > 1 else fixed(m)
        for n, m in zip(sizes, g.shape(node), strict=True)
    ]
    name = str(node.target._schema.name)  # type: ignore[union-attr]
    value = getattr(a, "fill_value", 0.0 if "zeros" in name else 1.0)
    g.out(node, dims, Joined((), tuple(dims)) if value == 0 else None)
    g.on_repack(node, lambda r: r.resize("size", dims, sizes))


@may_be_computed("fill_value", "value")
def like(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    x = g.dims(a.self)
    zero = "zeros" in str(node.target._schema.name)  # type: ignore[union-attr]
    g.out(node, x, Joined((), tuple(x)) if zero else None)


def counted(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``arange``, ``eye`` and the like: entries differ by their place."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        g.out(node, [g.fixed(n, node, "its entries are told apart by their place") for n in g.shape(node)])


def triangle(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    x = g.dims(a.self)
    g.freeze(x[-2:], node, "a triangle of it")
    g.out(node, x)


def size_only(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """Makes no tensor."""


RULES: dict[str, Rule] = {
    **dict.fromkeys(("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty"), filled),
    **dict.fromkeys(("rand", "randn"), filled),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "fill"), like),
    **dict.fromkeys(("arange", "eye", "linspace", "scalar_tensor", "tril_indices", "triu_indices"), counted),
    **dict.fromkeys(("tril", "triu"), triangle),
    "sym_size": size_only,
}  # fmt: skip
