"""Which operators of a graph draw random numbers, and what is said of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sslprune.capture.refusals import place

OFF = {"train": False, "training": False, "dropout": 0.0, "dropout_p": 0.0, "p": 0.0}  # arguments that draw nothing


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
    """Whether a node draws random numbers, as its operator's tags and its arguments say."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    arguments = node.target._schema.arguments
    given: dict[str, Any] = {argument.name: argument.default_value for argument in arguments if argument.name in OFF}
    given |= {argument.name: value for argument, value in zip(arguments, node.args, strict=False)} | node.kwargs
    return not any(name in given and given[name] == off for name, off in OFF.items())
