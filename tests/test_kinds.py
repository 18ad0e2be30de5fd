"""The kinds of structures: one file each, told apart in their own room alone; and the analysis that finds them."""

from __future__ import annotations

import ast
import gc
import re
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sslprune
from sslprune.analysis.analysis import Analysis
from sslprune.capture.program import Program
from sslprune.kinds.find import analysis_of
from sslprune.kinds.kind import Kind
from sslprune.kinds.table import KINDS
from sslprune.removal.remove import removable, remove
from sslprune.values.axes import Axis
from sslprune.values.selection import Selection
from tests.architectures import ARCHITECTURES
from tests.test_imports import MODULES

PACKAGE = Path(sslprune.__file__).parent
OTHERWISE = {  # words that mean something else there, as a configuration's field does, or that a person reads
    ("data/own.py", "inputs"),
    ("recipe/method.py", "layers"),
    ("export/deci.py", "head_dim"),
    ("export/deci.py", "width"),
}


def test_a_program_has_one_analysis_which_goes_with_it() -> None:
    program = sslprune.trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 3),))
    axes = sslprune.find_axes(program)
    analysis = weakref.ref(analysis_of(program))
    assert analysis_of(program) is analysis() and sslprune.find_axes(program) == axes
    del program
    gc.collect()
    assert analysis() is None and [axis.size for axis in axes if axis.exact] == [4]


# -- nothing outside the room tests a kind's name ---------------------------------------------------------------------


def named(source: str) -> list[tuple[int, str]]:
    """The lines and names where a kind's name stands as text of its own, but where a rule labels a dimension with it.

    That is what a comparison, a case, a list, a key and a constant to compare with have in common. Text that holds more
    than the name (documentation, an error, the recipe that `sslprune init` writes) tests nothing.
    """
    tree = ast.parse(source)
    labels = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "label"
        for argument in node.args
    }
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in KINDS and id(node) not in labels
    ]


@pytest.mark.parametrize(
    "planted",
    [
        'gone = axis.kind == "layers"',
        'gone = axis.kind not in ("filters", "heads")',
        'gone = axis.kind in {"columns": 1}',
        'INSIDE = "kernel"\ngone = axis.kind == INSIDE',
        'match axis.kind:\n    case "hidden" | "width":\n        pass',
        'gone = is_of(axis, "layers")',
        'def floor(axis, whole="layers"): ...',
        'gone = axis.kind.startswith("layers")',
    ],
)
def test_a_name_is_found_wherever_it_could_be_tested(planted: str) -> None:
    assert named(planted)
    assert (
        named('"""The kind "layers" is not named here, nor ``"heads"``."""\ng.label(dim, "heads")\nlayers = "layer"')
        == []
    )


@pytest.mark.parametrize("path", [path for path in MODULES if not path.startswith("kinds/")])
def test_only_the_room_of_kinds_tests_their_names(path: str) -> None:
    found = [(line, name) for line, name in named((PACKAGE / path).read_text()) if (path, name) not in OTHERWISE]
    assert not found, f"{path}: {found}: ask `kind_of(axis)`; what it has no answer for yet is a method of Kind"


def test_nor_does_the_page_of_the_report() -> None:
    assert not re.findall(r"\.kind\s*(?:[!=]=|in\b|not\b)", (PACKAGE / "report" / "page.html").read_text())


# -- a kind of one's own ----------------------------------------------------------------------------------------------


class TailKind(Kind):
    """Neurons two by two, of which only the last can go: a smaller layer is the beginning of a larger one."""

    def find(self, analysis: Analysis, labelled: Sequence[Axis]) -> list[Axis]:
        return [self._paired(axis) for axis in labelled if axis.kind == "neurons" and axis.size % 2 == 0]

    def _paired(self, axis: Axis) -> Axis:
        count = axis.size // 2
        members = [replace(member, positions=member.positions.reshape(count, -1)) for member in axis.members]
        return replace(axis, kind=self.name, size=count, members=tuple(members), atoms=axis.atoms.reshape(count, -1))

    def closed(self, gone: np.ndarray, left: np.ndarray | None) -> np.ndarray:
        return np.logical_and.accumulate(gone[::-1])[::-1]

    def next(self, alive: np.ndarray) -> np.ndarray:
        return np.arange(alive.size) == np.flatnonzero(alive).max(initial=-1)


@pytest.fixture
def tails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "tails", TailKind("tails", is_feature=False))  # the one row that it takes


