"""What a node multiplies by and sums over: stated once by its rule, for costs, layers, names and roles alike."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.analysis.contraction import Window
from sslprune.cost.layers import layers_of
from sslprune.kinds.find import analysis_of


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 12))
        self.back = nn.Parameter(torch.randn(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("bti,ij->btj", x, self.weight)
        scores = torch.einsum("btj,bsj->bts", h, h).softmax(-1)
        return torch.einsum("bts,bsj,jk->btk", scores, h, self.back)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v)


class First(nn.Module):
    """The weight stands before what it is multiplied with, as in a layer that mixes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.back = (nn.Parameter(torch.randn(*shape)) for shape in ((6, 4), (4, 6)))

    def forward(self, x: Tensor) -> Tensor:
        return self.back @ (self.mix @ x).relu()


def transposed() -> nn.Module:
    return nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, bias=False)


def grouped() -> nn.Module:
    return nn.Conv2d(6, 4, (3, 1), padding=(1, 0), groups=2, bias=False)


def stacked() -> nn.Module:
    return nn.LSTM(5, 6, 2, batch_first=True, proj_size=4)


# by hand, for one sample: of each contraction its input, its weight, the weight's dimensions that are made and that are
# summed over, its multiply-accumulates; and of each layer that is asked for its widths and rows
EXPECTED = {
    "first": (First, (4, 3), ["x mix (0,) (1,) 72", "q back (0,) (1,) 72"], ["MatMul2 4x3 1x6", "MatMul2 6x3 1x4"]),
    "linear": (lambda: nn.Linear(5, 7), (3, 5), ["x weight (0,) (1,) 105"], ["MatMul 5x7 3"]),
    "grouped": (grouped, (6, 9, 9), ["x weight (0,) (1, 2, 3) 2916"], ["Conv 2x3x2 1 9x9 3x1 1x1 1x0 1x1"]),
    "transposed": (
        transposed,
        (6, 4, 4),
        ["x weight (1,) (0, 2, 3) 1728"],
        ["ConvTranspose 2x3x2 1 4x4 3x3 2x2 0x0 1x1"],
    ),
    "attention": (
        Attention,
        (3, 8),
        ["x weight (0,) (1,) 576", "q k (2,) (3,) 72", "- v (3,) (2,) 72"],
        ["MatMul 8x24 3", "Attention 4x4 2x3x3"],
    ),
    "stacked": (
        stacked,
        (3, 5),
        [
            *("- weight_hr_l0 (0,) (1,) 72", "x weight_ih_l0 (0,) (1,) 360", "- weight_hh_l0 (0,) (1,) 288"),
            *("- weight_hr_l1 (0,) (1,) 72", "- weight_ih_l1 (0,) (1,) 288", "- weight_hh_l1 (0,) (1,) 288"),
        ],
        ["LSTM 5x4 3x1x1", "LSTM 4x4 3x1x1"],
    ),
    "einsum": (
        Einsum,
        (3, 8),
        ["x weight (1,) (0,) 288", "q k (1,) (2,) 108", "q back (1,) (0,) 432"],
        ["MatMul 8x12 3", "MatMul2 12x3 1x3", "MatMul 36x4 3"],
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_rule_states(name: str) -> None:
    build, shape, contractions, layers = EXPECTED[name]
    program = sslprune.trace(build(), (torch.randn(2, *shape),))
    g = analysis_of(program).inference
    found, asked = [], []
    for node in program.evaluation.nodes:
        for c in g.facts[node].contractions:
            assert c.node is node
            source = "-" if c.input is None else "x" if c.input.op == "placeholder" else "q"
            weight = str(c.weight.target) if c.weight.op == "get_attr" else "v" if c.input is None else "k"
            macs = c.times * torch.Size([dim.size for dim in c.dims]).numel() // program.batch
            found.append(f"{source} {weight.rpartition('.')[2]} {c.makes} {c.reads} {macs}")
        for one in layers_of(g, node, 1):
            asked.append(str(one.make([[dim.size for dim in dims] for dims in one.operands])))
    assert found == contractions and asked == layers
    assert sslprune.Cost(program, []).macs() == sum(int(text.split()[-1]) for text in contractions)


def test_roles_of_members() -> None:
    """Filters are made by a convolution, followed by its bias and norm, and read by the next layer."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    lstm = nn.LSTM(5, 6, batch_first=True)
    for build, shape, expected in (
        (model, (3, 4, 4), {"0.weight": "makes", "0.bias": "follows", "1.weight": "follows", "3.weight": "reads"}),
        (First(), (4, 3), {"mix": "makes", "back": "reads"}),
    ):
        axis = next(a for a in sslprune.find_axes(sslprune.trace(build, (torch.randn(2, *shape),))) if a.exact)
        assert expected.items() <= {member.name: member.role for member in axis.members}.items()
    members = sslprune.find_axes(sslprune.trace(lstm, (torch.randn(2, 3, 5),)))[0].members
    roles = {(member.name, member.dim): member.role for member in members}
    assert roles["weight_ih_l0", 0] == roles["weight_hh_l0", 0] == "makes" and roles["weight_hh_l0", 1] == "reads"


def test_a_convolution_says_how_its_kernel_moves() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.Conv1d(4, 4, 3, dilation=2, padding="same"))
    program = sslprune.trace(model, (torch.randn(2, 3, 12),))
    g = analysis_of(program).inference
    windows = [c.window for node in program.evaluation.nodes for c in g.facts[node].contractions]
    assert windows == [Window((2,), (1,), (1,)), Window((1,), "same", (2,))]


def test_the_rows_of_a_weight_that_stands_first_are_neurons() -> None:
    axes = {axis.name: axis for axis in sslprune.find_axes(sslprune.trace(First(), (torch.randn(2, 4, 3),)))}
    assert (axes["mix"].kind, axes["mix"].size, axes["mix"].exact) == ("neurons", 6, True)
