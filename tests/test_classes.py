"""A model for some of its classes: its output is cut, its data are filtered, and it is held beside the whole one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import sslprune
from sslprune.cli import app
from sslprune.data import Images, build_data, digits
from sslprune.data.kept import KeptClasses
from sslprune.errors import DataError, RecipeError, RepackError
from sslprune.models.build import load_trained
from sslprune.recipe import parse_recipe
from sslprune.removal.classes import keep_classes
from sslprune.report import Report
from sslprune.run.directory import RunDirectory
from sslprune.train.prepare import fitted, prepare
from sslprune.values.outputs import logits_of
from sslprune.zoo import digits_cnn
from tests.test_pictures import needs_torchvision

KEPT = [1, 3, 7]


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"factory": "sslprune.zoo:digits_cnn", "arguments": {"width": 8}},
        "data": {"factory": "sslprune.data:digits", "batch_size": 64, "keep_classes": [7, 1, 3]},
        "prune": [{"kind": "filters"}],
        "budget": {"macs": 0.6, "round_to": 1},
        "schedule": {"sparse": "2ep", "heal": "1ep"},
        "run": {"device": "cpu"},
        **changes,
    }


class Both(nn.Module):
    """Logits beside features, and another head while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.body(x).relu()
        more = {"other": self.other(found)} if self.training else {}
        return {"logits": self.head(found), "features": found} | more


