"""Pooling and resampling: channels pass, places do not."""

from __future__ import annotations

from types import SimpleNamespace

from torch import fx

from sslprune.analysis.atoms import fixed
from sslprune.analysis.inference import Inference, Rule
from sslprune.analysis.zeros import Keeps


def spatial(count: int) -> Rule:
    """The last ``count`` dimensions are resampled; f(0) = 0 along the others."""

    def rule(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
        source = a.self if hasattr(a, "self") else a.input
        x = g.dims(source)
        g.freeze(x[-count:], node, "resampled")
        for i in range(g.num_outputs(node)):
            g.out(
                node, [*x[:-count], *(fixed(n) for n in g.shape(node, i)[-count:])], Keeps(source) if i == 0 else None
            )

    return rule


RULES: dict[str, Rule] = {
    f"{prefix}{n}d{suffix}": spatial(n)
    for n in (1, 2, 3)
    for prefix, suffix in (
        ("max_pool", ""), ("max_pool", "_with_indices"), ("avg_pool", ""), ("adaptive_avg_pool", ""),
        ("adaptive_max_pool", ""), ("_adaptive_avg_pool", ""), ("upsample_nearest", ""),
        ("_upsample_nearest_exact", ""), ("lp_pool", ""), ("fractional_max_pool", ""),
    )
}  # fmt: skip
RULES |= {
    "upsample_linear1d": spatial(1), "upsample_bilinear2d": spatial(2), "upsample_bicubic2d": spatial(2),
    "upsample_trilinear3d": spatial(3), "_upsample_bilinear2d_aa": spatial(2), "_upsample_bicubic2d_aa": spatial(2),
}  # fmt: skip
