"""Laws of structure, over random removals on small architectures: whatever is removed, the function stays."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sslprune
from sslprune.bench.table import LayerTable
from sslprune.capture.program import Program
from sslprune.cost.counts import Cost, Measure
from sslprune.errors import RepackError
from sslprune.export.session import open_session
from sslprune.removal.plan import read_plan
from sslprune.values.axes import Axis, tensors_of, zero_groups, zero_mask
from sslprune.values.compare import difference
from sslprune.values.inputs import random_like, tensors_in
from sslprune.values.selection import Selection
from tests.architectures import ARCHITECTURES
from tests.laws import (
    kept_indices,
    kept_slice,
    reload_without_sslprune,
    save_for_reload,
    settle_,
    wrong_slices,
    zero_random_,
)

# The groups on exact axes across channels, and the removable layers, that each has at least: counted by hand.
FOUND = {
    "plain": (6 + 8 + 10, 0),
    "residual": (6 + 6 + 6 + 8 + 8 + 8, 3),
    "option_a": (16 + 4 + 8 + 8 + 16, 4),
    "dense_concat": (4 + 3 * 3 + 6, 0),
    "inverted_residual": (6 + 12 + 4, 1),
    "grouped": (8 + 3, 1),
    "unet": (4 + 6 + 8 + 6 + 6 + 5, 0),
    "shared_weights": (6 + 9, 0),
    "multi_input": (6 + 7 + 8, 0),
    "temporal": (6 + 5, 1),
    "volumetric": (5 + 6, 0),
    "channel_shuffle": (4 + 4, 0),
    "split": (6 + 4 + 5, 0),
    "frozen_parameters": (8 + 8, 0),
    "buffers": (6, 0),
    "branches": (4 + 5 + 3 + 6, 0),
    "views": (8 + 12, 1),
    "unknown": (0, 0),
    "up_scaler": (0, 0),
}

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@dataclass(frozen=True)
class Case:
    model: nn.Module  # masked
    args: tuple[Tensor, ...]
    program: Program
    axes: list[Axis]
    small: nn.Module

    @property
    def exact(self) -> list[Axis]:
        return [axis for axis in self.axes if axis.exact]

    @property
    def gone(self) -> Selection:
        return Selection.zeros(self.model, self.exact)


@functools.cache
def removed(name: str, seed: int = 0) -> Case:
    """``name`` with a random half of the groups of every exact axis zeroed, and repacked."""
    model, args = ARCHITECTURES[name]()
    program = sslprune.trace(model, args)
    axes = sslprune.find_axes(program)
    exact = [axis for axis in axes if axis.exact]
    zero_random_(model, program, exact, np.random.default_rng(seed))
    settle_(model, args, seed)
    return Case(model, args, program, axes, sslprune.repack(model, program, exact).eval())


@torch.no_grad()
def relative(one: nn.Module, other: nn.Module, args: tuple[Any, ...]) -> float:
    return difference(one(*args), other(*args))[1]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@every_architecture
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_masked_model_equals_the_repacked_one_at_any_batch_size(name: str, seed: int) -> None:
    case = removed(name, seed)
    for batch_size in (1, 2, 5):
        assert relative(case.model, case.small, random_like(case.args, batch_size, seed)) < 1e-5


@every_architecture
def test_what_can_be_found_by_hand_is_found_and_removed(name: str) -> None:
    case = removed(name)
    groups = sum(axis.size for axis in case.exact if axis.kind not in ("kernel", "layers", "columns"))
    layers = sum(axis.kind == "layers" for axis in case.exact)
    assert groups >= FOUND[name][0] and layers >= FOUND[name][1], "\n".join(map(str, case.axes))
    if groups:
        assert count(case.small) < count(case.model)


@every_architecture
def test_axes_have_members_that_fit_their_tensors(name: str) -> None:
    case = removed(name)
    tensors = tensors_of(case.model)
    assert len({axis.name for axis in case.axes}) == len(case.axes)
    for axis in case.axes:
        assert axis.frozen <= (not axis.exact)
        assert axis.reason if not axis.exact else any(member.zeroed for member in axis.members)
        for member in axis.members:
            assert member.positions.shape[0] == axis.size
            assert member.positions.min() >= 0 and member.positions.max() < member.shape(tensors[member.name]).numel()
            assert len(np.unique(member.positions)) == member.positions.size


@every_architecture
def test_training_goes_on_alike(name: str) -> None:
    """One step in training mode: the same output, gradients and running statistics, at the indices kept."""
    case = removed(name)
    if any(isinstance(module, nn.Dropout) for module in case.model.modules()):
        pytest.skip("dropout draws other numbers for other widths")
    model, small = copy.deepcopy(case.model).train(), copy.deepcopy(case.small).train()
    results = [tensors_in(module(*case.args)) for module in (model, small)]
    assert difference(*results)[1] < 1e-4
    for result in results:
        sum((tensor.square().sum() for tensor in result), torch.zeros(())).backward()
    originals, compared = tensors_of(model), 0
    scale = max(float(tensor.grad.abs().max()) for tensor in model.parameters() if tensor.grad is not None)
    for tensor_name, tensor in tensors_of(small).items():
        original, indices = originals[tensor_name], kept_indices(case.model, case.exact, tensor_name)
        if tensor.shape != torch.Size(len(index) for index in indices):
            continue  # a removed layer took more with it than its own groups
        torch.testing.assert_close(tensor, kept_slice(original, indices), rtol=1e-3, atol=1e-4)
        assert tensor.requires_grad == original.requires_grad
        if tensor.grad is not None and original.grad is not None:
            torch.testing.assert_close(tensor.grad, kept_slice(original.grad, indices), rtol=1e-3, atol=1e-5 * scale)
            compared += 1
    assert compared


@every_architecture
def test_repacking_twice_changes_nothing(name: str) -> None:
    case = removed(name)
    program = sslprune.trace(case.small, case.args)
    again = sslprune.repack(case.small, program, [axis for axis in sslprune.find_axes(program) if axis.exact])
    assert {n: t.shape for n, t in tensors_of(again).items()} == {n: t.shape for n, t in tensors_of(case.small).items()}
    assert relative(case.small, again, case.args) < 1e-6


@every_architecture
def test_nothing_zero_nothing_removed(name: str) -> None:
    model, args = ARCHITECTURES[name]()
    program = sslprune.trace(model, args)
    small = sslprune.repack(model, program, sslprune.find_axes(program))
    assert {n: t.shape for n, t in small.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert relative(model, small.eval(), args) < 1e-6


@every_architecture
def test_frozen_axes_are_never_sliced(name: str) -> None:
    model, args = ARCHITECTURES[name]()
    program = sslprune.trace(model, args)
    axes = sslprune.find_axes(program)
    for axis in axes:
        if axis.frozen:
            zero_groups(model, axis, range(axis.size // 2))
    exact = [axis for axis in axes if axis.exact and not zero_mask(model, axis).any()]
    small = sslprune.repack(model, program, exact + [axis for axis in axes if axis.frozen])
    assert {n: t.shape for n, t in small.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}


@every_architecture
def test_an_axis_that_is_all_zero_keeps_a_group(name: str) -> None:
    model, args = ARCHITECTURES[name]()
    program = sslprune.trace(model, args)
    axes = [axis for axis in sslprune.find_axes(program) if axis.exact]
    for axis in axes:
        zero_groups(model, axis, range(axis.size))
    small = sslprune.repack(model, program, axes)
    assert all(0 not in tensor.shape for tensor in tensors_of(small).values())
    assert relative(model, small.eval(), args) < 1e-6


@every_architecture
def test_cost_counts_what_is_there(name: str) -> None:
    case = removed(name)
    cost = Cost(case.program, case.exact)
    remaining = Cost(sslprune.trace(case.small, case.args), [])
    assert cost.parameters() == count(case.model)
    assert cost.parameters(case.gone) == remaining.parameters() == count(case.small)
    assert cost.macs(case.gone) == remaining.macs() <= cost.macs()


@every_architecture
def test_layers_are_those_that_are_there(name: str, tmp_path: Path) -> None:
    """What is looked up for the kept sizes is what the repacked model asks for, but for a smaller kernel's rim."""
    case, table = removed(name), LayerTable(1, path=tmp_path / "layers.json")
    asked = Cost(case.program, case.exact, table).asked(case.gone)
    remaining = Cost(sslprune.trace(case.small, case.args), [], table).asked()
    one, other = (
        Counter((layer.kind, layer.widths, layer.settings[0], layer.settings[2:4]) for layer in layers)
        for layers in (asked, remaining)
    )
    assert one == other and one


