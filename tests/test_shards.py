"""One model shared out among real processes by its rows trains as one process trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.fsdp import fully_shard

from sslprune.errors import RecipeError
from sslprune.recipe import Recipe, parse_recipe
from sslprune.train.checkpoint import TrainingFiles
from sslprune.train.lasso import GroupLasso
from sslprune.train.training import train
from sslprune.values.axes import tensors_of
from sslprune.values.team import Alone, Team
from sslprune.values.voice import Silent
from tests.processes import together
from tests.test_lasso import chain
from tests.test_processes import PLAIN, TAUGHT, of, recipe, trained

SCHEDULE = {"dense": "4it", "sparse": "24it", "heal": "4it", "shrink": "never"}
SHARDED = {"run": {"device": "cpu", "seed": 3, "threads": 1, "shard": True}, "schedule": SCHEDULE}


def whole(values: Recipe) -> Recipe:
    return values.model_copy(update={"run": values.run.model_copy(update={"shard": False})})


@pytest.mark.parametrize(
    ("world", "changes"),
    [(2, {}), (3, {**TAUGHT, "data": {"factory": "sslprune.data:digits", "batch_size": 96}})],
    ids=["batch norms", "AdamW and a teacher, rows that do not divide"],
)
def test_sharded_or_not_it_trains_the_same(tmp_path: Path, world: int, changes: dict[str, Any]) -> None:
    values = recipe(**{**SHARDED, **changes})
    trained(Alone(), whole(values), tmp_path / "1")
    together(world, trained, values, tmp_path / "more")
    (alone, selection, history), (found, chosen, told) = of(tmp_path / "1"), of(tmp_path / "more")
    assert chosen == selection and any(axis["gone"] for axis in chosen["axes"].values())
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3 * float(value.abs().max()))
    for one, other in zip(history, told, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["test"] == pytest.approx(one["test"], abs=0.6)


def test_a_model_that_carries_a_state_is_sharded(tmp_path: Path) -> None:
    """torch's LSTM keeps a list of its weights besides, and its first state is made like one of them."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log so all sat\n" * 40)
    values = parse_recipe(
        {
            "run": {"device": "cpu", "threads": 1, "shard": True},
            "model": {"factory": "sslprune.zoo:lstm_lm", "arguments": {"hidden": 24, "vocabulary": 16}},
            "data": {
                **{"task": "language-modelling", "train": str(text), "valid": str(text), "test": str(text)},
                **{"batch_size": 4, "steps": 7},
            },
            "prune": [{"kind": "hidden"}],
            "budget": {"parameters": 0.7, "round_to": 1},
            "schedule": {"dense": "4it", "sparse": "24it", "heal": "4it"},
            "train": {"lr": 0.01, "momentum": 0.0},
        }
    )
    trained(Alone(), whole(values), tmp_path / "1")
    together(2, trained, values, tmp_path / "2")
    (one, selection, _), (other, chosen, _) = of(tmp_path / "1"), of(tmp_path / "2")
    assert chosen == selection
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


class Stop(Exception):
    """Raised on all processes at once, as at a kill of all."""


class Stopping(Silent):
    """Ends training behind the epoch of a number, whose checkpoint is written."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def say(self, line: str = "", style: str = "") -> None:
        self.left -= ": loss" in line
        if not self.left:
            raise Stop


def broken_off(team: Team, values: Recipe, folder: Path) -> None:
    for epochs in (1, 1, 99):
        try:
            train(values, TrainingFiles(folder), Stopping(epochs), team=team)
        except Stop:
            continue


def test_a_sharded_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Broken off in the dense and in the sparse phase; momentum is that of the process's own rows again."""
    values = recipe(**{**SHARDED, **PLAIN, "train": {"momentum": 0.9, "lr": 0.02}})
    together(2, trained, values, tmp_path / "whole")
    together(2, broken_off, values, tmp_path / "broken")
    (one, chosen, history), (other, same, told) = of(tmp_path / "whole"), of(tmp_path / "broken")
    assert chosen == same and [e["loss"] for e in history] == [e["loss"] for e in told]
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def acts(team: Team) -> dict[str, Any]:
    """Norms, sensitivities and a proximal step on rows, beside those on the whole."""
    found = {}
    for shared in (False, True):
        torch.manual_seed(0)
        model, axes = chain()
        lasso = GroupLasso(model, axes, strength=0.5)
        held = sum(tensor.numel() for tensor in model.parameters())
        if shared:
            fully_shard(model)
            lasso.team = team
            lasso.follow(model)
            held = sum(parameter.to_local().numel() for parameter in model.parameters())  # type: ignore[attr-defined]
        x = torch.linspace(-1, 1, 8 * 36).view(8, 1, 6, 6)
        model(x).square().mean().backward()
        carried = lasso.sensitivities()
        norms = np.concatenate(lasso.norms())
        lasso.step(0.3)
        weights = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in tensors_of(model).values()]
        found[str(shared)] = {
            "carried": carried,
            "norms": torch.from_numpy(norms),
            "weights": [weight.detach() for weight in weights],
            "held": held,
        }
    return found


def test_the_lasso_acts_on_rows_as_on_the_whole() -> None:
    for found in together(3, acts):
        one, other = found["False"], found["True"]
        for name in ("carried", "norms", "weights"):
            torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-6)
        assert other["held"] < 0.6 * one["held"]


def test_what_does_not_go_with_shards_is_said_before_anything_begins(tmp_path: Path) -> None:
    for section, changes in (
        ("schedule.shrink", {"schedule": {**SCHEDULE, "shrink": "5it"}}),
        ("calibrate", {"calibrate": {}}),
    ):
        with pytest.raises(RecipeError, match=rf"run.shard: {section} needs the whole model"):
            recipe(**{**SHARDED, **changes})
    with pytest.raises(RecipeError, match=r"run.shard: train.compress needs"):
        recipe(**SHARDED, train={"compress": "fp16"})
    with pytest.raises(RecipeError, match=r"run.shard: one process has nothing to share out; add --processes"):
        trained(Alone(), recipe(**SHARDED), tmp_path)
    assert not list(tmp_path.iterdir())
