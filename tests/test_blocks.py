"""Tiles of weights: exact zeros that stay dense, strips of them that go as whole groups, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sslprune
from sslprune.capture.trace import trace
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.errors import RecipeError
from sslprune.kinds.find import find_axes
from sslprune.recipe import PruneSection
from sslprune.removal.remove import removable, remove
from sslprune.removal.unread import zero_unread_
from sslprune.report import Report
from sslprune.run.directory import RunDirectory
from sslprune.values.axes import Axis, zero_groups, zero_mask
from sslprune.values.compare import difference
from sslprune.values.selection import Selection
from tests.laws import lively_
from tests.test_cli import RECIPE, invoke, mistake

TILES = RECIPE.replace("macs = 0.5", "").replace('kind = "filters"', 'kind = "blocks"\n[[prune]]\nkind = "filters"')
TILES = TILES.replace("decay = 8", "strength = 0.02").replace('sparse = "40it"', 'sparse = "60it"')


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(32, 10)
    )


def tiles(model: nn.Module, x: torch.Tensor, *sections: PruneSection) -> tuple[Any, list[Axis]]:
    program = trace(model, (x,))
    return program, [axis for axis, _ in select_with_sections(find_axes(program, sections), sections)]


def test_a_group_is_a_tile_with_its_kernel_positions() -> None:
    model, x = lively_(net()), torch.randn(2, 4, 6, 6)
    section = PruneSection(kind="blocks", shape=[4, 2])
    program, axes = tiles(model, x, section)
    assert [(axis.name, axis.size) for axis in axes] == [
        ("0/blocks", 8),
        ("2/blocks", 16),
    ]  # 10 rows have no tiles of 4
    assert all(axis.kind != "blocks" for axis in find_axes(program))  # nobody asked there
    zero_groups(model, axes[1], [3])  # the first row of tiles, its fourth column
    expected = torch.zeros(8, 16, 3, 3, dtype=torch.bool)
    expected[0:4, 6:8] = True
    assert torch.equal(model.state_dict()["2.weight"] == 0, expected)
    assert np.flatnonzero(zero_mask(model, axes[1])).tolist() == [3]
    lasso = sslprune.GroupLasso(model, axes)
    weight = model.state_dict()["0.weight"]
    assert lasso.norms()[0][0] == pytest.approx(float(weight[:4, :2].norm()))
    lasso.decay(np.array([5]), 2)
    for _ in range(2):
        lasso.step(0.1)
    assert not bool((weight[8:12, 2:4] != 0).any()) and bool((weight[8:12, :2] != 0).all())


def test_zeros_that_are_scattered_stay_and_are_not_counted_as_saved() -> None:
    model, x = lively_(net()), torch.randn(2, 4, 6, 6)
    program, axes = tiles(model, x, PruneSection(kind="blocks", shape=[4, 4]))
    zero_groups(model, axes[0], [1])
    zero_groups(model, axes[1], [0, 5])
    cost = Cost(program, axes)
    selection = removable(program, Selection.zeros(model, axes))
    assert [int(mask.sum()) for mask in selection] == [1, 2]
    assert cost.macs(selection) == cost.macs() and cost.parameters(selection) == cost.parameters()
    small = remove(model, program, selection)
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(small(x), model(x))


@pytest.mark.parametrize("strip", ["made", "read"])
def test_a_strip_that_is_gone_everywhere_goes_as_filters(strip: str) -> None:
    """Filters that nothing makes, and filters that nobody reads: exactly, and without asking their other weights."""
    model, x = lively_(net()), torch.randn(2, 4, 6, 6)
    sections = PruneSection(kind="blocks", shape=[4, 4]), PruneSection(kind="filters")
    program, axes = tiles(model, x, *sections)
    made, read = (next(axis for axis in axes if axis.name == name) for name in ("0/blocks", "2/blocks"))
    if strip == "made":
        zero_groups(model, made, [2])  # filters 8 to 11 of the first convolution: one tile wide
    else:
        zero_groups(model, read, [1, 5])  # what reads filters 4 to 7: two tiles high
    before = model(x)
    assert zero_unread_(model, axes, program.args, program.kwargs) == 4
    torch.testing.assert_close(model(x), before)
    selection = removable(program, Selection.zeros(model, axes))
    small = remove(model, program, selection)
    assert small.state_dict()["0.weight"].shape[0] == 12 and small.state_dict()["2.weight"].shape[1] == 12
    torch.testing.assert_close(small(x), before)


def test_a_filter_whose_bias_still_speaks_stays() -> None:
    model = lively_(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)))
    x = torch.randn(3, 8)
    program, axes = tiles(model, x, PruneSection(kind="blocks", shape=[4, 8]), PruneSection(kind="neurons"))
    zero_groups(model, next(axis for axis in axes if axis.name == "0/blocks"), [0])
    assert zero_unread_(model, axes, program.args, program.kwargs) == 0
    assert bool((model.state_dict()["0.bias"][:4] != 0).all())


def test_the_whole_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked = repacked = ONNX, zeros in the report as they are, and a run that is resumed."""
    monkeypatch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
    monkeypatch.setattr("sslprune.bench.timing.ENOUGH", 0.01)
    path = tmp_path / "tiny.toml"
    path.write_text(TILES)
    result = invoke("run", path, "--run", tmp_path / "run", "--set", "prune.0.shape=[8, 16]")
    assert result.exit_code == 0, result.output
    run = RunDirectory(tmp_path / "run")
    report = Report.load(run.report)
    went = {axis.name: axis.before - axis.after for axis in report.axes}
    assert sum(went.values()) > 0 and any(name.endswith("/blocks") for name in went)
    assert report.equivalence.max_relative < 1e-4
    assert report.repacked.onnx is not None and report.repacked.onnx.max_relative < 1e-3
    small = sslprune.load(run.path)
    assert report.repacked.zeros == sum(int((p == 0).sum()) for p in small.parameters())
    told = "are zero: they stay" in result.stdout.replace("\n", " ")
    assert told == (report.repacked.zeros > 0.01 * report.repacked.parameters)
    assert difference(small(torch.zeros(2, 1, 8, 8)), small(torch.zeros(2, 1, 8, 8)))[1] == 0
    shown = json.loads(invoke("inspect", path, "--json").stdout)
    assert any(axis["kind"] == "blocks" for axis in shown["axes"])


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TILES)
    for settings, said in (
        (["prune.0.shape=[7, 5]"], "is frozen: tiles of 7 x 5 do not tile its weight of"),
        (["prune.0.shape=[8]"], "prune.0.shape: expected [rows, columns] of a tile, as [8, 8]"),
        (["prune.1.shape=[8, 8]"], 'prune.1.shape: groups of kind "filters" have none; it is for "blocks"'),
        (['prune.0.include=["nothing*"]'], "prune.0.include: ['nothing*'] without [] matches none of"),
    ):
        words = [word for setting in settings for word in ("--set", setting)]
        assert said in mistake("train", path, "--run", tmp_path / "run", *words)
    path.write_text(RECIPE.replace('kind = "filters"', 'kind = "blocks"'))
    said = mistake("train", path, "--run", tmp_path / "run")
    assert 'budget.macs: no budget counts the zeros of kind "blocks"' in said and "lasso.strength" in said
    assert [one.name for one in tmp_path.iterdir()] == ["tiny.toml"]
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    with pytest.raises(RecipeError, match="no budget counts the zeros"):
        sslprune.Sparsity(model, (torch.randn(2, 8),), prune="blocks", steps=5, macs=0.5)


def test_two_shapes_and_a_loop_of_ones_own() -> None:
    """Each section has its weights; tiles and neurons in one penalty."""
    torch.manual_seed(0)
    model, x = lively_(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))), torch.randn(64, 8)
    prune: list[dict[str, Any]] = [
        {"kind": "blocks", "shape": [2, 8], "include": ["0/*"]},
        {"kind": "blocks", "shape": [8, 4]},
        {"kind": "neurons"},
    ]
    sparsity = sslprune.Sparsity(model, (x[:2],), prune=prune, steps=60, strength=0.6)
    assert {axis.name: axis.size for axis in sparsity.axes if axis.kind == "blocks"} == {"0/blocks": 8, "2/blocks": 4}
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - x).square().mean()
        loss.backward()
        sparsity.observe(loss)
        optimizer.step()
        sparsity.step(0.05)
    assert sum(int(mask.sum()) for mask in sparsity.selection) > 0
    small = sparsity.repack()
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
