"""The mode that a module is in, and how it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every submodule's own mode comes back after it."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    try:
        module.eval()
    except NotImplementedError:  # a loaded .pt2 has one mode only, and refuses to be asked
        modes = {}
    try:
        yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training
