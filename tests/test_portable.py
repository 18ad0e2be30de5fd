"""What a file or a graph has to be told in other words: projections, experts, sizes that grow with the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.cost.counts import Cost
from sslprune.export.portable import grouped_mm
from sslprune.values.axes import zero_groups
from sslprune.values.compare import difference
from sslprune.values.selection import Selection
from tests.laws import lively_, zero_random_


class Projected(nn.Module):
    """A stack of LSTMs with projections: (batch, steps, 8) and its first states -> scores and the last states."""

    def __init__(self, layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 12, layers, proj_size=5, bidirectional=bidirectional, batch_first=True)
        self.head = nn.Linear(10 if bidirectional else 5, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        y, (h, c) = self.rnn(x, (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()))
        return self.head(y), h.transpose(0, 1), c.transpose(0, 1)


class Begun(nn.Module):
    """The same with learned first states, which are the same for every sequence; the last cell states are read."""

    def __init__(self, layers: int, bidirectional: bool, learned: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 12, layers, proj_size=5, bidirectional=bidirectional, batch_first=True)
        self.head, self.learned = nn.Linear(10 if bidirectional else 5, 3), learned
        number = layers * (2 if bidirectional else 1)
        self.h, self.c = nn.Parameter(torch.zeros(number, 1, 5)), nn.Parameter(torch.zeros(number, 1, 12))

    def forward(self, x: Tensor) -> Any:
        begin = (self.h.expand(-1, x.shape[0], -1), self.c.expand(-1, x.shape[0], -1)) if self.learned else None
        y, (_, c) = self.rnn(x, begin)
        return self.head(y), c.sum((0, 2))


class Heads(nn.Module):
    """Attention over the pixels of an image, with the batch and the heads as one dimension (BoTNet's shape)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 36, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (part.reshape(b * 4, 3, h * w) for part in self.qkv(F.relu(self.stem(x))).chunk(3, dim=1))
        weights = (q.transpose(1, 2) @ k).softmax(-1)
        return self.out((v @ weights.transpose(1, 2)).reshape(b, 12, h, w)).mean((2, 3))


class Shared(nn.Module):
    """Two residual branches that read one convolution: with both of them gone, nobody needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.common, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3, padding=1), nn.Linear(6, 4)
        self.first, self.second = nn.Conv2d(7, 6, 1), nn.Conv2d(7, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        common = F.relu(self.common(x))
        x = x + self.first(common)
        return self.head(F.relu(x + self.second(common)).mean((2, 3)))


class Repeated(nn.Module):
    """Each channel several times over, the number of copies and the result's size both written down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)).repeat_interleave(2, dim=1, output_size=12))))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
def test_a_projection_that_is_left_square_stays_one(
    layers: int, bidirectional: bool, learned: bool, tmp_path: Path
) -> None:
    model, x = lively_(Begun(layers, bidirectional, learned)).eval(), torch.randn(2, 6, 8)
    program = sslprune.trace(model, (x,))
    axes = sslprune.find_axes(program)
    for axis in axes:
        if axis.kind == "hidden":
            assert axis.exact
            zero_groups(model, axis, range(3, 10))
    small = sslprune.repack(model, program, axes)  # compared with the model in both modes
    assert {p.shape[1] for name, p in small.named_parameters() if "weight_hr" in name} == {5}
    assert {p.shape[0] for name, p in small.named_parameters() if "weight_hh" in name} == {20}
    sslprune.export_onnx(small, (x,), tmp_path / "small.onnx")  # compared with ONNX Runtime
    trained = small.train()(x)[0].square().mean()
    trained.backward()
    assert all(p.grad is not None for name, p in small.named_parameters() if "rnn" in name)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_onnx_of_a_projected_lstm(bidirectional: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    states = 4 if bidirectional else 2
    model = lively_(Projected(2, bidirectional)).eval()
    args = torch.randn(2, 7, 8), torch.randn(2, states, 5), torch.randn(2, states, 12)
    assert sslprune.export_onnx(model, args, tmp_path / "model.onnx") < 1e-5


def test_experts_as_one_product() -> None:
    x, weight, ends = torch.randn(10, 6), torch.randn(4, 6, 5), torch.tensor([2, 2, 7, 9], dtype=torch.int32)
    runs = [x[0:2] @ weight[0], x[2:7] @ weight[2], x[7:9] @ weight[3], torch.zeros(1, 5)]
    torch.testing.assert_close(grouped_mm(x, weight, ends), torch.cat(runs))


@pytest.mark.parametrize(
    ("build", "args"), [(Heads, (torch.randn(2, 3, 5, 4),)), (Repeated, (torch.randn(2, 5),))], ids=["heads", "copies"]
)
def test_sizes_follow_what_is_left(build: Any, args: tuple[Tensor, ...]) -> None:
    torch.manual_seed(0)
    model = lively_(build()).eval()
    program = sslprune.trace(model, args)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    zero_random_(model, program, axes, np.random.default_rng(0))
    small = sslprune.repack(model, program, axes).eval()
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    more = tuple(torch.cat([arg, arg.flip(1), arg]) for arg in args)
    assert difference(model(*more), small(*more))[1] < 1e-5


def test_cost_counts_only_what_the_output_needs() -> None:
    torch.manual_seed(0)
    model, args = lively_(Shared()).eval(), (torch.randn(2, 3, 8, 8),)
    program = sslprune.trace(model, args)
    axes = [axis for axis in sslprune.find_axes(program) if axis.kind == "layers"]
    assert len(axes) == 2
    cost = Cost(program, axes)
    gone = Selection.none(axes).plus({1: np.array([0])})
    last = cost.savings(gone, "parameters")[0]
    for axis in axes:
        zero_groups(model, axis, [0])
    small = sslprune.repack(model, program, axes)
    left = sum(p.numel() for p in small.parameters())
    assert left == (6 * 27 + 6) + (6 * 4 + 4) == cost.parameters(Selection.zeros(model, axes))
    assert last == [cost.parameters(gone) - left]