def build() -> tuple[nn.Module, tuple[torch.Tensor, ...], Program, list[Axis]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 3))
    args = (torch.randn(4, 8),)
    program = sslprune.trace(model, args)
    return model, args, program, [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind == "tails"]


@torch.no_grad()
def test_a_kind_of_ones_own_is_found_zeroed_and_repacked(tails: None) -> None:
    model, args, program, axes = build()
    assert [(axis.name, axis.size) for axis in axes] == [("0/tails", 12), ("2/tails", 6)]
    assert [axis.name for axis in sslprune.find_axes(program) if axis.kind == "neurons"] == ["0", "2", "4"]
    sslprune.zero_groups(model, axes[0], [2, 8, 9, 10, 11])
    sslprune.zero_groups(model, axes[1], range(6))  # one always stays
    small = sslprune.repack(model, program, axes)
    assert [tuple(p.shape) for p in small.parameters()] == [(16, 8), (16,), (2, 16), (2,), (3, 2), (3,)]
    torch.testing.assert_close(small(*args), model(*args))
    gone, cost = removable(program, Selection.zeros(model, axes)), sslprune.Cost(program, axes)
    assert [np.flatnonzero(mask).tolist() for mask in gone] == [[8, 9, 10, 11], [1, 2, 3, 4, 5]]
    left = sslprune.Cost(sslprune.trace(small, args), [])
    assert (cost.macs(gone), cost.parameters(gone)) == (left.macs(), left.parameters())
    plan = sslprune.make_plan(model, program, axes)
    assert [(axis.kind, axis.before, len(axis.kept)) for axis in plan.axes] == [("tails", 12, 8), ("tails", 6, 1)]
    again = sslprune.apply_plan(build()[0], plan)
    assert [p.shape for p in again.parameters()] == [p.shape for p in small.parameters()]


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_a_kind_of_ones_own_is_chosen_and_trained_away(tails: None, fraction: float) -> None:
    model, args, program, _ = build()
    whole = sslprune.Cost(program, []).macs()
    sparsity = sslprune.Sparsity(model, args, prune="tails", macs=fraction, steps=80, round_to=1, decay=20, interval=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.randn(32, 8)
    for _ in range(90):
        loss = nn.functional.mse_loss(model(x), x[:, :3])
        optimizer.zero_grad()
        loss.backward()
        sparsity.observe(loss)
        optimizer.step()
        sparsity.step(0.05)
    removed = removable(sparsity.program, sparsity.selection)
    assert removed and all((np.diff(mask.astype(int)) >= 0).all() for mask in removed)  # from the end alone
    small = sparsity.repack()
    torch.testing.assert_close(small(x), model(x))
    share = sslprune.Cost(sslprune.trace(small, args), []).macs() / whole
    assert fraction - 0.1 < share <= fraction


def test_axes_that_share_neurons_are_counted_once(tails: None) -> None:
    model, args, program, _ = build()
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    zeros = {axis.name: [2, 23] if axis.name == "0" else [10, 11] if axis.name == "0/tails" else [] for axis in axes}
    for axis in axes:
        sslprune.zero_groups(model, axis, zeros[axis.name])
    gone = Selection.of(axes, [np.isin(np.arange(axis.size), zeros[axis.name]) for axis in axes])
    small = sslprune.repack(model, program, axes)
    cost, left = sslprune.Cost(program, axes), sslprune.Cost(sslprune.trace(small, args), [])
    assert cost.macs(gone) == left.macs() == cost.macs() - 5 * (8 + 12)
    savings = dict(zip((axis.name for axis in axes), cost.savings(gone, "macs"), strict=True))
    assert savings["0"][0] == 8 + 12 and savings["0"][2] == 0 and savings["0/tails"][9] == 2 * (8 + 12)


def test_a_branch_of_a_concatenation_costs_what_its_features_do() -> None:
    """Though they are on no axis of the cost's."""
    model, args = ARCHITECTURES["branches"]()
    program = sslprune.trace(model, args)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind == "layers"]
    for i in range(len(axes)):
        gone = removable(program, Selection.none(axes).plus({i: np.array([0])}))
        left = sslprune.Cost(sslprune.trace(remove(model, program, gone, verify=False), args), [])
        cost = sslprune.Cost(program, axes)
        assert (cost.macs(gone), cost.parameters(gone)) == (left.macs(), left.parameters())
