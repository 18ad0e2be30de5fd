"""A law for every rule: between two layers, each operator of the table keeps what the model computes, or freezes.

A new rule needs no test of its own: its row is tried here, with arguments made from the operator's schema.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import sslprune
from sslprune.analysis.rules import RULES
from sslprune.capture.program import Program, operator_name
from sslprune.kinds.find import analysis_of
from sslprune.values.axes import Axis, zero_groups
from sslprune.values.compare import difference
from tests.laws import lively_
from tests.schemas import calls_of, packet_of
from tests.smallest import FEATURES, ROWS, Smallest

DRAWS = {"bernoulli", "rand", "rand_like", "randn", "randn_like"}  # in evaluation too: another width, other numbers
FREEZES = DRAWS | {
    "_conj",  # of complex numbers alone, and what makes them has no rule
    "tril", "triu",  # a triangle keeps its shape
    "tril_indices", "triu_indices",  # what is looked up keeps its places
}  # fmt: skip


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
