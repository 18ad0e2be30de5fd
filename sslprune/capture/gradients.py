"""Where gradients stop: regions without them become plain operators with a detach behind, and whom none reaches."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sslprune.capture.mode import tried
from sslprune.capture.program import operator_name, quiet
from sslprune.values.inputs import tensors_in

SHOWN = 3  # names that a note has room for


class _Watch(TorchFunctionMode):
    """Sees whether anything switches gradients on or off."""

    def __init__(self) -> None:
        super().__init__()
        self.switched = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.switched |= func is torch._C._set_grad_enabled
        return func(*args, **(kwargs or {}))


def switches_gradients(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the model's forward, run as it is, turns gradients off or on; buffers and draws are left as they were.

    What torch.export captures without gradients does not say where they were off.
    """
    watch = _Watch()
    args, kwargs = copy.deepcopy((args, kwargs))
    try:
        with quiet(), tried(model), torch.enable_grad(), watch:
            model(*args, **kwargs)
    except Exception:
        return False  # who exports it will say why
    return watch.switched


def flatten_regions_(module: nn.Module) -> None:
    """Put what ran in another gradient mode into the graph itself, in place; what ran without is detached behind it."""
    graph: fx.Graph = module.graph  # type: ignore[assignment]
    without: set[fx.Node] = set()  # made without gradients, and not detached yet
    while regions := [node for node in graph.nodes if _is_region(node)]:
        for region in regions:
            _flatten(module, graph, region, without)
    graph.lint()


def _is_region(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is torch.ops.higher_order.wrap_with_set_grad_enabled


def _flatten(module: nn.Module, graph: fx.Graph, region: fx.Node, without: set[fx.Node]) -> None:
    enabled, body, *given = region.args
    assert isinstance(body, fx.Node)
    inner: Any = getattr(module, str(body.target))
    detached: dict[fx.Node, fx.Node] = {}

    def detach(node: Any) -> Any:
        if node not in without:
            return node
        if node not in detached:
            detached[node] = graph.call_function(torch.ops.aten.detach.default, (node,))
            detached[node].meta = dict(node.meta)
        return detached[node]

    copies: dict[fx.Node, Any] = {}
    with graph.inserting_before(region):
        arguments = iter(map(detach, given) if enabled else given)
        for node in inner.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(arguments)
            elif node.op == "output":
                results = pytree.tree_map_only(fx.Node, copies.__getitem__, node.args[0])
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
                if node.op == "get_attr":  # what lies inside of the inside
                    name = f"{body.target}_{node.target}".replace(".", "_")
                    setattr(module, name, getattr(inner, str(node.target)))
                    copies[node].target = name
                elif not enabled:
                    without.add(copies[node])
        results = results if enabled else pytree.tree_map(detach, results)
    if not isinstance(results, tuple | list):
        region.replace_all_uses_with(results)
    for user in list(region.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(region)
    if not body.users:
        graph.erase_node(body)


def without_gradient(graph: fx.Graph, own: Mapping[str, torch.Tensor]) -> frozenset[str]:
    """The names in ``graph`` of the parameters among ``own`` that train but for no gradient of its outputs."""
    reached: set[fx.Node] = set()
    stack = [node for node in graph.nodes if node.op == "output"]
    while stack:
        node = stack.pop()
        if node not in reached and not _stops(node):
            reached.add(node)
            stack.extend(node.all_input_nodes)
    named = {str(node.target): own[str(node.target)] for node in graph.nodes if str(node.target) in own}
    some = {id(own[str(node.target)]) for node in reached if str(node.target) in own}  # by any of its names
    asked = {name for name, tensor in named.items() if isinstance(tensor, nn.Parameter) and tensor.requires_grad}
    return frozenset(name for name in asked if id(named[name]) not in some)


def _stops(node: fx.Node) -> bool:
    """Whether no gradient passes a node: it is detached, or makes no numbers that have one."""
    value = node.meta.get("val")
    whole = isinstance(value, torch.Tensor) and not (value.is_floating_point() or value.is_complex())
    return node.op == "call_function" and (operator_name(node) == "detach" or whole)


def reached(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: frozenset[str],
    own: Mapping[str, torch.Tensor],
) -> frozenset[str]:
    """Which of the parameters ``names`` get a gradient when the model, in the mode that it is in, is run and derived.

    All of them where that cannot be done. A graph can say less: recomputed activations run without gradients first.
    """
    parameters = list(model.parameters())
    held = [(parameter, parameter.grad) for parameter in parameters]
    args, kwargs = copy.deepcopy((args, kwargs))
    try:
        with quiet(), tried(model), torch.enable_grad():
            for parameter in parameters:
                parameter.grad = None
            made = [y for y in tensors_in(model(*args, **kwargs)) if y.requires_grad]
            torch.autograd.backward(made, [torch.ones_like(y) for y in made])
        return frozenset(name for name in names if own[name].grad is not None)
    except Exception:
        return names
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient


def who_stays(names: list[str]) -> list[str]:
    """What is said of the parameters that no gradient reaches."""
    if not names:
        return []
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return [f"no gradient reaches {shown}: what does not train is not zeroed"]
