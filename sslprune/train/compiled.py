"""The model that trains, compiled by torch.compile: fewer kernels, each for one shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sslprune.errors import TrainingError, first_line


class Compiler:
    """``compiler(model)`` is what is called in place of ``model``: itself, unless it is ``wanted`` compiled.

    What was compiled serves for as long as the model is the same object. A shrink makes another one.
    Raises TrainingError for recurrent layers: torch leaves the modules alone, and unrolls what a shrink makes of them
    step by step, which takes minutes.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.model: nn.Module | None = None
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, model: nn.Module) -> Callable[..., Any]:
        if not self.wanted:
            return model
        check_compiles(model)
        if self.compiled is None or model is not self.model:
            torch.compiler.reset()  # sizes before a shrink count as shapes, of which torch compiles a few
            self.model, self.compiled = model, told()(torch.compile(model))
        return self.compiled


def check_compiles(model: nn.Module) -> None:
    """Raise TrainingError for a model with recurrent layers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            raise TrainingError(
                f"train.compile: layer {name} ({type(module).__name__}) is recurrent, which torch.compile does not "
                "make faster; set train.compile = false"
            )


@contextmanager
def told() -> Iterator[None]:
    """Failures to compile are one line, in the forward pass and in the backward, which is compiled when it is asked."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise TrainingError(
            f"train.compile: torch.compile failed: {first_line(error)}; set train.compile = false"
        ) from error
