"""Experts: the parts of a mixture among which a router chooses, each with its row of the router."""

from __future__ import annotations

from sslprune.analysis.inference import Inference
from sslprune.capture.program import operator_name
from sslprune.kinds.kind import Kind
from sslprune.values.axes import Axis


class ExpertKind(Kind):
    """As many as the router picks stay. Its choice can do without one exactly where a gate can close on it."""

    @property
    def is_width(self) -> bool:
        return False

    def gates(self, g: Inference, axis: Axis) -> tuple[str, ...]:
        if axis.exact or axis.frozen:
            return ()
        made = [member for member in axis.members if member.role == "makes" and member.dim == 0]
        linear = {
            str(contraction.weight.target)
            for node, facts in g.facts.items()
            for contraction in facts.contractions
            if node.op == "call_function" and operator_name(node) == "linear" and contraction.weight.op == "get_attr"
        }
        return tuple(m.name for m in made if m.name in linear and g.program.tensors[m.name].dim() == 2)