@every_architecture
@pytest.mark.parametrize("measure", ["macs", "parameters"])
def test_savings_are_differences_of_the_cost(name: str, measure: Measure) -> None:
    """To first order: where an axis runs through both sides of one weight, what both take is counted twice."""
    case = removed(name)
    cost = Cost(case.program, case.exact)
    total = getattr(cost, measure)
    savings = cost.savings(case.gone, measure)
    random, exact = np.random.default_rng(0), 0
    for i, gone in enumerate(case.gone):
        assert savings[i].shape == gone.shape
        left = case.gone.left(i)
        for group in random.choice(np.flatnonzero(~gone), min(2, left), replace=False):
            kind = case.exact[i].kind
            if kind in ("kernel", "columns") or (left == 1 and (kind != "layers" or not savings[i][group])):
                continue  # these go when others like them do; an axis keeps its last group, and a sum its last operand
            fall = total(case.gone) - total(case.gone.plus({i: np.array([group])}))
            assert 0.999 * fall <= savings[i][group] <= 2 * fall, (case.exact[i].name, group)
            exact += savings[i][group] == pytest.approx(fall)
    assert exact or not FOUND[name][0]


def test_macs_of_the_plain_network_counted_by_hand() -> None:
    case = removed("plain")
    convolutions = 6 * 3 * 9 * 8 * 8 + 8 * 6 * 9 * 2 * 2
    assert Cost(case.program, []).macs() == convolutions + 10 * 32 + 4 * 10


