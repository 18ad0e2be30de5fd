"""Weights that are computed from parameters: found in the order in which the graph computes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sslprune
from sslprune.analysis.folding import folded
from sslprune.kinds.find import analysis_of


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised each time it is used (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


def test_computed_weights_come_in_the_order_of_the_graph() -> None:
    """So a plan that names them is the same in every process: a set of nodes is ordered by where they lie in memory."""
    layers = [Standardised(3 if i == 0 else 4, 4, 1) for i in range(24)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(2, 3, 2, 2)
    model(x)
    program = sslprune.trace(model, (x,))
    for graph in program.graphs:
        found = list(folded(graph, program.is_trained))
        assert len(found) == len(layers)
        assert found == [node for node in graph.nodes if node in set(found)]
    computed = [node for node in analysis_of(program).inference.folded if node.graph is program.evaluation]
    read = [next(n for n in program.evaluation.nodes if node in n.all_input_nodes) for node in computed]
    assert [str(node.args[2]) for node in read] == [f"_{i}_bias" for i in range(len(layers))]
