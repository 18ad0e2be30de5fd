"""Columns: zero ones go where that pays, with filters and kernel positions; where it does not, nothing changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sslprune
from sslprune.capture.program import Program
from sslprune.cost.counts import Cost
from sslprune.errors import RepackError
from sslprune.kinds.columns import COLUMNS_PAY, columns_gone
from sslprune.removal.plan import apply_plan, make_plan
from sslprune.removal.remove import removable
from sslprune.values.axes import Axis, zero_groups, zero_mask
from sslprune.values.compare import difference
from sslprune.values.selection import Selection
from tests.laws import lively_, reload_without_sslprune, save_for_reload, settle_


class Plane(nn.Module):
    """Convolutions with uneven kernels, strides, dilations and paddings; ``two`` is followed by a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 6, (5, 3), stride=(1, 2), padding=(2, 1), bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.three = nn.Conv2d(6, 5, 3, dilation=2, padding=1, stride=2)
        self.point = nn.Conv2d(5, 7, 1)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.two(torch.relu(self.one(x)))))
        return self.head(torch.relu(self.point(torch.relu(self.three(x)))).mean((2, 3)))


def along() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 9, 7, padding=3, stride=3), nn.ReLU(), nn.Conv1d(9, 5, 3), nn.Flatten())


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 4, (1, 3, 2)), nn.Flatten())


MODELS = {"plane": (Plane, (3, 13, 12)), "along": (along, (4, 25)), "volume": (volume, (2, 4, 5, 5))}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Program, list[Axis]]:
    make, shape = MODELS[name]
    args = (torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)),)
    model = settle_(lively_(make()), args)
    program = sslprune.trace(model, args)
    return model, args, program, [axis for axis in sslprune.find_axes(program) if axis.exact]


def columns_of(axes: list[Axis]) -> list[Axis]:
    return [axis for axis in axes if axis.kind == "columns"]


def zero_(model: nn.Module, axes: list[Axis], share: float, seed: int, others: bool) -> None:
    """Zero all but ``share`` of the columns of every convolution, and a third of every other axis."""
    random = np.random.default_rng(seed)
    for axis in axes:
        if axis.kind == "columns":
            zero_groups(model, axis, random.permutation(axis.size)[max(1, int(share * axis.size)) :])
        elif others and axis.kind != "layers":
            zero_groups(model, axis, random.permutation(axis.size)[: axis.size // 3])


@torch.no_grad()
def relative(one: nn.Module, other: nn.Module, args: tuple[Tensor, ...]) -> float:
    return difference(one(*args), other(*args))[1]


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.named_parameters()}


def test_where_they_are_found() -> None:
    _, _, _, axes = build("plane")
    found = {axis.name: axis.size for axis in columns_of(axes)}
    assert found == {"one/columns": 27, "two/columns": 120, "three/columns": 54}  # a pointwise one has none
    assert all(axis.kind == "columns" for axis in axes[-3:])


@pytest.mark.parametrize("how", ["grouped", "transposed", "same", "shared", "frozen"])
def test_where_there_are_none(how: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = nn.ConvTranspose2d if how == "transposed" else nn.Conv2d
            padding = "same" if how == "same" else 1
            self.conv = kind(4, 4, 3, padding=padding, groups=2 if how == "grouped" else 1)  # type: ignore[arg-type]
            self.conv.requires_grad_(how != "frozen")

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x)) if how == "shared" else self.conv(x)

    assert not columns_of(sslprune.find_axes(sslprune.trace(Net(), (torch.randn(2, 4, 6, 6),))))


@every_model
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_masked_equals_repacked(name: str, share: float, others: bool) -> None:
    for seed in (0, 1):
        model, args, program, axes = build(name)
        axes = axes if others else columns_of(axes)
        zero_(model, axes, share, seed, others)
        settle_(model, args, seed)
        small = sslprune.repack(model, program, axes).eval()
        for batch_size in (1, 2, 5):
            assert relative(model, small, (torch.randn(batch_size, *MODELS[name][1]),)) < 1e-5
        removed = removable(program, Selection.zeros(model, axes))
        columns = [mask for axis, mask in zip(axes, removed, strict=True) if axis.kind == "columns"]
        if not others:
            assert any(mask.any() for mask in columns) == (share <= COLUMNS_PAY)
        cost, gone = Cost(program, axes), Selection.zeros(model, axes)
        remaining = Cost(sslprune.trace(small, args), [])
        assert cost.parameters(gone) == remaining.parameters() == sum(map(torch.Size.numel, shapes(small).values()))
        assert cost.macs(gone) == remaining.macs() == cost.macs(removed)


def test_columns_and_macs_counted_by_hand() -> None:
    model, args, program, _ = build("plane")
    axes = columns_of(sslprune.find_axes(program))
    before = Cost(program, axes).macs()
    zero_groups(model, axes[1], range(12, 120))  # two: 12 of 120 stay: channel 0 whole, but for kernel rows 4
    small = sslprune.repack(model, program, axes)
    assert shapes(small)["two.weight"] == (6, 12, 1, 1)
    assert [mask.sum() for mask in removable(program, Selection.zeros(model, axes))] == [0, 108, 0]
    assert before - Cost(sslprune.trace(small, args), []).macs() == 108 * 6 * 13 * 6
    savings = Cost(program, axes).savings(None, "macs")[1]
    assert savings.sum() == 120 * 6 * 13 * 6  # each saves its share, once enough are gone


