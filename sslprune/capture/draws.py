"""Which operators of a graph draw random numbers, and what is said of them."""

from __future__ import annotations

import torch
from torch import fx

from sslprune.capture.refusals import place
from sslprune.values.draws import draws_by


def random_operators(graph: fx.Graph) -> tuple[str, ...]:
    """The operators that draw, with their module and the line of the person's source; "randn_like in encoder (...)"."""
    return tuple(dict.fromkeys(place(node) for node in graph.nodes if node.users and draws(node)))


def what_is_random(operators: tuple[str, ...]) -> str:
    """What a model does that no exported file can be proven to do; goes on after the model's name."""
    return (
        f"draws random numbers in evaluation mode too: {'; '.join(operators)}; ONNX Runtime draws others, so that "
        "nothing can be compared; F.dropout(x) drops always: write F.dropout(x, training=self.training), and let noise "
        "that is meant come in as an input"
    )


def draws(node: fx.Node) -> bool:
    """Whether a node draws random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and draws_by(node.target, node.args, node.kwargs)
