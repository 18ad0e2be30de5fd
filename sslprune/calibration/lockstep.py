"""A graph run over the same batches twice, node by node: with the dense weights, and with the pruned ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from sslprune.calibration.shelf import Kept, Shelf
from sslprune.errors import CalibrationError, first_line

State = Mapping[str, Tensor]  # the tensors of a program, by the names of its graphs
Values = dict[fx.Node, Any]  # what nodes have made, of one batch
Outputs = tuple[list[Any], list[Any]]  # the leaves of what comes out, (dense, pruned)


def evaluate(node: fx.Node, values: Values, state: State) -> Any:
    """What the operator of ``node`` makes of ``values`` and of the tensors in ``state``."""
    args, kwargs = read(node.args, values, state), read(dict(node.kwargs), values, state)
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, IndexError) as error:  # a token beyond the table, a size that the graph does not take
        raise CalibrationError(f"samples: {node.name} cannot be computed of them: {first_line(error)}") from error


def read(given: Any, values: Values, state: State) -> Any:
    """``given``, arguments of a node, with what its nodes stand for in their place."""
    return fx.map_arg(given, lambda node: value_of(node, values, state))


def value_of(node: fx.Node, values: Values, state: State) -> Any:
    return state[str(node.target)] if node.op == "get_attr" else values[node]


def wide(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 at least: sums of squares do not fit into fewer bits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@torch.no_grad()
def weigh(graph: fx.Graph, state: State, leaves: Sequence[Any]) -> tuple[int, int]:
    """Bytes of what the nodes make of one batch: those alive at once, at most, and all of them together."""
    values: Values = dict(zip((node for node in graph.nodes if node.op == "placeholder"), leaves, strict=True))
    left = {node: len(node.users) for node in graph.nodes}
    sizes: dict[fx.Node, int] = {}
    alive = most = total = 0
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        values[node] = evaluate(node, values, state)
        known = {t.untyped_storage().data_ptr() for n in node.all_input_nodes for t in _tensors(n, values)}
        made = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(node, values)}
        sizes[node] = sum(size for storage, size in made.items() if storage not in known)
        alive, total = alive + sizes[node], total + sizes[node]
        most = max(most, alive)
        for source in {*node.all_input_nodes, node}:
            left[source] -= source is not node
            if not left[source] and source in values:
                del values[source]
                alive -= sizes.get(source, 0)
    return most, total


def _tensors(node: fx.Node, values: Values) -> list[Tensor]:
    found = pytree.tree_leaves(values.get(node))
    return [leaf for leaf in found if isinstance(leaf, Tensor) and leaf.layout is torch.strided]


class Lockstep:
    """What every batch has come to at one place of a graph, by the ``dense`` weights and by the ``pruned`` ones.

    The graph is run from one of ``stops`` to the next, one batch after another. Of each batch those values alone are
    kept that are read later, in ``memory`` bytes and in temporary files beyond them. Where both models are still the
    same, a value is computed and kept once. ``pruned`` may change at a stop, for nodes that have not run yet.
    ``order``: the graph's nodes, each after those that it reads.
    """

    def __init__(
        self,
        order: Sequence[fx.Node],
        dense: State,
        pruned: State,
        stops: Collection[fx.Node] = (),
        memory: float = inf,
    ) -> None:
        self.order, self.dense, self.pruned = order, dense, pruned
        self._shelf = Shelf(memory)
        self._alive: list[tuple[dict[fx.Node, Kept], dict[fx.Node, Kept]]] = []  # of each batch, (dense, pruned)
        at = {node: i for i, node in enumerate(order)}
        self._last = {node: max([at[node], *(at[user] for user in node.users)]) for node in order}
        self._dead: dict[fx.Node, list[fx.Node]] = {}  # after which node nobody reads them any more
        for node, last in self._last.items():
            self._dead.setdefault(order[last], []).append(node)
        self._cuts = sorted({0, len(order), *(at[node] for node in stops)})

    @property
    def count(self) -> int:
        """How many batches there are."""
        return len(self._alive)

    @torch.no_grad()
    def run(
        self, batches: Iterable[Sequence[Any]], visit: Callable[[fx.Node], None] = lambda node: None
    ) -> list[Outputs]:
        """The outputs' leaves of each batch, (dense, pruned); ``batches`` hold the leaves of the inputs.

        ``visit(node)`` is called before one of the stops runs.
        """
        inputs = [node for node in self.order if node.op == "placeholder"]
        for leaves in batches:
            given = {node: Kept(leaf) for node, leaf in zip(inputs, leaves, strict=True)}  # in memory anyway
            self._alive.append((given, dict(given)))
        outputs: list[Outputs] = []
        try:
            for first, end in pairwise(self._cuts):
                if first:
                    visit(self.order[first])
                outputs = [self._on(i, first, end) for i in range(self.count)]
                self._forget([node for node, last in self._last.items() if first <= last < end])
        finally:
            self._shelf.close()
        return outputs

    def at(self, batch: int, nodes: Iterable[fx.Node]) -> tuple[Values, Values]:
        """What ``nodes`` have made of one batch, (dense, pruned); parameters are left out."""
        wanted = [node for node in dict.fromkeys(nodes) if node.op != "get_attr"]
        read_once: dict[Kept, Any] = {}
        found: tuple[Values, Values] = ({}, {})
        for values, alive in zip(found, self._alive[batch], strict=True):
            for node in wanted:
                kept = alive[node]
                if kept not in read_once:
                    read_once[kept] = self._shelf.get(kept)
                values[node] = read_once[kept]
        return found

    def ahead(self, batch: int, node: fx.Node, dense: Values) -> Any:
        """What the dense model makes at the next stop, ``node``, of ``dense``; it is kept, and not computed again."""
        alive, _ = self._alive[batch]
        if node not in alive:
            alive[node] = self._shelf.put(evaluate(node, dense, self.dense), (node, 0))
        return self._shelf.get(alive[node])

    def is_shared(self, node: fx.Node) -> bool:
        """Whether both models have the very same tensors to work on at ``node``."""
        tensors = [source for source in node.all_input_nodes if source.op == "get_attr"]
        others = [source for source in node.all_input_nodes if source.op != "get_attr"]
        same = all(self.dense[str(source.target)] is self.pruned[str(source.target)] for source in tensors)
        return same and all(dense[source] is pruned[source] for dense, pruned in self._alive for source in others)

    def keep_last(self, count: int) -> None:
        """Go on with the last ``count`` batches alone."""
        self._forget(list(self.order), self._alive[:-count])
        self._alive = self._alive[-count:]

    def _on(self, batch: int, first: int, end: int) -> Outputs:
        """Run one batch from one stop to the next; the outputs, where the graph ends."""
        nodes = [node for node in self.order[first:end] if node.op != "placeholder"]
        made = {node for node in nodes if node.op == "call_function"}
        dense, pruned = self.at(batch, (s for node in nodes for s in node.all_input_nodes if s not in made))
        outputs: Outputs = ([], [])
        ahead, _ = self._alive[batch]
        for node in nodes:
            if node.op == "call_function":
                same = all(
                    value_of(source, dense, self.dense) is value_of(source, pruned, self.pruned)
                    for source in node.all_input_nodes
                )
                dense[node] = self._shelf.get(ahead[node]) if node in ahead else evaluate(node, dense, self.dense)
                pruned[node] = dense[node] if same else evaluate(node, pruned, self.pruned)
            elif node.op == "output":
                outputs = (list(read(node.args[0], dense, self.dense)), list(read(node.args[0], pruned, self.pruned)))
            for dead in self._dead.get(node, ()):
                dense.pop(dead, None)
                pruned.pop(dead, None)
        for node in made:
            if self._last[node] >= end:
                self._keep(batch, node, dense[node], pruned[node])
        return outputs

    def _keep(self, batch: int, node: fx.Node, dense: Any, pruned: Any) -> None:
        alive = self._alive[batch]
        if node not in alive[0]:
            alive[0][node] = self._shelf.put(dense, (node, 0))
        alive[1][node] = alive[0][node] if pruned is dense else self._shelf.put(pruned, (node, 1))

    def _forget(
        self, nodes: Sequence[fx.Node], batches: Sequence[tuple[dict[fx.Node, Kept], ...]] | None = None
    ) -> None:
        for sides in self._alive if batches is None else batches:
            for kept in {side.pop(node) for node in nodes for side in sides if node in side}:
                self._shelf.drop(kept)
        if batches is None:
            for node in nodes:
                self._shelf.close((node, 0))
                self._shelf.close((node, 1))
