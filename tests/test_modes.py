"""Training and evaluation may return different things: each graph keeps its own, and repack proves both."""

from __future__ import annotations

import copy
import random
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.errors import RepackError
from sslprune.removal import remove as removal
from sslprune.values.axes import tensors_of
from sslprune.values.compare import difference
from sslprune.values.draws import alike
from tests.laws import lively_, zero_random_

Outputs = namedtuple("Outputs", ["logits", "aux"])


class Auxiliary(nn.Module):
    """As GoogLeNet: a second head, an output of its own, and dropout in training; the logits alone in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.two, self.three = nn.Conv2d(12, 16, 3), nn.Linear(16, 5)
        self.aux, self.head = nn.Linear(12, 14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Any:
        h = F.relu(self.norm(self.one(x)))
        logits = self.three(F.dropout(F.relu(self.two(h)).mean((2, 3)), 0.5, self.training))
        if not self.training:
            return logits
        return Outputs(logits, self.head(F.dropout(F.relu(self.aux(h.mean((2, 3)))), 0.5)))


def half() -> tuple[nn.Module, sslprune.Program, list[sslprune.Axis], Tensor]:
    torch.manual_seed(0)
    model, x = lively_(Auxiliary()).eval(), torch.randn(6, 3, 8, 8)
    program = sslprune.trace(model, (x,))
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind != "columns"]
    zero_random_(model, program, axes, np.random.default_rng(0))
    return model, program, axes, x


def test_each_mode_returns_what_the_model_returns_there() -> None:
    model, program, axes, x = half()
    assert [spec.num_leaves for spec in program.out_specs] == [1, 2]
    before = copy.deepcopy(model.state_dict())
    small = sslprune.repack(model, program, axes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # statistics untouched
    assert int(tensors_of(small)["norm.num_batches_tracked"]) == 0 and not model.training
    assert {"aux", "one", "two"} <= {axis.name for axis in axes}
    assert small.get_parameter("aux.weight").shape == (7, 6)
    assert torch.is_tensor(small(x)) and difference(model(x), small(x))[1] < 1e-5
    found = []
    for run in (model, small):
        with alike():
            found.append(run.train()(x))
    assert type(found[1]) is Outputs and difference(*found)[1] < 1e-5
    again = copy.deepcopy(small)
    assert type(again(x)) is Outputs and torch.is_tensor(again.deployed()(x))


def test_a_wrong_training_graph_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model, program, axes, _ = half()
    right = removal._selected

    def wrong(g: Any, kept: Any, name: str, tensor: Tensor) -> Tensor:
        return right(g, kept, name, tensor) + (0.1 if name == "head.bias" else 0.0)  # which training alone reads

    monkeypatch.setattr(removal, "_selected", wrong)
    with pytest.raises(RepackError, match=r"differs from the masked one by .* in training mode; nothing was written"):
        sslprune.repack(model, program, axes)


def test_what_trains_shrinks_with_its_outputs() -> None:
    model, program, axes, x = half()
    whole = copy.deepcopy(model)
    shrinker = sslprune.Shrinker(model.train(), program, axes)
    assert shrinker.shrink() and shrinker.model.training
    found = []
    for run in (whole.train(), shrinker.model):
        with alike():
            found.append(run(x))
    assert type(found[1]) is Outputs and difference(*found)[1] < 1e-5
    sum(output.sum() for output in found[1]).backward()
    assert shrinker.model.get_parameter("aux.weight").grad is not None


class Tosses(nn.Module):
    """A coin that no graph sees decides in training."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.coin = nn.Linear(4, 8), nn.Linear(8, 3), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x).relu())
        return y * (1 + self.coin.random()) if self.training else y


def test_training_that_does_not_repeat_itself_is_left_out() -> None:
    model, x = Tosses().eval(), torch.randn(3, 4)
    program = sslprune.trace(model, (x,))
    (axis,) = (axis for axis in sslprune.find_axes(program) if axis.exact)
    sslprune.zero_groups(model, axis, range(4))
    small = sslprune.repack(model, program, [axis])
    assert small.get_parameter("one.weight").shape == (4, 4) and difference(model(x), small(x))[1] < 1e-5
    with pytest.raises(RuntimeError, match="has no training graph"):
        small.train()(x)


class Carries(nn.Module):
    """A state, and in training a penalty beside the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(7, 5), nn.GRU(5, 6, batch_first=True), nn.Linear(6, 7)

    def initial_state(self, rows: int) -> Tensor:
        return torch.zeros(rows, 6)

    def forward(self, tokens: Tensor, state: Tensor) -> Any:
        y, state = self.rnn(self.embed(tokens), state[None])
        state = state[0]
        return ((self.head(y), y.square().sum()) if self.training else self.head(y)), state


def test_the_state_comes_last_in_both_modes() -> None:
    torch.manual_seed(0)
    model, tokens = Carries().eval(), torch.randint(7, (3, 4))
    state = torch.zeros(3, 6)
    program = sslprune.trace(model, (tokens, state))
    assert program.training is not None and program.carried == ((1, 1),)
    (axis,) = (axis for axis in sslprune.find_axes(program) if axis.kind == "hidden")
    assert axis.exact
    sslprune.zero_groups(model, axis, range(3))
    small = sslprune.repack(model, program, [axis])
    (logits, penalty), left = small.train()(tokens, state[:, :3])
    assert left.shape == (3, 3)
    assert difference(model.train()(tokens, state)[0], (logits, penalty))[1] < 1e-5
