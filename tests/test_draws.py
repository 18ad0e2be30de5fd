"""Models that draw random numbers in evaluation: named, kept as they draw, and never exported unproven."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.capture.mode import evaluating
from sslprune.errors import ExportError
from sslprune.export.program import save_program
from sslprune.values.compare import difference
from sslprune.values.draws import alike, draws_by
from tests.test_cli import RECIPE, mistake

X = torch.full((2, 3), 0.5)


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.spread = nn.Linear(10, 20), nn.Linear(20, 6), nn.Linear(20, 6)
        self.decode, self.out = nn.Linear(6, 18), nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.encode(x))
        mean, spread = self.mean(h), (0.5 * self.spread(h)).exp()
        return self.out(F.relu(self.decode(mean + torch.randn_like(mean) * spread)))  # the draw


class Drops(nn.Module):
    """As many write it: dropped in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(10, 20), nn.Linear(20, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(F.relu(self.two(F.dropout(F.relu(self.one(x)), 0.5))))  # the draw


class Behaves(Drops):
    """Everything that draws in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(10, 10, 2, dropout=0.3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(self.rnn(x[:, None])[0][:, 0], 0.5, self.training)
        a = F.scaled_dot_product_attention(h[:, None, None], h[:, None, None], h[:, None, None])[:, 0, 0]
        return self.three(F.relu(self.two(F.relu(self.one(a)))))


class Leaks(Drops):
    """Slopes and drops that only training draws, as their modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.leak, self.drop = nn.RReLU(0.1, 0.5), nn.AlphaDropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.drop(self.leak(self.two(self.leak(self.one(x))))))


