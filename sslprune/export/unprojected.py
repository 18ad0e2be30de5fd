"""An LSTM with a projection (Sak et al. 2014), said with one that has none: ONNX's LSTM operator knows no projection.

With m = o ⊙ tanh(c), the projected state is h = P m, and the gates read W_hh h = (W_hh P) m. So the plain LSTM with the
recurrent matrix W_hh P computes m, and P is applied to its outputs. A first state h0 becomes P⁺ h0, as P P⁺ h0 = h0
for a P of full row rank; where it is not of full rank the comparison after the export says so.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sslprune.errors import ExportError

aten = torch.ops.aten


def unproject_(module: fx.GraphModule) -> None:
    """Rewrite, in place, each projected ``aten.lstm`` of an exported module."""
    for node in [node for node in module.graph.nodes if is_projected(node)]:
        _rewrite(module, node)
    module.graph.eliminate_dead_code()


def is_projected(node: fx.Node) -> bool:
    """Whether the node is an ``aten.lstm`` with a projection."""
    if node.target is not aten.lstm.input:
        return False
    args: Any = node.args
    _, _, params, _, num_layers, _, _, bidirectional, _ = args
    return len(params) // (num_layers * (2 if bidirectional else 1)) in (3, 5)


def _rewrite(module: fx.GraphModule, node: fx.Node) -> None:
    """One plain LSTM a layer: a layer reads the projected output of the one below."""
    args: Any = node.args
    x, (h0, c0), params, has_biases, num_layers, dropout, train, bidirectional, batch_first = args
    directions = 2 if bidirectional else 1
    per = len(params) // (num_layers * directions)
    graph = module.graph
    last_h: list[fx.Node] = []
    last_c: list[fx.Node] = []
    with graph.inserting_before(node):

        def call(target: Any, *args: Any) -> fx.Node:
            return graph.call_function(target, args)

        def constant(tensor: Tensor, word: str) -> fx.Node:
            name = f"_{node.name}_{word}_{len(module._buffers)}"
            module.register_buffer(name, tensor.detach())
            return graph.get_attr(name)

        def projected(value: fx.Node, matrices: list[Tensor], dim: int) -> fx.Node:
            """``value`` times the transpose of each direction's matrix; the directions are the halves of ``dim``."""
            size = matrices[0].shape[1] if dim == -1 else 1
            parts = [
                call(
                    aten.linear.default,
                    call(aten.slice.Tensor, value, dim, d * size, (d + 1) * size) if directions > 1 else value,
                    constant(matrix, "projection"),
                )
                for d, matrix in enumerate(matrices)
            ]
            return call(aten.cat.default, parts, dim) if directions > 1 else parts[0]

        for layer in range(num_layers):
            weights: list[fx.Node] = []
            down: list[Tensor] = []
            for d in range(directions):
                w_ih, w_hh, *biases, w_hr = params[(layer * directions + d) * per : (layer * directions + d + 1) * per]
                recurrent, projection = (_tensor(module, weight) for weight in (w_hh, w_hr))
                merged = (recurrent.double() @ projection.double()).to(recurrent.dtype)
                weights += [w_ih, constant(merged, "recurrent"), *biases]
                down.append(projection)
            up = [torch.linalg.pinv(projection.double()).to(projection.dtype) for projection in down]
            h, c = (call(aten.slice.Tensor, s, 0, layer * directions, (layer + 1) * directions) for s in (h0, c0))
            state = [projected(h, up, 0), c]
            made = call(aten.lstm.input, x, state, weights, has_biases, 1, 0.0, train, bidirectional, batch_first)
            x = projected(call(operator.getitem, made, 0), down, -1)
            last_h.append(projected(call(operator.getitem, made, 1), down, 0))
            last_c.append(call(operator.getitem, made, 2))
            if dropout and layer + 1 < num_layers:
                x = call(aten.dropout.default, x, dropout, train)
        for user in list(node.users):
            output: Any = user.args[1]
            user.replace_all_uses_with(x if output == 0 else call(aten.cat.default, (last_h, last_c)[output - 1], 0))
            graph.erase_node(user)
    graph.erase_node(node)


@torch.no_grad()
def _tensor(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The numbers of a weight, which may be computed of others: what a repack leaves square is padded in the graph."""
    if node.op == "call_function":
        args, kwargs = pytree.tree_map_only(fx.Node, lambda n: _tensor(module, n), (node.args, dict(node.kwargs)))
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if node.op != "get_attr":
        raise ExportError(f"an LSTM's projection is computed from the input {node.name}; ONNX needs it as a weight")
    path, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(path), name)
