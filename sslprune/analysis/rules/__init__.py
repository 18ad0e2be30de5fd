"""One small function an operator. To teach sslprune an operator: write its function, add a row in its family's file."""

from __future__ import annotations

from types import SimpleNamespace

from torch import fx

from sslprune.analysis.inference import Inference, Rule
from sslprune.analysis.rules import (
    attention,
    contraction,
    create,
    einsum,
    index,
    normalise,
    pointwise,
    pool,
    recurrent,
    reduce,
    shape,
    stack,
)


def unknown(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """An operator without a rule freezes everything that it touches: a saving may be missed, never a value changed."""
    g.opaque(node, "no rule for this operator")


RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **contraction.RULES,
    **normalise.RULES,
    **pool.RULES,
    **reduce.RULES,
    **shape.RULES,
    **stack.RULES,
    **index.RULES,
    **create.RULES,
    **attention.RULES,
    **einsum.RULES,
    **recurrent.RULES,
}
