"""What every operator without a rule of its own does."""

from __future__ import annotations

from types import SimpleNamespace

from torch import fx

from sslprune.analysis.atoms import fixed
from sslprune.analysis.inference import Inference, describe


def unknown(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """An operator without a rule freezes everything that it touches: a saving may be missed, never a value changed."""
    for source in node.all_input_nodes:
        for dims in g.facts[source].outputs:
            g.freeze(dims, node, "no rule for this operator")
    values = node.meta.get("val")
    for i, value in enumerate(values if isinstance(values, (tuple, list)) else [values]):
        if hasattr(value, "shape"):
            why = f"{describe(node)} (no rule for this operator)"
            g.out(node, [fixed(n, why) for n in g.shape(node, i)])
        else:
            g.out(node, [])  # it may be counted among the results
