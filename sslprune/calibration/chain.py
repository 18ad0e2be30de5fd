"""Where what a contraction makes goes: into a sum, with nothing but scales, shifts and views on the way.

The sum is what the rest of the model reads. So its whole error, that of what else is added to it included, is what the
contraction is fitted to make up for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sslprune.calibration.lockstep import State, Values, evaluate
from sslprune.capture.program import operator_name

# Of one tensor that runs through and constants: each number is scaled and shifted by itself, and may change its place.
PLAIN = {
    "batch_norm", "_native_batch_norm_legit_no_training", "add", "add_", "sub", "mul", "mul_", "div", "neg", "view",
    "_unsafe_view", "reshape", "permute", "transpose", "t", "swapaxes", "movedim", "flatten", "unflatten", "squeeze",
    "unsqueeze", "dropout", "dropout_", "feature_dropout", "clone", "contiguous", "alias", "to", "_to_copy",
}  # fmt: skip
SUMS = {"add", "add_"}


@dataclass(frozen=True)
class Chain:
    """The ``nodes`` from ``start`` (left out) to the sum that it is added to (the last of them)."""

    start: fx.Node
    nodes: tuple[fx.Node, ...]

    def others(self) -> list[fx.Node]:
        """What else the nodes read: parameters, and what is added."""
        own = {self.start, *self.nodes}
        return [source for node in self.nodes for source in node.all_input_nodes if source not in own]

    def total(self, made: Tensor, values: Values, state: State) -> Tensor:
        """What the sum is where ``start`` is ``made``."""
        found: Values = {node: values[node] for node in self.others() if node.op != "get_attr"}
        found[self.start] = made
        for node in self.nodes:
            found[node] = evaluate(node, found, state)
        return found[self.nodes[-1]]

    def reach(self, made: Tensor, values: Values, state: State) -> Tensor:
        """Jᵀ J 1: by how much a change of the sum comes back to each of ``made``, of which the shape alone counts.

        The Jacobian is J = P D, numbers scaled by D that change their places by P.
        """
        with torch.enable_grad():
            here = torch.ones_like(made).requires_grad_()
            total = self.total(here, values, state)
        scale = total.detach() - self.total(torch.zeros_like(made), values, state)
        (square,) = torch.autograd.grad(total, here, scale)
        return square

    def missing(self, made: Tensor, wanted: Tensor, reach: Tensor, values: Values, state: State) -> Tensor:
        """By how much ``made`` has to change for the sum to be ``wanted``: J⁻¹ e = Jᵀ e / (Jᵀ J 1), or 0."""
        with torch.enable_grad():
            here = made.detach().requires_grad_()
            total = self.total(here, values, state)
        (back,) = torch.autograd.grad(total, here, wanted - total.detach())
        return torch.where(reach > 1e-10, back / reach.clamp(min=1e-10), 0.0)


def chain_of(node: fx.Node, behind: dict[fx.Node, set[fx.Node]]) -> Chain | None:
    """The chain from ``node``; None where something else comes in between.

    ``behind``: of each node, all that it is computed from.
    """
    nodes: list[fx.Node] = []
    here = node
    while len(here.users) == 1:
        user = next(iter(here.users))
        if user.op != "call_function" or operator_name(user) not in PLAIN:
            return None
        nodes.append(user)
        added = [n for n in user.all_input_nodes if n is not here and n.op != "get_attr" and _is_tensor(n)]
        if added:
            apart = operator_name(user) in SUMS and not any(node in behind[other] or other is node for other in added)
            return Chain(node, tuple(nodes)) if apart else None
        if user.args[0] is not here and operator_name(user) in ("div", "sub"):
            return None
        here = user
    return None


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def computed_from(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Of each node all that it is computed from."""
    behind: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        behind[node] = set(node.all_input_nodes).union(*(behind[source] for source in node.all_input_nodes))
    return behind


def in_order(graph: fx.Graph, chains: Sequence[Chain]) -> tuple[list[fx.Node], set[Chain]]:
    """The graph's nodes in an order in which all else that a chain reads comes before its start, and which chains can.

    Where two chains end in the same sum, the later one makes up for the earlier one, and not the other way round.
    """
    before: dict[fx.Node, list[fx.Node]] = {}
    taken: set[Chain] = set()
    for chain in chains:
        others = chain.others()
        if not _comes_first(chain.start, others, before):
            before[chain.start] = others
            taken.add(chain)
    order: dict[fx.Node, None] = {}
    for last in graph.nodes:
        stack = [last]
        while stack:
            waiting = [n for n in (*stack[-1].all_input_nodes, *before.get(stack[-1], ())) if n not in order]
            if waiting:
                stack.extend(reversed(waiting))
            else:
                order[stack.pop()] = None
    return list(order), taken


def _comes_first(node: fx.Node, others: Sequence[fx.Node], before: Mapping[fx.Node, Sequence[fx.Node]]) -> bool:
    """Whether one of ``others`` has to wait for ``node``."""
    seen: set[fx.Node] = set()
    stack = list(others)
    while stack:
        here = stack.pop()
        if here is node:
            return True
        if here not in seen:
            seen.add(here)
            stack.extend((*here.all_input_nodes, *before.get(here, ())))
    return False
