"""One small function an operator. To teach sslprune an operator: write its function, add a row in its family's file."""

from __future__ import annotations

from sslprune.analysis.inference import Rule
from sslprune.analysis.rules import (
    attention,
    choose,
    contraction,
    create,
    einsum,
    index,
    normalise,
    parts,
    pointwise,
    pool,
    recurrent,
    reduce,
    shape,
    stack,
)

RULES: dict[str, Rule] = {
    **pointwise.RULES,
    **contraction.RULES,
    **normalise.RULES,
    **pool.RULES,
    **reduce.RULES,
    **shape.RULES,
    **parts.RULES,
    **stack.RULES,
    **index.RULES,
    **create.RULES,
    **attention.RULES,
    **einsum.RULES,
    **recurrent.RULES,
    **choose.RULES,
}
