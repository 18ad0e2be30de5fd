"""Nested points: one set of weights, each smaller model a part of the larger ones, and the command that cuts them."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

import sslprune
from sslprune.capture.trace import trace
from sslprune.choose.sections import select_with_sections
from sslprune.cost.counts import Cost
from sslprune.errors import RecipeError
from sslprune.kinds.find import find_axes
from sslprune.models.build import build_model
from sslprune.recipe import PruneSection, Recipe, parse_recipe
from sslprune.report import Report
from sslprune.run.directory import RunDirectory
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.cuts import cut_, read_cuts
from sslprune.train.nested import Nested
from sslprune.train.training import train
from sslprune.values.axes import tensors_of
from sslprune.values.selection import Selection
from sslprune.values.team import Alone
from sslprune.zoo import digits_cnn
from tests import test_language_models as language
from tests import test_processes as processes
from tests.laws import lively_
from tests.processes import together
from tests.test_cli import RECIPE, invoke, mistake
from tests.test_train import StopsAfter, recipe, same, trained

POINTS = {"budget": {"macs": [0.7, 0.5, 0.35], "nested": True}, "schedule": {"sparse": "20it"}}
NESTED = RECIPE.replace("macs = 0.5", "macs = [0.7, 0.5]\nnested = true").replace('sparse = "40it"', 'sparse = "30it"')


def steered(**changes: Any) -> tuple[nn.Module, Recipe, Nested]:
    """A model with what steers it to three points, in 20 steps each."""
    made = recipe(**(POINTS | changes))
    model = lively_(digits_cnn(width=8))
    program = trace(model, (torch.randn(4, 1, 8, 8),))
    chosen = select_with_sections(find_axes(program), [PruneSection(kind="filters"), PruneSection(kind="layers")])
    cost = Cost(program, [axis for axis, _ in chosen])
    return model, made, Nested.of(model, program, chosen, cost, made, 60, Alone())


def backward_of(model: nn.Module, x: Tensor, targets: Tensor) -> Callable[[int], Tensor]:
    def backward(_: int) -> Tensor:
        loss = F.cross_entropy(model(x), targets)
        loss.backward()
        return loss.detach()

    return backward


def test_a_step_has_the_mean_of_the_gradients_of_models_with_masks() -> None:
    """Against autograd through weights x factors; the weights stay, and each point's statistics are its own."""
    torch.manual_seed(0)
    model, _, nested = steered()
    x, targets = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nested.passes(backward_of(model, x, targets))
        nested.observe(loss)
        optimizer.step()
        nested.step(0.01)
    assert nested.num_begun == 2 and not any(view.learns for view in nested.views)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    masks = [dict.fromkeys(weights, torch.ones(()))]
    for selection in nested.selections(model)[1:]:
        ones, there = digits_cnn(width=8), {}
        for name, parameter in ones.named_parameters():
            nn.init.ones_(parameter)
            there[name] = parameter
        cut_(ones, selection)
        masks.append({name: value.detach() for name, value in there.items()})
    assert all(sum(float((1 - m).sum()) for m in mask.values()) > 0 for mask in masks[1:])
    expected = {name: torch.zeros_like(value) for name, value in weights.items()}
    for mask in masks:
        model.zero_grad()
        state = {name: parameter * mask[name] for name, parameter in model.named_parameters()}
        copies = {name: value.clone() for name, value in buffers.items()}
        F.cross_entropy(functional_call(model, (state, copies), (x,)), targets).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            expected[name] += parameter.grad / 3
    model.zero_grad()
    was = [{name: value.clone() for name, value in view.buffers.items()} for view in nested.views]
    nested.passes(backward_of(model, x, targets))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
        assert torch.equal(parameter, weights[name])
    for view, before in zip(nested.views, was, strict=True):
        moved = [name for name, value in view.buffers.items() if not torch.equal(value, before[name])]
        assert len(moved) == len(before)
        means = [name for name in moved if "running_mean" in name]
        assert any(not torch.allclose(view.buffers[name], tensors_of(model)[name]) for name in means)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainingFiles:
    return trained(tmp_path_factory.mktemp("whole"), **POINTS)


