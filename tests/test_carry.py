"""Carried state: units of a recurrent model go although the model takes and returns its state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sslprune
from sslprune.errors import TraceError
from sslprune.removal.plan import Plan, make_plan
from sslprune.train.checkpoint import write_weights
from sslprune.values.carry import carries, carrying, with_state
from sslprune.zoo import lstm_lm, rhn_lm
from tests.laws import lively_

TOKENS = torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(0))


class Gated(nn.Module):
    """One GRU with its state, and what makes the state start or stay away from zero."""

    def __init__(self, start: float = 0.0, drift: float = 0.0, given: bool = False) -> None:
        super().__init__()
        self.embedding, self.gru, self.decoder = nn.Embedding(20, 8), nn.GRU(8, 12, batch_first=True), nn.Linear(12, 20)
        self.start, self.drift, self.given = start, drift, given

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.full((batch_size, 12), self.start)

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Any, ...]:
        x, state = self.gru(self.embedding(tokens), state.unsqueeze(0))
        state = state.squeeze(0) + self.drift
        return ((self.decoder(x), state) if self.given else self.decoder(x)), state


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: lstm_lm(vocabulary=20, hidden=12, embedding=8, layers=3),
    "lstm, tied": lambda: lstm_lm(vocabulary=20, hidden=12, tied=True, dropout=0.4),
    "rhn": lambda: rhn_lm(vocabulary=20, hidden=12, depth=3),
    "rhn, not tied": lambda: rhn_lm(vocabulary=20, hidden=12, depth=2, tied=False),
    "gru": Gated,
}


@pytest.mark.parametrize("name", MODELS)
def test_units_go_from_the_weights_and_from_the_state(name: str) -> None:
    model = lively_(MODELS[name]()).eval()
    args = with_state(model, (TOKENS,))
    program = sslprune.trace(model, args)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind in ("hidden", "width", "neurons")]
    assert axes, [str(axis) for axis in sslprune.find_axes(program)]
    for i, axis in enumerate(axes):
        sslprune.zero_groups(model, axis, np.random.default_rng(i).permutation(axis.size)[: i + 2])
    small = sslprune.repack(model, program, axes)
    assert carries(small) and small.initial_state is not None
    before, after = (
        [tuple(leaf.shape) for leaf in pytree.tree_leaves(m.initial_state(3))]  # type: ignore[operator]
        for m in (model, small)
    )
    assert [b[1] - a[1] > 0 for a, b in zip(after, before, strict=True)] == [True] * len(before)
    one, other = carrying(model), carrying(small)
    with torch.no_grad():
        for step in range(4):  # what is carried from call to call is the same too
            tokens = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(step))
            torch.testing.assert_close(one(tokens), other(tokens))
    again = sslprune.trace(small, with_state(small, (TOKENS,)))
    assert not [axis for axis in sslprune.find_axes(again) if axis.frozen and axis.kind == "hidden"]
    small.train()
    assert small(*with_state(small, (TOKENS,)))[0].requires_grad


def test_each_layer_has_its_own_width() -> None:
    model = lstm_lm(vocabulary=20, hidden=12, layers=2)
    axes = sslprune.find_axes(sslprune.trace(model, with_state(model, (TOKENS,))))
    found = {axis.name: axis for axis in axes if not axis.frozen}
    assert {name: axis.kind for name, axis in found.items()} == {
        "embedding": "width",
        "layers.0": "hidden",
        "layers.1": "hidden",
    }
    assert all(axis.exact for axis in found.values())


def test_a_state_that_leaves_zero_is_not_exact() -> None:
    model = Gated(drift=0.5)
    axes = sslprune.find_axes(sslprune.trace(model, with_state(model, (TOKENS,))))
    gru = next(axis for axis in axes if axis.kind == "hidden")
    assert not gru.exact, gru
    model = Gated(given=True)
    axes = sslprune.find_axes(sslprune.trace(model, with_state(model, (TOKENS,))))
    assert next(axis for axis in axes if axis.name == "gru").frozen


@pytest.mark.parametrize("made", ["zeros", "new_zeros", "zeros_like"])
def test_a_first_state_of_zeros_is_as_large_as_the_batch(made: str) -> None:
    """The layers of a stack get widths of their own, and each its own zeros; the batch is read from the input."""

    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 8, num_layers=2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros(4, x.size(0), 8) if made == "zeros" else x.new_zeros(4, x.size(0), 8, dtype=x.dtype)
            return self.head(self.lstm(x, (h, torch.zeros_like(h) if made == "zeros_like" else h))[0])

    model, args = lively_(Started()).eval(), (torch.randn(2, 5, 6),)
    program = sslprune.trace(model, args)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    assert [axis.kind for axis in axes] == ["hidden", "hidden"]
    for axis, gone in zip(axes, ([0, 3, 4], [1]), strict=True):
        sslprune.zero_groups(model, axis, gone)
    small = sslprune.repack(model, program, axes)
    assert small.get_parameter("lstm.weight_hh_l0").shape[1] < small.get_parameter("lstm.weight_hh_l1").shape[1] < 8
    for x in (args[0], torch.randn(3, 5, 6)):
        torch.testing.assert_close(small(x), model(x))
    plan = make_plan(model, program, axes)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_states_that_do_not_fit_are_refused() -> None:
    model = Gated(start=1.0)
    with pytest.raises(TraceError, match="initial state is not zero"):
        sslprune.trace(model, with_state(model, (TOKENS,)))

    class Forgets(Gated):
        def forward(self, tokens: Tensor, state: Tensor) -> Any:
            return super().forward(tokens, state)[0]

    model = Forgets()
    with pytest.raises(TraceError, match=r"expected the same as last argument.*as last of the outputs, got \[\]"):
        sslprune.trace(model, with_state(model, (TOKENS,)))


def test_carried_state_equals_one_long_pass() -> None:
    model = lively_(lstm_lm(vocabulary=20, hidden=12)).eval()
    text = torch.randint(20, (2, 30), generator=torch.Generator().manual_seed(1))
    whole = model(*with_state(model, (text,)))[0]
    step = carrying(model)
    parts = [step(part) for part in text.split(7, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    parts[-1].sum().backward()
    assert step.state[0][0].grad_fn is None, "gradients end at the batch"  # type: ignore[attr-defined]
    assert carrying(nn.Linear(2, 2)).__class__ is nn.Linear


@pytest.mark.parametrize(
    ("arguments", "millions"),
    [
        ({"size": "small"}, 4.65),  # Zaremba et al. 2014; 66 M is what the papers say of the large one
        ({"size": "medium"}, 19.78),
        ({"size": "large"}, 66.03),
        ({"size": "large", "tied": True}, 51.03),
        ({"size": "small", "hidden": 100, "layers": 3}, 2.25),
    ],
)
def test_sizes(arguments: dict[str, Any], millions: float) -> None:
    with torch.device("meta"):
        model = lstm_lm(**arguments)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_the_published_rhn() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in rhn_lm().parameters())
    assert 22.5e6 < count < 24.5e6  # "23 M" in table 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"size": "huge"}, "small"), ({"tied": True, "embedding": 7}, "as wide as"), ({"dropout": 1.0}, "below 1"),
     ({"layers": 0}, "at least 1")],
)  # fmt: skip
def test_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        lstm_lm(**arguments)


@pytest.mark.parametrize("name", ["lstm", "lstm, tied"])
def test_a_plan_shrinks_the_class_itself(name: str, tmp_path: Path) -> None:
    model = lively_(MODELS[name]()).eval()
    program = sslprune.trace(model, with_state(model, (TOKENS,)))
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind in ("hidden", "width", "neurons")]
    for i, axis in enumerate(axes):
        sslprune.zero_groups(model, axis, range(i + 2))
    small = sslprune.repack(model, program, axes)
    plan = make_plan(model, program, axes)
    weights = tmp_path / "weights.safetensors"
    write_weights(weights, small)
    own = sslprune.apply_plan(MODELS[name](), plan, weights).eval()
    torch.testing.assert_close(own(*with_state(own, (TOKENS,))), small(*with_state(small, (TOKENS,))))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_length_stays_open(name: str) -> None:
    model = lively_(MODELS[name]()).eval()
    program = sslprune.trace(model, with_state(model, (TOKENS,)), sequence=100)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind == "hidden"]
    sslprune.zero_groups(model, axes[0], [1, 5])
    small = sslprune.repack(model, program, axes[:1])
    for length in (1, 23):
        tokens = torch.randint(20, (4, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            torch.testing.assert_close(small(*with_state(small, (tokens,)))[0], model(*with_state(model, (tokens,)))[0])


def test_a_network_unrolled_in_time_says_so() -> None:
    model = MODELS["rhn"]()
    with pytest.raises(TraceError, match=r"fixes the length of its input at 7.*data.fixed_length = true"):
        sslprune.trace(model, with_state(model, (TOKENS,)), sequence=100)