@every_architecture
def test_a_wrong_slice_is_seen(name: str) -> None:
    """The negative control: one member of one axis sliced one index off must change the output, for every axis."""
    case = removed(name)
    small, held = copy.deepcopy(case.small), 0
    for axis, member in wrong_slices(case.model, small, case.exact, case.args):
        assert not relative(case.model, small, case.args) <= 1e-4, (axis.name, member)
        held += 1
    assert held or not FOUND[name][0]
    assert relative(case.model, small, case.args) < 1e-5


def test_an_axis_that_forgets_members_is_an_error() -> None:
    """An analysis that is wrong cannot get past repack's own check: the batch norm's bias is not zero here."""
    model, args = ARCHITECTURES["residual"]()
    program = sslprune.trace(model, args)
    axis = next(axis for axis in sslprune.find_axes(program) if axis.exact and axis.kind == "filters")
    forgetful = replace(axis, members=tuple(member for member in axis.members if member.name == "stem.0.weight"))
    zero_groups(model, forgetful, [0, 2])
    with pytest.raises(RepackError, match="differs"):
        sslprune.repack(model, program, [forgetful])


# By apply_plan, though no kernel shrank: their own code fixes sizes, or goes on computing a path that is gone.
REFUSED = {"option_a", "dense_concat", "multi_input", "channel_shuffle", "split", "buffers", "branches", "views"}


@every_architecture
@pytest.mark.parametrize("sides", [True, False], ids=["everything", "without kernels"])
def test_a_plan_is_written_read_back_and_applied(name: str, sides: bool, tmp_path: Path) -> None:
    """plan.json holds whatever went; the class becomes as small by it, or a refusal names the module that cannot."""
    case, path = removed(name), tmp_path / "plan.json"
    axes = [axis for axis in case.exact if sides or axis.kind not in ("kernel", "columns")]
    plan = sslprune.make_plan(case.model, case.program, axes)
    path.write_text(plan.model_dump_json())
    assert read_plan(path) == plan
    own, places = copy.deepcopy(case.model), dict(case.model.named_modules())
    try:
        sslprune.apply_plan(own, read_plan(path))
    except RepackError as error:
        assert sides or name in REFUSED, error
        place, _, rest = str(error).partition(":")
        assert (place == "the model" or place in places) and "sslprune.load" in rest, error
    else:
        assert name not in REFUSED and relative(case.model, own, case.args) < 1e-5
        assert count(own) < count(case.model) or not FOUND[name][0]


def test_saved_programs_reload_without_sslprune(tmp_path: Path) -> None:
    for name in ARCHITECTURES:
        case = removed(name)
        save_for_reload(name, case.model, case.small, case.args, tmp_path)
    worst = reload_without_sslprune(tmp_path)
    assert worst.keys() == ARCHITECTURES.keys()
    assert max(worst.values()) < 1e-5, worst


@every_architecture
def test_onnx_agrees(name: str, tmp_path: Path) -> None:
    if name == "volumetric" and torch.__version__ < "2.13":
        pytest.skip("torch's exporter to ONNX has no adaptive_max_pool3d there")
    case = removed(name)
    path = tmp_path / "model.onnx"
    sslprune.export_onnx(case.small, case.args, path)
    session = open_session(path)
    args = random_like(case.args, 3, seed=7)
    found = session.run(None, {put.name: arg.numpy() for put, arg in zip(session.get_inputs(), args, strict=True)})
    with torch.no_grad():
        expected = tensors_in(case.model(*args))
    assert difference(expected, [torch.from_numpy(array) for array in found])[1] < 1e-3