def test_a_resumed_run_of_nested_points_is_the_same(whole: TrainingFiles, tmp_path: Path) -> None:
    for epochs in (1, 2):  # in the second point's steps, and in the last one's
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / str(epochs), StopsAfter(epochs), **POINTS)
        again = trained(tmp_path / str(epochs), **POINTS)
        assert same(whole.nested, again.nested) and same(whole.masked, again.masked)
        assert whole.cuts.read_text() == again.cuts.read_text()
    history = json.loads(whole.history.read_text())
    assert [list(record["points"]) for record in history] == [["0.7"], ["0.7", "0.5"], ["0.7", "0.5", "0.35"]] + [
        ["0.7", "0.5", "0.35"]
    ] * (len(history) - 3)
    costs = [point["cost"] for point in history[-1]["points"].values()]
    assert costs == sorted(costs, reverse=True) and history[-1]["cost"] == costs[-1]


def test_each_point_is_a_part_of_the_larger_ones(whole: TrainingFiles) -> None:
    files = whole
    made = recipe(**POINTS)
    model, _ = build_model(made.model)
    program = trace(model, (torch.randn(2, 1, 8, 8),))
    chosen = select_with_sections(find_axes(program), made.prune)
    axes = [axis for axis, _ in chosen]
    cuts = read_cuts(files.cuts)
    found = [Selection.from_json(text, axes) for text in cuts.values()]
    assert list(cuts) == [0.7, 0.5, 0.35] and found[0] <= found[1] <= found[2] and found[0] != found[2]
    cost = Cost(program, axes)
    for fraction, selection in zip(cuts, found, strict=True):
        assert 0.99 * fraction <= cost.macs(selection) / cost.macs() <= fraction
    shared = load_file(files.nested)
    smallest = load_file(files.masked)
    for name, value in smallest.items():
        ours = shared.get(f"0.35:{name}", shared[name])
        assert torch.equal(value, ours) or bool(((value == ours) | (value == 0)).all())
        assert (f"0.35:{name}" in shared) == (name in dict(model.named_buffers()))


def test_processes_train_the_same_nested_points(tmp_path: Path) -> None:
    schedule = {"dense": "2it", "sparse": "12it", "heal": "4it", "shrink": "never"}
    values = processes.recipe(budget={"macs": [0.7, 0.5], "nested": True}, schedule=schedule)
    processes.trained(Alone(), values, tmp_path / "1")
    together(2, processes.trained, values, tmp_path / "more")
    alone, found = (load_file(tmp_path / name / "nested.safetensors") for name in ("1", "more"))
    assert (tmp_path / "1/cuts.json").read_text() == (tmp_path / "more/cuts.json").read_text()
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3 * float(value.abs().max()))


