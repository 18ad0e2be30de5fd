"""The one comparison of two outputs, and who relies on it."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isnan, nan
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sslprune
from sslprune.values.compare import Beside, difference


def test_difference() -> None:
    a = torch.tensor([1.0, -4.0])
    assert difference(a, a.clone()) == (0.0, 0.0)
    assert difference({"y": a}, {"y": a + 1}) == (1.0, 0.25)
    assert difference((a, torch.zeros(2)), (a, torch.full((2,), 1e-9)))[1] == float("inf")
    for wrong in (torch.tensor([1.0, float("nan")]), torch.zeros(3), (a, a)):
        assert not difference(a, wrong)[1] <= 1e9
    nans = torch.tensor([float("nan"), 2.0])
    assert difference(nans, nans.clone()) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([-inf, 2.0], [-inf, 2.0], (0.0, 0.0)),
        ([-inf, 2.0], [-inf, 2.5], (0.5, 0.25)),  # relative to what is finite
        ([-inf, 2.0], [inf, 2.0], (inf, inf)),
        ([-inf, 2.0], [1.0, 2.0], (inf, inf)),
        ([-inf, nan], [-inf, nan], (0.0, 0.0)),
        ([3 + 4j, 1.0], [3 + 2j, 1.0], (2.0, 0.5)),  # the parts of a complex number are numbers
        ([True, False], [True, True], (1.0, 1.0)),
    ],
)
def test_of_unusual_numbers(one: list[complex], other: list[complex], expected: tuple[float, float]) -> None:
    assert difference(torch.tensor(one), torch.tensor(other)) == expected


class Masks(nn.Module):
    """Places that may not be chosen have a logit of -inf, or of NaN."""

    def __init__(self, filler: float) -> None:
        super().__init__()
        self.one, self.two, self.filler = nn.Linear(4, 8), nn.Linear(8, 6), filler

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(self.one(x).relu())
        return y.masked_fill(torch.arange(6) > 3, self.filler)


@pytest.mark.parametrize("filler", [-inf, nan])
def test_masked_logits_are_repacked_and_exported(filler: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Masks(filler).eval(), torch.randn(3, 4)
    program = sslprune.trace(model, (x,))
    (axis,) = (axis for axis in sslprune.find_axes(program) if axis.exact)
    sslprune.zero_groups(model, axis, range(3))
    small = sslprune.repack(model, program, [axis])
    assert small.get_parameter("one.weight").shape == (5, 4)
    assert torch.equal(model(x).isfinite(), small(x).isfinite())
    assert sslprune.export_onnx(small, (x,), tmp_path / "m.onnx") < 1e-5
    with torch.no_grad():
        small.get_parameter("two.weight")[5] = nan  # where the filler stands: seen by nobody
        assert difference(model(x), small(x))[1] < 1e-5
        small.get_parameter("two.weight")[0] = nan
    assert isnan(difference(model(x), small(x))[1])


class Sums(nn.Module):
    """The state is the sum of what came; the output leaves some of it out from the third call on."""

    def __init__(self, wrong: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.wrong = wrong

    def initial_state(self, rows: int) -> Tensor:
        return torch.zeros(rows, 2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state + x
        return self.wrong(state), state


def test_two_models_side_by_side_carry_their_own_state() -> None:
    right, wrong = Sums(lambda state: state), Sums(lambda state: state.clamp(max=2.5))
    watched = Beside(right, wrong)
    ones = torch.ones(4, 2)
    seen = []
    for _ in range(4):
        watched(ones)
        seen.append((watched.max_abs, watched.max_relative, watched.samples))
    assert seen == [(0.0, 0.0, 4), (0.0, 0.0, 8), (0.5, 0.5 / 3, 12), (1.5, 1.5 / 4, 16)]
