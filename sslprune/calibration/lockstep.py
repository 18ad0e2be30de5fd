"""A graph run over the same batches twice, node by node: with the dense weights, and with the pruned ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sslprune.errors import CalibrationError, first_line

State = Mapping[str, Tensor]  # the tensors of a program, by the names of its graphs
Values = dict[fx.Node, Any]  # what nodes have made, of one batch


def evaluate(node: fx.Node, values: Values, state: State) -> Any:
    """What the operator of ``node`` makes of ``values`` and of the tensors in ``state``."""
    args, kwargs = read(node.args, values, state), read(dict(node.kwargs), values, state)
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, IndexError) as error:  # a token beyond the table, a size that the graph does not take
        raise CalibrationError(f"samples: {node.name} cannot be computed of them: {first_line(error)}") from error


def read(given: Any, values: Values, state: State) -> Any:
    """``given``, arguments of a node, with what its nodes stand for in their place."""
    return pytree.tree_map_only(fx.Node, lambda node: value_of(node, values, state), given)


def value_of(node: fx.Node, values: Values, state: State) -> Any:
    return state[str(node.target)] if node.op == "get_attr" else values[node]


def wide(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 at least: sums of squares do not fit into fewer bits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class Lockstep:
    """What every batch has come to at one place of a graph, by the ``dense`` weights and by the ``pruned`` ones.

    A value is held from where it is made until it was last read, so that memory is bounded by what is alive at one
    place. Where both models are still the same, a value is computed and held once. ``pruned`` may change as the graph
    runs, for nodes that have not run yet. ``order``: the graph's nodes, each after those that it reads.
    """

    def __init__(self, order: Sequence[fx.Node], dense: State, pruned: State) -> None:
        self.order, self.dense, self.pruned = order, dense, pruned
        self.values: list[tuple[Values, Values]] = []  # of each batch, (dense, pruned)
        at = {node: i for i, node in enumerate(order)}
        self._dead: dict[int, list[fx.Node]] = {}  # after which place nobody reads them any more
        for node in order:
            if node.op != "get_attr":
                self._dead.setdefault(max([at[node], *(at[user] for user in node.users)]), []).append(node)

    @torch.no_grad()
    def run(
        self, batches: Iterable[Sequence[Any]], visit: Callable[[fx.Node], None] = lambda node: None
    ) -> list[tuple[list[Any], list[Any]]]:
        """The outputs' leaves of each batch, (dense, pruned); ``batches`` hold the leaves of the inputs.

        ``visit(node)`` is called before an operator runs.
        """
        inputs = [node for node in self.order if node.op == "placeholder"]
        self.values = [
            (dict(zip(inputs, leaves, strict=True)), dict(zip(inputs, leaves, strict=True))) for leaves in batches
        ]
        outputs: list[tuple[list[Any], list[Any]]] = []
        for i, node in enumerate(self.order):
            if node.op == "call_function":
                visit(node)
                for dense, pruned in self.values:
                    dense[node] = evaluate(node, dense, self.dense)
                    same = self.is_shared(node, dense, pruned)
                    pruned[node] = dense[node] if same else evaluate(node, pruned, self.pruned)
            elif node.op == "output":
                outputs = [
                    (list(read(node.args[0], dense, self.dense)), list(read(node.args[0], pruned, self.pruned)))
                    for dense, pruned in self.values
                ]
            for dead in self._dead.get(i, ()):
                for pair in self.values:
                    for values in pair:
                        values.pop(dead, None)
        return outputs

    def is_shared(self, node: fx.Node, dense: Values, pruned: Values) -> bool:
        """Whether both models have the very same tensors to work on at ``node``."""
        return all(
            value_of(source, dense, self.dense) is value_of(source, pruned, self.pruned)
            for source in node.all_input_nodes
        )
