"""Scaled dot-product attention: heads, query-key dimension and value dimension are three axes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from sslprune.analysis.atoms import Dim
from sslprune.analysis.contraction import Contraction
from sslprune.analysis.inference import Inference, Rule, describe
from sslprune.analysis.zeros import Keeps


def scaled_dot_product(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """query (*, H, L, E), key (*, H, S, E), value (*, H, S, V) -> (*, H, L, V); with ``enable_gqa`` fewer key heads.

    The scale keeps the value that the old E gave it.
    """
    q, k, v = g.dims(a.query), g.dims(a.key), g.dims(a.value)
    g.unify(q[-1], k[-1], node)
    g.unify(k[-2], v[-2], node)
    g.freeze([q[-2], k[-2]], node, "attended over")
    lead: list[Dim] = q[:-2]
    for i, (one, two, three) in enumerate(zip(q[:-2], k[:-2], v[:-2], strict=True)):
        if one.size == two.size:
            g.unify(one, two, node)
            g.unify(one, three, node)
        else:  # grouped queries: (key heads, queries of each)
            g.unify(two, three, node)
            heads, _ = g.atoms.split(one, (two.size, one.size // two.size), f"{describe(node)}: queries share keys")
            g.unify(heads, two, node)
        if i:
            g.label(one, "heads")
    g.label(q[-1], "head_dim")
    g.label(v[-1], "value_dim")
    if isinstance(a.attn_mask, fx.Node):
        mask, sizes = g.dims(a.attn_mask), g.shape(a.attn_mask)
        for dim, m, n in zip([*lead, q[-2], k[-2]][::-1], mask[::-1], sizes[::-1], strict=False):
            if n > 1:
                g.unify(dim, m, node)
    g.out(node, [*lead, q[-2], v[-1]], Keeps(a.value, (*v[:-2], v[-1])))
    rows, keys, last = (*lead, q[-2]), (k[-2],), len(k) - 1
    scores, weighted = {q[-1]: (a.query, a.key)}, {v[-2]: (a.value,)}
    for contraction in (
        Contraction(node, a.query, a.key, rows, keys, scores, (last - 1,), (last,), runs_as="Attention"),
        Contraction(node, None, a.value, rows, (v[-1],), weighted, (last,), (last - 1,), runs_as="Attention"),
    ):
        g.contracts(contraction)

    def rewrite(r: Any) -> None:
        if r.changed(q[-1]) and a.scale is None:
            r.set("scale", q[-1].size ** -0.5)

    g.on_repack(node, rewrite)


RULES: dict[str, Rule] = {"scaled_dot_product_attention": scaled_dot_product}
