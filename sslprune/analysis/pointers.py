"""Numbers that name entries of a dimension, as a router's choice of experts does, and entries that no choice takes.

An entry is *beaten* where every other one is larger: it is -inf, or zero among positive numbers. What picks the largest
never names a beaten entry, so it can go, and the names of the others close up in order. Whoever reads such names has to
know of which dimension they are; one that does not freezes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from sslprune.analysis.atoms import Dim
from sslprune.analysis.zeros import Beaten
from sslprune.capture.program import operator_name

if TYPE_CHECKING:
    from sslprune.analysis.inference import Inference

# What only moves numbers, or changes their type: names stay names, and what is beaten stays so.
MOVING = frozenset((
    "to", "_to_copy", "clone", "contiguous", "detach", "alias", "type_as", "lift_fresh_copy", "view", "reshape",
    "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "permute", "transpose", "t", "expand",
))  # fmt: skip


@dataclass(frozen=True)
class Pointer:
    """Whole numbers that name entries of ``dim``: the largest that ``source`` has along it."""

    dim: Dim
    source: fx.Node

    @property
    def unnamed(self) -> Beaten:
        """Which entries nothing names."""
        return Beaten(self.source, (self.dim,))


def pass_on(g: Inference, node: fx.Node) -> None:
    """State of ``node`` what its first argument says of pointers and beaten entries, where it only moves numbers."""
    first = node.args[0] if node.args else None
    if operator_name(node) in MOVING and isinstance(first, fx.Node):
        facts = g.facts[first]
        if facts.beaten is not None:
            g.facts[node].beaten = Beaten(first, tuple(facts.outputs[0]))
        if 0 in facts.points:
            g.facts[node].points[0] = facts.points[0]


def freeze_unread(g: Inference, node: fx.Node, read: set[fx.Node]) -> None:
    """Freeze what the inputs of ``node`` name, but for those that its rule has ``read`` as names."""
    for source in node.all_input_nodes:
        pointer = g.facts[source].points.get(0)
        if pointer is not None and source not in read:
            g.freeze([pointer.dim], node, "it reads which entries were chosen")
