"""Latency as a cost: stairs, one measurement a layer, the layers of what is kept, and the fit to whole models."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sslprune
from sslprune.bench.fit import latency_cost
from sslprune.bench.table import BUILDERS, LayerTable, stair, time_layers
from sslprune.cost.counts import Cost
from sslprune.cost.layers import Layer
from sslprune.errors import RecipeError
from sslprune.recipe import parse_recipe
from sslprune.report import Budget, budget_text
from sslprune.values.measure import Latency, Speedup
from sslprune.values.selection import Selection

RECIPE = {
    "model": {"factory": "none:none"},
    "data": {"factory": "none:none"},
    "prune": [{"kind": "filters"}],
    "budget": {"latency": 0.5},
    "schedule": {"sparse": "1ep", "heal": "1ep"},
}


def conv(inner: int, outer: int) -> Layer:
    return Layer("Conv", (1, inner, outer), ((1,), (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)))


def by_widths(layers):
    return [float(np.prod(layer.widths)) for layer in layers]


def table(tmp_path: Path, step: int = 1, measure=by_widths, **keywords) -> LayerTable:
    return LayerTable(step, measure=measure, path=tmp_path / "layers.json", **keywords)


def test_stairs():
    assert [stair(width, 16) for width in (64, 63, 60, 49, 48, 47, 20, 12, 9, 3)] == [
        64,
        63,
        64,
        51,
        48,
        47,
        32,
        12,
        11,
        3,
    ]
    assert [stair(width, 8) for width in (64, 60, 52, 50, 4)] == [64, 64, 56, 51, 4]
    assert [stair(width, 1) for width in (64, 63, 7)] == [64, 63, 7]


def test_a_layer_is_measured_once_and_then_known(tmp_path):
    asked = []

    def measure(layers):
        asked.append(layers)
        return by_widths(layers)

    first = table(tmp_path, 16, measure)
    a, b, c = first.microseconds([conv(64, 60), conv(64, 64), conv(48, 64)])
    assert a == b > c  # 60 channels are as fast as 64
    assert asked == [[conv(64, 64), conv(48, 64)]]
    second = table(tmp_path, 16, measure)
    assert second.microseconds([conv(48, 50), conv(64, 64)])[1] == b
    assert asked[1:] == [[conv(48, 51)]]
    assert second.recall("a figure", lambda: 3.0) == table(tmp_path).recall("a figure", lambda: 4.0) == 3.0
    (tmp_path / "layers.json").write_text("broken")
    assert table(tmp_path, 16).microseconds([conv(64, 64)])[0] > 0


def test_every_kind_of_layer_runs():
    line, square = ((1,), (9,), (3,), (1,), (1,), (1,)), ((2,), (6, 6), (2, 2), (2, 2), (0, 0), (1, 1))
    layers = [
        conv(5, 7),
        Layer("Conv", (6, 1, 2), conv(1, 1).settings),
        Layer("Conv", (1, 4, 4), line),
        Layer("ConvTranspose", (2, 3, 4), square),
        Layer("MatMul", (8, 5), ((3,),)),
        Layer("MatMul2", (8, 5), ((2, 3),)),
        Layer("Attention", (8, 4), ((2, 5, 7),)),
        *(Layer(kind, (6, 5), ((4, 1, directions),)) for kind in ("LSTM", "GRU", "RNN") for directions in (1, 2)),
    ]
    assert {layer.kind for layer in layers} == set(BUILDERS)
    taken = time_layers(layers)
    assert len(taken) == len(layers) and all(np.isfinite(value) and value >= 0 for value in taken)


class Mixed(nn.Module):
    """A recurrent network over what attention made."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.rnn = nn.LSTM(8, 6, num_layers=2, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (head(x).unflatten(-1, (2, 4)).transpose(1, 2) for head in self.heads)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(self.rnn(x.transpose(1, 2).flatten(2))[0][:, -1])


