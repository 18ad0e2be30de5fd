"""Weights that are computed from parameters: normalised, standardised, or otherwise mixed along what may be removed.

What such a computation gives does not depend on the input, so repack evaluates it once on the whole parameters and
slices the result: the computed weight becomes a parameter of the repacked model, and the computation is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from sslprune.capture.program import operator_name

MIXING = {
    "_weight_norm", "_weight_norm_interface", "batch_norm", "std", "std_mean", "var", "var_mean", "mean", "sum", "norm",
    "linalg_vector_norm", "frobenius_norm", "native_batch_norm", "softmax", "layer_norm", "instance_norm", "mv", "dot",
    "_native_batch_norm_legit", "_native_batch_norm_legit_functional", "linalg_qr", "matrix_exp", "cumsum", "amax",
}  # fmt: skip


def folded(graph: fx.Graph, is_trained: Callable[[str], bool]) -> dict[fx.Node, set[fx.Node]]:
    """Each node that is a computed weight, with the computation behind it."""
    constant: set[fx.Node] = set()
    behind: dict[fx.Node, set[fx.Node]] = {}
    mixed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and node.all_input_nodes and all(n in constant for n in node.all_input_nodes)
        ):
            if node.op == "call_function" and hasattr(node.target, "_schema") and node.target._schema.is_mutable:
                continue
            constant.add(node)
            behind[node] = {node}.union(*(behind[n] for n in node.all_input_nodes))
            if operator_name(node) in MIXING or any(n in mixed for n in node.all_input_nodes):
                mixed.add(node)
    return {
        node: behind[node]
        for node in behind  # the graph's order: a set's would differ between processes, and with it the plan
        if node in mixed
        and any(user not in constant for user in node.users)
        and any(n.op == "get_attr" and is_trained(str(n.target)) for n in behind[node])
    }


@torch.no_grad()
def evaluate(node: fx.Node, behind: set[fx.Node], state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The value of a computed weight."""
    values: dict[fx.Node, Any] = {}
    for step in node.graph.nodes:
        if step not in behind:
            continue
        if step.op == "get_attr":
            values[step] = state[str(step.target)].detach()
        else:
            args, kwargs = pytree.tree_map_only(fx.Node, values.__getitem__, (step.args, dict(step.kwargs)))
            values[step] = step.target(*args, **kwargs)
    result = values[node]
    assert isinstance(result, torch.Tensor)
    return result