@pytest.mark.parametrize(
    ("make", "operator", "frozen", "removed"),
    [(Vae, "randn_like", {"mean"}, {"encode", "decode"}), (Drops, "dropout", {"one"}, {"two"})],
)
def test_what_draws_is_named_and_the_rest_goes(
    make: Callable[[], nn.Module], operator: str, frozen: set[str], removed: set[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(4, 10)
    program = sslprune.trace(model, (x,))
    (place,) = program.random
    assert place.startswith(f"{operator} (") and "# the draw" in place
    assert f"random numbers are drawn in evaluation: {place}" in program.notes
    axes = {axis.name: axis for axis in sslprune.find_axes(program) if axis.kind == "neurons"}
    assert {name for name, axis in axes.items() if axis.exact} >= removed
    for name in frozen & axes.keys():
        assert axes[name].frozen and "it draws random numbers in evaluation" in axes[name].reason
    exact = [axis for axis in axes.values() if axis.exact]
    for axis in exact:
        sslprune.zero_groups(model, axis, range(axis.size // 2))
    small = sslprune.repack(model, program, exact).eval()
    assert {name for name, p in small.named_parameters() if p.shape != model.get_parameter(name).shape}
    results = []
    for run in (model, small):
        torch.manual_seed(3)
        results.append(run(x))
    assert difference(*results)[1] < 1e-5  # under one seed the same draws
    save_program(small, (x,), tmp_path / "m.pt2")
    with pytest.raises(ExportError, match=rf"^m.onnx: the model draws random numbers .*: {operator} .*training=self"):
        sslprune.export_onnx(small, (x,), tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt2"]


def test_what_draws_in_training_alone_is_not_random(tmp_path: Path) -> None:
    model, x = Behaves().eval(), torch.randn(4, 10)
    program = sslprune.trace(model, (x,))
    assert program.random == () and program.notes == ()
    assert any(axis.exact and axis.name == "one" for axis in sslprune.find_axes(program))
    assert sslprune.export_onnx(model, (x,), tmp_path / "m.onnx") < 1e-4


def test_a_slope_that_training_draws_is_repacked_in_both_modes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Leaks().eval(), torch.randn(4, 10)
    program = sslprune.trace(model, (x,))
    assert program.random == () and program.training is not None
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    assert {axis.name for axis in axes} == {"one", "two"}
    for axis in axes:
        sslprune.zero_groups(model, axis, range(axis.size // 2))
    small = sslprune.repack(model, program, axes)
    assert difference(model(x), small.eval()(x))[1] < 1e-5
    assert small.train()(x).shape == (4, 4)
    assert sslprune.export_onnx(small.eval(), (x,), tmp_path / "m.onnx") < 1e-4


@pytest.mark.parametrize(
    ("operator", "args", "kwargs", "drawn"),
    [
        (torch.ops.aten.rrelu.default, (X,), {}, False),
        (torch.ops.aten.rrelu.default, (X, 0.1, 0.5, True), {}, True),
        (torch.ops.aten.dropout.default, (X, 0.5, True), {}, True),
        (torch.ops.aten.dropout.default, (X, 0.5, False), {}, False),
        (torch.ops.aten.dropout.default, (X, 0.0, True), {}, False),
        (torch.ops.aten.native_dropout.default, (X, 0.5), {"train": False}, False),
        (torch.ops.aten.bernoulli.Tensor, (X, X), {}, True),
        (torch.ops.aten.relu.default, (X,), {}, False),
    ],
)
def test_tags_and_arguments_say_what_draws(operator: Any, args: tuple[Any, ...], kwargs: Any, drawn: bool) -> None:
    assert draws_by(operator, args, kwargs) is drawn


def test_a_run_names_it_before_it_trains(tmp_path: Path) -> None:
    code = """
        import torch.nn as nn, torch.nn.functional as F
        class Always(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two, self.three = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)
            def forward(self, x):
                return self.three(F.dropout(self.two(F.relu(self.one(x))).mean((2, 3)), 0.1))
        """
    (tmp_path / "always.py").write_text(textwrap.dedent(code))
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.replace("sslprune.zoo:digits_cnn", f"{tmp_path}/always.py:Always"))
    said = mistake("run", recipe, "--run", tmp_path / "run")
    assert "Always draws random numbers in evaluation mode too: dropout (" in said and "always.py:8: " in said
    assert not (tmp_path / "run").exists()


# -- draws that are alike ----------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Tensor], Any]] = {
    "normal": torch.randn_like,
    "uniform": torch.rand_like,
    "normal in place": lambda x: torch.empty_like(x).normal_(2.0, 3.0),
    "uniform in place": lambda x: torch.empty_like(x).uniform_(2.0, 3.0),
    "by size": lambda x: torch.randn(x.shape),
    "dropout": lambda x: F.dropout(x, 0.25),
    "dropout of a half": lambda x: F.dropout(x),
    "dropout of channels": lambda x: F.dropout1d(x, 0.25),
    "slope": lambda x: F.rrelu(-x, 0.1, 0.5, True),
    "bernoulli": lambda x: torch.bernoulli(x / 2),
    "bernoulli of a half": lambda x: torch.empty_like(x).bernoulli_(),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_draws_are_alike_whatever_the_width(name: str, inference: bool) -> None:
    found = []
    with torch.inference_mode(inference), torch.no_grad():
        for width in (40, 3):
            with alike():
                first, second = KINDS[name](torch.ones(2, width)), KINDS[name](torch.ones(2, width))
            assert bool((first == first[0, 0]).all())
            found.append((float(first[0, 0]), float(second[0, 0])))
    assert found[0] == found[1]
    if "dropout of a" in name or "bernoulli" in name:
        assert found[0][0] == (2.0 if "dropout" in name else 1.0)
    elif "dropout" in name or name == "slope":
        assert found[0][0] == pytest.approx(4 / 3 if "dropout" in name else -0.3)
    else:
        assert found[0][0] != found[0][1]  # but not twice the same


def test_generators_are_left_as_they_were() -> None:
    before = torch.get_rng_state()
    with alike():
        torch.randn(3)
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_within_operators_is_alike_too() -> None:
    torch.manual_seed(0)
    lstm, x = nn.LSTM(4, 5, 2, dropout=0.5), torch.randn(3, 2, 4)
    results = []
    with torch.no_grad():
        for _ in range(2):
            with alike():
                results.append((lstm(x)[0], F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)))
        assert difference(*results) == (0.0, 0.0)
        with evaluating(lstm):
            assert difference(results[0][0], lstm(x)[0])[1] > 1e-3  # what is kept is scaled
        assert difference(results[0][1], 2 * F.scaled_dot_product_attention(x, x, x))[1] < 1e-5
