"""`sslprune run` from the first step to the report, on kinds of models whose graph says sizes by the input's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from sslprune.cli import app
from sslprune.recipe import parse_recipe
from sslprune.removal.plan import read_plan
from sslprune.report import Report
from sslprune.run.directory import RunDirectory
from tests.sized import FixedView, Patches, Shuffle

DIGITS = {"factory": "sslprune.data:digits", "batch_size": 32}
WORDS = {"factory": "tests.test_whole_road:words", "task": "language-modelling", "max_length": 16}
SPOKEN = {"factory": "tests.test_whole_road:spoken", "task": "language-modelling"}
ROADS: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = {  # factory, arguments, data, kinds
    "a view of fixed width": ("tests.test_whole_road:fixed_view", {}, DIGITS, ("filters", "neurons")),
    "heads split by sizes": ("tests.test_whole_road:patches", {}, DIGITS, ("heads", "neurons", "width")),
    "a channel shuffle": ("tests.test_whole_road:shuffle", {}, DIGITS, ("filters",)),
    "ShuffleNet": ("tests.test_whole_road:shufflenet", {}, DIGITS, ("filters",)),
    "Llama": ("scripts.coverage_run:model", {"name": "llama"}, WORDS, ("heads", "neurons", "width")),
    "Whisper": ("scripts.coverage_run:model", {"name": "whisper"}, SPOKEN, ("heads", "neurons", "layers")),
}
NEEDS = {"ShuffleNet": "torchvision", "Llama": "transformers", "Whisper": "transformers"}
Batches = list[tuple[Any, Tensor]]


def fixed_view() -> nn.Module:
    return FixedView(channels=1, classes=10)


def patches() -> nn.Module:
    return Patches(channels=1, classes=10)


def shuffle() -> nn.Module:
    return Shuffle(channels=1, classes=10)


def shufflenet() -> nn.Module:
    """torchvision's, a small one, on digits of 32x32 pixels in three channels."""
    from torchvision.models import ShuffleNetV2

    net = ShuffleNetV2([1, 2, 1], [8, 16, 24, 32, 64], num_classes=10)
    return nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(1, 3, 1), net)


def words() -> tuple[Batches, Batches]:
    """Sequences that count up, each from a start of its own: the next token is one more."""
    return _counted(160, 0), _counted(32, 1)


def spoken() -> tuple[Batches, Batches]:
    """Noise, and the sequences that are said: what is heard says nothing, as the first token says all."""
    random = torch.Generator().manual_seed(2)
    train, test = (
        [((torch.randn(len(ids), 10, 24, generator=random), ids), targets) for ids, targets in batches]
        for batches in (_counted(160, 0, 7), _counted(32, 1, 7))
    )
    return train, test


def _counted(num: int, seed: int, steps: int = 9) -> Batches:
    starts = torch.randint(50, (num, 1), generator=torch.Generator().manual_seed(seed))
    counted = (starts + torch.arange(steps + 1)) % 50
    return [(rows[:, :-1], rows[:, 1:]) for rows in counted.split(8)]


def importable(library: str) -> bool:
    try:
        if library == "torchvision":
            from scripts.architectures import load_shim

            load_shim()
        from importlib import import_module

        getattr(import_module(library), "LlamaForCausalLM" if library == "transformers" else "models")
    except (ImportError, RuntimeError, AttributeError):  # torchvision fails so beside a torch of another build
        return False
    return True


@pytest.mark.parametrize("name", ROADS)
def test_the_whole_road(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS and not importable(NEEDS[name]):
        pytest.skip(f"{NEEDS[name]} cannot be imported")
    monkeypatch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
    monkeypatch.setattr("sslprune.bench.timing.ENOUGH", 0.01)
    factory, arguments, data, kinds = ROADS[name]
    recipe = parse_recipe(
        {
            "run": {"device": "cpu", "threads": 1},
            "model": {"factory": factory, "arguments": arguments},
            "data": data,
            "prune": [{"kind": kind} for kind in kinds],
            "budget": {"macs": 0.6, "round_to": 1},
            "schedule": {"sparse": "30it", "heal": "5it"},
            "train": {"optimizer": "adamw", "lr": 3e-3},
            "lasso": {"decay": 6, "interval": 5},
            "bench": {"threads": [1], "batch_sizes": [1]},
            "gates": {"max_macs": 0.6},
        }
    )
    (tmp_path / "road.toml").write_text(recipe.to_toml())
    run = RunDirectory(tmp_path / "run")
    result = CliRunner().invoke(app, ["run", str(tmp_path / "road.toml"), "--run", str(run)])
    assert result.exit_code == 0, result.output
    plan, report = read_plan(run.plan), Report.load(run.report)
    assert plan.tensors and plan.axes and report.passed
    assert report.repacked.macs < report.dense.macs and report.equivalence.max_relative < 1e-4
    assert report.repacked.onnx is not None and report.repacked.onnx.max_relative < 1e-3
