"""Pooling and resampling: channels pass, places do not."""

from __future__ import annotations

from types import SimpleNamespace

from torch import fx

from sslprune.analysis.inference import Inference, Rule, may_be_computed
from sslprune.analysis.zeros import Keeps


def spatial(count: int) -> Rule:
    """The last ``count`` dimensions are resampled; f(0) = 0 along the others."""

    @may_be_computed("kernel_size", "stride", "padding", "dilation", "output_size", "scale_factors")
    def rule(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
        source = a.self if hasattr(a, "self") else a.input
        x = g.dims(source)
        if isinstance(getattr(a, "random_samples", None), fx.Node):  # a draw for each channel: (N, C, count)
            *lead, windows = g.dims(a.random_samples)
            for one, other in zip(x[:-count], lead, strict=True):
                g.unify(one, other, node)
            g.freeze([windows], node, "where its windows lie")
        g.freeze(x[-count:], node, "resampled")
        for i in range(g.num_outputs(node)):
            resampled = [g.fixed(n, node, "resampled") for n in g.shape(node, i)[-count:]]
            g.out(node, [*x[:-count], *resampled], Keeps(source) if i == 0 else None)

    return rule


def unpooled(count: int) -> Rule:
    """``max_unpool``: the indices say which place of its own channel each value had."""

    @may_be_computed("output_size", "stride", "padding")
    def rule(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
        x, i = g.dims(a.self), g.dims(a.indices)
        for one, other in zip(x[:-count], i[:-count], strict=True):
            g.unify(one, other, node)
        g.freeze([*x[-count:], *i[-count:]], node, "resampled")
        resampled = [g.fixed(n, node, "resampled") for n in g.shape(node)[-count:]]
        g.out(node, [*x[:-count], *resampled], Keeps(a.self, tuple(x[:-count])))

    return rule


def sampled(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
    """``grid_sample``: the values of every channel, at the places that the grid (N, *places, count) names."""
    x, grid = g.dims(a.input), g.dims(a.grid)
    g.unify(x[0], grid[0], node)
    g.freeze([*x[2:], grid[-1]], node, "sampled by place")
    g.out(node, [*x[:2], *grid[1:-1]], Keeps(a.input, tuple(x[:2])))


RULES: dict[str, Rule] = {
    f"{prefix}{n}d{suffix}": spatial(n)
    for n in (1, 2, 3)
    for prefix, suffix in (
        ("max_pool", ""), ("max_pool", "_with_indices"), ("avg_pool", ""), ("adaptive_avg_pool", ""),
        ("adaptive_max_pool", ""), ("upsample_nearest", ""), ("_upsample_nearest_exact", ""),
    )
}  # fmt: skip
RULES |= {
    "_adaptive_avg_pool2d": spatial(2), "_adaptive_avg_pool3d": spatial(3),
    "fractional_max_pool2d": spatial(2), "fractional_max_pool3d": spatial(3),
    "grid_sampler": sampled, "grid_sampler_2d": sampled, "grid_sampler_3d": sampled,
    "max_unpool2d": unpooled(2), "max_unpool3d": unpooled(3),
    "upsample_linear1d": spatial(1), "upsample_bilinear2d": spatial(2), "upsample_bicubic2d": spatial(2),
    "upsample_trilinear3d": spatial(3), "_upsample_bilinear2d_aa": spatial(2), "_upsample_bicubic2d_aa": spatial(2),
}  # fmt: skip
