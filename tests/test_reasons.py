"""Why an axis stays: the operator, its module, the line of the person's code, and what about it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.values.axes import Axis
from sslprune.values.compare import difference
from tests.laws import lively_


def axis_of(model: nn.Module, args: tuple[Tensor, ...], name: str, dim: int = 0) -> Axis:
    axes = sslprune.find_axes(sslprune.trace(model, args))
    return next(axis for axis in axes if any((m.name, m.dim) == (name, dim) for m in axis.members))


class Body(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.softmax(1)  # here
        return y


class Between(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.one, self.body, self.two = nn.Linear(4, 6), body, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.body(self.one(x)))


def line(text: str) -> int:
    with open(__file__) as file:
        return next(i for i, row in enumerate(file, 1) if text in row)


def test_a_reason_names_operator_module_line_and_what_about_it() -> None:
    axis = axis_of(Between(Body()), (torch.randn(2, 4),), "one.weight")
    at = f"tests/test_reasons.py:{line('  # here')}: y = x.softmax(1)  # here"
    assert axis.reason == f"softmax in body ({at}): normalises over it"


def test_a_layer_that_ties_an_axis_to_what_stays_tells_why_that_stays() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.new_zeros(1) + x.sort(1).values  # sorted

    axis = axis_of(Between(Sorted()), (torch.randn(2, 4),), "one.weight")
    assert axis.frozen
    assert axis.reason.startswith(f"sort in body (tests/test_reasons.py:{line('  # sorted')}: ")
    assert axis.reason.endswith("): ordered along")


class ByBatch(nn.Module):
    """Arguments that a rule takes for numbers, computed from the batch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.one, self.two = how, nn.Linear(4, 6), nn.Linear(6, 3)
        self.kernel = nn.Parameter(torch.randn(5, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        y, n = self.one(x), x.shape[0]
        match self.how:
            case "conv1d":
                wide = y.reshape(1, -1, 1)
                weight = self.kernel.repeat(n, 1, 1)
                return F.conv1d(wide, weight, groups=n).reshape(n, 5)
            case "threshold":
                y = F.threshold(y, n * 0.01, 0.0)
            case "leaky_relu":
                y = F.leaky_relu(y, n * 0.01)
            case "elu":
                y = F.elu(y, n)
        return self.two(y)


@pytest.mark.parametrize("how", ["conv1d", "threshold", "leaky_relu", "elu"])
def test_a_number_that_the_graph_computes_freezes_what_its_operator_touches(how: str) -> None:
    model, x = ByBatch(how), torch.randn(2, 4)
    axis = axis_of(model, (x,), "one.weight")
    assert (
        axis.frozen
        and f"{how} (tests/test_reasons.py" in axis.reason
        and "computed while the model runs" in axis.reason
    )
    program = sslprune.trace(lively_(model).eval(), (x,))
    small = sslprune.repack(model, program, sslprune.find_axes(program)).eval()
    assert difference(model(x), small(x))[1] < 1e-6


def test_sizes_and_places_that_the_graph_computes_still_pass() -> None:
    class Moves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            y = x.reshape(n, 2, 3).expand(n, 2, 3).flatten(1) + x.new_zeros(n, 6) * n
            return y[: n + 1].roll(n, 0) / n

    axis = axis_of(Between(Moves()), (torch.randn(2, 4),), "one.weight")
    assert axis.exact


def test_what_is_not_finite_at_zero_is_not_zeroed() -> None:
    """Masked it would give no number: 0 x infinity."""

    class Log(nn.Module):
        def __init__(self, beyond: float) -> None:
            super().__init__()
            self.beyond = beyond

        def forward(self, x: Tensor) -> Tensor:
            return (x.square() + self.beyond).log() if self.beyond else x.square().log()

    x = torch.randn(2, 4)
    assert axis_of(Between(Log(0.1)), (x,), "one.weight").exact
    axis = axis_of(Between(Log(0.0)), (x,), "one.weight")
    assert not axis.exact and axis.reason.startswith("log in body (") and axis.reason.endswith("not finite at zero")


def test_the_largest_value_alone_is_no_place() -> None:
    class Largest(nn.Module):
        def __init__(self, places: bool) -> None:
            super().__init__()
            self.places = places

        def forward(self, x: Tensor) -> Tensor:
            values, indices = x.max(1)
            return x * (indices if self.places else values)[:, None]

    x = torch.randn(2, 4)
    alone, places = (axis_of(Between(Largest(places)), (x,), "one.weight") for places in (False, True))
    assert not alone.frozen and alone.reason.endswith("normalises over it")
    assert places.frozen and places.reason.endswith("its places are returned")
