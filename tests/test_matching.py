"""An export does not look at the whole graph for each node, and rewrites what it rewrote before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter import _matcher
from torch import Tensor, nn

from sslprune.export.matching import near_matches
from sslprune.export.onnx import export_onnx


class Slices(nn.Module):
    """``n`` slices of a tensor each."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 8) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)[:, 1:7]
        return x


@pytest.mark.parametrize("n", [4, 16])
def test_pairs_tried_grow_with_the_graph(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, whole = [0], _matcher.SimplePatternMatcher._multi_match

    def counted(self: Any, candidate: Any, **options: Any) -> Any:
        tried[0] += not self.pattern.has_single_output_node
        return whole(self, candidate, **options)

    monkeypatch.setattr(_matcher.SimplePatternMatcher, "_multi_match", counted)
    torch.manual_seed(0)
    assert export_onnx(Slices(n).eval(), (torch.randn(2, 6),), tmp_path / "model.onnx") < 1e-5
    assert 0 < tried[0] <= 2 * n  # two passes over the slices, each with itself


HALVES = """
<ir_version: 8, opset_import: ["" : 18]>
halves (float[2, 6] x) => (float[2, 3] y)
<int64[1] begin = {0}, int64[1] middle = {3}, int64[1] end = {6}, int64[1] axes = {1}> {
    other = Tanh(x)
    away = Slice(other, middle, end, axes)
    right = Slice(x, middle, end, axes)
    left = Slice(x, begin, middle, axes)
    both = Mul(left, right)
    y = Add(both, away)
}
"""


def test_two_slices_are_one_split() -> None:
    before, after = (ir.from_proto(onnx.parser.parse_model(HALVES)) for _ in range(2))
    optimize_ir(before)
    with near_matches():
        optimize_ir(after)
    assert sorted(node.op_type for node in after.graph) == ["Add", "Mul", "Slice", "Split", "Tanh"]
    assert [node.op_type for node in after.graph] == [node.op_type for node in before.graph]