class Convolved(nn.Module):
    """A convolution gives the classes, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


@pytest.mark.parametrize(("model", "shape"), [(Both(), (2, 6)), (Convolved(), (2, 3, 8, 8))])
def test_the_logits_of_the_kept_classes_stay_as_they_are_in_both_modes(model: nn.Module, shape: Any) -> None:
    x = torch.randn(shape)
    small, plan = keep_classes(model, sslprune.trace(model, (x,)), logits_of, [4, 1])
    for training in (False, True):
        model.train(training), small.train(training)
        torch.testing.assert_close(logits_of(small(x)), logits_of(model(x))[:, [1, 4]])
    assert {change.after[0] for change in plan.tensors.values()} == {2}
    assert all(kept[0] == (1, 4) for kept in (change.kept for change in plan.tensors.values()))


class Softened(Convolved):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Paired(Convolved):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x), super().forward(-x)], 1)


class Counted(Convolved):
    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found - found.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("model", "said"),
    [(Softened(), "softmax.*normalises over it"), (Paired(), "some of them go together"), (Counted(), "change, by")],
)
def test_classes_that_cannot_go_by_themselves_are_refused(model: nn.Module, said: str) -> None:
    program = sslprune.trace(model, (torch.randn(2, 3, 8, 8),))
    with pytest.raises(RepackError, match=said):
        keep_classes(model, program, logits_of, [0, 2])


def test_pictures_are_filtered_and_numbered_anew() -> None:
    pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    images = Images(pixels, torch.tensor([2, 0, 1, 2]), 3, "x", ("a", "b", "c"))
    kept = KeptClasses.of(["c", 0], images.names, 3, "x").images(images)
    assert (kept.labels.tolist(), kept.pixels.flatten().tolist(), kept.names) == ([1, 0, 1], [0, 1, 3], ("a", "c"))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["cat", "dgo"], '"dgo" is no class of x; it has cat, dog, owl'),
        ([0, 3], "no class 3; they are numbered from 0 to 2"),
        ([-1, 0], "no class -1"),
        (["cat", 0], "class 0 of x is named twice"),
        ([0, 1, 2], "no others; leave it out"),
    ],
)
def test_a_class_that_does_not_exist_is_one_line(wanted: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        KeptClasses.of(wanted, ("cat", "dog", "owl"), 3, "x")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"keep_classes": [1]}, "a choice needs two"),
        ({"keep_classes": [1, "1"]}, "twice"),
        ({"keep_classes": [1, 2], "task": "regression"}, 'for task = "classification"'),
    ],
)
def test_a_field_that_says_nothing_useful_is_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(recipe(data={"factory": "sslprune.data:digits", **data}), "x")


def loaders() -> Any:
    batches = [(torch.randn(4, 1, 8, 8), torch.arange(4))]
    return batches, batches


def test_loaders_of_ones_own_are_refused() -> None:
    own = recipe(data={"factory": "tests.test_classes:loaders", "keep_classes": [1, 2]})
    with pytest.raises(DataError, match=r"keep_classes: .*return \(train, test\) of sslprune.data.Images"):
        build_data(parse_recipe(own, "x"))


def test_a_model_that_has_no_such_class_is_refused() -> None:
    parsed = parse_recipe(recipe(), "x")
    with pytest.raises(RecipeError, match="the model has 4 classes, numbered from 0; 7 is none of them"):
        prepare(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), build_data(parsed))


@needs_torchvision
def test_rows_of_labelled_tables_are_filtered(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    names = ["owl", "cat", "dog", "cat", "owl", "dog"]
    for part in ("train", "test"):
        with (tmp_path / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "label"])
            for i, name in enumerate(names):
                image.fromarray(np.full((6, 6, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
                writer.writerow([f"{i}.png", name])
    paths = {part: str(tmp_path / f"{part}.csv") for part in ("train", "test")}
    data = build_data(parse_recipe(recipe(data={**paths, "keep_classes": ["owl", "cat"], "size": 6}), "x"))
    inputs, labels = next(iter(data.test))
    assert labels.tolist() == [1, 0, 0, 1]
    assert isinstance(inputs, tuple)
    assert (inputs[0][:, 0, 0, 0] * 255).round().int().tolist() == [0, 40, 120, 160]
    assert data.encoder.classes == ("cat", "owl")
    assert data.kept is not None and data.kept.numbers == (0, 2)


def test_a_run_from_the_first_step_to_the_report(tmp_path: Path) -> None:
    """Masked = repacked = ONNX, beside the whole model on the same pictures; the files need no data to be read."""
    torch.manual_seed(0)
    whole = digits_cnn(width=8).eval()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    parsed = parse_recipe(recipe(), "x")
    parsed = parsed.model_copy(
        update={"model": parsed.model.model_copy(update={"checkpoint": str(tmp_path / "whole.safetensors")})}
    )
    file, run = tmp_path / "recipe.toml", RunDirectory(tmp_path / "run")
    file.write_text(parsed.to_toml())
    told = CliRunner().invoke(app, ["run", str(file), "--run", str(run), "--force"])
    assert told.exit_code == 0, told.output
    report = Report.load(run.report)
    assert report.repacked.onnx is not None and report.repacked.onnx.max_relative < 1e-4
    assert report.equivalence.max_relative < 1e-4

    _, test = digits()
    chosen = torch.isin(test.labels, torch.tensor(KEPT))
    pixels, labels = test.pixels[chosen] / 255, test.labels[chosen]
    logits = whole(pixels)
    assert report.equivalence.samples == int(chosen.sum())
    assert report.whole is not None and report.whole.parameters == sum(p.numel() for p in whole.parameters())
    right = (logits.argmax(1) == labels).float().mean()
    assert report.whole.metrics["accuracy"] == pytest.approx(100 * float(right), abs=1e-3)
    among = (torch.tensor(KEPT)[logits[:, KEPT].argmax(1)] == labels).float().mean()
    assert report.dense.metrics["accuracy"] == pytest.approx(100 * float(among), abs=1e-3)

    dense = load_trained(parsed.model, run.dense)
    torch.testing.assert_close(dense(pixels), logits[:, KEPT])
    small = sslprune.apply_plan(digits_cnn(width=8).eval(), run.path)
    torch.testing.assert_close(small(pixels), sslprune.load(run.program)(pixels))
    assert (run.tokenizer / "labels.json").read_text() == '["1", "3", "7"]\n'
    told = CliRunner().invoke(app, ["control", str(run), "--from", "scratch"])
    assert told.exit_code == 0, told.output
    assert run.control("scratch").result.is_file()


def test_another_model_that_knows_all_the_classes_is_cut_and_one_that_knows_these_is_not() -> None:
    data = build_data(parse_recipe(recipe(), "x"))
    for known, same in ((10, False), (3, True)):
        other = nn.Sequential(nn.Flatten(), nn.Linear(64, known))
        small = fitted(other, data)
        assert (small is other) == same
        assert small(torch.randn(2, 1, 8, 8)).shape == (2, 3)
