"""A law for every rule: between two layers, each operator of the table keeps what the model computes, or freezes.

A new rule needs no test of its own: its row is tried here, with arguments made from the operator's schema.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sslprune
from sslprune.analysis.rules import RULES
from sslprune.capture.program import Program, operator_name
from sslprune.errors import ExportError
from sslprune.kinds.find import analysis_of
from sslprune.values.axes import Axis, zero_groups
from sslprune.values.compare import difference
from tests.arguments import CALLS
from tests.laws import lively_
from tests.schemas import calls_of, packet_of
from tests.smallest import FEATURES, ROWS, Smallest

DRAWS = {"bernoulli", "rand", "rand_like", "randn", "randn_like"}  # in evaluation too: another width, other numbers
FREEZES = DRAWS | {
    "_conj",  # of complex numbers alone, and what makes them has no rule
    "tril", "triu",  # a triangle keeps its shape
    "tril_indices", "triu_indices",  # what is looked up keeps its places
    "histc", "one_hot", "scatter",  # of numbers that name what was chosen alone: see tests/test_experts.py
}  # fmt: skip


# The exporter has no translation, or has one that ONNX Runtime does not take: families that fail for one reason.
NOT_IN_ONNX = {
    "other numbers in torch and in ONNX": sorted(DRAWS),
    "no such function": ["lgamma", "digamma"],
    "bfloat16": ["_grouped_mm"],
    "pools of places that differ in size, in three dimensions": ["adaptive_avg_pool3d", "_adaptive_avg_pool3d"],
    "pixels by their middles": [f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)],
    "pools of drawn places": ["fractional_max_pool2d", "fractional_max_pool3d"],
    "no order but TopK's: sort.stable is what fails": ["sort", "argsort", "median"],
    "no scans but the sum's": ["cumprod", "cummax", "cummin"],
    "by counts that are a tensor": ["repeat_interleave"],
    "places of a volume": ["grid_sampler_3d"],
}
AT_ONCE = 25  # operators in one ONNX file: an export of one takes about as long
EXPORTED = [name for name in RULES if not any(name in family for family in NOT_IN_ONNX.values())]


@dataclass(frozen=True)
class Case:
    model: nn.Module  # masked
    program: Program
    axes: list[Axis]
    small: nn.Module


@functools.cache
def removed(name: str) -> Case:
    """The smallest graph with an operator, half of the groups of each exact axis zeroed, and repacked."""
    torch.manual_seed(0)
    model = lively_(Smallest(packet_of(name), calls_of(name))).eval()
    program = sslprune.trace(model, (torch.randn(ROWS, FEATURES),))
    axes = [axis for axis in sslprune.find_axes(program) if axis.kind not in ("columns", "layers")]
    exact = [axis for axis in axes if axis.exact]
    random = np.random.default_rng(0)
    for axis in exact:
        zero_groups(model, axis, random.permutation(axis.size)[: axis.size // 2])
    return Case(model, program, exact, sslprune.repack(model, program, exact).eval())


@pytest.mark.parametrize("name", RULES)
def test_an_operator_between_two_layers_keeps_what_is_left_or_freezes(name: str) -> None:
    try:
        case = removed(name)
    except LookupError as error:
        pytest.fail(str(error))
    graph, g = case.program.evaluation, analysis_of(case.program).inference
    found = [node for node in graph.nodes if node.op == "call_function" and operator_name(node) == name]
    assert found, f"{name} is captured as {sorted({operator_name(n) for n in graph.nodes if n.op == 'call_function'})}"
    for node in found:
        for i, dims in enumerate(g.facts[node].outputs):
            assert tuple(dim.size for dim in dims) == g.shape(node, i), f"result {i} of {name}"
    if name in FREEZES:
        assert not case.axes, f"{name} freezes nothing more: take it out of FREEZES"
    else:
        assert case.axes, f"{name} freezes all that it touches: mend its rule, or say so in FREEZES"
    for rows in (3, 5) if case.program.dynamic_batch and name not in DRAWS else ():
        x = torch.randn(rows, FEATURES)
        with torch.no_grad():
            assert difference(case.model(x), case.small(x))[1] < 1e-5


def test_a_row_without_arguments_says_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CALLS, "im2col")
    with pytest.raises(LookupError, match=r'argument kernel_size .*add a row to CALLS in tests/arguments.py: "im2col"'):
        calls_of("im2col")


class Together(nn.Module):
    """The repacked models of several operators, on one input."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(removed(name).small for name in names)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [made for part in self.parts for made in part(x)]


def export(names: Sequence[str], folder: Path) -> None:
    """Export what is left around each operator, and compare it with torch; raises ExportError where it differs."""
    sslprune.export_onnx(Together(names).eval(), (torch.randn(ROWS, FEATURES),), folder / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [EXPORTED[i : i + AT_ONCE] for i in range(0, len(EXPORTED), AT_ONCE)], ids=lambda names: names[0]
)
def test_what_is_left_computes_the_same_in_onnx(names: list[str], tmp_path: Path) -> None:
    try:
        export(names, tmp_path)
    except ExportError:
        for name in names:  # which one it is
            try:
                export([name], tmp_path)
            except ExportError as error:
                pytest.fail(f"{name}: {error}; mend it, or add it to NOT_IN_ONNX with the reason")
        raise


@pytest.mark.slow
@pytest.mark.parametrize("name", [family[0] for family in NOT_IN_ONNX.values()])
def test_what_onnx_lacks_is_refused(name: str, tmp_path: Path) -> None:
    """The first of each family."""
    with pytest.raises(ExportError):
        export([name], tmp_path)