def test_attention_and_recurrent_layers_shrink_as_they_are_repacked(tmp_path):
    torch.manual_seed(0)
    model, args = Mixed().eval(), (torch.randn(2, 5, 8),)
    program = sslprune.trace(model, args)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    gone = Selection.of(axes, [np.arange(axis.size) >= max(1, axis.size // 2) for axis in axes])
    for axis in axes:
        sslprune.zero_groups(model, axis, np.flatnonzero(gone[axis]))
    small = sslprune.repack(model, program, axes)
    left = Cost(sslprune.trace(small, args), [], table(tmp_path)).asked()
    cost = Cost(program, axes, table(tmp_path))
    assert Counter(cost.asked(gone)) == Counter(left)
    assert {layer.kind for layer in left} == {"MatMul", "Attention", "LSTM"}
    blocks = {0: np.flatnonzero(~gone[0])[-1:]}
    saved = cost.saved(gone, [blocks], "latency")[0]
    assert saved == pytest.approx(cost.latency(gone) - cost.latency(gone.plus(blocks))) and saved > 0


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 2)).eval()


def test_the_sum_is_fitted_to_what_was_measured(tmp_path):
    model = small()
    found = latency_cost(model, (torch.randn(2, 3, 8, 8),), None, parse_recipe(RECIPE), table(tmp_path))
    cost = found.cost
    assert cost.latency() == pytest.approx(found.whole) and found.table != pytest.approx(found.whole)
    gone = Selection.of(cost.axes, [np.arange(axis.size) >= axis.size // 2 for axis in cost.axes])
    cost.whole = lambda selection: 0.7
    assert cost.measured(gone) == 0.7
    assert cost.latency(gone) == pytest.approx(0.7 * found.whole)
    known = latency_cost(model, (torch.randn(2, 3, 8, 8),), None, parse_recipe(RECIPE), table(tmp_path))
    assert (known.num_measured, known.whole) == (0, found.whole)


@pytest.mark.parametrize(("width", "timings"), [(0.005, 3), (0.018, 4), (0.2, 5)])
def test_a_whole_model_is_timed_until_the_interval_is_narrow(tmp_path, monkeypatch, width, timings):
    ratios = iter([2.0, 3.0, 2.1, 2.2, 1.0, 9.0])

    def compare(models, **settings):
        ratio = next(ratios)
        place: dict[str, Any] = {"device": "cpu", "runtime": "onnxruntime", "batch_size": 1, "threads": 1}
        speedup = Speedup(**place, ratio=ratio, low=ratio, high=ratio * (1 + width))
        latency = Latency(**place, median_ms=ratio, p95_ms=9, repetitions=9, samples_per_second=1)
        return SimpleNamespace(dense=[latency], speedup=[speedup])

    monkeypatch.setattr("sslprune.bench.fit.compare", compare)
    found = latency_cost(small(), (torch.zeros(1, 3, 8, 8),), None, parse_recipe(RECIPE), table(tmp_path))
    assert next(ratios) == [2.0, 3.0, 2.1, 2.2, 1.0, 9.0][timings]
    assert found.whole == pytest.approx({3: 2100, 4: 2150, 5: 2100}[timings])


def test_the_report_says_what_was_measured():
    found = Budget(measure="latency", fraction=0.5, reached=0.5, predicted=0.49, low=0.497, high=0.52)
    assert found.met and "50.0 % of the latency remain, measured (49.7 to 52.0)" in budget_text(found)
    slower = found.model_copy(update={"reached": 0.6, "low": 0.59, "high": 0.61})
    assert not slower.met and budget_text(slower).endswith("50 % were allowed: missed")
    coarse = Budget(measure="macs", fraction=0.6, reached=0.53)
    assert not coarse.met and "too coarse" in budget_text(coarse)


def test_a_budget_has_one_measure():
    with pytest.raises(RecipeError, match="exactly one of macs, parameters and latency"):
        parse_recipe(RECIPE | {"budget": {"latency": 0.5, "macs": 0.5}})
    assert parse_recipe(RECIPE).budget.measure == "latency"
    with pytest.raises(RecipeError, match=r"prune\.0\.least"):
        parse_recipe(RECIPE | {"prune": [{"kind": "filters", "least": 1.5}]})