def test_when_it_pays() -> None:
    left = np.ones(100, bool)
    zero = np.ones(100, bool)
    zero[:10] = False
    assert columns_gone(zero, left).sum() == 90
    zero[10] = False
    assert not columns_gone(zero, left).any()
    left[50:] = False
    zero[5:] = True
    assert columns_gone(zero, left).sum() == 95  # 5 of 50; what others removed is gone as well
    zero[5] = False
    assert not columns_gone(zero, left).any()
    assert (~columns_gone(np.ones(100, bool), left)).sum() == 1


@every_model
def test_repacking_twice_changes_nothing_and_prunes_on(name: str) -> None:
    model, args, program, axes = build(name)
    zero_(model, axes, 0.1, 0, others=True)
    small = sslprune.repack(model, program, axes).eval()
    program = sslprune.trace(small, args)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    again = sslprune.repack(small, program, axes).eval()
    assert shapes(again) == shapes(small) and relative(small, again, args) < 1e-6
    zero_(small, axes, 0.3, 1, others=True)
    assert relative(small, sslprune.repack(small, program, axes).eval(), args) < 1e-5


@every_model
def test_training_goes_on_alike(name: str) -> None:
    model, args, program, axes = build(name)
    zero_(model, axes, 0.1, 0, others=False)
    columns = columns_of(axes)
    small = sslprune.repack(model, program, columns).train()
    expected, found = model.train()(*args), small(*args)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected.square().sum().backward()
    found.square().sum().backward()
    state, plan = dict(model.named_parameters()), make_plan(model, program, columns)
    for path, parameter in small.named_parameters():
        grad = state[path].grad
        assert grad is not None and parameter.grad is not None
        if path in plan.tensors:
            grad = grad.flatten(1)[:, list(plan.tensors[path].kept[1])].reshape(parameter.shape)
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-3, atol=1e-4)
    assert plan.tensors and all(tensor.after == shapes(small)[path] for path, tensor in plan.tensors.items())


def test_the_plan_says_that_no_module_can_gather() -> None:
    model, _, program, axes = build("plane")
    zero_(model, axes, 0.05, 0, others=False)
    with pytest.raises(RepackError, match="use sslprune"):
        apply_plan(Plane(), make_plan(model, program, axes))


def test_onnx_and_saved_programs_agree(tmp_path: Path) -> None:
    for name in MODELS:
        model, args, program, axes = build(name)
        zero_(model, axes, 0.1, 0, others=True)
        settle_(model, args)
        small = sslprune.repack(model, program, axes).eval()
        assert sslprune.export_onnx(small, args, tmp_path / f"{name}.onnx") < 1e-4
        save_for_reload(name, model, small, args, tmp_path)
    assert max(reload_without_sslprune(tmp_path).values()) < 1e-5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_lasso_takes_columns_to_zero(memory_format: torch.memory_format) -> None:
    model, args, program, axes = build("plane")
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    columns = columns_of(axes)
    lasso = sslprune.GroupLasso(model, columns, strength=0.1)
    weight = model.two.weight  # type: ignore[union-attr]
    assert isinstance(weight, Tensor)
    matrix = weight.detach().clone().flatten(1)
    np.testing.assert_allclose(lasso.norms()[1], matrix.norm(dim=0).numpy(), rtol=1e-5)
    limit = 0.1 * 6**0.5  # the default weight: the root of the numbers in a column
    lasso.step(lr=1.0)
    torch.testing.assert_close(weight.detach().flatten(1), matrix * (1 - limit / matrix.norm(dim=0)).clamp_min(0))
    for _ in range(40):
        lasso.step(lr=0.1)
    zero = [zero_mask(model, axis) for axis in columns]
    assert all((norms == 0)[mask].all() for norms, mask in zip(lasso.norms(), zero, strict=True))
    assert all(mask.any() for mask in zero)
    assert relative(model, sslprune.repack(model, program, columns).eval(), args) < 1e-5


def test_the_lasso_with_filters_and_kernels_too() -> None:
    """A weight on several axes is scaled by the factor of each."""
    model, _, _, axes = build("plane")
    axes = [axis for axis in axes if axis.kind in ("filters", "columns", "kernel")]
    lasso = sslprune.GroupLasso(model, axes, strength=0.02)
    before, norms = dict(model.named_parameters())["two.weight"].detach().clone(), lasso.norms()
    expected = before.clone()
    for axis, norm in zip(axes, norms, strict=True):
        for member in (member for member in axis.members if member.name == "two.weight"):
            sizes = lasso.sizes[lasso.starts[axes.index(axis)] :][: axis.size]
            factor = torch.from_numpy(np.maximum(0, 1 - 0.02 * np.sqrt(sizes) / norm)).float()
            shape = [1] * 4
            shape[member.dim : 4 if member.flat else member.dim + 1] = member.shape(before)
            expected *= factor.view(shape)
    lasso.step(lr=1.0)
    torch.testing.assert_close(dict(model.named_parameters())["two.weight"].detach(), expected)