def test_a_model_that_carries_state_trains_nested_points(tmp_path: Path) -> None:
    """Each point carries its own state, so that every batch is seen by all of them; a teacher says its part to each."""
    for name, seed in (("train", 0), ("test", 1)):
        (tmp_path / f"{name}.txt").write_text(language.words(40, seed))
    values = tomllib.loads(language.RECIPE)
    values["data"] |= {
        name: str(tmp_path / f"{name.replace('valid', 'test')}.txt") for name in ("train", "valid", "test")
    }
    values |= {"budget": {"parameters": [0.8, 0.7, 0.6], "nested": True, "round_to": 1}, "distill": {}}
    values["schedule"] |= {"sparse": "15it"}
    files = TrainingFiles(tmp_path / "run")
    train(parse_recipe(values), files)
    costs = [point["cost"] for point in json.loads(files.history.read_text())[-1]["points"].values()]
    assert all(cost <= fraction for cost, fraction in zip(costs, (0.8, 0.7, 0.6), strict=True))
    shared, smallest = load_file(files.nested), load_file(files.masked)
    assert all(bool(((value == shared[name]) | (value == 0)).all()) for name, value in smallest.items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("nested")
    (folder / "tiny.toml").write_text(NESTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sslprune.bench.timing.WARM_UP", 0.005)
        patch.setattr("sslprune.bench.timing.ENOUGH", 0.01)
        result = invoke("run", folder / "tiny.toml", "--run", folder / "run")
    assert result.exit_code == 0, result.output
    assert "sparse 2/2: loss" in result.stderr and "at 0.7 accuracy" in result.stderr
    return RunDirectory(folder / "run")


def test_the_whole_road(finished: RunDirectory) -> None:
    """Masked = repacked = ONNX at each point, the points beside each other, and every file that CI reads."""
    report, [larger] = Report.load(finished.report), finished.points
    assert [point.run for point in report.curve] == ["points/0.7", "."]
    for run, fraction in ((larger, 0.7), (finished, 0.5)):
        own = Report.load(run.report)
        assert 0.99 * fraction <= own.budget.reached <= fraction
        assert own.equivalence.samples == 360 and own.equivalence.max_relative < 1e-4
        assert own.repacked.onnx is not None and own.repacked.onnx.max_relative < 1e-3
        assert own.dense.metrics == report.dense.metrics
        masked = load_file(run.masked)
        assert sum(int((value == 0).sum()) for value in masked.values()) > 0
        assert not run.damaged("train")
    assert "at 0.7" in finished.junit.read_text() and "### The curve" in finished.summary.read_text()
    answers = json.loads(invoke("predict", larger, "7", "--json").stdout)
    assert len(answers) == 1 and {"dense", "repacked"} <= answers[0].keys()


def test_cut_gives_any_point_again_without_training(finished: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    shutil.rmtree(run.points_dir)
    shutil.rmtree(run.repacked_dir)
    result = invoke("cut", run, "0.7", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["run"] == str(run.points_dir / "0.7") and "heal" not in result.stderr
    again, before = RunDirectory(found["run"]), finished.points[0]
    assert same(again.masked, before.masked) and same(again.weights, before.weights)
    assert again.plan.read_text() == before.plan.read_text()
    dense = sslprune.load(before.path)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(sslprune.load(again.path)(x), dense(x))
    assert not (run.repacked_dir).exists()  # only what was asked for
    assert invoke("cut", run, "0.5").exit_code == 0 and same(run.weights, finished.weights)
    again.masked.write_bytes(b"damaged")
    assert invoke("cut", run, "0.7").exit_code == 0 and same(again.masked, before.masked)


def test_resume_of_a_finished_run_makes_again_what_is_lost(finished: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    run.training.nested.write_bytes(b"damaged")
    shutil.rmtree(run.points_dir)
    result = invoke("train", finished.path.parent / "tiny.toml", "--run", run, "--resume")
    assert result.exit_code == 0 and "nested.safetensors: damaged" in result.stderr
    assert same(run.training.nested, finished.training.nested) and same(run.points[0].masked, finished.points[0].masked)
    said = mistake("train", finished.path.parent / "tiny.toml", "--run", run, "--set", "budget.nested=false")
    assert "another recipe (budget.nested differ)" in said


def test_mistakes_are_one_line(finished: RunDirectory, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(NESTED)
    for settings, said in (
        (["budget.macs=[0.3, 0.5]"], "budget.macs: the points of a sweep have to fall, as in [0.5, 0.3, 0.2]"),
        (["budget.macs=0.5"], "budget: nested: it takes a falling list of budgets, as macs = [0.6, 0.36]; macs = 0.5"),
        (["schedule.shrink=1ep"], "budget.nested: schedule.shrink would take away what only the largest point needs"),
        (["run.shard=true"], "budget.nested: run.shard needs the weights of all points whole"),
        (["calibrate.samples=64"], "budget.nested: calibrate repairs weights for one point alone"),
        (["train.compress=fp16"], "budget.nested: train.compress"),
        (["schedule.sparse=0ep"], "budget.nested: schedule.sparse is 0"),
        (["budget.macs=[0.5, 0.0001]"], "budget.macs: 0.0001 of the dense model cannot be reached"),
        (["budget.parameters=[0.5, 0.4]"], "give exactly one of macs, parameters and latency"),
        (["lasso.decay=31"], "lasso.decay: 31 steps do not fit into the 30 sparse ones"),
    ):
        words = [word for setting in settings for word in ("--set", setting)]
        assert said in mistake("run", path, "--run", tmp_path / "run", *words)
    assert [one.name for one in tmp_path.iterdir()] == ["tiny.toml"]
    assert "it has no point 0.6; it was trained for 0.7, 0.5" in mistake("cut", finished, "0.6")
    other = tmp_path / "other"
    shutil.copytree(finished.path, other)
    text = (other / "recipe.toml").read_text()
    (other / "recipe.toml").write_text(text.replace("nested = true", "nested = false"))
    assert "its budgets are not nested" in mistake("cut", other, "0.7")
    (other / "recipe.toml").write_text(text)
    shutil.rmtree(other / "points")
    (other / "train/cuts.json").write_text("{}")
    assert "cuts.json: not a cut list" in mistake("cut", other, "0.7")
    with pytest.raises(RecipeError, match="a sweep is for a recipe"):
        sslprune.Sparsity(digits_cnn(), (torch.randn(2, 1, 8, 8),), prune="filters", steps=5, macs=[0.5, 0.3])
