"""A dense model that was never trained is no measure: the run says so before anything is pruned."""

from __future__ import annotations

import tomllib
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sslprune.cli import app
from sslprune.data import build_data
from sslprune.recipe import parse_recipe
from sslprune.report import Gate
from sslprune.train.chance import LEAST, at_chance, known_share
from sslprune.values.tasks import Task
from sslprune.values.voice import SILENT
from sslprune.zoo import digits_cnn

RECIPE = """
[model]
factory = "sslprune.zoo:digits_cnn"
[data]
factory = "sslprune.data:digits"
batch_size = 32
[[prune]]
kind = "filters"
[budget]
macs = 0.5
[schedule]
sparse = "4it"
heal = "1it"
[lasso]
decay = 1
[bench]
threads = [1]
"""


class Always(nn.Module):
    """Says the same whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(10.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(x), -1)


def test_random_weights_and_constants_are_at_chance_and_a_little_training_is_not() -> None:
    source, task = build_data(parse_recipe(tomllib.loads(RECIPE)), SILENT).train, Task()
    for seed in range(3):
        torch.manual_seed(seed)
        model = digits_cnn()
        share = known_share(model, source, task)
        assert share is not None and abs(share) < LEAST / 2
        assert model.training
    assert known_share(Always(), source, task) == pytest.approx(0, abs=1e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for inputs, y in islice(source.epoch(0), 15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(*inputs), y).backward()
        optimizer.step()
    assert not at_chance(model, source, task)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
    monkeypatch.setattr("sslprune.bench.timing.ENOUGH", 0.01)
    path = tmp_path / "new.toml"
    path.write_text(RECIPE)
    return path


def test_a_run_that_would_compare_with_it_stops_before_training(recipe: Path) -> None:
    words = ["run", str(recipe), "--set", "gates.max_metric_drop=1.0"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and not Path("runs/new").exists()
    line = result.output.strip().splitlines()[-1]
    assert "it is not trained" in line and "schedule.dense" in line and "--force" in line
    trained = CliRunner().invoke(app, ["train", str(recipe)])  # nothing compares with it: a warning
    assert trained.exit_code == 0 and "it is not trained; metrics are no measure" in trained.output


def test_a_gain_over_it_passes_no_gate() -> None:
    gate = Gate(name="max_metric_drop", limit=1.0, value=-23.5, passed=True)
    assert not gate.without_gain().passed and "the dense model is not trained" in gate.without_gain().told()
    kept = (gate.model_copy(update={"value": 0.5}), gate.model_copy(update={"name": "max_macs"}))
    assert all(other.without_gain() is other for other in kept)
