"""Rank by the whole road: one command, resumed, swept, folded at the end, and applied to a person's own class."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import sslprune
from sslprune.cli import app
from sslprune.models.build import build_model
from sslprune.removal.factors import Factored
from sslprune.removal.plan import read_plan
from sslprune.report import Inspection, Report
from sslprune.run.directory import RunDirectory
from sslprune.values.compare import difference

RECIPE = """
[run]
threads = 1
[model]
factory = "sslprune.zoo:digits_cnn"
arguments = { width = 16 }
[data]
factory = "sslprune.data:digits"
batch_size = 256
eval_batch_size = 360
[[prune]]
kind = "rank"
exclude = ["stem"]
[[prune]]
kind = "filters"
[budget]
macs = [0.7, 0.5]
round_to = 4
[schedule]
dense = "1ep"
sparse = "4ep"
heal = "1ep"
[bench]
batch_sizes = [1]
threads = [1]
repetitions = 30
"""


def invoked(*arguments: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, [*arguments])
    assert found.exit_code == code, found.output
    return " ".join(found.output.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rank")
    (folder / "r.toml").write_text(RECIPE)
    said = invoked("run", str(folder / "r.toml"), "--run-dir", str(folder / "r"))
    assert "rank: block1.conv1, block1.conv2, down, block2.conv1, block2.conv2: as an h x 1" in said
    assert "rank: linear: as two matrices" in said
    return folder / "r"


def test_budget_and_report_compare_with_the_model_as_it_was(run: Path) -> None:
    report = Report.load(RunDirectory(run).report)
    model, _ = build_model(RunDirectory(run).recipe().model)
    assert report.dense.parameters == sum(p.numel() for p in model.parameters())
    assert report.dense.macs == round(sslprune.Cost(sslprune.trace(model, (torch.randn(2, 1, 8, 8),)), []).macs())
    assert 0.49 * report.dense.macs < report.repacked.macs <= 0.5 * report.dense.macs
    assert report.equivalence.max_relative < 1e-4
    dense = load_file(RunDirectory(run).dense)
    assert {name for name in dense if name.startswith("down.")} == {"down.weight_down", "down.weight_up"}
    assert "stem.weight" in dense  # it was excluded


def test_two_factors_stay_where_they_pay_alone(run: Path) -> None:
    plan, weights = read_plan(RunDirectory(run).plan), load_file(RunDirectory(run).weights)
    assert plan.first is not None and set(plan.folded) < set(plan.first.factors)
    for name in plan.first.factors:
        assert (name in weights) == (name in plan.folded) != (f"{name}_down" in weights)
    gone = {axis.name.removesuffix("/rank") for axis in plan.axes if axis.kind == "rank"}
    assert gone == {name.removesuffix(".weight") for name in set(plan.first.factors) - set(plan.folded)}
    folded = {axis.name: axis for axis in Report.load(RunDirectory(run).report).axes if axis.kind == "rank"}
    assert all(folded[f"{name.removesuffix('.weight')}/rank"].after == 48 for name in plan.folded if "block1" in name)


def test_a_persons_own_class_gets_the_factors(run: Path) -> None:
    own: Any = sslprune.apply_plan(build_model(RunDirectory(run).recipe().model)[0], run).eval()
    x = torch.randn(5, 1, 8, 8)
    assert difference(sslprune.load(run)(x), own(x))[1] < 1e-5
    assert any(isinstance(module, Factored) for module in own.modules())


def test_a_run_that_stopped_goes_on_to_the_same(run: Path, tmp_path: Path) -> None:
    recipe, again = run.parent / "r.toml", tmp_path / "again"
    shutil.copytree(run, again)
    before = RunDirectory(again).weights.read_bytes()
    for file in (RunDirectory(again).masked, RunDirectory(again).training.prepared):
        file.unlink()
    for stage in ("repacked", "export"):
        shutil.rmtree(again / stage)
    invoked("train", str(recipe), "--run-dir", str(again), "--resume")
    invoked("repack", str(again))
    assert RunDirectory(again).weights.read_bytes() == before


def test_inspect_and_a_dry_run(run: Path, tmp_path: Path) -> None:
    recipe = run.parent / "r.toml"
    found = Inspection.model_validate_json(CliRunner().invoke(app, ["inspect", str(recipe), "--json"]).stdout)
    model, _ = build_model(RunDirectory(run).recipe().model)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert {a.name for a in found.axes if a.kind == "rank" and a.pruned} >= {"down/rank", "linear/rank"}
    assert not any(a.name == "stem/rank" for a in found.axes)
    invoked("run", str(recipe), "--dry-run")
    said = invoked("run", str(recipe), "--dry-run", "--set", 'prune.0.include=["nothing*"]', code=1)
    assert "prune.0.include" in said and "matches no matrix" in said


def test_a_control_of_the_same_sizes(run: Path) -> None:
    invoked("control", str(run), "--from", "scratch", "--set", "schedule.dense=2it", "--set", "schedule.sparse=1it")
    report = Report.load(RunDirectory(run).report)
    assert [(c.name, c.parameters, c.macs) for c in report.controls] == [
        ("scratch", report.repacked.parameters, report.repacked.macs)
    ]
