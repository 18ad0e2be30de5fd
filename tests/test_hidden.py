"""distill.hidden: what modules make inside is taught, in the whole model and in a shrunk one; and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from sslprune import find_axes, trace
from sslprune.errors import RecipeError, TrainingError
from sslprune.recipe import DistillSection
from sslprune.removal.packed import Packed
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.hidden import Hidden, check_named
from sslprune.train.shrink import shrink
from sslprune.train.training import train
from sslprune.values.axes import zero_groups
from sslprune.zoo import digits_cnn
from tests.test_processes import recipe

MODULES = ["block?"]


def section(**settings: object) -> DistillSection:
    return DistillSection.model_validate({"hidden": 0.5, "modules": MODULES, **settings})


def outputs(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with Hidden(section()).heard(model) as made:
        model(images)
    return made


@pytest.fixture
def shrunk() -> tuple[nn.Module, nn.Module]:
    """A model with zero filters inside its blocks and its first branch at zero, and what is left without them."""
    torch.manual_seed(0)
    model, images = digits_cnn(width=8).train(), torch.randn(4, 1, 8, 8)
    program = trace(model, (images,))
    axes = [axis for axis in find_axes(program) if axis.name in ("block2.conv1", "block1")]
    assert len(axes) == 2
    for axis in axes:
        zero_groups(model, axis, [0, 2] if axis.size > 1 else [0])
    small = shrink(model, program, axes)
    assert isinstance(small, Packed) and "block2.conv1.weight" in dict(small.named_parameters())
    return model, small.train()


def test_a_shrunk_model_is_heard_like_the_whole_one(shrunk: tuple[nn.Module, nn.Module]) -> None:
    whole, small = shrunk
    images = torch.randn(16, 1, 8, 8)
    expected, found = outputs(whole, images), outputs(small, images)
    assert set(expected) == {"block1", "block2"} and "block2" in found
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    found["block2"].square().sum().backward()
    assert small.get_parameter("block2.conv1.weight").grad is not None
    plain = small(images)
    torch.testing.assert_close(plain, whole(images))


def test_of_an_output_that_lost_widths_what_is_left_is_compared() -> None:
    torch.manual_seed(0)
    model, images = digits_cnn(width=8).train(), torch.randn(4, 1, 8, 8)
    teacher = copy.deepcopy(model)
    program = trace(model, (images,))
    axes = [axis for axis in find_axes(program) if axis.name == "stem"]
    zero_groups(model, axes[0], [0, 5])
    small = shrink(model, program, axes)
    hidden = Hidden(section())
    with hidden.heard(small) as mine, hidden.heard(teacher) as theirs:
        small(images), teacher(images)
    assert mine["block1"].shape == (4, 6, 8, 8) and theirs["block1"].shape == (4, 8, 8, 8)
    expected = F.mse_loss(mine["block1"], theirs["block1"][:, [1, 2, 3, 4, 6, 7]])
    expected = expected + F.mse_loss(mine["block2"], theirs["block2"])  # which is whole
    torch.testing.assert_close(hidden.mixed(torch.tensor(0.0), mine, theirs, (images,)), 0.5 * expected)
    hidden.mixed(torch.tensor(0.0), mine, theirs, (images,)).backward()
    assert small.get_parameter("stem.weight").grad is not None
    wide = digits_cnn(width=12)  # another teacher, whose outputs never were of the same size
    with hidden.heard(small) as mine, hidden.heard(wide) as theirs:
        small(images), wide(images)
    assert float(hidden.mixed(torch.tensor(2.0), mine, theirs, (images,))) == 1.0


def test_a_copy_of_a_heard_model_runs(shrunk: tuple[nn.Module, nn.Module]) -> None:
    _, small = shrunk
    images = torch.randn(4, 1, 8, 8)
    outputs(small, images)
    other = copy.deepcopy(small)
    torch.testing.assert_close(other(images), small(images))
    assert set(outputs(other, images)) == set(outputs(small, images))


def test_the_distance_leaves_padding_and_other_sizes_out() -> None:
    hidden = Hidden(section(hidden=0.25))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    mine = {"a": torch.randn(2, 3, 5), "b": torch.randn(2, 4), "gone": torch.randn(2, 4)}
    theirs = {"a": torch.randn(2, 3, 5), "b": torch.randn(2, 6), "other": torch.randn(2, 4)}
    kept = torch.tensor([[True, True, False], [True, False, False]])
    expected = 0.75 * 2.0 + 0.25 * (mine["a"] - theirs["a"])[kept].square().mean()
    torch.testing.assert_close(hidden.mixed(torch.tensor(2.0), mine, theirs, {"attention_mask": mask}), expected)
    whole = 0.75 * 2.0 + 0.25 * F.mse_loss(mine["a"], theirs["a"])
    torch.testing.assert_close(hidden.mixed(torch.tensor(2.0), mine, theirs, (mask,)), whole)
    torch.testing.assert_close(hidden.mixed(torch.tensor(2.0), {}, theirs, (mask,)), torch.tensor(1.5))  # all are gone
    with pytest.raises(TrainingError, match=r"^distill.modules: none of the modules that block\? names"):
        Hidden(section()).mixed(torch.tensor(2.0), {"b": mine["b"]}, theirs, (mask,))


def test_training_is_taught_inside_and_shrinks(tmp_path: Path) -> None:
    """Nearer to the dense model inside than without; the same whether it shrinks or not."""
    far = {}
    for name, shared, shrinks in (("without", 0.0, "5it"), ("taught", 0.9, "5it"), ("whole", 0.9, "never")):
        taught = {"hidden": shared, "modules": MODULES} if shared else {}
        train(
            recipe(
                prune=[{"kind": "filters", "include": ["*conv1"]}],
                budget={"macs": 0.6},
                distill={"weight": 0.5, **taught},
                schedule={"dense": "4it", "sparse": "24it", "heal": "30it", "shrink": shrinks},
                train={"lr": 0.01, "momentum": 0.5},
            ),
            TrainingFiles(tmp_path / name),
        )
        images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        made: list[dict[str, torch.Tensor]] = []
        for file in ("dense", "masked"):
            model = digits_cnn(width=8).eval()
            model.load_state_dict(load_file(tmp_path / name / f"{file}.safetensors"))
            with torch.no_grad():
                made.append(outputs(model, images))
        far[name] = sum(float(F.mse_loss(made[0][block], made[1][block])) for block in made[0])
    assert far["taught"] < 0.9 * far["without"]
    small, whole = (load_file(tmp_path / name / "masked.safetensors") for name in ("taught", "whole"))
    for name, value in whole.items():
        if "running" not in name:  # the statistics of what is gone stay as they were
            torch.testing.assert_close(small[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("distill", "settings", "message"),
    [
        ({"hidden": 0.5}, {}, "distill: hidden: of which modules is not said"),
        ({"modules": MODULES}, {}, "distill: modules: hidden, their share of the loss, is 0"),
        ({"hidden": 1.0, "modules": MODULES}, {}, "distill.hidden: .* less than 1"),
        ({"hidden": 0.5, "modules": MODULES}, {"compile": True}, "train.compile: distill.hidden listens to modules"),
    ],
)
def test_a_recipe_that_cannot_be_meant(distill: dict[str, object], settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(distill=distill, train=settings)


def test_a_glob_that_means_nothing() -> None:
    check_named(digits_cnn(width=8), MODULES)
    with pytest.raises(
        RecipeError, match=r'^distill.modules: no module is called "layer\?"; there are stem, .+, \.\.\.$'
    ):
        check_named(digits_cnn(width=8), ["layer?"])
