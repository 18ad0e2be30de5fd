"""The supernet of recipes/supernet.py: a candidate with weights is a branch, and a path is an exact repack."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

import sslprune
from sslprune.choose.sections import select
from sslprune.cost.counts import Cost
from sslprune.recipe import load_recipe
from sslprune.values.axes import zero_groups
from tests.laws import lively_, settle_

RECIPES = Path(__file__).parents[1] / "recipes"
spec = importlib.util.spec_from_file_location("supernet", RECIPES / "supernet.py")
assert spec is not None and spec.loader is not None
nets = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nets)


def test_a_path_is_an_exact_repack_of_the_supernet() -> None:
    x = torch.randn(4, 3, 32, 32)
    model = settle_(lively_(nets.supernet(width=4)), (x,))
    program = sslprune.trace(model, (x,))
    sections = load_recipe(RECIPES / "supernet-cifar10.toml").prune
    axes = select(sslprune.find_axes(program), sections)
    single = [axis for axis in axes if ".operators." in axis.name]  # the others are sums of several
    assert len(single) == 2 * nets.EDGES * 3 and all(axis.exact for axis in axes)
    kept = nets.random_path(4, 0.3, 1)
    edges = ("first", "second", "between")
    gone = [
        axis
        for axis in single
        for _, stage, edge, _, name in [axis.name.split(".")]
        if name not in kept[int(stage) > 0][edges.index(edge)]
    ]
    assert 0 < len(gone) < len(single)
    for axis in gone:
        zero_groups(model, axis, [0])
    small = sslprune.repack(model, program, axes)
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    alone = nets.supernet(width=4, drawn=1, share=0.3)
    cost = Cost(sslprune.trace(alone, (x,)), []).macs()
    assert Cost(sslprune.trace(small, (x,)), []).macs() == cost


def test_random_paths_keep_to_their_share() -> None:
    for share in (0.2, 0.5):
        for seed in range(5):
            kept = nets.random_path(8, share, seed)
            work = sum(
                nets.products(name, 8 << cell) * (8 << cell) // 4**cell
                for cell, names in enumerate(kept)
                for edge in names
                for name in edge
            )
            every = sum(nets.products(name, 8 << c) * (8 << c) // 4**c for c in range(2) for name in nets.OPERATORS)
            assert work <= share * nets.EDGES * every and all({"pool", "skip"} <= set(edge) for c in kept for edge in c)
