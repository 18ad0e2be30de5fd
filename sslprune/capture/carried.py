"""Where a model's carried state stands among its inputs and outputs (``values.carry`` says which models have one)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sslprune.errors import TraceError
from sslprune.values.carry import carries
from sslprune.values.inputs import num_rows


def carried_state(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], exported: torch.export.ExportedProgram
) -> tuple[tuple[int, int], ...]:
    """Where the carried state stands among the leaves of the inputs and of the outputs; raises TraceError for none."""
    if not carries(model):
        return ()
    initial = pytree.tree_leaves(model.initial_state(num_rows((args, kwargs))))  # type: ignore[operator]
    given, spec = pytree.tree_leaves(args[-1]), exported.call_spec.out_spec
    parts = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    parts = list(parts.values()) if isinstance(parts, Mapping) else parts if isinstance(parts, tuple | list) else []
    returned = len(pytree.tree_leaves(parts[-1])) if len(parts) > 1 else 0
    inputs, outputs = len(pytree.tree_leaves(args)) - len(given), spec.num_leaves - returned
    values: list[Any] = [node.meta.get("val") for node in _outputs(exported.graph)[outputs:]] if returned else []
    shapes = [
        [tuple(leaf.shape[1:]) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        for leaves in (initial, given, values)
    ]
    if not initial or shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        raise TraceError(
            f"{type(model).__name__} has an initial_state of shapes {shapes[0]}, without the batch; expected the same "
            f"as last argument, got {shapes[1]}, and as last of the outputs, got {shapes[2]}"
        )
    if any(leaf.count_nonzero() for leaf in initial):
        raise TraceError(
            f"{type(model).__name__}: the initial state is not zero; expected zeros, which stay where units go"
        )
    return tuple((inputs + i, outputs + i) for i in range(len(given)))


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    leaves: Any = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    return list(leaves)
