"""The functional form of an exported program: a flat graph without guards, sub-graphs or in-place operators."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sslprune.capture.gradients import flatten_regions_
from sslprune.capture.lengths import any_length
from sslprune.capture.program import operator_name, quiet
from sslprune.capture.refusals import place
from sslprune.errors import TraceError

PASSES = {"dropout", "feature_dropout", "alpha_dropout", "type_as"}  # may return the input itself, and do not say so


def functional(exported: torch.export.ExportedProgram) -> tuple[fx.Graph, nn.Module]:
    """The exported program's graph without guards or in-place operators, its state as ``get_attr`` nodes."""
    with quiet(), any_length():
        module = exported.module(check_guards=False)
        flatten_regions_(module)
        if _sub_graphs(module) or not _functionalize(module.graph):
            module = exported.run_decompositions({}).module(check_guards=False)
            if not _functionalize(module.graph):
                raise TraceError("the model changes a view of a tensor in place in a way that cannot be undone")
            for node in module.graph.nodes:  # what was a flatten is a view by now, and fails in another memory format
                if node.target is torch.ops.aten.view.default:
                    node.target = torch.ops.aten.reshape.default
    for node in _sub_graphs(module):
        raise TraceError(
            f"{place(next(iter(node.users), node))} decides by the data what is computed: such a model has no one "
            "graph; trace a model without it"
        )
    module.graph.eliminate_dead_code(is_impure_node=_writes_state)
    for node in module.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor) and any(
                isinstance(n, torch.SymInt) and n.node.hint is None for n in value.shape
            ):
                raise TraceError(f"{place(node)}: its size depends on the data; such a model has no fixed axes")
    return module.graph, module


def _sub_graphs(module: nn.Module) -> list[fx.Node]:
    """The graphs within the graph: control flow, and regions of another autocast or gradient mode."""
    graph: fx.Graph = module.graph  # type: ignore[assignment]
    return [
        n
        for n in graph.nodes
        if n.op == "get_attr" and hasattr(module, n.target) and isinstance(getattr(module, n.target), nn.Module)
    ]


def _functionalize(graph: fx.Graph) -> bool:
    """Replace ``op_`` by ``op``; False where another view of the changed tensor is read afterwards."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    roots: dict[fx.Node, fx.Node] = {}  # of the nodes so far
    families: dict[fx.Node, list[fx.Node]] = {}  # of each root: what shares its memory so far
    for node in list(graph.nodes):
        if _is_view(node):
            roots[node] = roots[node.args[0]]
        else:
            roots[node] = node
        families.setdefault(roots[node], []).append(node)
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if not node.target._schema.is_mutable or not isinstance(node.args[0], fx.Node):
            continue
        changed = node.args[0]
        root = roots[changed]
        if root.op == "get_attr":
            if changed is not root and operator_name(node) != "copy_":
                return False
            if changed is root:  # a buffer's update stays, and what reads its result reads the buffer
                node.replace_all_uses_with(root)
            continue
        late = any(
            order.get(user, -1) > order[node]
            for other in families[root]
            if other is not changed
            for user in other.users
        )
        name, overload = operator_name(node)[:-1], node.target._overloadname
        packet = getattr(torch.ops.aten, name, None)
        if late or not operator_name(node).endswith("_") or packet is None or not hasattr(packet, overload):
            return False
        node.target = getattr(packet, overload)
        for user in list(changed.users):
            if order[user] > order[node]:
                user.replace_input_with(changed, node)
    graph.lint()
    return True


def _is_view(node: fx.Node) -> bool:
    """Whether the node's result may share memory with its first argument."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    first = node.target._schema.arguments[0]
    return (first.alias_info is not None and not first.alias_info.is_write) or operator_name(node) in PASSES


def _root(node: fx.Node) -> fx.Node:
    while _is_view(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _writes_state(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if not node.target._schema.is_mutable and operator_name(node) != "batch_norm":
        return False
    return (
        any(isinstance(a, fx.Node) and _root(a).op == "get_attr" for a in node.args[:5])
        and node.target._schema.is_mutable
    )
