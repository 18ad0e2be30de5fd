"""What is stacked and taken out again one by one is not tied: states of recurrent layers, and any tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sslprune
from sslprune.values.axes import Axis, zero_groups
from sslprune.values.compare import difference
from sslprune.values.inputs import random_like
from tests.laws import lively_


class Encoder(nn.Module):
    """Reads a recurrent stack through its last states alone."""

    def __init__(self, kind: type[nn.RNNBase], use: Callable[[Tensor, Tensor], Tensor], **options: object) -> None:
        super().__init__()
        self.layers = kind(4, 6, num_layers=3, batch_first=True, **options)  # type: ignore[arg-type]
        self.use = use
        with torch.no_grad():
            self.head = nn.Linear(self.states(torch.randn(2, 5, 4)).shape[1], 3)

    def states(self, x: Tensor) -> Tensor:
        out, state = self.layers(x)
        return self.use(out, state[0] if isinstance(state, tuple) else state)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.states(x))


def removed(model: nn.Module, x: Tensor) -> list[Axis]:
    """The axes, after one to three groups of each exact one went: another number of each, and the same function."""
    lively_(model).eval()
    program = sslprune.trace(model, (x,))
    axes = sslprune.find_axes(program)
    exact = [axis for axis in axes if axis.exact and axis.kind != "layers"]
    for i, axis in enumerate(exact):
        zero_groups(model, axis, range(axis.size)[1 : 2 + i % 3])
    small = sslprune.repack(model, program, exact).eval()
    for batch in (2, 1, 5):
        (other,) = random_like((x,), batch)
        assert difference(model(other), small(other))[1] < 1e-5
    return axes


def hidden(axes: list[Axis]) -> list[int]:
    return [axis.size for axis in axes if axis.kind == "hidden" and axis.exact]


LAST = {
    "the last layer": lambda out, h: h[-1],
    "another layer": lambda out, h: h[1],
    "unbound": lambda out, h: h.unbind(0)[2],
    "two layers, side by side": lambda out, h: torch.cat([h[0], h[2]], 1),
    "with the output": lambda out, h: torch.cat([out[:, -1], h[0]], 1),
}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("use", LAST.values(), ids=LAST)
def test_each_layer_keeps_a_width_of_its_own(kind: type[nn.RNNBase], use: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert hidden(removed(Encoder(kind, use), torch.randn(2, 5, 4))) == [6, 6, 6]


def test_both_directions_of_one_layer_share_a_width_and_layers_do_not() -> None:
    use = lambda out, h: torch.cat([h[-2], h[-1]], 1)  # noqa: E731
    assert hidden(removed(Encoder(nn.GRU, use, bidirectional=True), torch.randn(2, 5, 4))) == [6, 6, 6]


@pytest.mark.parametrize("use", [lambda out, h: h.mean(0), lambda out, h: h.transpose(0, 1).flatten(1)])
def test_what_reads_all_states_as_one_tensor_ties_the_layers(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert hidden(removed(Encoder(nn.LSTM, use), torch.randn(2, 5, 4))) == [6]


def test_states_that_reach_the_output_stay_whole() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.GRU(4, 6, num_layers=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)[1].transpose(0, 1)

    axes = removed(Returns(), torch.randn(2, 5, 4))
    assert not hidden(axes)
    assert {axis.reason for axis in axes if axis.kind == "hidden"} == {"it reaches the model's output"}


class Stacked(nn.Module):
    """Three layers' features, stacked; ``use`` makes one tensor (batch, n) of the stack."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Linear(4, 6) for _ in range(3))
        self.use = use
        self.after = nn.Linear(use(torch.zeros(2, 3, 6)).shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.use(torch.stack([layer(x) for layer in self.before], 1)))


def neurons(axes: list[Axis]) -> list[int]:
    return [axis.size for axis in axes if axis.kind == "neurons" and axis.exact and "before" in axis.name]


ALONE = {
    "selected": lambda s: torch.cat([s[:, 0], s[:, 1], s[:, -1]], 1),
    "unbound": lambda s: torch.cat(s.unbind(1), 1),
    "bent": lambda s: torch.cat([s.select(1, 0).relu(), s.select(-2, 1).sigmoid(), s[:, 2]], 1),
}


@pytest.mark.parametrize("use", ALONE.values(), ids=ALONE)
def test_stacked_tensors_that_are_taken_out_one_by_one_are_not_tied(use: Callable[[Tensor], Tensor]) -> None:
    assert neurons(removed(Stacked(use), torch.randn(2, 4))) == [6, 6, 6]


TOGETHER = {
    "summed": (lambda s: s.sum(1), [6]),
    "another's shape": (lambda s: torch.cat([s[:, 0], s.sigmoid().flatten(1).view_as(s)[:, 1]], 1), [6]),
    "selected, and read whole": (lambda s: torch.cat([s[:, 0], s.amax(1)], 1), [6]),
    "without its first entries": (lambda s: s[:, :, 1:].flatten(1), [1, 5]),
}


@pytest.mark.parametrize(("use", "sizes"), TOGETHER.values(), ids=TOGETHER)
def test_a_stack_that_is_read_whole_ties_them(use: Callable[[Tensor], Tensor], sizes: list[int]) -> None:
    assert sorted(neurons(removed(Stacked(use), torch.randn(2, 4)))) == sizes
